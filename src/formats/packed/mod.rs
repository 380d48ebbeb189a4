//! Integers of linear layers in the layouts of GPTQ, AWQ and compressed-tensors checkpoints.
//!
//! [`Grouped`] is the layer as numbers, whatever the file: an integer per weight, a scale and a zero
//! point per row and group. [`gptq`], [`awq`] and [`w8a8`] turn it into the tensors of a checkpoint
//! and back; [`PackedTensor`] reads rows out of the packed bytes without unpacking the rest.
//!
//! The layouts are described in `docs/packed-formats.md`, with their sources.

pub mod awq;
pub mod config;
pub mod gptq;
pub mod nearest;
pub mod runtimes;
mod tensor;
pub mod w8a8;

use std::ops::Range;

use half::f16;
use safetensors::Dtype;

pub use config::{AwqConfig, GptqConfig, QuantizationConfig, W8A8Config};
pub use tensor::{PackedKind, PackedTensor, Scales};

use crate::formats::model_directory::TensorSlot;
use crate::tensor::SharedBytes;
use crate::{Error, Result};

/// Integers of a linear layer's weight `[out, inputs]`, row-major, with one scale and one zero point
/// per row and group of `group` inputs: `w = (q - z) * s`.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouped {
    /// Outputs: rows.
    pub out: usize,
    /// Inputs: columns.
    pub inputs: usize,
    /// Inputs that share a scale; `inputs` itself where a row has one scale.
    pub group: usize,
    /// Bits of an integer: 2, 3, 4 or 8.
    pub bits: u8,
    /// The integers, `[out, inputs]`, below 2^bits.
    pub q: Vec<u8>,
    /// Scales, `[out, groups]`.
    pub scales: Vec<f16>,
    /// Zero points, `[out, groups]`, below 2^bits.
    pub zeros: Vec<u8>,
    /// Group of each input, where it is not `input / group` (act-order).
    pub group_of: Option<Vec<u32>>,
}

impl Grouped {
    /// Number of groups of a row.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group.max(1))
    }

    /// The group of an input.
    #[must_use]
    pub fn group_of(&self, input: usize) -> usize {
        self.group_of.as_ref().map_or_else(|| input / self.group, |of| of[input] as usize)
    }

    /// The zero point in the middle of a symmetric grid: 2^(bits - 1).
    #[must_use]
    pub const fn middle(bits: u8) -> u8 {
        1 << (bits - 1)
    }

    /// The largest integer: 2^bits - 1.
    #[must_use]
    pub const fn largest(bits: u8) -> u8 {
        ((1u16 << bits) - 1) as u8
    }

    /// Decodes `rows` into `out`, which is `[rows.len(), inputs]`.
    ///
    /// # Panics
    /// If `out` has another length or the range is outside of the layer.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.inputs, "output of another shape");
        let groups = self.groups();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.inputs)) {
            let q = &self.q[row * self.inputs..(row + 1) * self.inputs];
            for (input, (value, &q)) in out.iter_mut().zip(q).enumerate() {
                let at = row * groups + self.group_of(input);
                let step = i32::from(q) - i32::from(self.zeros[at]);
                *value = step as f32 * self.scales[at].to_f32();
            }
        }
    }

    /// Whether lengths and values fit together.
    ///
    /// # Errors
    /// [`Error::General`] that says what does not.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::General(format!("integers of a layer: {what}")));
        if !matches!(self.bits, 2 | 3 | 4 | 8) {
            return wrong(format!("{} bits; 2, 3, 4 and 8 are possible", self.bits));
        }
        if self.out == 0 || self.inputs == 0 || self.group == 0 {
            return wrong(format!("{} x {} in groups of {}", self.out, self.inputs, self.group));
        }
        let groups = self.out * self.groups();
        let lengths = (self.q.len(), self.scales.len(), self.zeros.len());
        if lengths != (self.out * self.inputs, groups, groups) {
            return wrong(format!("{lengths:?} integers, scales and zero points"));
        }
        let largest = Self::largest(self.bits);
        if self.q.iter().chain(&self.zeros).any(|&value| value > largest) {
            return wrong(format!("a value above {largest}"));
        }
        if let Some(bad) = self.scales.iter().find(|scale| !scale.is_finite()) {
            return wrong(format!("a scale is {bad}"));
        }
        match &self.group_of {
            Some(of) if of.len() != self.inputs => wrong(format!("{} group indices", of.len())),
            Some(of) if of.iter().any(|&group| group as usize >= self.groups()) => {
                wrong("a group index beyond the last group".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether a check of the layout's divisors fails, in words.
    fn refuse_shape(&self, fits: bool, format: &str, needs: &str) -> Result<()> {
        if fits {
            return Ok(());
        }
        Err(Error::UnsupportedConversion(format!(
            "{format} cannot hold a layer of {} x {} in {} bits with groups of {}: {needs}",
            self.out, self.inputs, self.bits, self.group
        )))
    }
}

/// One tensor of a packed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What follows the layer's name: `qweight`, `scales`, …
    pub suffix: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian contents.
    pub bytes: Vec<u8>,
}

impl Part {
    fn new(suffix: &'static str, dtype: Dtype, shape: [usize; 2], bytes: Vec<u8>) -> Self {
        Self { suffix, dtype, shape: shape.to_vec(), bytes }
    }

    /// The contents in memory that is shared.
    fn shared(&self) -> SharedBytes {
        SharedBytes::from_vec(self.bytes.clone())
    }

    /// Name, type and shape of the part of the layer `layer` (`model.layers.0.mlp.up_proj`).
    #[must_use]
    pub fn slot(&self, layer: &str) -> TensorSlot {
        slot(layer, self.suffix, self.dtype, self.shape.clone())
    }
}

/// The place of a part in a file.
fn slot(layer: &str, suffix: &str, dtype: Dtype, shape: Vec<usize>) -> TensorSlot {
    TensorSlot { name: format!("{layer}.{suffix}"), dtype, shape }
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed<T: Copy>(values: &[T], columns: usize) -> impl Iterator<Item = T> + '_ {
    (0..columns).flat_map(move |column| values.iter().skip(column).step_by(columns).copied())
}

/// Bytes of scales `[out, groups]`, stored as `[groups, out]`.
fn scale_bytes(scales: &[f16], groups: usize) -> Vec<u8> {
    transposed(scales, groups).flat_map(f16::to_le_bytes).collect()
}

/// Appends integers of `bits` bits to a string of bits, the lowest bit first, and returns it as
/// little-endian words. The integers must fill whole words.
fn bit_string(values: impl Iterator<Item = u8>, bits: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut buffer, mut filled) = (0u32, 0);
    for value in values {
        buffer |= u32::from(value) << filled;
        filled += bits;
        while filled >= 8 {
            bytes.push(buffer as u8);
            buffer >>= 8;
            filled -= 8;
        }
    }
    bytes
}

/// The word at index `at` of little-endian bytes.
fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at * 4..at * 4 + 4]);
    u32::from_le_bytes(word)
}

/// Integer `index` of a string of `bits`-bit integers whose word `n` is `word(n)`.
fn field(word: impl Fn(usize) -> u32, index: usize, bits: u8) -> u8 {
    let bit = index * usize::from(bits);
    let (at, shift) = (bit / 32, bit % 32);
    let mut value = word(at) >> shift;
    if shift + usize::from(bits) > 32 {
        value |= word(at + 1) << (32 - shift);
    }
    (value & u32::from(Grouped::largest(bits))) as u8
}

#[cfg(test)]
mod tests;
