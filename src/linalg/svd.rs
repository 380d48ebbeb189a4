//! Truncated singular value decompositions: randomized where few vectors are wanted, exact
//! otherwise; and the leading pair of a non-negative matrix.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::{evd, svd};
use faer::{Mat, MatRef, Par, Spec};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::qr::orthonormal_basis;
use super::{Precision, Real, gram_lower, multiply};
use crate::{Error, Result};

/// The leading `k` singular triplets of a matrix `[m, n]`, largest first.
#[derive(Debug, Clone)]
pub(crate) struct TruncatedSvd<T: Real> {
    /// Left vectors, `[m, k]`.
    pub left: Mat<T>,
    /// Singular values, `[k]`.
    pub values: Vec<T>,
    /// Right vectors, `[n, k]`.
    pub right: Mat<T>,
}

/// Random directions beyond the wanted ones.
const OVERSAMPLING: usize = 16;
/// Passes over the matrix and its transpose that sharpen the random subspace: enough to come within
/// a percent of the best residual on slowly falling spectra, which weight matrices have.
const POWER_ITERATIONS: usize = 4;
/// Below this share of `min(m, n)` the random subspace is cheaper than a full decomposition.
const RANDOMIZED_BELOW: f64 = 0.3;

/// Leading `k` singular triplets of `matrix` `[m, n]` (fewer if `k > min(m, n)`).
///
/// `k` well below `min(m, n)`: randomized range finder (Halko, Martinsson, Tropp, SIAM Review
/// 53(2), 2011, algorithm 4.4) seeded by `rng`. Otherwise exact: in single precision the thin
/// SVD; in double precision the eigenvectors of the smaller Gram matrix, three times cheaper, in
/// which singular values below `1e-8` of the largest are lost in rounding and come back as zero,
/// with zero vectors on the longer side.
pub(crate) fn truncated_svd<T: Real>(
    matrix: MatRef<'_, T>,
    k: usize,
    rng: &mut ChaCha8Rng,
) -> Result<TruncatedSvd<T>> {
    let (m, n) = matrix.shape();
    let k = k.min(m).min(n);
    if ((k + OVERSAMPLING) as f64) < RANDOMIZED_BELOW * m.min(n) as f64 {
        randomized(matrix, k, rng)
    } else if size_of::<T>() == 4 {
        thin(matrix, k)
    } else {
        by_gram(matrix, k)
    }
}

/// [`truncated_svd`] of single-precision data in the given precision, back in single precision.
pub(crate) fn truncated_svd_in(
    precision: Precision,
    matrix: MatRef<'_, f32>,
    k: usize,
    rng: &mut ChaCha8Rng,
) -> Result<TruncatedSvd<f32>> {
    if precision == Precision::Float32 {
        return truncated_svd(matrix, k, rng);
    }
    let wide = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]));
    let result = truncated_svd(wide.as_ref(), k, rng)?;
    let narrow = |x: &Mat<f64>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)] as f32);
    Ok(TruncatedSvd {
        left: narrow(&result.left),
        values: result.values.iter().map(|&s| s as f32).collect(),
        right: narrow(&result.right),
    })
}

fn failed(shape: (usize, usize)) -> Error {
    Error::Factorization {
        message: format!("SVD of a {} × {} matrix did not converge", shape.0, shape.1),
    }
}

/// The leading `k` triplets of the full thin SVD.
pub(crate) fn thin<T: Real>(matrix: MatRef<'_, T>, k: usize) -> Result<TruncatedSvd<T>> {
    let (m, n) = matrix.shape();
    let size = m.min(n);
    let mut left = Mat::zeros(m, size);
    let mut right = Mat::zeros(n, size);
    let mut values = vec![T::from_f64(0.0); size];
    let request = svd::svd_scratch::<T>(
        m,
        n,
        svd::ComputeSvdVectors::Thin,
        svd::ComputeSvdVectors::Thin,
        Par::Seq,
        Spec::default(),
    );
    svd::svd(
        matrix,
        DiagMut::from_slice_mut(&mut values),
        Some(left.as_mut()),
        Some(right.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(request)),
        Spec::default(),
    )
    .map_err(|_| failed((m, n)))?;
    values.truncate(k);
    Ok(TruncatedSvd {
        left: left.get(.., ..k).to_owned(),
        values,
        right: right.get(.., ..k).to_owned(),
    })
}

