//! Scales as they are stored: rounded to f16 in the units of the original weights, and the error
//! that remains with them.

use half::f16;

use super::normalise::{Importance, Normalised};
use super::scales::{ErrorSums, Path, refit_columns, subtract};

/// f16 scales of a path, widened: rows, latent dimensions (perhaps none), columns.
pub type StoredScales = [Vec<f64>; 3];

/// Rounds all scales to f16 in the units of the original weights and puts the rounded values back
/// into the paths. Rows go first and columns are fitted again to the rounded rows, so that only the
/// columns' own rounding remains; rows and columns get the same geometric mean, which keeps both
/// furthest from the ends of the range. Also returns an estimate of the share of the squared
/// weights that rounding costs.
pub fn round(paths: &mut [Path], scaled: &Normalised, refit: bool) -> (Vec<StoredScales>, f64) {
    let mut stored = Vec::with_capacity(paths.len());
    let mut loss = 0.0f64;
    let shares = energy_shares(&scaled.matrix, scaled.column.len());
    for at in 0..paths.len() {
        if let Some(latent) = &mut paths[at].latent {
            let mean = latent.iter().map(|l| l * l).sum::<f64>() / latent.len() as f64;
            let unit = if mean > 0.0 { mean.sqrt() } else { 1.0 };
            for l in latent.iter_mut() {
                *l = to_f16(*l / unit);
            }
            paths[at].column.iter_mut().for_each(|g| *g *= unit);
        }
        let row_mean = mean_scale(&paths[at].row, &scaled.row);
        let column_mean = scaled.magnitude * mean_scale(&paths[at].column, &scaled.column);
        let unit = (row_mean / column_mean).sqrt();
        let (rows, lost) = round_all(&mut paths[at].row, &scaled.row, 1.0 / unit, &shares[0]);
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
        let (columns, lost) = round_all(&mut paths[at].column, &scaled.column, unit, &shares[1]);
        loss = loss.max(lost);
        stored.push([rows, paths[at].latent.clone().unwrap_or_default(), columns]);
    }
    (stored, loss)
}

/// Share of rounding in the squared weights above which a factorization counts as failed.
pub const MAX_ROUNDING_LOSS: f64 = 0.01;

/// Rounds `scale / importance · unit` to f16, writes the rounded scales back and returns the
/// rounded values with the share of the energy that was lost.
fn round_all(scales: &mut [f64], importance: &[f64], unit: f64, shares: &[f64]) -> (Vec<f64>, f64) {
    let mut loss = 0.0;
    let mut stored = Vec::with_capacity(scales.len());
    for ((scale, importance), share) in scales.iter_mut().zip(importance).zip(shares) {
        let rounded = f16::from_f64(*scale / importance * unit).to_f64();
        let back = rounded * importance / unit;
        if *scale > 0.0 {
            loss += share * (1.0 - back / *scale).powi(2);
        }
        *scale = back;
        stored.push(rounded);
    }
    (stored, loss)
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

fn to_f16(value: f64) -> f64 {
    f16::from_f64(value).to_f64()
}

/// Compares the stored approximation with the original weights, in double precision.
pub fn errors(
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
