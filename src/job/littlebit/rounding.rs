//! Scales as they are stored: rounded in the units of the original weights, and the error that
//! remains with them.

use half::f16;

use super::normalise::{Importance, Normalised};
use super::scales::{ErrorSums, Path, refit_columns, subtract};
use crate::weight::ScaleType;
use crate::weight::scale_type::LogGrid;

/// Stored scales of a path, widened: rows, latent dimensions (perhaps none), columns.
pub(crate) type StoredScales = [Vec<f64>; 3];

/// Rounds all scales to values that `scales` stores, in the units of the original weights and puts the rounded values back
/// into the paths. Rows go first and columns are fitted again to the rounded rows, so that only the
/// columns' own rounding remains; rows and columns get the same geometric mean, which keeps both
/// furthest from the ends of the range. Also returns an estimate of the share of the squared
/// weights that rounding costs.
pub(crate) fn round(
    paths: &mut [Path],
    scaled: &Normalised,
    refit: bool,
    scales: ScaleType,
) -> (Vec<StoredScales>, f64) {
    let mut stored = Vec::with_capacity(paths.len());
    let mut loss = 0.0f64;
    let shares = energy_shares(&scaled.matrix, scaled.column.len());
    for at in 0..paths.len() {
        if let Some(latent) = &mut paths[at].latent {
            let mean = latent.iter().map(|l| l * l).sum::<f64>() / latent.len() as f64;
            let unit = if mean > 0.0 { mean.sqrt() } else { 1.0 };
            let squares: Vec<f64> = latent.iter().map(|l| l * l).collect();
            latent.iter_mut().for_each(|l| *l /= unit);
            round_values(latent, &squares, scales);
            paths[at].column.iter_mut().for_each(|g| *g *= unit);
        }
        let row_mean = mean_scale(&paths[at].row, &scaled.row);
        let column_mean = scaled.magnitude * mean_scale(&paths[at].column, &scaled.column);
        let unit = (row_mean / column_mean).sqrt();
        let space = Space { importance: &scaled.row, unit: 1.0 / unit, shares: &shares[0], scales };
        let (rows, lost) = space.round(&mut paths[at].row);
        loss = loss.max(lost);
        if refit && lost.is_finite() {
            let others = paths.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, p)| p);
            let target = subtract(&scaled.matrix, others);
            let path = &mut paths[at];
            let product = path.product();
            refit_columns(&target, &product, &path.row, &mut path.column);
            path.make_scales_positive();
        }
        let unit = unit * scaled.magnitude;
        let space = Space { importance: &scaled.column, unit, shares: &shares[1], scales };
        let (columns, lost) = space.round(&mut paths[at].column);
        loss = loss.max(lost);
        stored.push([rows, paths[at].latent.clone().unwrap_or_default(), columns]);
    }
    (stored, loss)
}

/// Share of rounding in the squared weights above which a factorization counts as failed.
pub(crate) const MAX_ROUNDING_LOSS: f64 = 0.01;

/// Where the scales of one side are stored: `scale / importance · unit`.
struct Space<'a> {
    importance: &'a [f64],
    unit: f64,
    /// Shares of the energy that the scales are responsible for.
    shares: &'a [f64],
    scales: ScaleType,
}

impl Space<'_> {
    /// Writes the rounded scales back and returns the stored values with the share of the energy
    /// that was lost.
    fn round(&self, scales: &mut [f64]) -> (Vec<f64>, f64) {
        let stored = scales.iter().zip(self.importance).map(|(s, d)| s / d * self.unit);
        let mut stored: Vec<f64> = stored.collect();
        round_values(&mut stored, self.shares, self.scales);
        let mut loss = 0.0;
        let sides = scales.iter_mut().zip(&stored).zip(self.importance).zip(self.shares);
        for (((scale, rounded), importance), share) in sides {
            let back = rounded * importance / self.unit;
            if *scale > 0.0 {
                loss += share * (1.0 - back / *scale).powi(2);
            }
            *scale = back;
        }
        (stored, loss)
    }
}

/// Rounds non-negative `values`, which matter as much as `weights` say, to stored ones.
pub(crate) fn round_values(values: &mut [f64], weights: &[f64], scales: ScaleType) {
    match scales {
        ScaleType::F16 => values.iter_mut().for_each(|v| *v = f16::from_f64(*v).to_f64()),
        ScaleType::Log8 => {
            let grid = LogGrid::fitted(values, weights);
            values.iter_mut().for_each(|v| *v = grid.round(*v).to_f64());
        }
    }
}

/// Shares of the rows and of the columns in the squares of a matrix.
fn energy_shares(matrix: &[f32], n: usize) -> [Vec<f64>; 2] {
    let mut columns = vec![0.0f64; n];
    let mut rows = Vec::with_capacity(matrix.len() / n);
    for row in matrix.chunks_exact(n) {
        let mut sum = 0.0;
        for (column, &v) in columns.iter_mut().zip(row) {
            let square = f64::from(v).powi(2);
            *column += square;
            sum += square;
        }
        rows.push(sum);
    }
    let total: f64 = rows.iter().sum();
    [rows, columns].map(|shares| shares.into_iter().map(|s| s / total).collect())
}

/// Geometric mean of the positive `scale / importance`, 1 if there are none.
fn mean_scale(scales: &[f64], importance: &[f64]) -> f64 {
    let logs = scales.iter().zip(importance).filter(|(s, _)| **s > 0.0).map(|(s, d)| (s / d).ln());
    let (sum, count) = logs.fold((0.0, 0usize), |(sum, count), v| (sum + v, count + 1));
    if count == 0 { 1.0 } else { (sum / count as f64).exp() }
}

/// Compares the stored approximation with the original weights, in double precision.
pub(crate) fn errors(
    w: &[f32],
    paths: &[Path],
    stored: &[StoredScales],
    importance: Importance<'_>,
) -> ErrorSums {
    let n = paths[0].column.len();
    let products: Vec<_> = paths.iter().map(Path::product).collect();
    let mut sums = ErrorSums::default();
    let mut fitted = vec![0.0f64; n];
    for (i, w) in w.chunks_exact(n).enumerate() {
        fitted.fill(0.0);
        for (product, [row, _, column]) in products.iter().zip(stored) {
            let values = fitted.iter_mut().zip(&product[i * n..]).zip(column);
            for ((fitted, &p), g) in values {
                *fitted += row[i] * f64::from(p) * g;
            }
        }
        let weight = importance.rows.map_or(1.0, |r| f64::from(r[i]));
        sums.add_row(w, &fitted, weight, importance.columns);
    }
    sums
}
