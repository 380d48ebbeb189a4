//! Least squares scales for given signs, and the error that is left.

use faer::{Mat, MatMut, MatRef};

use crate::linalg::cholesky::Cholesky;
use crate::linalg::{gram_lower, multiply};

/// Signs with their scales: `diag(row) · left · diag(latent) · rightᵀ · diag(column)`.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// Rank.
    pub rank: usize,
    /// ±1, `[m, rank]`.
    pub left: Vec<f32>,
    /// ±1, `[n, rank]`.
    pub right: Vec<f32>,
    /// `h`, `[m]`.
    pub row: Vec<f64>,
    /// `l`, `[rank]`, if there is one.
    pub latent: Option<Vec<f64>>,
    /// `g`, `[n]`.
    pub column: Vec<f64>,
}

impl Path {
    /// `left · diag(latent) · rightᵀ`, `[m, n]`, row-major: the path without its outer scales.
    #[must_use]
    pub(crate) fn product(&self) -> Vec<f32> {
        let (m, n) = (self.row.len(), self.column.len());
        let mut out = vec![0.0f32; m * n];
        let scaled;
        let left = match &self.latent {
            None => &self.left,
            Some(latent) => {
                let rows = self.left.chunks_exact(self.rank);
                scaled = rows
                    .flat_map(|row| row.iter().zip(latent).map(|(&s, &l)| s * l as f32))
                    .collect::<Vec<_>>();
                &scaled
            }
        };
        // Column-major and transposed: out ᵀ = right · leftᵀ.
        multiply(
            MatMut::from_column_major_slice_mut(&mut out, n, m),
            MatRef::from_row_major_slice(&self.right, n, self.rank),
            MatRef::from_column_major_slice(left, self.rank, m),
            false,
        );
        out
    }

    /// Makes all scales non-negative by moving their signs into the factors. Returns whether
    /// [`Path::product`] changed.
    pub(crate) fn make_scales_positive(&mut self) -> bool {
        let rank = self.rank;
        let mut changed = false;
        for (scales, signs) in
            [(&mut self.row, &mut self.left), (&mut self.column, &mut self.right)]
        {
            for (scale, signs) in scales.iter_mut().zip(signs.chunks_exact_mut(rank)) {
                if *scale < 0.0 {
                    *scale = -*scale;
                    for sign in signs {
                        *sign = -*sign;
                    }
                    changed = true;
                }
            }
        }
        if let Some(latent) = &mut self.latent {
            for (k, scale) in latent.iter_mut().enumerate() {
                if *scale < 0.0 {
                    *scale = -*scale;
                    self.left.iter_mut().skip(k).step_by(rank).for_each(|s| *s = -*s);
                }
            }
        }
        changed
    }
}

/// `target` minus the given paths.
#[must_use]
pub(crate) fn subtract<'a>(target: &[f32], paths: impl Iterator<Item = &'a Path>) -> Vec<f32> {
    let mut residual = target.to_vec();
    for path in paths {
        let n = path.column.len();
        let product = path.product();
        let rows = residual.chunks_exact_mut(n).zip(product.chunks_exact(n));
        for ((residual, product), &h) in rows.zip(&path.row) {
            for ((r, &p), &g) in residual.iter_mut().zip(product).zip(&path.column) {
                *r -= (f64::from(p) * h * g) as f32;
            }
        }
    }
    residual
}

/// Alternating least squares for the outer scales: minimises
/// `Σ (target − row_i column_j product)²` over `row` for given `column`, then over `column` for
/// given `row`, `rounds` times. The error never rises. Matrices are `[m, n]`, row-major; where
/// `product` has a row or column of zeros the scale becomes 0.
pub(crate) fn refit(
    target: &[f32],
    product: &[f32],
    row: &mut [f64],
    column: &mut [f64],
    rounds: usize,
) {
    let n = column.len();
    for _ in 0..rounds {
        let rows = target.chunks_exact(n).zip(product.chunks_exact(n));
        for ((target, product), h) in rows.zip(row.iter_mut()) {
            let (numerator, denominator) = correlate(target, product, column);
            *h = ratio(numerator, denominator);
        }
        refit_columns(target, product, row, column);
    }
}

