//! Rotary positions: metadata, and the tensors of factors per frequency.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::architectures::{Class, Kind, unsupported};
use super::sizes::Sizes;
use crate::Result;
use crate::formats::gguf::Value;
use crate::quantize::gguf::tensor::GgufTensor;
use crate::source::config_json::Fields;
use crate::tensor::{SharedBytes, StoredTensor, StoredType};

const MAX_POSITIONS: u64 = u32::MAX as u64;

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
    pub(super) fn read(fields: &Fields<'a>, kind: Kind) -> Result<Self> {
        let mut scaling = match fields.object("rope_parameters")? {
            None => fields.object("rope_scaling")?,
            parameters => parameters,
        };
        let mut local_theta = fields.positive("rope_local_base_freq")?;
        if let Some(per_kind) = &scaling
            && let Some(full) = per_kind.object("full_attention")?
        {
            if let Some(sliding) = per_kind.object("sliding_attention")? {
                local_theta = sliding.positive("rope_theta")?.or(local_theta);
            }
            scaling = Some(full);
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
        let original_context = match inner.transpose()?.flatten() {
            None => fields.optional_size(original, MAX_POSITIONS)?,
            inner => inner,
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
            self.phi3(fields, sizes, &mut parts)?;
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
            "yarn" => self.yarn(scaling, sizes, &mut parts.metadata, warnings)?,
            "longrope" | "su" => {
                // Lists that do not depend on the length are plain factors.
                let (long, short) = (list(scaling, "long_factor")?, list(scaling, "short_factor")?);
                let unscaled = scaling.positive("attention_factor")? == Some(1.0);
                if !unscaled || long.is_none() || long != short {
                    return Err(self.unknown(class));
                }
                let long = long.unwrap_or_default();
                check_length(scaling, &long, sizes.head_dim / 2)?;
                parts.tensors.push(vector("rope_freqs.weight", &long)?);
            }
            _ => return Err(self.unknown(class)),
        }
        Ok(parts)
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

    fn yarn(
        &self,
        scaling: &Fields,
        sizes: &Sizes,
        metadata: &mut IndexMap<&'static str, Value>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let original = self.original_context.unwrap_or(sizes.context);
        let factor = match scaling.positive("factor")? {
            Some(factor) => factor,
            None => sizes.context as f64 / original as f64,
        };
        metadata.insert("rope.scaling.type", Value::from("yarn"));
        metadata.insert("rope.scaling.factor", Value::from(factor as f32));
        let original = Value::from(original as u32);
        metadata.insert("rope.scaling.original_context_length", original);
        // llama.cpp multiplies with the scale of the paper, which the model's own one replaces.
        let of_paper =
            |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
        let given = match scaling.positive("attention_factor")? {
            None => scaling.positive("attn_factor")?,
            given => given,
        };
        let mscales = (scaling.positive("mscale")?, scaling.positive("mscale_all_dim")?);
        let attention = match (given, mscales) {
            (Some(given), _) => Some(given),
            (None, (Some(mscale), Some(all))) => Some(of_paper(mscale) / of_paper(all)),
            (None, _) => None,
        };
        if let Some(attention) = attention {
            let more = (attention / of_paper(1.0)) as f32;
            metadata.insert("rope.scaling.attn_factor", Value::from(more));
        }
        for (key, name, usual) in [
            ("extrapolation_factor", "rope.scaling.yarn_ext_factor", 1.0),
            ("beta_fast", "rope.scaling.yarn_beta_fast", 32.0),
            ("beta_slow", "rope.scaling.yarn_beta_slow", 1.0),
        ] {
            let Some(number) = scaling.positive(key)? else { continue };
            metadata.insert(name, Value::from(number as f32));
            if (number - usual).abs() > 1e-6 {
                warnings.push(format!(
                    "rotary scaling \"yarn\" with `{key}` {number}: llama.cpp uses {usual} for this \
                     architecture"
                ));
            }
        }
        Ok(())
    }

    /// Phi-3 has factors for short and for long texts, and a scale of the attention for the latter.
    fn phi3(&self, fields: &Fields, sizes: &Sizes, parts: &mut RopeParts) -> Result<()> {
        let rotary = (self.partial * sizes.hidden as f64) as usize / sizes.heads;
        let original = self.original_context.unwrap_or(sizes.context);
        let metadata = &mut parts.metadata;
        metadata.insert("rope.dimension_count", Value::from(rotary as u32));
        let number = Value::from(original as u32);
        metadata.insert("rope.scaling.original_context_length", number);
        let Some(scaling) = &self.scaling else { return Ok(()) };
        let Some(long) = list(scaling, "long_factor")? else { return Ok(()) };
        let short = list(scaling, "short_factor")?
            .ok_or_else(|| fields.damaged("`long_factor` without `short_factor`".to_owned()))?;
        let scale = sizes.context as f64 / original as f64;
        let attention = match self.kind {
            _ if scale <= 1.0 => 1.0,
            "su" | "longrope" => (1.0 + scale.ln() / (original as f64).ln()).sqrt(),
            "yarn" => 0.1 * scale.ln() + 1.0,
            other => {
                return Err(unsupported(format!(
                    "Phi3ForCausalLM with rotary scaling \"{other}\""
                )));
            }
        };
        metadata.insert("rope.scaling.attn_factor", Value::from(attention as f32));
        for (name, factors) in
            [("rope_factors_long.weight", &long), ("rope_factors_short.weight", &short)]
        {
            check_length(scaling, factors, rotary / 2)?;
            parts.tensors.push(vector(name, factors)?);
        }
        Ok(())
    }
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
