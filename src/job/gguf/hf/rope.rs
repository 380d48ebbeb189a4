//! Rotary positions: metadata, and the tensors of factors per frequency.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::architectures::{Class, Kind, unsupported};
use super::sizes::Sizes;
use super::yarn::Yarn;
use crate::Result;
use crate::arch::config_json::Fields;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::files::gguf::Value;
use crate::job::gguf::tensor::GgufTensor;
use crate::weight::StoredTensor;

const MAX_POSITIONS: u64 = u32::MAX as u64;

/// The keys of the rotary part that are read, besides those of each kind of attention.
const KEYS: [&str; 20] = [
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "extrapolation_factor",
    "factor",
    "finetuned",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "short_factor",
    "truncate",
    "type",
    // A copy of the model's own.
    "max_position_embeddings",
];

/// The rotary part of a configuration, in either spelling: `rope_theta` + `rope_scaling` +
/// `rope_local_base_freq`, or `rope_parameters`, there possibly one set per kind of attention.
pub(super) struct Rope<'a> {
    scaling: Option<Fields<'a>>,
    kind: &'a str,
    theta: f64,
    /// The base of layers with a sliding window.
    local_theta: Option<f64>,
    /// Share of a head that rotates.
    partial: f64,
    original_context: Option<usize>,
}

/// What goes into the file.
pub(super) struct RopeParts {
    /// Without the prefix of the architecture.
    pub(super) metadata: IndexMap<&'static str, Value>,
    pub(super) tensors: Vec<GgufTensor>,
}

impl<'a> Rope<'a> {
    pub(super) fn read(fields: &Fields<'a>, class: Class) -> Result<Self> {
        let kind = class.kind;
        let mut scaling = match fields.object("rope_parameters")? {
            None => fields.object("rope_scaling")?,
            parameters => parameters,
        };
        let mut local_theta = fields.positive("rope_local_base_freq")?;
        if let Some(per_kind) = &scaling
            && let Some(full) = per_kind.object("full_attention")?
        {
            if let Some(sliding) = per_kind.object("sliding_attention")? {
                check_sliding(&sliding, &full, class)?;
                local_theta = sliding.positive("rope_theta")?.or(local_theta);
            }
            per_kind.refuse_unaccounted(
                |key| matches!(key, "full_attention" | "sliding_attention"),
                &format!("{} with rotary parameters", class.name),
            )?;
            scaling = Some(full);
        }
        if let Some(scaling) = &scaling {
            scaling.refuse_unaccounted(
                |key| KEYS.contains(&key),
                &format!("{} with rotary parameters", class.name),
            )?;
        }
        let within = |key: &str| -> Result<Option<f64>> {
            let inner = scaling.as_ref().map(|inner| inner.positive(key)).transpose()?.flatten();
            Ok(match inner {
                None => fields.positive(key)?,
                inner => inner,
            })
        };
        let default_theta = match kind {
            Kind::Gemma3 | Kind::Mixtral => 1_000_000.0,
            _ => 10_000.0,
        };
        let theta = within("rope_theta")?.unwrap_or(default_theta);
        let partial = within("partial_rotary_factor")?.unwrap_or(1.0);
        let original = "original_max_position_embeddings";
        let inner = scaling.as_ref().map(|inner| inner.optional_size(original, MAX_POSITIONS));
        let outer = fields.optional_size(original, MAX_POSITIONS)?;
        let original_context = match (kind, inner.transpose()?.flatten()) {
            // Its class has this member, which counts more.
            (Kind::Phi3, _) => Some(outer.unwrap_or(4096)),
            (_, None) => outer,
            (_, inner) => inner,
        };
        let kind_of_scaling = match &scaling {
            None => "default",
            Some(inner) => inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default"),
        };
        Ok(Self { scaling, kind: kind_of_scaling, theta, local_theta, partial, original_context })
    }

