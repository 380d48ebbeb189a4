//! compressed-tensors checkpoints with 8-bit weights and activations ("int-quantized").
//!
//! For a layer `[out, inputs]`: `weight` i8 `[out, inputs]` and `weight_scale` `[out, 1]` in the
//! model's type; `w = q * s`. Activations are rounded when the model runs, each token by a scale of its
//! own ([`round_token`](crate::codec::affine::int8::round_token)), so nothing is stored for them.
//! Source: compressed-tensors `compressors/naive_quantized`, `quantization/quant_config.py`.

use half::{bf16, f16};
use safetensors::Dtype;

use super::{Part, slot};
use crate::codec::affine::Int8Rows;
use crate::codec::affine::int8::as_scale;
use crate::files::model_directory::TensorSlot;
use crate::{Error, Result};

/// The tensors of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedW8A8 {
    /// i8 `[out, inputs]`.
    pub weight: Part,
    /// f16, bf16 or f32 `[out, 1]`.
    pub weight_scale: Part,
}

impl PackedW8A8 {
    /// The tensors in the order of [`slots`].
    #[must_use]
    pub fn parts(&self) -> [&Part; 2] {
        [&self.weight, &self.weight_scale]
    }
}

/// Names, types and shapes of the tensors of a layer. `scale` is f16, bf16 or f32.
#[must_use]
pub fn slots(layer: &str, out: usize, inputs: usize, scale: Dtype) -> Vec<TensorSlot> {
    vec![
        slot(layer, "weight", Dtype::I8, vec![out, inputs]),
        slot(layer, "weight_scale", scale, vec![out, 1]),
    ]
}

/// The tensors of a layer with scales of type `scale` (the model's: f16, bf16 or f32).
///
/// # Errors
/// [`Error::General`] if lengths do not fit together, or a scale is not finite or not a value of that
/// type.
pub fn pack(layer: &Int8Rows, scale: Dtype) -> Result<PackedW8A8> {
    let Int8Rows { out, inputs, q, scales } = layer;
    if q.len() != out * inputs || scales.len() != *out {
        return Err(Error::General(format!(
            "{} integers and {} scales for a layer of {out} x {inputs}",
            q.len(),
            scales.len()
        )));
    }
    let mut bytes = Vec::with_capacity(out * 4);
    for &value in scales {
        if !value.is_finite() || as_scale(value, scale)?.to_bits() != value.to_bits() {
            return Err(Error::General(format!("the scale {value} is no number of type {scale}")));
        }
        match scale {
            Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Dtype::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(value.to_le_bytes()),
        }
    }
    let weight = q.iter().map(|&value| value as u8).collect();
    Ok(PackedW8A8 {
        weight: Part::new("weight", Dtype::I8, [*out, *inputs], weight),
        weight_scale: Part::new("weight_scale", scale, [*out, 1], bytes),
    })
}
