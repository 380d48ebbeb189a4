//! Dual-SVID (LittleBit, arXiv 2506.13771): signs of the best real factors, with the rank-one
//! approximation of their magnitudes as scales.

use faer::Mat;

use crate::linalg::svd::{TruncatedSvd, rank_one_magnitude};

/// Signs with scales for rows, latent dimensions and columns of a product.
#[derive(Debug, Clone)]
pub(crate) struct Binarized {
    /// Real factors whose signs are taken, left `[m, rank]` and right `[n, rank]`.
    pub latents: [Vec<f32>; 2],
    /// `h`, of unit norm, `[m]`.
    pub row_scale: Vec<f64>,
    /// `l = l_u ∘ l_v`, `[rank]`.
    pub latent_scale: Vec<f64>,
    /// `g`, of unit norm, `[n]`.
    pub column_scale: Vec<f64>,
}

/// `U' = P √S` and `V' = Q √S`: the best factors of that rank, balanced.
#[must_use]
pub(crate) fn balanced_factors(svd: &TruncatedSvd<f32>) -> [Mat<f32>; 2] {
    [&svd.left, &svd.right].map(|vectors| {
        Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, k| {
            vectors[(i, k)] * svd.values[k].max(0.0).sqrt()
        })
    })
}

/// `U'V'ᵀ ≈ diag(h) sign(U') diag(l) sign(V')ᵀ diag(g)` with `|U'| ≈ h l_uᵀ`, `|V'| ≈ g l_vᵀ`.
#[must_use]
pub(crate) fn binarize(factors: &[Mat<f32>; 2]) -> Binarized {
    let rank = factors[0].ncols();
    let latents = [row_major(&factors[0]), row_major(&factors[1])];
    let (row_scale, left) = rank_one_magnitude(&latents[0], rank);
    let (column_scale, right) = rank_one_magnitude(&latents[1], rank);
    let latent_scale = left.iter().zip(&right).map(|(a, b)| a * b).collect();
    Binarized { latents, row_scale, latent_scale, column_scale }
}

fn row_major(matrix: &Mat<f32>) -> Vec<f32> {
    let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for i in 0..matrix.nrows() {
        values.extend((0..matrix.ncols()).map(|k| matrix[(i, k)]));
    }
    values
}
