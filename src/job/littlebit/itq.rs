//! Joint-ITQ (LittleBit-2, arXiv 2603.00042): a rotation of the latent space in which both
//! factors lie closer to signs. The product is unchanged, so nothing is stored.
//!
//! Minimises `‖sign(XR) − XR‖` over orthogonal `R` for the stacked factors `X = [U'; V']` by
//! turns (iterative quantization, Gong and Lazebnik 2011): given `R` the signs, given the signs
//! the orthogonal matrix nearest to `Xᵀ·signs`, from its SVD.

use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::Result;
use crate::linalg::multiply;
use crate::linalg::qr::orthonormal_basis;
use crate::linalg::svd::thin;

/// Rotates `[U' [m, r], V' [n, r]]`, starting from a random rotation as the paper does: from the
/// identity the first signs would be those of the unrotated vectors.
pub(crate) fn rotate(
    factors: &[Mat<f32>; 2],
    iterations: usize,
    rng: &mut ChaCha8Rng,
) -> Result<[Mat<f32>; 2]> {
    let rank = factors[0].ncols();
    let (m, n) = (factors[0].nrows(), factors[1].nrows());
    let stacked =
        Mat::from_fn(
            m + n,
            rank,
            |i, k| {
                if i < m { factors[0][(i, k)] } else { factors[1][(i - m, k)] }
            },
        );
    let gaussian = Mat::<f32>::from_fn(rank, rank, |_, _| StandardNormal.sample(rng));
    let mut rotation = orthonormal_basis(gaussian.as_ref());
    let mut rotated = Mat::zeros(m + n, rank);
    let mut alignment = Mat::zeros(rank, rank);
    for _ in 0..iterations {
        multiply(rotated.as_mut(), stacked.as_ref(), rotation.as_ref(), false);
        for k in 0..rank {
            for i in 0..m + n {
                rotated[(i, k)] = if rotated[(i, k)] >= 0.0 { 1.0 } else { -1.0 };
            }
        }
        // Xᵀ · signs = P S Qᵀ: the trace of Rᵀ Xᵀ signs is largest at R = P Qᵀ.
        multiply(alignment.as_mut(), stacked.transpose(), rotated.as_ref(), false);
        let svd = thin(alignment.as_ref(), rank)?;
        multiply(rotation.as_mut(), svd.left.as_ref(), svd.right.transpose(), false);
    }
    let mut result = [Mat::zeros(m, rank), Mat::zeros(n, rank)];
    for (out, factor) in result.iter_mut().zip(factors) {
        multiply(out.as_mut(), factor.as_ref(), rotation.as_ref(), false);
    }
    Ok(result)
}
