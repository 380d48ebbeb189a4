//! Orthonormal bases by Householder QR.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::{householder, qr::no_pivoting::factor};
use faer::{Conj, Mat, MatRef, Par, Spec};

use super::Real;

/// Orthonormal columns that span the columns of `matrix` `[rows, cols]`, `rows ≥ cols`:
/// the thin Q of its QR decomposition, with signs chosen so that R has a non-negative diagonal
/// (for a Gaussian square matrix this Q is uniformly distributed over the orthogonal group).
///
/// # Panics
/// If there are more columns than rows.
#[must_use]
pub(crate) fn orthonormal_basis<T: Real>(matrix: MatRef<'_, T>) -> Mat<T> {
    let (rows, cols) = matrix.shape();
    assert!(rows >= cols, "a basis of {cols} vectors in {rows} dimensions");
    let mut qr = matrix.to_owned();
    let block = factor::recommended_block_size::<T>(rows, cols);
    let mut coefficients = Mat::zeros(block, cols);
    let request = factor::qr_in_place_scratch::<T>(rows, cols, block, Par::Seq, Spec::default());
    factor::qr_in_place(
        qr.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(request)),
        Spec::default(),
    );
    let mut q = Mat::identity(rows, cols);
    let request = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(
        rows, block, cols,
    );
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        qr.as_ref(),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(request)),
    );
    for j in 0..cols {
        if qr[(j, j)].to_f64() < 0.0 {
            for i in 0..rows {
                q[(i, j)] = T::from_f64(-q[(i, j)].to_f64());
            }
        }
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_orthonormal_and_span_the_input() {
        let a =
            Mat::<f64>::from_fn(19, 7, |i, j| ((i * i * 3 + j * j * (7 * i + 5) + 1) as f64).sin());
        let q = orthonormal_basis(a.as_ref());
        let unit = q.transpose() * &q;
        let projected = &q * (q.transpose() * &a);
        for (i, j) in (0..7).flat_map(|i| (0..7).map(move |j| (i, j))) {
            assert!((unit[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-12);
        }
        for (i, j) in (0..19).flat_map(|i| (0..7).map(move |j| (i, j))) {
            assert!((projected[(i, j)] - a[(i, j)]).abs() < 1e-12);
        }
        // R = QᵀA has a non-negative diagonal.
        let r = q.transpose() * &a;
        assert!((0..7).all(|j| r[(j, j)] >= 0.0));
    }

    #[test]
    fn dependent_columns_still_give_an_orthonormal_basis() {
        let a = Mat::<f32>::from_fn(12, 4, |i, j| if j < 2 { (i + j) as f32 } else { 0.0 });
        let q = orthonormal_basis(a.as_ref());
        let unit = q.transpose() * &q;
        for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
            assert!((unit[(i, j)] - f32::from(u8::from(i == j))).abs() < 1e-5);
        }
    }
}
