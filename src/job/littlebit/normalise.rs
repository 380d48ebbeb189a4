//! Turns the importance-weighted problem into a plain one.
//!
//! `Σ r_i c_j (W_ij − h_i (UVᵀ)_ij g_j)²` is the plain squared error of `√r_i W_ij √c_j` against a
//! product of the same form, with outer scales `√r_i h_i` and `√c_j g_j`. The solvers see only that
//! scaled matrix, divided by its root mean square so that no magnitude of weights can overflow.

use crate::{Error, Result};

/// Importance of a layer's outputs and inputs: mean squares of the output gradients and of the
/// input activations, in any unit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Importance<'a> {
    /// One per row (output), or all alike.
    pub rows: Option<&'a [f32]>,
    /// One per column (input), or all alike.
    pub columns: Option<&'a [f32]>,
}

/// Square roots of importances below this share of their root mean square are raised to it: an
/// input that calibration never saw must keep a finite scale.
const FLOOR: f64 = 1e-3;

/// A scaled matrix and the way back: `W_ij = magnitude · matrix_ij / (row_i · column_j)`.
#[derive(Debug)]
pub struct Normalised {
    /// Unit mean square (unless the whole matrix is zero), `[m, n]`.
    pub matrix: Vec<f32>,
    /// Square roots of the rows' importances, `[m]`.
    pub row: Vec<f64>,
    /// Square roots of the columns' importances, `[n]`.
    pub column: Vec<f64>,
    /// Root mean square before the division; 0 for a zero matrix.
    pub magnitude: f64,
}

impl Normalised {
    /// Checks `w` `[m, n]` and the importances, and scales. `shrinkage` in `[0, 1]` draws the
    /// importances towards their mean, as a guard against what few calibration texts exaggerate
    /// (NanoQuant, arXiv 2602.06694, with 0.2 for most models).
    pub fn new(
        name: &str,
        w: &[f32],
        (m, n): (usize, usize),
        importance: Importance<'_>,
        shrinkage: f32,
    ) -> Result<Self> {
        if w.len() != m * n {
            return Err(fault(name, &format!("{} values do not fill {m} × {n}", w.len())));
        }
        if let Some(at) = w.iter().position(|v| !v.is_finite()) {
            let (row, col) = (at / n, at % n);
            return Err(fault(name, &format!("{} at [{row}, {col}]", w[at])));
        }
        let row = roots(name, "row", importance.rows, m, shrinkage)?;
        let column = roots(name, "column", importance.columns, n, shrinkage)?;
        let mut squares = 0.0;
        for (w, r) in w.chunks_exact(n.max(1)).zip(&row) {
            squares +=
                w.iter().zip(&column).map(|(&w, c)| (f64::from(w) * r * c).powi(2)).sum::<f64>();
        }
        let magnitude = (squares / (m * n).max(1) as f64).sqrt();
        let divisor = if magnitude > 0.0 { magnitude } else { 1.0 };
        let mut matrix = Vec::with_capacity(w.len());
        for (w, r) in w.chunks_exact(n.max(1)).zip(&row) {
            let factor = r / divisor;
            matrix.extend(w.iter().zip(&column).map(|(&w, c)| (f64::from(w) * factor * c) as f32));
        }
        Ok(Self { matrix, row, column, magnitude })
    }
}

/// Square roots of shrunk importances with unit mean square.
fn roots(
    name: &str,
    side: &str,
    values: Option<&[f32]>,
    length: usize,
    shrinkage: f32,
) -> Result<Vec<f64>> {
    let Some(values) = values else { return Ok(vec![1.0; length]) };
    if values.len() != length {
        let message = format!("{} {side} importances for {length} {side}s", values.len());
        return Err(fault(name, &message));
    }
    if let Some(at) = values.iter().position(|v| !v.is_finite() || *v < 0.0) {
        return Err(fault(name, &format!("importance {} of {side} {at}", values[at])));
    }
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / length.max(1) as f64;
    if mean == 0.0 {
        return Ok(vec![1.0; length]);
    }
    let keep = 1.0 - f64::from(shrinkage);
    let shrunk = values.iter().map(|&v| keep * f64::from(v) / mean + 1.0 - keep);
    Ok(shrunk.map(|v| v.sqrt().max(FLOOR)).collect())
}

fn fault(name: &str, what: &str) -> Error {
    Error::Factorization { message: format!("Factorization failed for {name}: {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalise(w: &[f32], importance: Importance<'_>, shrinkage: f32) -> Result<Normalised> {
        Normalised::new("layer", w, (2, 3), importance, shrinkage)
    }

    #[test]
    fn the_way_back_is_exact() {
        let w = [1e30f32, -2e30, 3e29, 0.0, 5e28, 6e30];
        let importance = Importance { rows: Some(&[1.0, 9.0]), columns: Some(&[4.0, 0.0, 2.0]) };
        let scaled = normalise(&w, importance, 0.25).unwrap();
        let squares: f64 = scaled.matrix.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((squares / 6.0 - 1.0).abs() < 1e-6);
        // Row importances 0.2 and 1.8 of the mean, a quarter of the way to it: 0.4 and 1.6.
        assert!((scaled.row[0] - 0.4f64.sqrt()).abs() < 1e-12);
        assert!((scaled.column[1] - 0.25f64.sqrt()).abs() < 1e-12);
        for (i, &w) in w.iter().enumerate() {
            let back = scaled.magnitude * f64::from(scaled.matrix[i])
                / (scaled.row[i / 3] * scaled.column[i % 3]);
            assert!((back - f64::from(w)).abs() <= 1e-6 * f64::from(w).abs());
        }
    }

    #[test]
    fn faults_name_tensor_and_index() {
        let mut w = [1.0f32; 6];
        w[5] = f32::NAN;
        let message = normalise(&w, Importance::default(), 0.0).unwrap_err().to_string();
        assert_eq!(message, "Factorization failed for layer: NaN at [1, 2]");
        w[1] = f32::NEG_INFINITY;
        let message = normalise(&w, Importance::default(), 0.0).unwrap_err().to_string();
        assert_eq!(message, "Factorization failed for layer: -inf at [0, 1]");
        let w = [1.0f32; 6];
        for rows in [&[1.0f32][..], &[1.0, -1.0], &[f32::INFINITY, 1.0]] {
            let importance = Importance { rows: Some(rows), columns: None };
            assert_eq!(normalise(&w, importance, 0.0).unwrap_err().exit_code(), 20);
        }
    }

    #[test]
    fn dead_layers_count_all_weights_alike() {
        let importance = Importance { rows: None, columns: Some(&[0.0; 3]) };
        assert_eq!(normalise(&[1.0; 6], importance, 0.0).unwrap().column, vec![1.0; 3]);
        let zero = normalise(&[0.0; 6], Importance::default(), 0.0).unwrap();
        assert_eq!((zero.magnitude, zero.matrix), (0.0, vec![0.0; 6]));
        // A column without weight keeps a positive root.
        let importance = Importance { rows: None, columns: Some(&[0.0, 1.0, 1.0]) };
        let scaled = normalise(&[1.0; 6], importance, 0.0).unwrap();
        assert!(scaled.column[0] >= FLOOR);
    }
}
