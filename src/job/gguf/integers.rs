//! Packed integers as blocks of GGUF types, without loss where the grids are the same.
//!
//! A value of Q4_0, Q5_0 or Q8_0 is a whole number from -8 to 7, -16 to 15 or -128 to 127 times the
//! f16 scale of its block of 32. A packed value is the step `q - z` times the scale of its group: the
//! same number where steps fit the range, blocks lie inside groups, and the scale is a value of f16.
//! Layouts: `ggml-common.h` (`block_q4_0`, `block_q5_0`, `block_q8_0`).

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::tensor::GgufTensor;
use crate::codec::StoredType;
use crate::weight::PackedTensor;

/// Values of a block.
const BLOCK: usize = 32;

/// Types that can hold steps, the smallest first, with the largest step.
const TYPES: [(StoredType, i16); 3] =
    [(StoredType::Q4_0, 7), (StoredType::Q5_0, 15), (StoredType::Q8_0, 127)];

/// The smallest type that holds every value of a layer exactly, if one does.
#[must_use]
pub(crate) fn exact_type(packed: &PackedTensor) -> Option<StoredType> {
    let limits = (0..packed.rows())
        .into_par_iter()
        .map_init(
            || vec![0i16; packed.cols()],
            |steps, row| {
                scales(packed, row)?;
                packed.read_steps(row, steps);
                Some(steps.iter().fold((0, 0), |(low, high), &s| (s.min(low), s.max(high))))
            },
        )
        .try_reduce(|| (0, 0), |a, b| Some((a.0.min(b.0), a.1.max(b.1))))?;
    TYPES.iter().find(|(_, most)| fits(limits, *most)).map(|(kind, _)| *kind)
}

/// Whether a type holds every value of a layer exactly: F32 always does.
#[must_use]
pub(crate) fn holds(packed: &PackedTensor, kind: StoredType) -> bool {
    let rank = |kind: StoredType| TYPES.iter().position(|(name, _)| *name == kind);
    kind == StoredType::F32
        || rank(kind).is_some_and(|rank_of_kind| {
            exact_type(packed).and_then(rank).is_some_and(|needed| needed <= rank_of_kind)
        })
}

fn fits((low, high): (i16, i16), most: i16) -> bool {
    low >= -most - 1 && high <= most
}

/// The scale of each block of a row, if blocks have one and it is a value of f16.
fn scales(packed: &PackedTensor, row: usize) -> Option<Vec<f16>> {
    if !packed.cols().is_multiple_of(BLOCK) {
        return None;
    }
    (0..packed.cols() / BLOCK)
        .map(|block| {
            let group = packed.group_of(block * BLOCK);
            let one_group = if packed.is_reordered() {
                (1..BLOCK).all(|at| packed.group_of(block * BLOCK + at) == group)
            } else {
                packed.group_of(block * BLOCK + BLOCK - 1) == group
            };
            let scale = packed.scale(row, group);
            let half = f16::from_f32(scale);
            (one_group && half.to_f32().to_bits() == scale.to_bits()).then_some(half)
        })
        .collect()
}

/// Writes `rows` of a packed tensor as blocks of `kind` into `out` if all of them fit exactly;
/// otherwise `false`, and `out` is worthless.
pub(super) fn encode(
    packed: &PackedTensor,
    tensor: &GgufTensor,
    rows: Range<usize>,
    kind: StoredType,
    out: &mut [u8],
) -> bool {
    let Some(&(_, most)) = TYPES.iter().find(|(name, _)| *name == kind) else { return false };
    let (_, block_bytes) = kind.block();
    let row_bytes = packed.cols() / BLOCK * block_bytes;
    let mut steps = vec![0i16; packed.cols()];
    rows.zip(out.chunks_exact_mut(row_bytes.max(1))).all(|(row, out)| {
        let row = tensor.source_row(row);
        let Some(scales) = scales(packed, row) else { return false };
        packed.read_steps(row, &mut steps);
        if steps.iter().any(|&step| !fits((step.min(0), step.max(0)), most)) {
            return false;
        }
        let (blocks, _) = steps.as_chunks::<BLOCK>();
        for ((out, steps), scale) in out.chunks_exact_mut(block_bytes).zip(blocks).zip(scales) {
            out[..2].copy_from_slice(&scale.to_le_bytes());
            write_steps(kind, steps, &mut out[2..]);
        }
        true
    })
}

/// The integers of a block, behind its scale.
fn write_steps(kind: StoredType, steps: &[i16; BLOCK], out: &mut [u8]) {
    match kind {
        StoredType::Q8_0 => {
            out.iter_mut().zip(steps).for_each(|(out, &step)| *out = step as i8 as u8);
        }
        StoredType::Q5_0 => {
            let high = steps
                .iter()
                .enumerate()
                .fold(0u32, |bits, (at, &step)| bits | u32::from((step + 16) as u8 >> 4) << at);
            out[..4].copy_from_slice(&high.to_le_bytes());
            for (at, out) in out[4..].iter_mut().enumerate() {
                let nibble = |at: usize| (steps[at] + 16) as u8 & 15;
                *out = nibble(at) | nibble(at + BLOCK / 2) << 4;
            }
        }
        _ => {
            for (at, out) in out.iter_mut().enumerate() {
                let nibble = |at: usize| (steps[at] + 8) as u8;
                *out = nibble(at) | nibble(at + BLOCK / 2) << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::ggml;

    /// What this crate's decoders, which are compared with ggml's, make of every step.
    #[test]
    fn blocks_decode_to_steps_times_scale() {
        let scale = f16::from_f32(-0.0123);
        for (kind, most) in TYPES {
            for start in (-most - 1..=most).step_by(BLOCK / 2) {
                let mut steps = [0i16; BLOCK];
                for (at, step) in steps.iter_mut().enumerate() {
                    *step = (start + at as i16 * 5 % 31).min(most);
                }
                let mut bytes = vec![0; kind.block().1];
                bytes[..2].copy_from_slice(&scale.to_le_bytes());
                write_steps(kind, &steps, &mut bytes[2..]);
                let mut values = [0.0; BLOCK];
                ggml::decode(kind, &bytes, &mut values);
                for (value, step) in values.iter().zip(steps) {
                    let want = f32::from(step) * scale.to_f32();
                    assert_eq!(value.to_bits(), want.to_bits(), "{kind:?} {step}");
                }
            }
        }
    }
}
