//! What a plan will cost in time and memory, from operation counts and a short measurement.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::admm::{self, Schedule};
use super::budget::FactorShape;
use super::engine::HostEngine;
use super::plan::CompressionPlan;
use super::solve::{Init, SolverConfig};
use crate::Result;
use crate::device::threads::on_several;

/// What the factorization of a model needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// Wall time of the factorization, seconds.
    pub seconds: f64,
    /// Working memory of the matrices that are worked on at once, bytes. Mapped files and the
    /// program itself come on top.
    pub memory_bytes: u64,
}

/// Estimates a plan on `threads` workers, each of which does `flops_per_second` (see
/// [`calibrate`]) and factorizes one matrix at a time.
#[must_use]
pub(crate) fn estimate(
    plan: &CompressionPlan,
    config: &SolverConfig,
    threads: usize,
    flops_per_second: f64,
) -> Estimate {
    let threads = threads.max(1);
    let costs: Vec<f64> = plan.layers().map(|layer| flops(&layer.shape, config)).collect();
    let seconds = makespan(&costs, threads) / flops_per_second;
    let mut sizes: Vec<u64> = plan.layers().map(|layer| memory(&layer.shape, config)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    Estimate { seconds, memory_bytes: sizes.iter().take(threads).sum() }
}

/// How long `threads` workers take for pieces of work that none of them shares, each of which goes
/// to the first one that is free.
#[must_use]
pub(crate) fn makespan(costs: &[f64], threads: usize) -> f64 {
    let mut busy = vec![0.0f64; threads.max(1)];
    for cost in costs {
        if let Some(first) = busy.iter_mut().min_by(|a, b| a.total_cmp(b)) {
            *first += cost;
        }
    }
    busy.into_iter().fold(0.0, f64::max)
}

/// Floating-point operations of one matrix.
#[must_use]
pub(crate) fn flops(shape: &FactorShape, config: &SolverConfig) -> f64 {
    let (m, n) = (shape.rows as f64, shape.cols as f64);
    let (rank, paths) = (shape.rank as f64, shape.paths as f64);
    let smaller = m.min(n);
    let factorization = match config.init {
        Init::Admm => {
            // Both paths are found together.
            let rank = rank * paths;
            config.iterations as f64 * admm_iteration_flops(m, n, rank)
        }
        Init::DualSvid | Init::Itq => {
            // Gram matrix, its eigenvectors, the other side.
            let svd = smaller * smaller * m.max(n) + 9.0 * smaller.powi(3) + 2.0 * m * n * rank;
            let rotation = 4.0 * (m + n) * rank * rank + 20.0 * rank.powi(3);
            let rotations = if config.init == Init::Itq { config.itq_iterations } else { 0 };
            paths * (svd + rotations as f64 * rotation)
        }
    };
    let product = 2.0 * m * n * rank;
    let round = 3.0 * product + 3.0 * (m + n) * rank * rank;
    let fits = if paths > 1.0 { 4.0 } else { 1.0 };
    let refit = 12.0 * m * n * config.refit_rounds as f64 * REFIT_PENALTY;
    let rounds = 1.0 + config.polish_rounds as f64;
    factorization + fits * rounds * (round + refit) + 4.0 * paths * product
}

/// How much longer an operation of the scale refits takes than one of a product: they are in
/// double precision and bound by memory.
const REFIT_PENALTY: f64 = 8.0;

/// Gram matrices, their inverses, products with the matrix, products with the inverses.
fn admm_iteration_flops(m: f64, n: f64, rank: f64) -> f64 {
    let small = (m + n) * rank * rank + 2.0 * rank.powi(3);
    small + 4.0 * m * n * rank + 2.0 * (m + n) * rank * rank
}

/// Working memory of one matrix, bytes: the larger one of the two stages.
#[must_use]
pub(crate) fn memory(shape: &FactorShape, config: &SolverConfig) -> u64 {
    let (m, n) = (shape.rows as u64, shape.cols as u64);
    let rank = (shape.rank * shape.paths) as u64;
    let (matrix, factors, longer) = (4 * m * n, 4 * (m + n) * rank, 4 * m.max(n) * rank);
    let alternation = match config.init {
        // Regressors and duals; right-hand side and solution; Gram matrix and its factor.
        Init::Admm => 2 * factors + 2 * longer + 8 * rank * rank,
        // The matrix in double precision, Gram matrix and eigenvectors; factors and rotations.
        Init::DualSvid | Init::Itq => 2 * matrix + 16 * m.min(n).pow(2) + 3 * factors,
    };
    // Signs and confidences; products and residual; the descent's scaled factor and sums.
    let products = (shape.paths as u64 + 1) * matrix;
    let binarization = 2 * factors + products + 3 * longer + 4 * rank * rank;
    // The weights as they are read and normalised.
    2 * matrix + alternation.max(binarization)
}

/// Operations per second that each of `threads` threads does in the solver while the others do the
/// same, from up to a tenth of a second of its own work on a matrix of the size of a small model's.
/// Larger matrices run a little faster.
///
/// # Errors
/// What the solver can fail with.
pub(crate) fn calibrate(threads: usize) -> Result<f64> {
    let rates = Mutex::new(Vec::new());
    on_several(threads.max(1), || {
        let rate = rate();
        rates.lock().unwrap_or_else(PoisonError::into_inner).push(rate);
    });
    let rates = rates.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rates = rates.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(rates.iter().sum::<f64>() / rates.len().max(1) as f64)
}

/// Operations per second of this thread.
fn rate() -> Result<f64> {
    const SIDE: usize = 512;
    const RANK: usize = 256;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let matrix: Vec<f32> = (0..SIDE * SIDE).map(|_| rng.random_range(-1.732f32..1.732)).collect();
    let schedule = |iterations| Schedule { iterations, ridge: 0.03 };
    let mut run = |iterations| {
        let started = Instant::now();
        admm::factorize(&HostEngine, &matrix, (SIDE, SIDE), RANK, schedule(iterations), &mut rng)?;
        Ok::<_, crate::Error>(started.elapsed().as_secs_f64())
    };
    // The first run also finds the processor asleep and the memory unmapped.
    run(1)?;
    let side = SIDE as f64;
    let iterations = 12;
    let seconds = run(iterations)?.max(1e-6);
    Ok(iterations as f64 * admm_iteration_flops(side, side, RANK as f64) / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::littlebit::plan::{PlanRequest, TensorHeader, plan};

    fn one_layer(count: usize) -> CompressionPlan {
        let headers: Vec<_> = (0..count)
            .map(|block| TensorHeader {
                name: format!("model.layers.{block}.mlp.up_proj.weight"),
                shape: vec![1536, 576],
                stored_bytes: 2 * 1536 * 576,
            })
            .collect();
        plan(&headers, &PlanRequest { rank: Some(400), ..PlanRequest::default() }).unwrap()
    }

    #[test]
    fn the_count_matches_the_literature() {
        // 576 × 1536 at rank 400 and 120 iterations: 3.4e11 operations with two triangular solves
        // in place of a product with the inverse, of the same order.
        let shape = one_layer(1).layers().next().unwrap().shape;
        let config = SolverConfig { iterations: 120, ..SolverConfig::default() };
        let count = flops(&shape, &config);
        assert!((2.8e11..3.8e11).contains(&count), "{count:e}");
    }

    #[test]
    fn threads_share_matrices_but_never_split_one() {
        let config = SolverConfig::default();
        let one = estimate(&one_layer(1), &config, 8, 1e9).seconds;
        let eight = |threads| estimate(&one_layer(8), &config, threads, 1e9);
        assert!((eight(1).seconds / one - 8.0).abs() < 1e-9);
        assert!((eight(4).seconds / one - 2.0).abs() < 1e-9);
        assert!((eight(64).seconds / one - 1.0).abs() < 1e-9);
        assert_eq!(eight(3).memory_bytes, 3 * eight(1).memory_bytes);
    }

    #[test]
    fn calibration_measures_something_plausible() {
        for threads in [1, 2] {
            let rate = calibrate(threads).unwrap();
            assert!(rate > 1e7 && rate < 1e13, "{rate:e}");
        }
    }

    #[test]
    fn work_goes_to_whoever_is_free() {
        // 3 and 1, 1; then 2 for the one that is free first.
        assert!((makespan(&[3.0, 1.0, 1.0, 2.0], 2) - 4.0).abs() < 1e-12);
        assert!((makespan(&[3.0, 1.0, 1.0, 2.0], 1) - 7.0).abs() < 1e-12);
        assert!((makespan(&[3.0, 1.0], 8) - 3.0).abs() < 1e-12);
        assert!(makespan(&[], 2).abs() < 1e-12);
    }
}
