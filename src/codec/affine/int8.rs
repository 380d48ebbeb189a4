//! Integers of 8 bits with a sign: rows of weights with one scale each, and activations rounded token
//! by token.

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{Error, Result};

/// A layer's weight in 8-bit integers with one scale per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Rows {
    /// Outputs: rows.
    pub out: usize,
    /// Inputs: columns.
    pub inputs: usize,
    /// Integers, `[out, inputs]`, from -128 to 127; symmetric quantization uses -127 at least.
    pub q: Vec<i8>,
    /// One scale per row; stored in the type that is asked for, so rounded to it beforehand.
    pub scales: Vec<f32>,
}

/// A number rounded to a type of scales.
///
/// # Errors
/// [`Error::General`] if `dtype` is no type of scales.
pub(crate) fn as_scale(value: f32, dtype: Dtype) -> Result<f32> {
    match dtype {
        Dtype::F32 => Ok(value),
        Dtype::F16 => Ok(f16::from_f32(value).to_f32()),
        Dtype::BF16 => Ok(bf16::from_f32(value).to_f32()),
        other => Err(Error::General(format!("scales of type {other}"))),
    }
}

/// Rounds the activations of one token as runtimes do: to `s * q` with `s = max|x| / 127` and whole
/// `q`, ties to even. Returns the scale; `out` gets the integers.
///
/// Source: vLLM `csrc/quantization/w8a8/int8/scaled_quant.cu` (dynamic, symmetric, per token).
pub(crate) fn round_token(x: &[f32], out: &mut [i8]) -> f32 {
    let most = x.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = most / 127.0;
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    for (out, value) in out.iter_mut().zip(x) {
        *out = (value * inverse).round_ties_even().clamp(-128.0, 127.0) as i8;
    }
    scale
}
