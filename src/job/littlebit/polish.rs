//! Sign descent: flips single signs of a factor as long as a flip lowers the error.

use faer::{Mat, MatMut, MatRef};

use crate::linalg::{gram_lower, multiply};

/// Passes over a factor before its partner gets its turn.
const PASSES: usize = 3;

/// One side of a product `diag(own_scale) · own · diag(latent) · otherᵀ · diag(other_scale)`.
pub(crate) struct Problem<'a> {
    /// What the product approximates, with a row per row of `own`: `[p, q]`, any strides.
    pub target: MatRef<'a, f32>,
    /// Scale of each row of `own`, `[p]`.
    pub own_scale: &'a [f64],
    /// Signs of the other factor, `[q, rank]`.
    pub other: &'a [f32],
    /// Scale of each row of `other`, `[q]`.
    pub other_scale: &'a [f64],
    /// Scale of each latent dimension, `[rank]`, or ones.
    pub latent_scale: Option<&'a [f64]>,
}

/// Flips signs of `own` `[p, rank]`; returns how many flips there were.
///
/// Rows are independent: with `z_k` the `k`-th scaled row of the other factor, a row's error is
/// `‖t − s Σ_k u_k z_k‖²`, and flipping `u_k` changes it by `4 s u_k (b_k − s (Gu)_k + s G_kk u_k)`
/// with `b = Z t`, `G = Z Zᵀ`. Each pass visits the dimensions in order and keeps `Gu` current.
pub(crate) fn descend(problem: &Problem<'_>, own: &mut [f32], rank: usize) -> usize {
    let (p, q) = problem.target.shape();
    let mut scaled = problem.other.to_vec();
    for (row, &scale) in scaled.chunks_exact_mut(rank).zip(problem.other_scale) {
        match problem.latent_scale {
            Some(latent) => {
                row.iter_mut().zip(latent).for_each(|(z, &l)| *z *= (scale * l) as f32);
            }
            None => row.iter_mut().for_each(|z| *z *= scale as f32),
        }
    }
    let z = MatRef::from_column_major_slice(&scaled, rank, q);
    let mut gram = Mat::zeros(rank, rank);
    gram_lower(gram.as_mut(), z);
    for j in 0..rank {
        for i in 0..j {
            gram[(i, j)] = gram[(j, i)];
        }
    }
    let mut correlation = vec![0.0f32; p * rank];
    multiply(
        MatMut::from_column_major_slice_mut(&mut correlation, rank, p),
        z,
        problem.target.transpose(),
        false,
    );
    let mut fitted = vec![0.0f32; p * rank];
    multiply(
        MatMut::from_column_major_slice_mut(&mut fitted, rank, p),
        gram.as_ref(),
        MatRef::from_column_major_slice(own, rank, p),
        false,
    );
    let mut flips = 0;
    for (i, row) in own.chunks_exact_mut(rank).enumerate() {
        let scale = problem.own_scale[i] as f32;
        let correlation = &correlation[i * rank..][..rank];
        let fitted = &mut fitted[i * rank..][..rank];
        for _ in 0..PASSES {
            let before = flips;
            for k in 0..rank {
                let column = gram.col_as_slice(k);
                let change =
                    row[k] * (correlation[k] - scale * (fitted[k] - column[k] * row[k])) * scale;
                if change < 0.0 {
                    let twice = 2.0 * row[k];
                    fitted.iter_mut().zip(column).for_each(|(f, &g)| *f -= twice * g);
                    row[k] = -row[k];
                    flips += 1;
                }
            }
            if flips == before {
                break;
            }
        }
    }
    flips
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(problem: &Problem<'_>, own: &[f32], rank: usize) -> f64 {
        let mut sum = 0.0;
        for i in 0..problem.target.nrows() {
            for j in 0..problem.target.ncols() {
                let product: f64 = (0..rank)
                    .map(|k| {
                        f64::from(own[i * rank + k] * problem.other[j * rank + k])
                            * problem.latent_scale.map_or(1.0, |l| l[k])
                    })
                    .sum();
                let fitted = problem.own_scale[i] * problem.other_scale[j] * product;
                sum += (f64::from(problem.target[(i, j)]) - fitted).powi(2);
            }
        }
        sum
    }

    /// Ends where no single flip lowers the error, counted entry by entry.
    #[test]
    fn ends_in_a_local_minimum() {
        let (p, q, rank) = (6, 14, 5);
        let wave = |i: usize| ((i * i * 7 + 3 * i + 1) as f32).sin();
        let target: Vec<f32> = (0..p * q).map(wave).collect();
        let sign = |i: usize| if wave(i + 1000) >= 0.0 { 1.0f32 } else { -1.0 };
        let other: Vec<f32> = (0..q * rank).map(sign).collect();
        let own_scale: Vec<f64> = (0..p).map(|i| 0.2 + 0.1 * i as f64).collect();
        let other_scale: Vec<f64> = (0..q).map(|j| 1.0 + 0.05 * j as f64).collect();
        let latent: Vec<f64> = (0..rank).map(|k| 0.5 + 0.2 * k as f64).collect();
        for latent_scale in [None, Some(latent.as_slice())] {
            let problem = Problem {
                target: MatRef::from_row_major_slice(&target, p, q),
                own_scale: &own_scale,
                other: &other,
                other_scale: &other_scale,
                latent_scale,
            };
            let mut own: Vec<f32> = (0..p * rank).map(|i| sign(i + 5000)).collect();
            let start = error(&problem, &own, rank);
            let mut flips = 0;
            while descend(&problem, &mut own, rank) > 0 {
                flips += 1;
            }
            let end = error(&problem, &own, rank);
            assert!(flips > 0 && end < start, "{end} after {start}");
            for k in 0..own.len() {
                own[k] = -own[k];
                assert!(error(&problem, &own, rank) >= end * (1.0 - 1e-6));
                own[k] = -own[k];
            }
        }
    }
}
