//! Whether integers and their 16-bit scales hold the weights that they were made of.
//!
//! A scale of f16 ends at 65,504 and begins at 2⁻²⁴: beyond that every level is too small for the
//! weight, below it every weight is nearer to zero than to a level.

use rayon::prelude::*;

use super::finished::Levels;
use crate::codec::affine::{Grouped, Int8Rows};
use crate::weight::StoredTensor;
use crate::{Error, Result};

/// The smallest of the scales at which types of scales end: bfloat16 below f16's largest.
const ENDS: f32 = 65_280.0;
/// The largest f16.
const LARGEST: f32 = 65_504.0;

/// A weight of a group, and what became of it.
#[derive(Clone, Copy)]
struct Largest {
    column: usize,
    weight: f32,
    stored: f32,
}

/// Groups of a layer that became zero, and their largest weight.
#[derive(Default, Clone, Copy)]
struct Zeroed {
    groups: usize,
    largest: f32,
}

impl Zeroed {
    fn and(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            largest: if self.largest.abs() < other.largest.abs() {
                other.largest
            } else {
                self.largest
            },
        }
    }
}

/// Compares the largest weight of every group with what is stored for it. Gives a warning where whole
/// groups became zero.
///
/// # Errors
/// [`Error::OutOfRange`] if a scale would have to be larger than its type allows.
pub(crate) fn check(layer: &str, weight: &[f32], levels: &Levels) -> Result<Option<String>> {
    let (rows, inputs) = match levels {
        Levels::Groups(grouped) => (grouped.out, grouped.inputs),
        Levels::Rows(rows) => (rows.out, rows.inputs),
    };
    let zeroed = (0..rows)
        .into_par_iter()
        .map_init(Vec::new, |largest, row| {
            let weight = &weight[row * inputs..(row + 1) * inputs];
            match levels {
                Levels::Groups(grouped) => of_groups(grouped, row, weight, largest),
                Levels::Rows(rows) => of_row(rows, row, weight, largest),
            }
            let mut zeroed = Zeroed::default();
            for (scale, largest) in largest.iter().copied() {
                let Some(Largest { column, weight, stored }) = largest else { continue };
                let cut = scale >= ENDS && (weight - stored).abs() > scale;
                if cut || !stored.is_finite() {
                    return Err(out_of_range(layer, row, column, weight));
                }
                if stored == 0.0 {
                    zeroed = zeroed.and(Zeroed { groups: 1, largest: weight });
                }
            }
            Ok(zeroed)
        })
        .try_reduce(Zeroed::default, |a, b| Ok(a.and(b)))?;
    Ok((zeroed.groups > 0).then(|| {
        let what = if matches!(levels, Levels::Rows(_)) { "rows" } else { "groups" };
        format!(
            "{layer}: {} {what} become zero: their weights, the largest of them {:?}, are smaller \
             than the smallest scale that a file can hold",
            zeroed.groups, zeroed.largest
        )
    }))
}

/// The scale and the largest weight of every group of a row; none where the group is zero anyway.
fn of_groups(grouped: &Grouped, row: usize, weight: &[f32], out: &mut Vec<(f32, Option<Largest>)>) {
    let groups = grouped.scales.len() / grouped.out.max(1);
    let at = row * groups;
    out.clear();
    out.extend(grouped.scales[at..at + groups].iter().map(|scale| (scale.to_f32(), None)));
    let levels = &grouped.q[row * grouped.inputs..(row + 1) * grouped.inputs];
    for (column, (&weight, &level)) in weight.iter().zip(levels).enumerate() {
        let group = match &grouped.group_of {
            Some(groups) => groups[column] as usize,
            None => column / grouped.group,
        };
        let step = f32::from(level) - f32::from(grouped.zeros[at + group]);
        let (scale, largest) = &mut out[group];
        note(largest, Largest { column, weight, stored: step * *scale });
    }
}

fn of_row(rows: &Int8Rows, row: usize, weight: &[f32], out: &mut Vec<(f32, Option<Largest>)>) {
    let scale = rows.scales[row];
    let levels = &rows.q[row * rows.inputs..(row + 1) * rows.inputs];
    let mut largest = None;
    for (column, (&weight, &level)) in weight.iter().zip(levels).enumerate() {
        note(&mut largest, Largest { column, weight, stored: f32::from(level) * scale });
    }
    out.clear();
    out.push((scale, largest));
}

fn note(largest: &mut Option<Largest>, new: Largest) {
    if new.weight != 0.0 && largest.is_none_or(|old| old.weight.abs() < new.weight.abs()) {
        *largest = Some(new);
    }
}