/// Eigenvectors of the Gram matrix of the shorter side; the longer side follows by one product.
fn by_gram<T: Real>(matrix: MatRef<'_, T>, k: usize) -> Result<TruncatedSvd<T>> {
    let (m, n) = matrix.shape();
    if m > n {
        let flipped = by_gram(matrix.transpose(), k)?;
        return Ok(TruncatedSvd {
            left: flipped.right,
            values: flipped.values,
            right: flipped.left,
        });
    }
    let mut gram = Mat::zeros(m, m);
    gram_lower(gram.as_mut(), matrix);
    let mut squares = vec![T::from_f64(0.0); m];
    let mut vectors = Mat::zeros(m, m);
    let request = evd::self_adjoint_evd_scratch::<T>(
        m,
        evd::ComputeEigenvectors::Yes,
        Par::Seq,
        Spec::default(),
    );
    evd::self_adjoint_evd(
        gram.as_ref(),
        DiagMut::from_slice_mut(&mut squares),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(request)),
        Spec::default(),
    )
    .map_err(|_| failed((m, n)))?;
    // Eigenvalues come in rising order.
    let left = Mat::from_fn(m, k, |i, j| vectors[(i, m - 1 - j)]);
    let largest = squares.last().map_or(0.0, |s| s.to_f64()).max(0.0).sqrt();
    let values: Vec<f64> = (0..k)
        .map(|j| squares[m - 1 - j].to_f64().max(0.0).sqrt())
        .map(|s| if s > largest * 1e-8 { s } else { 0.0 })
        .collect();
    let mut right = Mat::zeros(n, k);
    multiply(right.as_mut(), matrix.transpose(), left.as_ref(), false);
    for (j, &s) in values.iter().enumerate() {
        let factor = if s > 0.0 { 1.0 / s } else { 0.0 };
        for i in 0..n {
            right[(i, j)] = T::from_f64(right[(i, j)].to_f64() * factor);
        }
    }
    Ok(TruncatedSvd { left, values: values.into_iter().map(T::from_f64).collect(), right })
}

/// Projects on a random subspace that a few power iterations turn towards the leading vectors.
fn randomized<T: Real>(
    matrix: MatRef<'_, T>,
    k: usize,
    rng: &mut ChaCha8Rng,
) -> Result<TruncatedSvd<T>> {
    let (m, n) = matrix.shape();
    let width = k + OVERSAMPLING;
    let mut normal = || T::from_f64(StandardNormal.sample(rng));
    let start = Mat::from_fn(n, width, |_, _| normal());
    let mut image = Mat::zeros(m, width);
    multiply(image.as_mut(), matrix, start.as_ref(), false);
    let mut basis = orthonormal_basis(image.as_ref());
    let mut back = Mat::zeros(n, width);
    for _ in 0..POWER_ITERATIONS {
        multiply(back.as_mut(), matrix.transpose(), basis.as_ref(), false);
        let rows = orthonormal_basis(back.as_ref());
        multiply(image.as_mut(), matrix, rows.as_ref(), false);
        basis = orthonormal_basis(image.as_ref());
    }
    // matrixᵀ · basis is [n, width]: its SVD gives the right vectors, and the left ones in the
    // coordinates of the basis.
    multiply(back.as_mut(), matrix.transpose(), basis.as_ref(), false);
    let small = thin(back.as_ref(), k)?;
    let mut left = Mat::zeros(m, k);
    multiply(left.as_mut(), basis.as_ref(), small.right.as_ref(), false);
    Ok(TruncatedSvd { left, values: small.values, right: small.left })
}

