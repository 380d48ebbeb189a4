//! Whole numbers times scales: what block types and packed layers have in common, and how one becomes
//! the other without loss.
//!
//! A row is cut into units of 32 inputs, the blocks of GGUF's simple types. In each, a value is a whole
//! number, the step, times the unit's scale:
//!
//! * Q4_0, Q5_0, Q8_0: `q - 8`, `q - 16`, `q` and the scale of the block;
//! * Q4_1, Q5_1: `q + m / d`, where the minimum `m` is a whole multiple of the scale `d`;
//! * GPTQ, AWQ: `q - z`, and the scale of the group that the unit lies in;
//! * W8A8: `q`, and the scale of the row.

use half::f16;
use rayon::prelude::*;

use crate::codec::StoredType;
use crate::codec::affine::Grouped;
use crate::weight::{PackedTensor, StoredTensor, Weight};

/// Inputs of a unit.
pub(crate) const UNIT: usize = 32;

/// Whether values of a weight can be steps at all; whether they are is found row by row.
#[must_use]
pub(crate) fn has_steps(weight: &Weight) -> bool {
    use crate::codec::StoredType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    let (kind, cols) = match weight {
        Weight::Stored(tensor) => (Some(tensor.dtype), tensor.cols()),
        Weight::Packed(tensor) => (None, tensor.cols()),
        Weight::Factorized(_) => return false,
    };
    cols.is_multiple_of(UNIT)
        && kind.is_none_or(|kind| matches!(kind, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0))
}

/// A row as steps and scales.
#[derive(Debug)]
struct Row {
    /// `[inputs]`
    steps: Vec<i16>,
    /// One for each unit.
    scales: Vec<f16>,
}

/// Reads a row; `false` if its values are no steps.
fn read(weight: &Weight, row: usize, into: &mut Row) -> bool {
    match weight {
        Weight::Packed(tensor) => read_packed(tensor, row, into),
        Weight::Stored(tensor) => read_blocks(tensor, row, into),
        Weight::Factorized(_) => false,
    }
}

fn read_packed(tensor: &PackedTensor, row: usize, into: &mut Row) -> bool {
    for (unit, scale) in into.scales.iter_mut().enumerate() {
        let group = tensor.group_of(unit * UNIT);
        if (1..UNIT).any(|at| tensor.group_of(unit * UNIT + at) != group) {
            return false;
        }
        let value = tensor.scale(row, group);
        *scale = f16::from_f32(value);
        if scale.to_f32().to_bits() != value.to_bits() {
            return false;
        }
    }
    tensor.read_steps(row, &mut into.steps);
    true
}

fn read_blocks(tensor: &StoredTensor, row: usize, into: &mut Row) -> bool {
    let (_, size) = tensor.dtype.block();
    let blocks = tensor.row_bytes(row).chunks_exact(size);
    let (units, _) = into.steps.as_chunks_mut::<UNIT>();
    blocks.zip(units).zip(&mut into.scales).all(|((bytes, steps), scale)| {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        *scale = half(0);
        let nibbles = |bytes: &[u8], steps: &mut [i16; UNIT]| {
            for (at, byte) in bytes.iter().enumerate() {
                steps[at] = i16::from(byte & 15);
                steps[at + UNIT / 2] = i16::from(byte >> 4);
            }
        };
        // The fifth bits lie in a word of their own.
        let fifth = |at: usize, steps: &mut [i16; UNIT]| {
            let bits = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            for (at, step) in steps.iter_mut().enumerate() {
                *step |= ((bits >> at & 1) << 4) as i16;
            }
        };
        let minus = match tensor.dtype {
            StoredType::Q4_0 => {
                nibbles(&bytes[2..], steps);
                Some(8)
            }
            StoredType::Q5_0 => {
                nibbles(&bytes[6..], steps);
                fifth(2, steps);
                Some(16)
            }
            StoredType::Q8_0 => {
                steps.iter_mut().zip(&bytes[2..]).for_each(|(s, &q)| *s = i16::from(q as i8));
                Some(0)
            }
            StoredType::Q4_1 => {
                nibbles(&bytes[4..], steps);
                whole_multiple(half(2), scale, steps)
            }
            StoredType::Q5_1 => {
                nibbles(&bytes[8..], steps);
                fifth(4, steps);
                whole_multiple(half(2), scale, steps)
            }
            _ => None,
        };
        let Some(minus) = minus else { return false };
        steps.iter_mut().for_each(|step| *step -= minus);
        true
    })
}

