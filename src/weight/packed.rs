//! [`PackedTensor`]: the weight of a packed layer over the bytes of its file, read row by row.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::base::SharedBytes;
use crate::codec::affine::gptq::{self, Version};
use crate::codec::affine::grouped::{field, word};
use crate::codec::affine::{Grouped, Int8Rows, awq};
use crate::{Error, Result};

/// Inputs that are decoded together: a word row of any number of bits ends after 32.
const TILE: usize = 32;

/// Which layout a layer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedKind {
    /// [`crate::files::packed::gptq`].
    Gptq(Version),
    /// [`crate::files::packed::awq`].
    Awq,
    /// [`crate::files::packed::w8a8`]: integers of 8 bits with a sign, one scale per row, activations rounded per
    /// token when the layer runs.
    W8A8,
}

/// Scales of a layer as they are stored: f16, bf16 or f32.
#[derive(Debug, Clone)]
pub struct Scales {
    /// Element type.
    pub dtype: Dtype,
    /// Little-endian contents.
    pub bytes: SharedBytes,
}

/// A layer's weight `[out, inputs]` as packed integers. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct PackedTensor {
    kind: PackedKind,
    out: usize,
    inputs: usize,
    group: usize,
    bits: u8,
    weight: SharedBytes,
    /// Empty for [`PackedKind::W8A8`].
    zeros: SharedBytes,
    scales: SharedBytes,
    scale_type: Dtype,
    /// Group of each input, where it is not `input / group`.
    group_of: Option<Arc<[u32]>>,
}

impl PackedTensor {
    /// A GPTQ layer over the bytes of its tensors; `g_idx` may be missing where it is the usual one.
    ///
    /// # Errors
    /// [`Error::General`] if sizes or group indices do not fit.
    pub fn gptq(
        [out, inputs]: [usize; 2],
        (bits, group): (u8, usize),
        version: Version,
        (weight, zeros, scales): (SharedBytes, SharedBytes, Scales),
        g_idx: Option<&SharedBytes>,
    ) -> Result<Self> {
        if !matches!(bits, 2 | 3 | 4 | 8) || !gptq::fits(out, inputs, bits) {
            return Err(Error::General(format!(
                "a layer of {out} x {inputs} with {bits} bits does not fill 32-bit words"
            )));
        }
        let groups = group_count(out, inputs, group)?;
        let group_of = match g_idx {
            None => None,
            Some(bytes) => indices(bytes, inputs, group, groups)?,
        };
        let b = usize::from(bits);
        let kind = PackedKind::Gptq(version);
        Self {
            kind,
            out,
            inputs,
            group,
            bits,
            weight,
            zeros,
            scale_type: scales.dtype,
            scales: scales.bytes,
            group_of,
        }
        .checked(inputs * b / 32 * out * 4, groups * (out * b / 32) * 4, groups * out)
    }

    /// An AWQ layer over the bytes of its tensors.
    ///
    /// # Errors
    /// [`Error::General`] if sizes do not fit.
    pub fn awq(
        [out, inputs]: [usize; 2],
        group: usize,
        (weight, zeros, scales): (SharedBytes, SharedBytes, Scales),
    ) -> Result<Self> {
        let groups = group_count(out, inputs, group)?;
        if !awq::fits(out, inputs, group) {
            return Err(Error::General(format!(
                "a layer of {out} x {inputs} does not fill words and groups of {group}"
            )));
        }
        let (kind, bits) = (PackedKind::Awq, 4);
        let Scales { dtype: scale_type, bytes: scales } = scales;
        Self { kind, out, inputs, group, bits, weight, zeros, scales, scale_type, group_of: None }
            .checked(inputs * out / 2, groups * out / 2, groups * out)
    }

    /// A W8A8 layer over the bytes of its tensors; scales are f16, bf16 or f32.
    ///
    /// # Errors
    /// [`Error::General`] if sizes or types do not fit.
    pub fn w8a8([out, inputs]: [usize; 2], weight: SharedBytes, scales: Scales) -> Result<Self> {
        group_count(out, inputs, inputs)?;
        let zeros = SharedBytes::from_vec(Vec::new());
        let (kind, group, bits) = (PackedKind::W8A8, inputs, 8);
        let Scales { dtype: scale_type, bytes: scales } = scales;
        Self { kind, out, inputs, group, bits, weight, zeros, scales, scale_type, group_of: None }
            .checked(out * inputs, 0, out)
    }