/// The rank-one matrix `rows · colsᵀ` nearest to `|x|`, for `x` given as rows of `cols` values:
/// the leading singular pair of a non-negative matrix, which is non-negative itself (Perron and
/// Frobenius) and well separated, so that power iteration from the row sums needs a handful of
/// steps. `rows` has unit norm unless `x` is zero; the magnitude is in `cols`.
#[must_use]
pub(crate) fn rank_one_magnitude(x: &[f32], cols: usize) -> (Vec<f64>, Vec<f64>) {
    const LIMIT: usize = 100;
    if cols == 0 || x.is_empty() {
        return (Vec::new(), vec![0.0; cols]);
    }
    let mut right = vec![1.0f64; cols];
    let mut left = vec![0.0f64; x.len() / cols];
    let mut previous = 0.0;
    for _ in 0..LIMIT {
        for (u, row) in left.iter_mut().zip(x.chunks_exact(cols)) {
            *u = row.iter().zip(&right).map(|(&a, &v)| f64::from(a.abs()) * v).sum();
        }
        let norm = left.iter().map(|u| u * u).sum::<f64>().sqrt();
        if norm == 0.0 {
            return (left, vec![0.0; cols]);
        }
        for u in &mut left {
            *u /= norm;
        }
        right.fill(0.0);
        for (&u, row) in left.iter().zip(x.chunks_exact(cols)) {
            for (v, &a) in right.iter_mut().zip(row) {
                *v += u * f64::from(a.abs());
            }
        }
        let sigma = right.iter().map(|v| v * v).sum::<f64>().sqrt();
        if (sigma - previous).abs() <= 1e-12 * sigma {
            break;
        }
        previous = sigma;
    }
    (left, right)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(7)
    }

    /// A matrix with known singular values `1 / (1 + j)^power`.
    fn planted(m: usize, n: usize, power: f64) -> Mat<f64> {
        let mut rng = rng();
        let mut normal =
            |rows, cols| Mat::<f64>::from_fn(rows, cols, |_, _| StandardNormal.sample(&mut rng));
        let size = m.min(n);
        let u = orthonormal_basis(normal(m, size).as_ref());
        let v = orthonormal_basis(normal(n, size).as_ref());
        let us = Mat::from_fn(m, size, |i, j| u[(i, j)] / (1.0 + j as f64).powf(power));
        us * v.transpose()
    }

    fn residual(a: &Mat<f64>, svd: &TruncatedSvd<f64>) -> f64 {
        let us = Mat::from_fn(svd.left.nrows(), svd.left.ncols(), |i, j| {
            svd.left[(i, j)] * svd.values[j]
        });
        (a - us * svd.right.transpose()).norm_l2()
    }

    fn tail(size: usize, k: usize, power: f64) -> f64 {
        (k..size).map(|j| (1.0 + j as f64).powf(-2.0 * power)).sum::<f64>().sqrt()
    }

    #[test]
    fn exact_decompositions_recover_planted_values() {
        for (m, n, k) in [(40, 25, 20), (25, 40, 25), (30, 30, 30)] {
            let a = planted(m, n, 0.7);
            let by_gram = truncated_svd(a.as_ref(), k, &mut rng()).unwrap();
            let thin = thin(a.as_ref(), k).unwrap();
            for svd in [&by_gram, &thin] {
                for j in 0..k {
                    assert!((svd.values[j] - (1.0 + j as f64).powf(-0.7)).abs() < 1e-10);
                }
                assert!((residual(&a, svd) - tail(m.min(n), k, 0.7)).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn single_precision_agrees_with_double() {
        let a = planted(48, 64, 0.5);
        let narrow = Mat::from_fn(48, 64, |i, j| a[(i, j)] as f32);
        for precision in [Precision::Float32, Precision::Float64] {
            let svd = truncated_svd_in(precision, narrow.as_ref(), 30, &mut rng()).unwrap();
            for j in 0..30 {
                assert!((f64::from(svd.values[j]) - (1.0 + j as f64).powf(-0.5)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_random_subspace_is_within_a_percent_of_the_optimum() {
        // A slowly falling spectrum, like that of weights.
        let a = planted(150, 220, 0.4);
        let svd = truncated_svd(a.as_ref(), 20, &mut rng()).unwrap();
        let best = tail(150, 20, 0.4);
        let found = residual(&a, &svd);
        assert!(found >= best * (1.0 - 1e-9) && found < best * 1.01, "{found} against {best}");
    }

    #[test]
    fn rank_deficient_and_zero_matrices() {
        let zero = Mat::<f64>::zeros(9, 6);
        let svd = truncated_svd(zero.as_ref(), 4, &mut rng()).unwrap();
        assert!(svd.values.iter().all(|&s| s == 0.0));
        let one = Mat::<f64>::from_fn(9, 6, |i, j| ((i + 1) * (j + 2)) as f64);
        let svd = truncated_svd(one.as_ref(), 4, &mut rng()).unwrap();
        assert!(residual(&one, &svd) < 1e-9 * one.norm_l2());
        assert!(svd.values[1..].iter().all(|&s| s == 0.0));
    }

    #[test]
    fn rank_one_magnitudes_match_a_full_decomposition() {
        let x: Vec<f32> = (0..17 * 11).map(|i| ((i * i + 3) as f32).sin() * 2.0).collect();
        let (rows, cols) = rank_one_magnitude(&x, 11);
        let a = Mat::from_fn(17, 11, |i, j| f64::from(x[i * 11 + j].abs()));
        let svd = thin(a.as_ref(), 1).unwrap();
        for (i, j) in (0..17).flat_map(|i| (0..11).map(move |j| (i, j))) {
            let expected = svd.left[(i, 0)] * svd.values[0] * svd.right[(j, 0)];
            assert!((rows[i] * cols[j] - expected).abs() < 1e-6, "{i} {j}");
        }
        let (rows, cols) = rank_one_magnitude(&[0.0; 6], 3);
        assert_eq!((rows, cols), (vec![0.0; 2], vec![0.0; 3]));
    }
}