/// The second half of a round of [`refit`]: the columns' scales for given rows' scales.
pub(crate) fn refit_columns(target: &[f32], product: &[f32], row: &[f64], column: &mut [f64]) {
    let n = column.len();
    let mut numerator = vec![0.0f64; n];
    let mut denominator = vec![0.0f64; n];
    let rows = target.chunks_exact(n).zip(product.chunks_exact(n));
    for ((target, product), &h) in rows.zip(row) {
        let sums = numerator.iter_mut().zip(&mut denominator);
        for ((&t, &p), (a, b)) in target.iter().zip(product).zip(sums) {
            let fitted = f64::from(p) * h;
            *a += f64::from(t) * fitted;
            *b += fitted * fitted;
        }
    }
    for ((g, a), b) in column.iter_mut().zip(numerator).zip(denominator) {
        *g = ratio(a, b);
    }
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

/// `(Σ t p g, Σ (p g)²)` in eight interleaved sums.
fn correlate(target: &[f32], product: &[f32], scale: &[f64]) -> (f64, f64) {
    const LANES: usize = 8;
    let mut numerator = [0.0f64; LANES];
    let mut denominator = [0.0f64; LANES];
    let blocks = target.chunks(LANES).zip(product.chunks(LANES)).zip(scale.chunks(LANES));
    for ((target, product), scale) in blocks {
        let sums = numerator.iter_mut().zip(&mut denominator);
        for (((&t, &p), &g), (a, b)) in target.iter().zip(product).zip(scale).zip(sums) {
            let fitted = f64::from(p) * g;
            *a += f64::from(t) * fitted;
            *b += fitted * fitted;
        }
    }
    (numerator.iter().sum(), denominator.iter().sum())
}

/// Least squares for the latent scales, given signs and outer scales: the normal matrix is the
/// elementwise product of the two factors' Gram matrices. `l` comes out with unit mean square and
/// its magnitude in `column`. Leaves the path alone when it is zero.
pub(crate) fn refit_latent(target: &[f32], path: &mut Path) {
    let (m, n, rank) = (path.row.len(), path.column.len(), path.rank);
    let scaled = |signs: &[f32], scales: &[f64]| -> Vec<f32> {
        let rows = signs.chunks_exact(rank).zip(scales);
        rows.flat_map(|(row, &s)| row.iter().map(move |&v| v * s as f32)).collect()
    };
    let (a, b) = (scaled(&path.left, &path.row), scaled(&path.right, &path.column));
    let (a_view, b_view) = (
        MatRef::from_column_major_slice(&a, rank, m),
        MatRef::from_column_major_slice(&b, rank, n),
    );
    let mut grams = [Mat::<f32>::zeros(rank, rank), Mat::zeros(rank, rank)];
    gram_lower(grams[0].as_mut(), a_view);
    gram_lower(grams[1].as_mut(), b_view);
    let normal = Mat::from_fn(rank, rank, |i, j| {
        if i < j { 0.0 } else { f64::from(grams[0][(i, j)]) * f64::from(grams[1][(i, j)]) }
    });
    let mut image = vec![0.0f32; m * rank];
    multiply(
        MatMut::from_column_major_slice_mut(&mut image, rank, m),
        b_view,
        MatRef::from_column_major_slice(target, n, m),
        false,
    );
    let mut rhs = Mat::<f64>::zeros(rank, 1);
    for (a, image) in a.chunks_exact(rank).zip(image.chunks_exact(rank)) {
        for (k, (&a, &t)) in a.iter().zip(image).enumerate() {
            rhs[(k, 0)] += f64::from(a) * f64::from(t);
        }
    }
    let mean = (0..rank).map(|k| normal[(k, k)]).sum::<f64>() / rank as f64;
    let mut cholesky = Cholesky::<f64>::new(rank);
    if mean <= 0.0 || cholesky.factorize(normal.as_ref(), mean * 1e-7).is_err() {
        return;
    }
    cholesky.solve_in_place(rhs.as_mut());
    let size = ((0..rank).map(|k| rhs[(k, 0)].powi(2)).sum::<f64>() / rank as f64).sqrt();
    if size > 0.0 && size.is_finite() {
        path.latent = Some((0..rank).map(|k| rhs[(k, 0)] / size).collect());
        path.column.iter_mut().for_each(|g| *g *= size);
    }
}

/// Sum over a matrix of squared errors and of squares, weighted and not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ErrorSums {
    squares: f64,
    errors: f64,
    weighted_squares: f64,
    weighted_errors: f64,
}

impl ErrorSums {
    /// Adds a row; `weight` is the row's, `columns` the columns' (ones if absent).
    pub(crate) fn add_row(
        &mut self,
        w: &[f32],
        fitted: &[f64],
        weight: f64,
        columns: Option<&[f32]>,
    ) {
        for (j, (&w, &fitted)) in w.iter().zip(fitted).enumerate() {
            let importance = weight * columns.map_or(1.0, |c| f64::from(c[j]));
            let (square, error) = (f64::from(w).powi(2), (f64::from(w) - fitted).powi(2));
            self.squares += square;
            self.errors += error;
            self.weighted_squares += importance * square;
            self.weighted_errors += importance * error;
        }
    }

    /// `‖W − Ŵ‖² / ‖W‖²`; 0 for a zero matrix that is met exactly.
    #[must_use]
    pub(crate) fn relative(&self) -> f64 {
        relative(self.errors, self.squares)
    }

    /// The same, weighted.
    #[must_use]
    pub(crate) fn weighted(&self) -> f64 {
        relative(self.weighted_errors, self.weighted_squares)
    }
}