/// How many scales a block's minimum lies below 0, if that is a whole number. A block without a scale
/// is its minimum everywhere: one step of that size.
fn whole_multiple(minimum: f16, scale: &mut f16, steps: &mut [i16; UNIT]) -> Option<i16> {
    let (m, d) = (f64::from(minimum.to_f32()), f64::from(scale.to_f32()));
    if d == 0.0 {
        *scale = minimum;
        steps.fill(1);
        return Some(0);
    }
    let below = -m / d;
    (below.fract() == 0.0 && below.abs() <= 512.0).then_some(below as i16)
}

/// The grid of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TargetGrid {
    /// Bits of an integer.
    pub bits: u8,
    /// Inputs that share a scale and a zero point; a multiple of [`UNIT`].
    pub group: usize,
}

/// The weight on a target's grid with every value kept, if the grid holds it: compared value by value
/// before it is returned.
#[must_use]
pub(crate) fn carry_over(weight: &Weight, grid: TargetGrid) -> Option<Grouped> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let TargetGrid { bits, group } = grid;
    if !has_steps(weight) || !group.is_multiple_of(UNIT) || !cols.is_multiple_of(group) {
        return None;
    }
    let groups = cols / group;
    let mut layer = Grouped {
        out: rows,
        inputs: cols,
        group,
        bits,
        q: vec![0; rows * cols],
        scales: vec![f16::ZERO; rows * groups],
        zeros: vec![0; rows * groups],
        group_of: None,
    };
    let of_rows = layer.q.par_chunks_exact_mut(cols);
    let grids = layer.scales.par_chunks_exact_mut(groups);
    let grids = grids.zip(layer.zeros.par_chunks_exact_mut(groups));
    let fits = of_rows.zip(grids).enumerate().all(|(row, (q, (scales, zeros)))| {
        let mut steps = Row { steps: vec![0; cols], scales: vec![f16::ZERO; cols / UNIT] };
        if !read(weight, row, &mut steps) {
            return false;
        }
        let parts = q.chunks_exact_mut(group).zip(steps.steps.chunks_exact(group));
        let parts = parts.zip(steps.scales.chunks_exact(group / UNIT));
        let mut parts = parts.zip(scales.iter_mut().zip(zeros));
        parts.all(|(((q, steps), of_units), (scale, zero))| {
            *scale = of_units[0];
            if of_units.iter().any(|other| other.to_bits() != scale.to_bits()) {
                return false;
            }
            let Some(z) = zero_point(steps, bits) else { return false };
            *zero = z;
            q.iter_mut().zip(steps).for_each(|(q, step)| *q = (step + i16::from(z)) as u8);
            true
        })
    });
    (fits && same_values(weight, &layer)).then_some(layer)
}

/// A zero point that keeps all steps inside the grid: the middle one if it does, else the nearest to
/// it; not 0 where another is possible, since version 1 of GPTQ checkpoints cannot store that.
fn zero_point(steps: &[i16], bits: u8) -> Option<u8> {
    let largest = i16::from(Grouped::largest(bits));
    let (low, high) = steps.iter().fold((0, 0), |(l, h), &s| (s.min(l), s.max(h)));
    let (least, most) = (-low, largest - high);
    if least > most {
        return None;
    }
    let middle = i16::from(Grouped::middle(bits));
    Some(middle.clamp(least, most) as u8)
}

