//! `YaRN`: how far each frequency is stretched, and what that does to the attention.

use std::f64::consts::TAU;

use indexmap::IndexMap;

use super::rope::Rope;
use super::sizes::Sizes;
use crate::Result;
use crate::arch::config_json::Fields;
use crate::files::gguf::Value;

/// Rotations within the old context above which a frequency stays, and below which it is stretched in
/// full: those of the paper, which llama.cpp takes.
const BETAS: (f64, f64) = (32.0, 1.0);

/// The settings, with what is assumed for missing ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Yarn {
    factor: f64,
    original: usize,
    beta_fast: f64,
    beta_slow: f64,
    /// Whether the bounds of the ramp are whole numbers.
    truncate: bool,
    /// Scale of cosine and sine, if it is not that of the paper.
    attention: Option<f64>,
}

impl Yarn {
    pub(super) fn read(scaling: &Fields, original: Option<usize>, sizes: &Sizes) -> Result<Self> {
        let original = original.unwrap_or(sizes.context);
        let factor = match scaling.positive("factor")? {
            Some(factor) => factor,
            None => sizes.context as f64 / original as f64,
        };
        let given = match scaling.positive("attention_factor")? {
            None => scaling.positive("attn_factor")?,
            given => given,
        };
        if let Some(mix) = scaling.not_zero("extrapolation_factor")?
            && (mix - 1.0).abs() > 1e-9
        {
            return Err(super::architectures::unsupported(format!(
                "rotary scaling \"yarn\" with `extrapolation_factor` {mix}"
            )));
        }
        let mscales = scaling.not_zero("mscale")?.zip(scaling.not_zero("mscale_all_dim")?);
        let quotient = |(mscale, all)| of_paper(factor, mscale) / of_paper(factor, all);
        Ok(Self {
            factor,
            original,
            beta_fast: scaling.not_zero("beta_fast")?.unwrap_or(BETAS.0),
            beta_slow: scaling.not_zero("beta_slow")?.unwrap_or(BETAS.1),
            truncate: scaling.flag("truncate", true)?,
            attention: given.or(mscales.map(quotient)),
        })
    }

    /// Whether llama.cpp's own `YaRN` computes this.
    pub(super) fn is_usual(&self) -> bool {
        self.truncate
            && (self.beta_fast - BETAS.0).abs() < 1e-6
            && (self.beta_slow - BETAS.1).abs() < 1e-6
    }

    /// What is not as usual, for messages.
    pub(super) fn unusual(&self) -> String {
        if self.truncate {
            format!("`beta_fast` {}, `beta_slow` {}", self.beta_fast, self.beta_slow)
        } else {
            "`truncate` false".to_owned()
        }
    }

    /// Scale of cosine and sine.
    pub(super) fn attention(&self) -> f64 {
        self.attention.unwrap_or_else(|| of_paper(self.factor, 1.0))
    }

    /// Metadata of llama.cpp's own `YaRN`.
    pub(super) fn keys(&self, metadata: &mut IndexMap<&'static str, Value>) {
        metadata.insert("rope.scaling.type", Value::from("yarn"));
        metadata.insert("rope.scaling.factor", Value::from(self.factor as f32));
        let original = Value::from(self.original as u32);
        metadata.insert("rope.scaling.original_context_length", original);
        // llama.cpp multiplies with the scale of the paper, which the model's own one replaces.
        if let Some(attention) = self.attention {
            let more = (attention / of_paper(self.factor, 1.0)) as f32;
            metadata.insert("rope.scaling.attn_factor", Value::from(more));
        }
    }

    /// The divisor of each frequency: `factor` for those that turn less than `beta_slow` times within
    /// the old context, 1 for those that turn more than `beta_fast` times, a ramp between.
    pub(super) fn factors(&self, rope: &Rope, sizes: &Sizes) -> Vec<f32> {
        let dim = sizes.head_dim as f64;
        let base = rope.theta();
        let place = |rotations: f64| {
            dim * (self.original as f64 / (rotations * TAU)).ln() / (2.0 * base.ln())
        };
        let (mut low, mut high) = (place(self.beta_fast), place(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low.to_bits() == high.to_bits() {
            high += 0.001;
        }
        let one = |i: usize| {
            let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / (stretched / self.factor + 1.0 - stretched)) as f32
        };
        (0..sizes.head_dim / 2).map(one).collect()
    }
}

/// The scale of the paper for a factor, its logarithm multiplied by `mscale`.
fn of_paper(factor: f64, mscale: f64) -> f64 {
    if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 }
}
