//! Round to nearest, without calibration: on the grid that each group's smallest and largest weight
//! span ([`round`]), or on the one of several narrower grids that loses least ([`round_best`]).

use half::f16;
use rayon::prelude::*;

use super::grouped::Grouped;
use super::int8::{Int8Rows, as_scale};
use crate::Result;
use safetensors::Dtype;

/// The scale of groups of zeros, so that no scale is 0.
const OF_ZEROS: f32 = 1e-5;
/// The smallest scale that f16 has.
const SMALLEST: f32 = 1.0 / 16_777_216.0;

/// Where a grid lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Zero in the middle: `s = 2 max|w| / (2^b - 1)`, `z = 2^(b-1)`.
    Symmetric,
    /// From the smallest weight to the largest, 0 included: `s = (max - min) / (2^b - 1)`,
    /// `z = round(-min / s)`.
    Asymmetric,
}

/// Narrower grids that are tried, and how narrow the last one is.
const TRIES: usize = 24;
const NARROWEST: f32 = 0.4;

/// Smallest and largest value, 0 included.
fn span(values: &[f32]) -> (f32, f32) {
    values.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)))
}

/// Scale and zero point of the values of one group; the scale as f16 holds it.
#[must_use]
pub fn grid(values: &[f32], bits: u8, kind: Grid) -> (f16, u8) {
    grid_of(span(values), bits, kind)
}

/// The grid from `low` to `high`.
fn grid_of((low, high): (f32, f32), bits: u8, kind: Grid) -> (f16, u8) {
    let largest = f32::from(Grouped::largest(bits));
    let scale = match kind {
        Grid::Symmetric => 2.0 * high.max(-low) / largest,
        Grid::Asymmetric => (high - low) / largest,
    };
    // Scales of tiny weights must not become 0 in f16, nor those of huge ones infinite: that a grid
    // does not hold its weights is seen in what is rounded on it.
    let scale = if scale == 0.0 { OF_ZEROS } else { scale };
    let scale = f16::from_f32(scale.clamp(SMALLEST, f16::MAX.to_f32()));
    let zero = match kind {
        Grid::Symmetric => Grouped::middle(bits),
        Grid::Asymmetric => (-low / scale.to_f32()).round_ties_even().clamp(0.0, largest) as u8,
    };
    (scale, zero)
}

/// Of the grid of [`grid`] and narrower ones, down to two fifths, the one with the smallest squared
/// error: values beyond a narrower grid are cut off, all others lie closer to it.
#[must_use]
pub fn best_grid(values: &[f32], bits: u8, kind: Grid) -> (f16, u8) {
    let (low, high) = span(values);
    let mut best = (f32::INFINITY, (f16::ONE, 0));
    for number in 0..=TRIES {
        let part = 1.0 - (1.0 - NARROWEST) * number as f32 / TRIES as f32;
        let (scale, zero) = grid_of((low * part, high * part), bits, kind);
        let error: f32 = values
            .iter()
            .map(|&value| {
                let step = f32::from(nearest(value, scale, zero, bits)) - f32::from(zero);
                (step * scale.to_f32() - value).powi(2)
            })
            .sum();
        if error < best.0 {
            best = (error, (scale, zero));
        }
    }
    best.1
}

/// The nearest integer of a grid.
#[must_use]
pub fn nearest(value: f32, scale: f16, zero: u8, bits: u8) -> u8 {
    let step = (value / scale.to_f32()).round_ties_even() + f32::from(zero);
    step.clamp(0.0, f32::from(Grouped::largest(bits))) as u8
}

/// Rounds a weight `[out, inputs]`, row-major, in groups of `group` neighbouring inputs, each on the
/// grid that it spans.
#[must_use]
pub fn round(weight: &[f32], inputs: usize, group: usize, bits: u8, kind: Grid) -> Grouped {
    round_on(weight, inputs, group, bits, |values| grid(values, bits, kind))
}

/// As [`round`], each group on its [`best_grid`].
#[must_use]
pub fn round_best(weight: &[f32], inputs: usize, group: usize, bits: u8, kind: Grid) -> Grouped {
    round_on(weight, inputs, group, bits, |values| best_grid(values, bits, kind))
}

fn round_on(
    weight: &[f32],
    inputs: usize,
    group: usize,
    bits: u8,
    grid: impl Fn(&[f32]) -> (f16, u8) + Sync,
) -> Grouped {
    round_groups(
        (weight, inputs),
        (group, bits),
        |_, values| grid(values),
        |value, (scale, zero)| nearest(value, scale, zero, bits),
    )
}

/// Rounds a weight and its inputs in groups of some size to some bits: `grid` gives scale and zero
/// point of a group by its number in the row and its values, `level` the integer of a value on them.
pub(crate) fn round_groups(
    (weight, inputs): (&[f32], usize),
    (group, bits): (usize, u8),
    grid: impl Fn(usize, &[f32]) -> (f16, u8) + Sync,
    level: impl Fn(f32, (f16, u8)) -> u8 + Sync,
) -> Grouped {
    let (out, groups) = (weight.len() / inputs, inputs.div_ceil(group));
    let mut layer = Grouped {
        out,
        inputs,
        group,
        bits,
        q: vec![0; weight.len()],
        scales: vec![f16::ZERO; out * groups],
        zeros: vec![0; out * groups],
        group_of: None,
    };
    let rows = layer.q.par_chunks_exact_mut(inputs).zip(weight.par_chunks_exact(inputs));
    let grids = layer.scales.par_chunks_exact_mut(groups);
    let grids = grids.zip(layer.zeros.par_chunks_exact_mut(groups));
    rows.zip(grids).for_each(|((q, weight), (scales, zeros))| {
        let parts = q.chunks_mut(group).zip(weight.chunks(group)).enumerate();
        for ((number, (q, weight)), (s, z)) in parts.zip(scales.iter_mut().zip(zeros)) {
            let of_group = grid(number, weight);
            (*s, *z) = of_group;
            q.iter_mut().zip(weight).for_each(|(q, &value)| *q = level(value, of_group));
        }
    });
    layer
}

/// Rounds a weight `[out, inputs]` to 8 bits with one scale per row, `max|w| / 127`.
///
/// # Errors
/// If `scale` is no type of scales.
pub fn round_rows(weight: &[f32], inputs: usize, scale: Dtype) -> Result<Int8Rows> {
    let mut q = vec![0i8; weight.len()];
    let mut scales = vec![0.0f32; weight.len() / inputs];
    let rows = q.par_chunks_exact_mut(inputs).zip(weight.par_chunks_exact(inputs));
    rows.zip(&mut scales).try_for_each(|((q, weight), s)| -> Result<()> {
        let most = weight.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let step = if most == 0.0 { OF_ZEROS } else { most / 127.0 };
        *s = as_scale(step.max(SMALLEST), scale)?;
        for (q, value) in q.iter_mut().zip(weight) {
            *q = (value / *s).round_ties_even().clamp(-127.0, 127.0) as i8;
        }
        Ok(())
    })?;
    Ok(Int8Rows { out: scales.len(), inputs, q, scales })
}