    fn checked(self, weight: usize, zeros: usize, scales: usize) -> Result<Self> {
        let size = match self.scale_type {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 => 4,
            other => return Err(Error::General(format!("scales of type {other}"))),
        };
        let scales = scales * size;
        let lengths = [&self.weight, &self.zeros, &self.scales].map(|bytes| bytes.len());
        if lengths == [weight, zeros, scales] {
            return Ok(self);
        }
        Err(Error::General(format!(
            "integers, zero points and scales take {lengths:?} bytes; {} x {} in {} bits and groups of \
             {} takes {:?}",
            self.out,
            self.inputs,
            self.bits,
            self.group,
            [weight, zeros, scales]
        )))
    }

    /// The layout.
    #[must_use]
    pub fn kind(&self) -> PackedKind {
        self.kind
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.out
    }

    /// Inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.inputs
    }

    /// Bits of an integer.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Inputs that share a scale.
    #[must_use]
    pub fn group(&self) -> usize {
        self.group
    }

    /// Groups of a row.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    /// Whether inputs are grouped in another order than their own.
    #[must_use]
    pub fn is_reordered(&self) -> bool {
        self.group_of.is_some()
    }

    /// Whether all zero points are in the middle. Reads them.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        let middle = Grouped::middle(self.bits);
        self.kind == PackedKind::W8A8
            || (0..self.groups())
                .into_par_iter()
                .all(|group| (0..self.out).all(|row| self.zero(row, group) == middle))
    }

    /// The group of an input.
    #[must_use]
    pub fn group_of(&self, input: usize) -> usize {
        self.group_of.as_ref().map_or_else(|| input / self.group, |of| of[input] as usize)
    }

    /// Element type of the scales.
    #[must_use]
    pub fn scale_type(&self) -> Dtype {
        self.scale_type
    }

    /// `GPTQ 4-bit g128`, `AWQ 4-bit g32`, `W8A8`.
    #[must_use]
    pub fn type_name(&self) -> String {
        let group = match self.group {
            whole if whole == self.inputs => "whole rows".to_owned(),
            group => format!("g{group}"),
        };
        match self.kind {
            PackedKind::Gptq(_) => {
                let order = if self.is_reordered() { " act-order" } else { "" };
                format!("GPTQ {}-bit {group}{order}", self.bits)
            }
            PackedKind::Awq => format!("AWQ 4-bit {group}"),
            PackedKind::W8A8 => "W8A8".to_owned(),
        }
    }

    /// Bytes of integers, zero points and scales.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.weight.len() + self.zeros.len() + self.scales.len()
    }

    /// Gives the mapped pages back to the system; they are read again when needed.
    pub fn release(&self) {
        [&self.weight, &self.zeros, &self.scales].iter().for_each(|bytes| bytes.release());
    }

    /// Scale of a row's group.
    #[must_use]
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        let at = match self.kind {
            PackedKind::W8A8 => row,
            _ => group * self.out + row,
        };
        let half = |at: usize| [self.scales[at * 2], self.scales[at * 2 + 1]];
        match self.scale_type {
            Dtype::BF16 => bf16::from_le_bytes(half(at)).to_f32(),
            Dtype::F32 => f32::from_bits(word(&self.scales, at)),
            _ => f16::from_le_bytes(half(at)).to_f32(),
        }
    }

    /// Zero point of a row's group; 0 for integers that have a sign.
    #[must_use]
    pub fn zero(&self, row: usize, group: usize) -> u8 {
        match self.kind {
            PackedKind::W8A8 => 0,
            PackedKind::Awq => {
                let word = word(&self.zeros, group * (self.out / 8) + row / 8);
                (word >> (4 * awq::NIBBLE[row % 8]) & 15) as u8
            }
            PackedKind::Gptq(version) => {
                let words = self.out * usize::from(self.bits) / 32;
                let stored = field(|at| word(&self.zeros, group * words + at), row, self.bits);
                match version {
                    Version::V2 => stored,
                    // The largest one is what 0 less one became; readers wrap it back.
                    Version::V1 => stored.wrapping_add(1) & Grouped::largest(self.bits),
                }
            }
        }
    }

    /// The integers of `rows` as they are stored, into `out`, `[rows.len(), inputs]`; those with a
    /// sign as their bits.
    fn read_stored(&self, rows: Range<usize>, out: &mut [u8]) {
        let (inputs, bits) = (self.inputs, usize::from(self.bits));
        match self.kind {
            PackedKind::W8A8 => {
                out.copy_from_slice(&self.weight[rows.start * inputs..rows.end * inputs]);
            }
            // Words of neighbouring outputs are neighbours: a tile of inputs at a time, all rows.
            PackedKind::Gptq(_) => {
                let mask = Grouped::largest(self.bits);
                for from in (0..inputs).step_by(TILE) {
                    let count = TILE.min(inputs - from);
                    let first_word = from / TILE * bits;
                    let words = count * bits / 32;
                    for (at, row) in rows.clone().enumerate() {
                        let mut tile = [0u32; 9];
                        for (n, tile) in tile[..words].iter_mut().enumerate() {
                            *tile = word(&self.weight, (first_word + n) * self.out + row);
                        }
                        let out = &mut out[at * inputs + from..][..count];
                        if 32 % bits == 0 {
                            let per_word = 32 / bits;
                            for (out, word) in out.chunks_exact_mut(per_word).zip(tile) {
                                for (n, out) in out.iter_mut().enumerate() {
                                    *out = (word >> (n * bits)) as u8 & mask;
                                }
                            }
                        } else {
                            for (n, out) in out.iter_mut().enumerate() {
                                *out = field(|at| tile[at], n, self.bits);
                            }
                        }
                    }
                }
            }
            PackedKind::Awq => {
                let words = self.out / 8;
                for from in (0..inputs).step_by(TILE) {
                    let count = TILE.min(inputs - from);
                    for (at, row) in rows.clone().enumerate() {
                        let shift = 4 * awq::NIBBLE[row % 8];
                        let out = &mut out[at * inputs + from..][..count];
                        for (n, out) in out.iter_mut().enumerate() {
                            let word = word(&self.weight, (from + n) * words + row / 8);
                            *out = (word >> shift & 15) as u8;
                        }
                    }
                }
            }
        }
    }

    /// Decodes `rows` into `out`, which is `[rows.len(), inputs]`: `(q - z) * s`, computed in f32.
    ///
    /// # Panics
    /// If `out` has another length or the range is outside of the layer.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let inputs = self.inputs;
        assert!(rows.end <= self.out, "rows outside of the layer");
        assert_eq!(out.len(), rows.len() * inputs, "output of another shape");
        let mut stored = vec![0; out.len()];
        self.read_stored(rows.clone(), &mut stored);
        let lines = out.chunks_exact_mut(inputs).zip(stored.chunks_exact(inputs));
        if self.kind == PackedKind::W8A8 {
            for (row, (out, stored)) in rows.zip(lines) {
                let scale = self.scale(row, 0);
                for (out, &q) in out.iter_mut().zip(stored) {
                    *out = f32::from(q as i8) * scale;
                }
            }
            return;
        }
        let mut grids = vec![(0.0, 0); self.groups()];
        for (row, (out, stored)) in rows.zip(lines) {
            for (group, grid) in grids.iter_mut().enumerate() {
                *grid = (self.scale(row, group), i32::from(self.zero(row, group)));
            }
            if let Some(of) = &self.group_of {
                for ((out, &q), &group) in out.iter_mut().zip(stored).zip(of.iter()) {
                    let (scale, zero) = grids[group as usize];
                    *out = (i32::from(q) - zero) as f32 * scale;
                }
                continue;
            }
            let parts = out.chunks_mut(self.group).zip(stored.chunks(self.group));
            for ((out, stored), &(scale, zero)) in parts.zip(&grids) {
                for (out, &q) in out.iter_mut().zip(stored) {
                    *out = (i32::from(q) - zero) as f32 * scale;
                }
            }
        }
    }

    /// All values as f32, `[out, inputs]`, row-major.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        const ROWS: usize = 32;
        let mut out = vec![0.0; self.out * self.inputs];
        out.par_chunks_mut(ROWS * self.inputs).enumerate().for_each(|(part, out)| {
            let first = part * ROWS;
            self.read_rows(first..first + out.len() / self.inputs, out);
        });
        out
    }

    /// The steps `q - z` of a row, `[inputs]`: what is multiplied with the scales.
    pub fn read_steps(&self, row: usize, out: &mut [i16]) {
        let mut stored = vec![0; self.inputs];
        self.read_stored(row..row + 1, &mut stored);
        if self.kind == PackedKind::W8A8 {
            out.iter_mut().zip(stored).for_each(|(out, q)| *out = i16::from(q as i8));
            return;
        }
        let zeros: Vec<i16> =
            (0..self.groups()).map(|group| i16::from(self.zero(row, group))).collect();
        for (input, (out, q)) in out.iter_mut().zip(stored).enumerate() {
            *out = i16::from(q) - zeros[self.group_of(input)];
        }
    }

    /// All integers, unpacked.
    ///
    /// # Errors
    /// [`Error::General`] for integers that have a sign: those are [`Self::to_int8`].
    pub fn to_grouped(&self) -> Result<Grouped> {
        if self.kind == PackedKind::W8A8 {
            return Err(Error::General("W8A8 has no zero points".into()));
        }
        let mut q = vec![0; self.out * self.inputs];
        self.read_stored(0..self.out, &mut q);
        let places =
            || (0..self.out).flat_map(|row| (0..self.groups()).map(move |group| (row, group)));
        let layer = Grouped {
            out: self.out,
            inputs: self.inputs,
            group: self.group,
            bits: self.bits,
            q,
            scales: places().map(|(row, group)| f16::from_f32(self.scale(row, group))).collect(),
            zeros: places().map(|(row, group)| self.zero(row, group)).collect(),
            group_of: self.group_of.as_ref().map(|of| of.to_vec()),
        };
        layer.check()?;
        Ok(layer)
    }

    /// A W8A8 layer of integers that have a sign, with scales of f32.
    ///
    /// # Errors
    /// [`Error::General`] if lengths do not fit together.
    pub fn of_int8(rows: &Int8Rows) -> Result<Self> {
        let weight = rows.q.iter().map(|&q| q.cast_unsigned()).collect();
        let bytes = rows.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = Scales { dtype: Dtype::F32, bytes: SharedBytes::from_vec(bytes) };
        Self::w8a8([rows.out, rows.inputs], SharedBytes::from_vec(weight), scales)
    }

    /// The integers that have a sign, with their scales.
    ///
    /// # Errors
    /// [`Error::General`] for other layouts.
    pub fn to_int8(&self) -> Result<Int8Rows> {
        if self.kind != PackedKind::W8A8 {
            return Err(Error::General("not a layer with 8-bit integers that have a sign".into()));
        }
        Ok(Int8Rows {
            out: self.out,
            inputs: self.inputs,
            q: self.weight.iter().map(|&q| q as i8).collect(),
            scales: (0..self.out).map(|row| self.scale(row, 0)).collect(),
        })
    }

    /// The integers of a row of [`PackedKind::W8A8`], as bytes of i8.
    pub(crate) fn int8_row(&self, row: usize) -> &[u8] {
        &self.weight[row * self.inputs..(row + 1) * self.inputs]
    }

    /// The first NaN or infinity: its index in row-major order, and the value. Only scales can be one.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        let bad = |row: usize| (0..self.groups()).any(|group| !self.scale(row, group).is_finite());
        let row = (0..self.out).into_par_iter().find_first(|&row| bad(row))?;
        let mut values = vec![0.0; self.inputs];
        self.read_rows(row..row + 1, &mut values);
        let at = values.iter().position(|value| !value.is_finite())?;
        Some((row * self.inputs + at, values[at]))
    }
}

/// Number of groups of a row.
fn group_count(out: usize, inputs: usize, group: usize) -> Result<usize> {
    if out == 0 || inputs == 0 || group == 0 {
        return Err(Error::General(format!("a layer of {out} x {inputs} in groups of {group}")));
    }
    Ok(inputs.div_ceil(group))
}

/// Group indices, if they are not those of neighbouring inputs.
fn indices(bytes: &[u8], inputs: usize, group: usize, groups: usize) -> Result<Option<Arc<[u32]>>> {
    if bytes.len() != inputs * 4 {
        return Err(Error::General(format!("g_idx has {} bytes for {inputs} inputs", bytes.len())));
    }
    let of: Vec<u32> = (0..inputs).map(|input| word(bytes, input)).collect();
    if let Some(bad) = of.iter().find(|&&index| index as usize >= groups) {
        return Err(Error::General(format!("g_idx names group {} of {groups}", *bad as i32)));
    }
    let usual = of.iter().enumerate().all(|(input, &index)| index as usize == input / group);
    Ok((!usual).then(|| of.into()))
}