/// The first weight of a tensor that no grid of `bits` in groups of `group` can hold, before anything
/// is calibrated: the range of its group asks for a scale beyond f16.
#[must_use]
pub(crate) fn first_beyond(
    tensor: &StoredTensor,
    group: usize,
    bits: u8,
    symmetric: bool,
) -> Option<(usize, usize, f32)> {
    const ROWS: usize = 16;
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let most = f32::from(u8::MAX >> (8 - bits));
    (0..rows.div_ceil(ROWS)).into_par_iter().find_map_first(|part| {
        let range = part * ROWS..rows.min((part + 1) * ROWS);
        let mut values = vec![0.0; range.len() * cols];
        tensor.read_rows(range.clone(), &mut values);
        range.zip(values.chunks_exact(cols.max(1))).find_map(|(row, values)| {
            let column = values.chunks(group.max(1)).enumerate().find_map(|(number, values)| {
                let (low, high) = values
                    .iter()
                    .fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
                let span = if symmetric { 2.0 * high.max(-low) } else { high - low };
                // In halves: the span of two finite values can be infinite.
                let beyond = span / 2.0 > LARGEST / 2.0 * (most + 0.5);
                let edge = if high >= -low { high } else { low };
                let at = values.iter().position(|v| v.to_bits() == edge.to_bits())?;
                beyond.then_some(number * group + at)
            })?;
            Some((row, column, values[column]))
        })
    })
}

/// The refusal of a weight.
#[must_use]
pub(crate) fn out_of_range(layer: &str, row: usize, column: usize, weight: f32) -> Error {
    Error::OutOfRange {
        message: format!(
            "{layer} has {weight:?} at [{row}, {column}], which no scale of 16 bits reaches"
        ),
        suggestion:
            "Weights this large are damage, mostly; `quantize gguf` at BF16 or F32 keeps them"
                .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::base::SharedBytes;
    use crate::codec::StoredType;

    fn grouped(scales: [f32; 2], zero: u8, q: [u8; 4]) -> Levels {
        Levels::Groups(Grouped {
            out: 1,
            inputs: 4,
            group: 2,
            bits: 4,
            q: q.to_vec(),
            scales: scales.map(f16::from_f32).to_vec(),
            zeros: vec![zero; 2],
            group_of: None,
        })
    }

    #[test]
    fn a_scale_at_its_end_is_refused_only_where_it_cuts() {
        // 7 × 65,504 = 458,528.
        let held = [458_000.0, 0.0, 1.0, 1.0];
        let levels = grouped([65_504.0, 1.0], 8, [15, 8, 9, 9]);
        assert!(check("l", &held, &levels).unwrap().is_none());
        let error = check("l", &[1e6, 0.0, 1.0, 1.0], &levels).unwrap_err();
        assert_eq!(error.exit_code(), 8);
        assert!(error.to_string().contains("l has 1000000.0 at [0, 0]"), "{error}");
        let rows = Int8Rows { out: 1, inputs: 2, q: vec![127, 0], scales: vec![f32::INFINITY] };
        assert!(check("l", &[1e30, 0.0], &Levels::Rows(rows)).is_err());
    }

    #[test]
    fn groups_that_vanish_are_named() {
        let levels = grouped([6e-8, 1.0], 8, [8, 8, 8, 8]);
        let warning = check("l", &[1e-9, -2e-9, 0.0, 0.0], &levels).unwrap().unwrap();
        assert!(warning.starts_with("l: 1 groups become zero"), "{warning}");
        assert!(warning.contains("-2e-9"), "{warning}");
        assert!(check("l", &[0.0; 4], &levels).unwrap().is_none());
    }

    #[test]
    fn ranges_beyond_every_scale_are_found_before_the_work() {
        let mut values = vec![0.5f32; 40 * 8];
        let tensor = |values: &[f32]| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let bytes = SharedBytes::from_vec(bytes);
            StoredTensor::new(vec![40, 8], StoredType::F32, bytes).unwrap()
        };
        values[300] = 480_000.0;
        assert_eq!(first_beyond(&tensor(&values), 4, 4, true), None);
        values[300] = 600_000.0;
        assert_eq!(first_beyond(&tensor(&values), 4, 4, true), Some((37, 4, 600_000.0)));
        assert_eq!(first_beyond(&tensor(&values), 4, 4, false), None);
        values[301] = -600_000.0;
        assert_eq!(first_beyond(&tensor(&values), 4, 4, false), Some((37, 4, 600_000.0)));
        values[301] = f32::MIN;
        values[300] = f32::MAX;
        assert_eq!(first_beyond(&tensor(&values), 4, 8, false), Some((37, 4, f32::MAX)));
    }
}