/// Whether a layer's values are those of the weight, every one of them.
fn same_values(weight: &Weight, layer: &Grouped) -> bool {
    const ROWS: usize = 16;
    let cols = layer.inputs;
    (0..layer.out.div_ceil(ROWS)).into_par_iter().all(|part| {
        let rows = part * ROWS..layer.out.min((part + 1) * ROWS);
        let (mut want, mut got) = (vec![0.0; rows.len() * cols], vec![0.0; rows.len() * cols]);
        weight.read_rows(rows.clone(), &mut want);
        layer.read_rows(rows, &mut got);
        // 0 and -0 are the same value.
        want == got
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::base::SharedBytes;
    use crate::codec::ggml;

    /// A tensor that ggml's encoder made of random values.
    fn stored(kind: StoredType, rows: usize, cols: usize) -> Weight {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut bytes = Vec::new();
        for _ in 0..rows {
            let values: Vec<f32> = (0..cols).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            let mut row = vec![0; kind.row_bytes(cols).unwrap()];
            ggml::encode_row(kind, &values, None, &mut row);
            bytes.extend(row);
        }
        let bytes = SharedBytes::from_vec(bytes);
        Weight::Stored(StoredTensor::new(vec![rows, cols], kind, bytes).unwrap())
    }

    #[test]
    fn simple_blocks_fit_the_grid_of_their_bits_and_no_smaller_one() {
        for (kind, bits) in [(StoredType::Q4_0, 4), (StoredType::Q5_0, 8), (StoredType::Q8_0, 8)] {
            let weight = stored(kind, 24, 96);
            let layer = carry_over(&weight, TargetGrid { bits, group: 32 }).unwrap();
            let middle = 1 << (bits - 1);
            assert!(layer.zeros.iter().all(|&zero| zero == middle), "{kind:?}");
            // The values by the layout's formula, from the bytes.
            let Weight::Stored(tensor) = &weight else { panic!() };
            let mut got = vec![0.0; 24 * 96];
            layer.read_rows(0..24, &mut got);
            assert_eq!(got, tensor.to_f32());
            let smaller = TargetGrid { bits: if bits == 8 { 4 } else { 3 }, group: 32 };
            assert!(carry_over(&weight, smaller).is_none(), "{kind:?}");
            // Scales of neighbouring blocks differ.
            assert!(carry_over(&weight, TargetGrid { bits, group: 96 }).is_none(), "{kind:?}");
        }
        assert!(
            carry_over(&stored(StoredType::Q4_K, 4, 256), TargetGrid { bits: 8, group: 32 })
                .is_none()
        );
    }

    #[test]
    fn a_minimum_fits_where_it_is_a_whole_number_of_scales() {
        let block = |scale: f32, minimum: f32| {
            let mut bytes = Vec::new();
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(f16::from_f32(minimum).to_le_bytes());
            bytes.extend((0..16).map(|at: u8| at | (15 - at) << 4));
            bytes
        };
        let tensor = |rows: &[(f32, f32)]| {
            let bytes: Vec<u8> = rows.iter().flat_map(|&(d, m)| block(d, m)).collect();
            let bytes = SharedBytes::from_vec(bytes);
            let shape = vec![rows.len(), 32];
            Weight::Stored(StoredTensor::new(shape, StoredType::Q4_1, bytes).unwrap())
        };
        let grid = TargetGrid { bits: 4, group: 32 };
        let layer = carry_over(&tensor(&[(0.25, -1.75), (0.5, 0.0), (0.0, 0.125)]), grid).unwrap();
        assert_eq!(layer.zeros, [7, 0, 8]);
        assert_eq!(layer.q[..3], [0, 1, 2]);
        assert_eq!((layer.q[64], layer.scales[2].to_f32()), (9, 0.125));
        assert!(carry_over(&tensor(&[(0.25, -1.8)]), grid).is_none());
        // 16 scales below 0: no zero point of 4 bits reaches that.
        assert!(carry_over(&tensor(&[(0.25, -4.0)]), grid).is_none());
        assert!(carry_over(&tensor(&[(0.25, -4.0)]), TargetGrid { bits: 8, group: 32 }).is_some());
    }
}
