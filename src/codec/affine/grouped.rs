//! Integers of a linear layer with a scale and a zero point per row and group, whatever the file, and
//! strings of bits.

use std::ops::Range;

use half::f16;

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
    pub(crate) fn refuse_shape(&self, fits: bool, format: &str, needs: &str) -> Result<()> {
        if fits {
            return Ok(());
        }
        Err(Error::UnsupportedConversion(format!(
            "{format} cannot hold a layer of {} x {} in {} bits with groups of {}: {needs}",
            self.out, self.inputs, self.bits, self.group
        )))
    }
}

/// `[rows, columns]` as `[columns, rows]`.
pub(crate) fn transposed<T: Copy>(values: &[T], columns: usize) -> impl Iterator<Item = T> + '_ {
    (0..columns).flat_map(move |column| values.iter().skip(column).step_by(columns).copied())
}

/// Bytes of scales `[out, groups]`, stored as `[groups, out]`.
pub(crate) fn scale_bytes(scales: &[f16], groups: usize) -> Vec<u8> {
    transposed(scales, groups).flat_map(f16::to_le_bytes).collect()
}

/// Appends integers of `bits` bits to a string of bits, the lowest bit first, and returns it as
/// little-endian words. The integers must fill whole words.
pub(crate) fn bit_string(values: impl Iterator<Item = u8>, bits: u8) -> Vec<u8> {
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
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at * 4..at * 4 + 4]);
    u32::from_le_bytes(word)
}

/// Integer `index` of a string of `bits`-bit integers whose word `n` is `word(n)`.
pub(crate) fn field(word: impl Fn(usize) -> u32, index: usize, bits: u8) -> u8 {
    let bit = index * usize::from(bits);
    let (at, shift) = (bit / 32, bit % 32);
    let mut value = word(at) >> shift;
    if shift + usize::from(bits) > 32 {
        value |= word(at + 1) << (32 - shift);
    }
    (value & u32::from(Grouped::largest(bits))) as u8
}
