//! The search for scales: `s = x̄^r / w̄^(1−r)`, the ratio `r` from a grid (reference
//! implementation of arXiv 2306.00978, with `duo_scaling`).

use rayon::prelude::*;

use crate::Result;
use crate::codec::affine::Grouped;
use crate::codec::affine::grid::Grid;
use crate::codec::affine::grid::Scale;
use crate::codec::affine::nearest::round_groups;

/// Ratios that are tried.
pub(crate) const RATIOS: usize = 20;

/// Scales that were found for one group of layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// A factor for each input channel; 1 where nothing is better.
    pub factors: Vec<f32>,
    /// The ratio, `None` where no scaling was best.
    pub ratio: Option<f64>,
    /// Error without scaling, in the units of the caller.
    pub before: f64,
    /// Error with the scales.
    pub after: f64,
}

/// A weight with its shape `(out, in)`.
pub(crate) type Matrix<'a> = (&'a [f32], (usize, usize));

/// Mean over the rows of all `weights` of `|w| / max|w|` of the value's group.
#[must_use]
pub(crate) fn mean_magnitude(weights: &[Matrix<'_>], group: usize) -> Vec<f32> {
    let inputs = weights.first().map_or(0, |(_, (_, inputs))| *inputs);
    let mut sums = vec![0.0f64; inputs];
    let mut rows = 0usize;
    for (weight, _) in weights {
        for row in weight.chunks_exact(inputs) {
            for (values, sums) in row.chunks(group).zip(sums.chunks_mut(group)) {
                let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs())) + 1e-6;
                for (value, sum) in values.iter().zip(sums) {
                    *sum += f64::from(value.abs() / largest);
                }
            }
            rows += 1;
        }
    }
    sums.into_iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
}

/// The scales of a ratio, spread around 1.
fn factors(x: &[f32], w: &[f32], ratio: f32) -> Vec<f32> {
    let mut all: Vec<f32> = x
        .iter()
        .zip(w)
        .map(|(x, w)| (x.powf(ratio) / (w.powf(1.0 - ratio) + 1e-4)).max(1e-4))
        .collect();
    let largest = all.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let smallest = all.iter().copied().fold(f32::INFINITY, f32::min);
    let middle = (largest * smallest).sqrt();
    all.iter_mut().for_each(|factor| {
        *factor /= middle;
        if !(factor.is_finite() && *factor > 0.0) {
            *factor = 1.0;
        }
    });
    all
}

/// Tries all ratios. `error` is told the factors and says what rounding with them costs.
///
/// # Errors
/// Those of `error`.
pub(crate) fn search(
    x: &[f32],
    w: &[f32],
    mut error: impl FnMut(&[f32]) -> Result<f64>,
) -> Result<Found> {
    let ones = vec![1.0; x.len()];
    let before = error(&ones)?;
    let mut found = Found { factors: ones, ratio: None, before, after: before };
    for step in 0..RATIOS {
        let ratio = step as f64 / RATIOS as f64;
        let factors = factors(x, w, ratio as f32);
        let after = error(&factors)?;
        if after < found.after {
            found = Found { factors, ratio: Some(ratio), before, after };
        }
    }
    Ok(found)
}

/// What a layer computes with when its weight is rounded under `factors`: `Q(w s) / s`.
#[must_use]
pub(crate) fn rounded(weight: Matrix<'_>, factors: &[f32], grid: Grid, group: usize) -> Vec<f32> {
    let (weight, (_, inputs)) = weight;
    let most = f32::from(grid.most());
    let mut out = vec![0.0; weight.len()];
    out.par_chunks_exact_mut(inputs).zip(weight.par_chunks_exact(inputs)).for_each(|(out, row)| {
        let scaled: Vec<f32> = row.iter().zip(factors).map(|(w, s)| w * s).collect();
        let groups = out.chunks_mut(group).zip(scaled.chunks(group)).zip(factors.chunks(group));
        for ((out, values), factors) in groups {
            let scale = grid.fit(values, None);
            for ((out, &value), factor) in out.iter_mut().zip(values).zip(factors) {
                *out = scale.value(scale.round(value, most)) / factor;
            }
        }
    });
    out
}