    /// Metadata and tensors of the whole.
    pub(super) fn parts(
        &self,
        fields: &Fields,
        class: Class,
        sizes: &Sizes,
        warnings: &mut Vec<String>,
    ) -> Result<RopeParts> {
        let mut parts = RopeParts { metadata: IndexMap::new(), tensors: Vec::new() };
        parts.metadata.insert("rope.freq_base", Value::from(self.theta as f32));
        if class.kind == Kind::Gemma3 {
            let local = self.local_theta.unwrap_or(10_000.0);
            parts.metadata.insert("rope.freq_base_swa", Value::from(local as f32));
        }
        if class.kind == Kind::Phi3 {
            self.phi3(class, sizes, &mut parts)?;
            return Ok(parts);
        }
        if self.partial < 1.0 {
            return Err(unsupported(format!("{} with `partial_rotary_factor`", class.name)));
        }
        if class.kind.is_llama() {
            let width = Value::from(sizes.head_dim as u32);
            parts.metadata.insert("rope.dimension_count", width);
        }
        let none = Map::new();
        let none = fields.with(&none);
        let scaling = self.scaling.as_ref().unwrap_or(&none);
        match self.kind {
            "default" | "none" => {}
            // The graph of Gemma 3 scales all layers or none by anything but a factor, and others than
            // that of llama have no factors per frequency.
            "yarn" | "dynamic" if class.kind == Kind::Gemma3 => return Err(self.unknown(class)),
            "llama3" | "longrope" | "su" if !class.kind.is_llama() => {
                return Err(self.unknown(class));
            }
            "dynamic" => warnings.push(format!(
                "rotary scaling \"dynamic\" acts beyond {} tokens only and is left out",
                self.original_context.unwrap_or(sizes.context)
            )),
            "linear" => {
                let factor = required_factor(scaling, "linear")?;
                parts.metadata.insert("rope.scaling.type", Value::from("linear"));
                parts.metadata.insert("rope.scaling.factor", Value::from(factor as f32));
            }
            "llama3" => {
                let factors = self.llama3(scaling, sizes)?;
                parts.tensors.push(vector("rope_freqs.weight", &factors)?);
            }
            "yarn" => {
                let yarn = Yarn::read(scaling, self.original_context, sizes)?;
                if yarn.is_usual() {
                    yarn.keys(&mut parts.metadata);
                } else if class.kind.is_llama() {
                    // Each frequency is scaled by a constant, which is a factor of its own.
                    parts.tensors.push(vector("rope_freqs.weight", &yarn.factors(self, sizes))?);
                    set_attention_scale(&mut parts.metadata, yarn.attention());
                } else {
                    return Err(unsupported(format!(
                        "{} with rotary scaling \"yarn\" and {}",
                        class.name,
                        yarn.unusual()
                    )));
                }
            }
            "longrope" | "su" => {
                let both = list(scaling, "long_factor")?.zip(list(scaling, "short_factor")?);
                let (long, short) = both.ok_or_else(|| self.unknown(class))?;
                // Lists that do not depend on the length are plain factors.
                let unscaled = scaling.positive("attention_factor")? == Some(1.0);
                if unscaled && long == short {
                    check_length(scaling, &long, sizes.head_dim / 2)?;
                    parts.tensors.push(vector("rope_freqs.weight", &long)?);
                } else {
                    let original = self.original_context.unwrap_or(sizes.context);
                    parts.metadata.insert("rope.scaling.type", Value::from("longrope"));
                    let number = Value::from(original as u32);
                    parts.metadata.insert("rope.scaling.original_context_length", number);
                    long_texts(scaling, sizes, original, sizes.head_dim, &mut parts)?;
                }
            }
            _ => return Err(self.unknown(class)),
        }
        Ok(parts)
    }

    /// The base of the frequencies.
    pub(super) fn theta(&self) -> f64 {
        self.theta
    }

    fn unknown(&self, class: Class) -> crate::Error {
        unsupported(format!("{} with rotary scaling \"{}\"", class.name, self.kind))
    }

