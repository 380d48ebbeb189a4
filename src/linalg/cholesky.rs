//! Solves symmetric positive definite systems, with a ridge that grows until the factorization
//! succeeds.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::reborrow::ReborrowMut;
use faer::{Mat, MatMut, MatRef, Par, Spec};

use super::Real;

/// How often the ridge is raised tenfold before giving up.
const ESCALATIONS: u32 = 8;

/// A Cholesky factorization with its memory, for matrices of one size.
pub(crate) struct Cholesky<T: Real> {
    factor: Mat<T>,
    scratch: MemBuffer,
}

/// The matrix is not positive definite, not even with a large ridge: it holds NaN or infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotPositiveDefinite;

impl<T: Real> Cholesky<T> {
    /// Memory for `dim × dim` matrices.
    #[must_use]
    pub(crate) fn new(dim: usize) -> Self {
        let request = llt::factor::cholesky_in_place_scratch::<T>(dim, Par::Seq, Spec::default());
        Self { factor: Mat::zeros(dim, dim), scratch: MemBuffer::new(request) }
    }

    /// Factorizes `matrix + ridge · I`, of which only the lower triangle is read. Where rounding
    /// has made it indefinite the ridge is raised: first to the rounding error of the largest
    /// diagonal entry, then tenfold each time. Returns the ridge that was used.
    pub(crate) fn factorize(
        &mut self,
        matrix: MatRef<'_, T>,
        ridge: f64,
    ) -> Result<f64, NotPositiveDefinite> {
        let dim = self.factor.nrows();
        let largest =
            (0..dim).map(|i| matrix[(i, i)].to_f64()).fold(0.0, |a: f64, d| a.max(d.abs()));
        let epsilon = if size_of::<T>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let floor = largest.max(f64::from(f32::MIN_POSITIVE)) * epsilon * dim.max(1) as f64;
        let mut ridge = ridge;
        for _ in 0..=ESCALATIONS {
            self.factor.copy_from_triangular_lower(matrix);
            for i in 0..dim {
                self.factor[(i, i)] = T::from_f64(matrix[(i, i)].to_f64() + ridge);
            }
            let outcome = llt::factor::cholesky_in_place(
                self.factor.as_mut(),
                llt::factor::LltRegularization::default(),
                Par::Seq,
                MemStack::new(&mut self.scratch),
                Spec::default(),
            );
            if outcome.is_ok() && (0..dim).all(|i| self.factor[(i, i)].to_f64().is_finite()) {
                return Ok(ridge);
            }
            ridge = (ridge * 10.0).max(floor);
        }
        Err(NotPositiveDefinite)
    }

    /// The last factorization: `L` with `L Lᵀ = matrix + ridge · I` in the lower triangle. What is
    /// above the diagonal means nothing.
    #[must_use]
    pub(crate) fn factor(&self) -> MatRef<'_, T> {
        self.factor.as_ref()
    }

    /// Solves `(matrix + ridge · I) · X = rhs` in place with the last factorization.
    ///
    /// # Panics
    /// If `rhs` has another number of rows.
    pub(crate) fn solve_in_place(&mut self, rhs: MatMut<'_, T>) {
        let stack = MemStack::new(&mut self.scratch);
        llt::solve::solve_in_place(self.factor.as_ref(), rhs, Par::Seq, stack);
    }

    /// Writes the whole inverse of `matrix + ridge · I` into `out`.
    ///
    /// # Panics
    /// If `out` has another size.
    pub(crate) fn inverse(&mut self, mut out: MatMut<'_, T>) {
        let dim = self.factor.nrows();
        let mut scratch = MemBuffer::new(llt::inverse::inverse_scratch::<T>(dim, Par::Seq));
        llt::inverse::inverse(
            out.rb_mut(),
            self.factor.as_ref(),
            Par::Seq,
            MemStack::new(&mut scratch),
        );
        for j in 0..dim {
            for i in 0..j {
                out[(i, j)] = out[(j, i)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;

    fn spd(dim: usize, rank: usize) -> Mat<f64> {
        // Entries of a low-discrepancy sequence: reproducible without a generator.
        let x = Mat::from_fn(dim, rank, |i, j| {
            ((i * 37 + j * 101 + 1) as f64 * 0.618_033_988_749_895).fract() - 0.5
        });
        &x * x.transpose()
    }

    #[test]
    fn solves_what_was_multiplied() {
        let a = spd(23, 40);
        let x = Mat::from_fn(23, 5, |i, j| (i as f64 - 3.0 * j as f64).sin());
        let mut rhs = &a * &x + &x * 0.25;
        let mut solver = Cholesky::<f64>::new(23);
        assert_eq!(solver.factorize(a.as_ref(), 0.25), Ok(0.25));
        solver.solve_in_place(rhs.as_mut());
        for (i, j) in (0..23).flat_map(|i| (0..5).map(move |j| (i, j))) {
            assert!((rhs[(i, j)] - x[(i, j)]).abs() < 1e-10);
        }
        let mut inverse = Mat::zeros(23, 23);
        solver.inverse(inverse.as_mut());
        let unit = &a * &inverse + &inverse * 0.25;
        for (i, j) in (0..23).flat_map(|i| (0..23).map(move |j| (i, j))) {
            assert!((unit[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-9);
        }
    }

    #[test]
    fn the_ridge_grows_for_singular_matrices() {
        let a = spd(16, 3);
        let ridge = Cholesky::<f64>::new(16).factorize(a.as_ref(), 0.0).unwrap();
        assert!(ridge > 0.0 && ridge < 1e-6, "{ridge}");
        let zero = Mat::<f32>::zeros(4, 4);
        assert!(Cholesky::<f32>::new(4).factorize(zero.as_ref(), 0.0).unwrap() > 0.0);
    }

    #[test]
    fn nan_is_refused() {
        let mut a = spd(8, 8);
        a[(4, 2)] = f64::NAN;
        assert_eq!(Cholesky::<f64>::new(8).factorize(a.as_ref(), 1.0), Err(NotPositiveDefinite));
    }
}