fn relative(errors: f64, squares: f64) -> f64 {
    if errors == 0.0 { 0.0 } else { errors / squares }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(i: usize) -> f32 {
        ((i * i * 5 + 11 * i + 2) as f32).sin()
    }

    fn path(m: usize, n: usize, rank: usize) -> Path {
        let sign = |i: usize| if wave(i) >= 0.0 { 1.0 } else { -1.0 };
        Path {
            rank,
            left: (0..m * rank).map(|i| sign(i + 17)).collect(),
            right: (0..n * rank).map(|i| sign(i + 1717)).collect(),
            row: vec![1.0; m],
            latent: Some((0..rank).map(|k| 1.0 + k as f64 / 4.0).collect()),
            column: vec![1.0; n],
        }
    }

    fn loss(target: &[f32], path: &Path) -> f64 {
        let (m, n, rank) = (path.row.len(), path.column.len(), path.rank);
        let mut sum = 0.0;
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let product: f64 = (0..rank)
                .map(|k| {
                    f64::from(path.left[i * rank + k] * path.right[j * rank + k])
                        * path.latent.as_ref().map_or(1.0, |l| l[k])
                })
                .sum();
            sum += (f64::from(target[i * n + j]) - path.row[i] * path.column[j] * product).powi(2);
        }
        sum
    }

    /// Slopes of the loss by finite differences, relative to the loss.
    fn slope(target: &[f32], path: &Path, size: f64, edit: &dyn Fn(&mut Path, f64)) -> f64 {
        let at = |step: f64| {
            let mut moved = path.clone();
            edit(&mut moved, step * size);
            loss(target, &moved)
        };
        (at(1e-4) - at(-1e-4)) / 2e-4 / loss(target, path)
    }

    /// At a least squares optimum every partial derivative vanishes.
    #[test]
    fn refits_are_stationary() {
        let (m, n, rank) = (9, 13, 5);
        let target: Vec<f32> = (0..m * n).map(|i| wave(i + 99)).collect();
        let mut path = path(m, n, rank);
        let product = path.product();
        refit(&target, &product, &mut path.row, &mut path.column, 2000);
        for i in 0..m {
            let slope = slope(&target, &path, path.row[i], &|p, step| p.row[i] += step);
            assert!(slope.abs() < 1e-5, "row {i}: {slope}");
        }
        for j in 0..n {
            let slope = slope(&target, &path, path.column[j], &|p, step| p.column[j] += step);
            assert!(slope.abs() < 1e-5, "column {j}: {slope}");
        }
        let before = loss(&target, &path);
        refit_latent(&target, &mut path);
        assert!(loss(&target, &path) < before);
        let latent = path.latent.clone().unwrap();
        for (k, &size) in latent.iter().enumerate() {
            let edit = |p: &mut Path, step: f64| p.latent.as_mut().unwrap()[k] += step;
            let slope = slope(&target, &path, size, &edit);
            assert!(slope.abs() < 1e-5, "latent {k}: {slope}");
        }
    }

    #[test]
    fn rounds_never_raise_the_error() {
        let (m, n) = (20, 31);
        let target: Vec<f32> = (0..m * n).map(|i| wave(i + 5)).collect();
        let mut path = path(m, n, 7);
        path.latent = None;
        let product = path.product();
        let mut previous = f64::INFINITY;
        for _ in 0..20 {
            refit(&target, &product, &mut path.row, &mut path.column, 1);
            let now = loss(&target, &path);
            assert!(now <= previous * (1.0 + 1e-12));
            previous = now;
        }
    }

    #[test]
    fn signs_move_into_the_factors() {
        let mut path = path(4, 6, 3);
        path.row = vec![1.0, -2.0, 3.0, -0.5];
        path.column = vec![-1.0, 2.0, 1.0, 1.0, -3.0, 0.0];
        path.latent = Some(vec![1.0, -0.25, 2.0]);
        let target = vec![0.0f32; 24];
        let full = |p: &Path| -> Vec<f64> {
            let product = p.product();
            (0..24).map(|i| p.row[i / 6] * p.column[i % 6] * f64::from(product[i])).collect()
        };
        let before = full(&path);
        assert!(path.make_scales_positive());
        assert_eq!(full(&path), before);
        let scales = path.row.iter().chain(&path.column).chain(path.latent.iter().flatten());
        assert!(scales.into_iter().all(|s| *s >= 0.0));
        assert!(loss(&target, &path) > 0.0);
    }

    #[test]
    fn a_zero_matrix_has_no_error() {
        let mut sums = ErrorSums::default();
        sums.add_row(&[0.0, 0.0], &[0.0, 0.0], 1.0, None);
        assert_eq!((sums.relative(), sums.weighted()), (0.0, 0.0));
        sums.add_row(&[3.0, 4.0], &[3.0, 3.0], 2.0, Some(&[1.0, 5.0]));
        assert!((sums.relative() - 1.0 / 25.0).abs() < 1e-15);
        assert!((sums.weighted() - 10.0 / (18.0 + 160.0)).abs() < 1e-15);
    }
}