    /// Divisors of the frequencies: 1 for those that turn often within the old context, `factor` for
    /// those that do not, and a blend between. In f32, as the converter computes them.
    fn llama3(&self, scaling: &Fields, sizes: &Sizes) -> Result<Vec<f32>> {
        let factor = required_factor(scaling, "llama3")? as f32;
        let low = scaling.positive("low_freq_factor")?.unwrap_or(1.0) as f32;
        let high = scaling.positive("high_freq_factor")?.unwrap_or(4.0) as f32;
        let old = self.original_context.unwrap_or(8192) as f32;
        let dim = sizes.head_dim;
        let one = |i: usize| {
            let frequency = 1.0 / (self.theta as f32).powf((2 * i) as f32 / dim as f32);
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength < old / high {
                1.0
            } else if wavelength > old / low {
                factor
            } else {
                let smooth = (old / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Ok((0..dim / 2).map(one).collect())
    }

    /// Phi-3 has factors for short and for long texts, and a scale of the attention.
    fn phi3(&self, class: Class, sizes: &Sizes, parts: &mut RopeParts) -> Result<()> {
        let rotary = (self.partial * sizes.hidden as f64) as usize / sizes.heads;
        let original = self.original_context.unwrap_or(sizes.context);
        let metadata = &mut parts.metadata;
        metadata.insert("rope.dimension_count", Value::from(rotary as u32));
        let number = Value::from(original as u32);
        metadata.insert("rope.scaling.original_context_length", number);
        match (self.kind, &self.scaling) {
            ("default" | "none", _) | (_, None) => Ok(()),
            // Older names of the same.
            ("longrope" | "su" | "yarn", Some(scaling)) => {
                long_texts(scaling, sizes, original, rotary, parts)
            }
            _ => Err(self.unknown(class)),
        }
    }
}

/// Layers with a window may have a base of their own in Gemma 3, and no other difference.
fn check_sliding(sliding: &Fields, full: &Fields, class: Class) -> Result<()> {
    let plain = |key: &str| matches!(key, "rope_theta" | "rope_type" | "type");
    let same = sliding.same_as(full);
    if same && class.kind != Kind::Gemma3 {
        return Ok(());
    }
    let kind = sliding.text("rope_type")?.or(sliding.text("type")?).unwrap_or("default");
    if class.kind != Kind::Gemma3 || !matches!(kind, "default" | "none") {
        return Err(unsupported(format!(
            "{} with rotary parameters of their own for layers with a window",
            class.name
        )));
    }
    let what = format!("{} with rotary parameters for layers with a window", class.name);
    sliding.refuse_unaccounted(plain, &what)
}

/// Factors for short and for long texts, and the scale that they bring for cosine and sine.
fn long_texts(
    scaling: &Fields,
    sizes: &Sizes,
    original: usize,
    rotary: usize,
    parts: &mut RopeParts,
) -> Result<()> {
    let missing = |key: &str| scaling.damaged(format!("factors for long texts without `{key}`"));
    let factors = [
        ("rope_factors_long.weight", "long_factor"),
        ("rope_factors_short.weight", "short_factor"),
    ];
    for (name, key) in factors {
        let factors = list(scaling, key)?.ok_or_else(|| missing(key))?;
        check_length(scaling, &factors, rotary / 2)?;
        parts.tensors.push(vector(name, &factors)?);
    }
    let factor =
        scaling.positive("factor")?.unwrap_or_else(|| sizes.context as f64 / original as f64);
    let attention = match scaling.positive("attention_factor")? {
        Some(attention) => attention,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    set_attention_scale(&mut parts.metadata, attention);
    Ok(())
}

fn set_attention_scale(metadata: &mut IndexMap<&'static str, Value>, scale: f64) {
    metadata.insert("rope.scaling.attn_factor", Value::from(scale as f32));
}

fn required_factor(scaling: &Fields, what: &str) -> Result<f64> {
    scaling
        .positive("factor")?
        .ok_or_else(|| scaling.damaged(format!("rotary scaling \"{what}\" has no `factor`")))
}

fn list(fields: &Fields, key: &str) -> Result<Option<Vec<f32>>> {
    match fields.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => {
            let numbers: Option<Vec<f32>> = value.as_array().and_then(|list| {
                list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32)).collect()
            });
            match numbers {
                Some(numbers) if numbers.iter().all(|n| *n > 0.0 && n.is_finite()) => {
                    Ok(Some(numbers))
                }
                _ => Err(fields.damaged(format!("`{key}` is not a list of positive numbers"))),
            }
        }
    }
}

fn check_length(fields: &Fields, factors: &[f32], expected: usize) -> Result<()> {
    if factors.len() == expected {
        return Ok(());
    }
    Err(fields.damaged(format!("{} rotary factors for {expected} frequencies", factors.len())))
}

fn vector(name: &str, values: &[f32]) -> Result<GgufTensor> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = SharedBytes::from_vec(bytes);
    Ok(GgufTensor::new(name, StoredTensor::new(vec![values.len()], StoredType::F32, bytes)?))
}
