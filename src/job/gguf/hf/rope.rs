//! Rotary positions: metadata, and the tensors of factors per frequency.

use indexmap::IndexMap;

use super::limits::unsupported;
use crate::Result;
use crate::arch::ModelConfig;
use crate::arch::config::RopeScaling;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::files::gguf::Value;
use crate::graph::rope::{ramp, yarn_bounds};
use crate::job::gguf::tensor::GgufTensor;
use crate::weight::StoredTensor;

/// `beta_fast` and `beta_slow` of llama.cpp's own `YaRN`.
const BETAS: (f64, f64) = (32.0, 1.0);

const FACTORS: &str = "rope_freqs.weight";

/// What goes into the file.
#[derive(Default)]
pub(super) struct RopeParts {
    /// Without the prefix of the architecture.
    pub(super) metadata: IndexMap<&'static str, Value>,
    pub(super) tensors: Vec<GgufTensor>,
}

impl RopeParts {
    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.metadata.insert(key, value.into());
    }

    /// Factors for short and for long texts, and the scale that they bring for cosine and sine.
    fn long_texts(&mut self, short: &[f32], long: &[f32], attention: f64) -> Result<()> {
        self.tensors.push(vector("rope_factors_long.weight", long)?);
        self.tensors.push(vector("rope_factors_short.weight", short)?);
        self.set("rope.scaling.attn_factor", attention as f32);
        Ok(())
    }
}

/// Metadata and tensors of the whole.
pub(super) fn parts(config: &ModelConfig, warnings: &mut Vec<String>) -> Result<RopeParts> {
    let mut parts = RopeParts::default();
    let rope = &config.rope;
    parts.set("rope.freq_base", rope.theta as f32);
    if let Some(window) = &config.window_rope {
        parts.set("rope.freq_base_swa", window.theta as f32);
    }
    let paired = config.family.has_rope_pairs();
    if let Some(original) = config.original_positions {
        phi3(config, original, &mut parts)?;
        return Ok(parts);
    }
    if paired {
        parts.set("rope.dimension_count", config.head_dim as u32);
    }
    let unknown = |kind: &str| {
        Err(unsupported(format!("{} with rotary scaling \"{kind}\"", config.class_name)))
    };
    match &rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            parts.set("rope.scaling.type", "linear");
            parts.set("rope.scaling.factor", *factor as f32);
        }
        // The graph of Gemma 3 scales all layers or none by anything but a factor, and others than
        // that of llama have no factors per frequency.
        RopeScaling::Dynamic { .. } if config.window_rope.is_some() => return unknown("dynamic"),
        RopeScaling::Yarn { .. } if config.window_rope.is_some() => return unknown("yarn"),
        RopeScaling::Llama3 { .. } if !paired => return unknown("llama3"),
        RopeScaling::LongRope { .. } | RopeScaling::Factors(_) if !paired => {
            return unknown("longrope");
        }
        RopeScaling::Dynamic { original_context, .. } => warnings.push(format!(
            "rotary scaling \"dynamic\" acts beyond {original_context} tokens only and is left out"
        )),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let by = [*factor, *low_freq_factor, *high_freq_factor, *original_context as f64];
            let factors = llama3(rope.theta as f32, config.head_dim, by.map(|value| value as f32));
            parts.tensors.push(vector(FACTORS, &factors)?);
        }
        yarn @ RopeScaling::Yarn { .. } => self::yarn(config, yarn, &mut parts)?,
        RopeScaling::Factors(factors) => parts.tensors.push(vector(FACTORS, factors)?),
        RopeScaling::LongRope { short, long, original_context, attention_factor } => {
            parts.set("rope.scaling.type", "longrope");
            parts.set("rope.scaling.original_context_length", *original_context as u32);
            parts.long_texts(short, long, *attention_factor)?;
        }
    }
    Ok(parts)
}

/// Divisors of the frequencies: 1 for those that turn often within the old context, `factor` for
/// those that do not, and a blend between. In f32, as the converter computes them.
fn llama3(theta: f32, dim: usize, [factor, low, high, old]: [f32; 4]) -> Vec<f32> {
    let one = |i: usize| {
        let frequency = 1.0 / theta.powf((2 * i) as f32 / dim as f32);
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
    (0..dim / 2).map(one).collect()
}

/// Phi-3 has factors for short and for long texts, and a scale of the attention.
fn phi3(config: &ModelConfig, original: usize, parts: &mut RopeParts) -> Result<()> {
    let width = config.rope.width.unwrap_or(config.head_dim);
    parts.set("rope.dimension_count", width as u32);
    parts.set("rope.scaling.original_context_length", original as u32);
    match &config.rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::LongRope { short, long, attention_factor, .. } => {
            parts.long_texts(short, long, *attention_factor)
        }
        RopeScaling::Factors(factors) => parts.long_texts(factors, factors, 1.0),
        _ => Err(unsupported(format!("{} with another rotary scaling", config.class_name))),
    }
}

/// `YaRN` as llama.cpp computes it, or, for the architecture that takes them, as factors of the
/// frequencies.
fn yarn(config: &ModelConfig, scaling: &RopeScaling, parts: &mut RopeParts) -> Result<()> {
    let RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate,
    } = *scaling
    else {
        return Ok(());
    };
    let of_paper = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    let usual =
        truncate && (beta_fast - BETAS.0).abs() < 1e-6 && (beta_slow - BETAS.1).abs() < 1e-6;
    if usual {
        parts.set("rope.scaling.type", "yarn");
        parts.set("rope.scaling.factor", factor as f32);
        parts.set("rope.scaling.original_context_length", original_context as u32);
        // llama.cpp multiplies with the scale of the paper, which the model's own one replaces.
        if let Some(attention) = attention_factor {
            parts.set("rope.scaling.attn_factor", (attention / of_paper) as f32);
        }
        return Ok(());
    }
    if !config.family.has_rope_pairs() {
        let unusual = if truncate {
            format!("`beta_fast` {beta_fast}, `beta_slow` {beta_slow}")
        } else {
            "`truncate` false".to_owned()
        };
        return Err(unsupported(format!(
            "{} with rotary scaling \"yarn\" and {unusual}",
            config.class_name
        )));
    }
    // Each frequency is scaled by a constant, which is a factor of its own: `factor` for those that
    // turn less than `beta_slow` times within the old context, 1 for those that turn more than
    // `beta_fast` times, a ramp between.
    let dim = config.head_dim;
    let context = original_context as f64;
    let bounds = yarn_bounds(config.rope.theta, dim, context, beta_fast, beta_slow, truncate);
    let one = |i: usize| {
        let stretched = ramp(bounds, i as f64);
        (1.0 / (stretched / factor + 1.0 - stretched)) as f32
    };
    let factors: Vec<f32> = (0..dim / 2).map(one).collect();
    parts.tensors.push(vector(FACTORS, &factors)?);
    parts.set("rope.scaling.attn_factor", attention_factor.unwrap_or(of_paper) as f32);
    Ok(())
}

fn vector(name: &str, values: &[f32]) -> Result<GgufTensor> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = SharedBytes::from_vec(bytes);
    Ok(GgufTensor::new(name, StoredTensor::new(vec![values.len()], StoredType::F32, bytes)?))
}
