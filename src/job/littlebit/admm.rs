//! The ADMM factorization: signs that minimise the error of the product directly, instead of
//! binarizing the best real factors.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::engine::{Engine, FactorState, Side};
use crate::Result;

/// How the alternation is driven.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    /// Updates of each factor.
    pub iterations: usize,
    /// Added to the diagonal of every least squares problem. The regressors have unit columns, so
    /// this is a share of the mean diagonal.
    pub ridge: f32,
}

/// Factorizes a matrix `[rows, cols]` of unit mean square into signs with a rank-one envelope on
/// each side.
///
/// The penalty `ρ` that draws the factors towards signs rises linearly from 0 to 1 of the mean
/// diagonal: an annealing whose length decides the quality. Geometric, quadratic and square-root
/// ramps of the same length, other end points and over-relaxation all ended at a higher error on
/// real weights; starting from singular vectors or from a rotation of them ends at the same error
/// as random signs, which cost nothing.
pub(crate) fn factorize(
    engine: &dyn Engine,
    matrix: &[f32],
    shape: (usize, usize),
    rank: usize,
    schedule: Schedule,
    rng: &mut ChaCha8Rng,
) -> Result<[FactorState; 2]> {
    let mut signs = |rows: usize| -> Vec<f32> {
        (0..rows * rank).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect()
    };
    let start = [signs(shape.0), signs(shape.1)];
    let mut alternation = engine.start(matrix, shape, rank, start)?;
    for iteration in 0..schedule.iterations {
        let penalty = iteration as f32 / schedule.iterations as f32;
        alternation.update(Side::Left, penalty, schedule.ridge)?;
        alternation.update(Side::Right, penalty, schedule.ridge)?;
    }
    alternation.finish()
}