/// `tr(Δ G Δᵀ)` of `Δ = a − b`, `[out, in]`, with `G` `[in, in]`, symmetric.
#[must_use]
pub(crate) fn quadratic(a: &[f32], b: Option<&[f32]>, gram: &[f32], inputs: usize) -> f64 {
    use crate::linalg::products::{Operand, multiply_f32_here};
    const ROWS: usize = 64;
    let sums: Vec<f64> = a
        .par_chunks(ROWS * inputs)
        .enumerate()
        .map(|(chunk, a)| {
            let delta: Vec<f32> = match b {
                Some(b) => {
                    let b = &b[chunk * ROWS * inputs..];
                    a.iter().zip(b).map(|(a, b)| a - b).collect()
                }
                None => a.to_vec(),
            };
            let rows = delta.len() / inputs;
            let mut product = vec![0.0; delta.len()];
            let gram = Operand::new(gram, inputs, inputs);
            multiply_f32_here(&mut product, Operand::new(&delta, rows, inputs), gram, false);
            delta.iter().zip(&product).map(|(d, p)| f64::from(*d) * f64::from(*p)).sum::<f64>()
        })
        .collect();
    sums.iter().sum()
}

/// Rounds `weight` to the nearest level of the scales that `fit` gives each row's groups.
pub(crate) fn round_with(
    weight: Matrix<'_>,
    grid: Grid,
    group: usize,
    fit: impl Fn(usize, &[f32]) -> Scale + Sync,
) -> Grouped {
    let (weight, (_, inputs)) = weight;
    let most = f32::from(grid.most());
    round_groups(
        (weight, inputs),
        (group, grid.bits),
        |number, values| {
            let Scale { scale, zero } = fit(number, values);
            (scale, zero)
        },
        |value, (scale, zero)| Scale { scale, zero }.round(value, most),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::affine::PlainType;

    #[test]
    fn the_middle_of_the_factors_is_one() {
        let all = factors(&[1.0, 4.0, 16.0], &[0.5, 0.5, 0.5], 0.5);
        assert!((all[0] * all[2] - 1.0).abs() < 1e-5);
        assert!((all[2] / all[1] - 2.0).abs() < 1e-3);
    }

    #[test]
    fn a_loud_channel_is_rounded_finer() {
        let (out, inputs, group) = (16, 64, 32);
        let weight: Vec<f32> =
            (0..out * inputs).map(|i| ((i * 131 + 7) as f32 * 0.618_034).fract() - 0.5).collect();
        let x: Vec<f32> = (0..inputs).map(|j| if j == 9 { 50.0 } else { 1.0 }).collect();
        let gram: Vec<f32> = (0..inputs * inputs)
            .map(|at| if at / inputs == at % inputs { x[at % inputs].powi(2) } else { 0.0 })
            .collect();
        let grid = Grid {
            bits: 4,
            symmetric: false,
            least_zero: 0,
            search: false,
            scales: PlainType::F16,
        };
        let matrix = (weight.as_slice(), (out, inputs));
        let w = mean_magnitude(&[matrix], group);
        let found = search(&x, &w, |factors| {
            Ok(quadratic(&weight, Some(&rounded(matrix, factors, grid, group)), &gram, inputs))
        })
        .unwrap();
        assert!(found.ratio.is_some() && found.after < 0.5 * found.before, "{found:?}");
        assert!(found.factors[9] > 2.0 * found.factors[10]);
    }

    #[test]
    fn the_quadratic_form_is_a_plain_sum() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 1.0]);
        let gram = [2.0, 1.0, 1.0, 3.0];
        // Δ = (1, 1), (2, 3): 2 + 1 + 1 + 3 = 7 and 8 + 6 + 6 + 27 = 47.
        assert!((quadratic(&a, Some(&b), &gram, 2) - 54.0).abs() < 1e-9);
    }
}
