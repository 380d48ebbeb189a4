//! Factorizes one matrix: the entry point of the solvers.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::admm::{self, Schedule};
use super::budget::FactorShape;
use super::engine::Engine;
use super::normalise::{Importance, Normalised};
use super::polish::{self, Problem};
use super::rounding::{MAX_ROUNDING_LOSS, StoredScales, errors, round};
use super::scales::{Path, refit, refit_latent, subtract};
use super::{itq, svid};
use crate::linalg::Precision;
use crate::linalg::svd::truncated_svd_in;
use crate::{Error, Result};
use faer::MatRef;

/// How the signs are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// Signs of the singular vectors (LittleBit).
    DualSvid,
    /// Signs of rotated singular vectors (LittleBit-2).
    Itq,
    /// Alternating minimisation of the error itself (NanoQuant): the best by far at equal bits.
    #[default]
    Admm,
}

impl Init {
    /// `dual-svid`, `itq` or `admm`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "dual-svid" => Some(Self::DualSvid),
            "itq" => Some(Self::Itq),
            "admm" => Some(Self::Admm),
            _ => None,
        }
    }

    /// `dual-svid`, `itq` or `admm`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DualSvid => "dual-svid",
            Self::Itq => "itq",
            Self::Admm => "admm",
        }
    }

    /// Whether the published form of the method has a scale per latent dimension.
    #[must_use]
    pub const fn has_middle_scale(self) -> bool {
        !matches!(self, Self::Admm)
    }
}

/// Settings of the solver.
///
/// The defaults have the lowest measured error at equal bits: ADMM, one path, no middle scale. The
/// number of iterations buys error with time at a falling rate. SmolLM2-135M, block 5, `q`, `v` and
/// `down` at 1.0 bits per weight, mean relative squared error: 40 iterations 0.332, 80: 0.322,
/// 160: 0.315, 320: 0.310. At 120 most of it is had: 3.6 seconds of one core for 576 × 1536.
#[derive(Debug, Clone, PartialEq)]
pub struct SolverConfig {
    /// Where the signs come from.
    pub init: Init,
    /// Updates of each factor in ADMM.
    pub iterations: usize,
    /// Share of the mean diagonal that ADMM adds to its least squares problems.
    pub ridge: f32,
    /// Rotations in Joint-ITQ.
    pub itq_iterations: usize,
    /// Rounds of single sign flips after the signs are found.
    pub polish_rounds: usize,
    /// Rounds of alternating least squares for the scales.
    pub refit_rounds: usize,
    /// How far importances are drawn towards their mean, in `[0, 1]`.
    pub shrinkage: f32,
    /// Arithmetic of singular value decompositions.
    pub precision: Precision,
    /// Seed; each tensor derives its own from this and its name.
    pub seed: u64,
}

impl Default for SolverConfig {
    fn default() -> Self {
        Self {
            init: Init::Admm,
            iterations: 120,
            ridge: 0.03,
            itq_iterations: 50,
            polish_rounds: 2,
            refit_rounds: 8,
            shrinkage: 0.2,
            precision: Precision::Float64,
            seed: 0,
        }
    }
}

impl SolverConfig {
    /// The default for ADMM; for the other two the method as published, without the least squares
    /// scales and the sign descent that make this solver's finish.
    #[must_use]
    pub fn for_init(init: Init) -> Self {
        match init {
            Init::Admm => Self::default(),
            Init::DualSvid | Init::Itq => {
                Self { init, polish_rounds: 0, refit_rounds: 0, ..Self::default() }
            }
        }
    }
}

/// One path of a factorized weight.
#[derive(Debug, Clone, PartialEq)]
pub struct PathSolution {
    /// `[m, rank]`, row-major: the sign counts (zero is positive); the magnitude, about 1 on
    /// average, says how firmly the sign is set.
    pub left: Vec<f32>,
    /// `[rank, n]`, row-major, likewise.
    pub right: Vec<f32>,
    /// `h ≥ 0`, exact stored values, `[m]`.
    pub row_scale: Vec<f32>,
    /// `l ≥ 0`, exact stored values, `[rank]`, where the form has it.
    pub latent_scale: Option<Vec<f32>>,
    /// `g ≥ 0`, exact stored values, `[n]`.
    pub column_scale: Vec<f32>,
}

/// A factorized weight and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// One or two paths; their sum is the approximation.
    pub paths: Vec<PathSolution>,
    /// `‖W − Ŵ‖² / ‖W‖²` with the stored scales.
    pub error: f64,
    /// The same with every term weighted by the importances as given; equal to `error` without
    /// importances.
    pub weighted_error: f64,
    /// Time spent on the decomposition or the alternation.
    pub factorization_time: Duration,
    /// Time spent on signs, scales and rounding.
    pub binarization_time: Duration,
}

/// Factorizes `w` `[rows, cols]` (row-major) into the given form. `name` appears in errors and
/// seeds the random numbers, so that a tensor's result depends neither on the order nor on the
/// number of threads in which tensors are worked on.
///
/// # Errors
/// [`Error::Factorization`] where the weights hold NaN or infinity, where the importances do not
/// fit, or where the weights are so large or small that f16 scales cannot hold them;
/// [`Error::RankSelection`] for a rank outside `1..=min(rows, cols)`.
pub fn solve(
    name: &str,
    w: &[f32],
    shape: &FactorShape,
    config: &SolverConfig,
    importance: Importance<'_>,
    engine: &dyn Engine,
) -> Result<Solution> {
    let (m, n) = (shape.rows, shape.cols);
    if shape.rank == 0 || shape.rank > m.min(n) || !(1..=2).contains(&shape.paths) {
        return Err(Error::RankSelection {
            message: format!(
                "{name} ({m} × {n}) cannot take {} path(s) of rank {}",
                shape.paths, shape.rank
            ),
            suggestion: format!("Use a rank between 1 and {}", m.min(n)),
        });
    }
    let scaled = Normalised::new(name, w, (m, n), importance, config.shrinkage)?;
    if scaled.magnitude == 0.0 {
        return Ok(zero(shape));
    }
    let mut job = Job {
        shape,
        config,
        engine,
        target: &scaled.matrix,
        rng: ChaCha8Rng::from_seed(seed(config.seed, name)),
        factorization_time: Duration::ZERO,
    };
    let started = Instant::now();
    let (mut paths, confidence) = job.paths().map_err(|error| named(name, error))?;
    let factorization_time = job.factorization_time;
    let (stored, loss) = round(&mut paths, &scaled, config.refit_rounds > 0, shape.scales);
    if loss.is_nan() || loss > MAX_ROUNDING_LOSS {
        return Err(Error::Factorization {
            message: format!(
                "Factorization failed for {name}: weights of root mean square {:.1e} need scales \
                 outside the range of f16",
                scaled.magnitude
            ),
        });
    }
    let sums = errors(w, &paths, &stored, importance);
    let paths = paths
        .iter()
        .zip(confidence)
        .zip(stored)
        .map(|((path, confidence), scales)| path_solution(path, confidence, scales))
        .collect();
    Ok(Solution {
        paths,
        error: sums.relative(),
        weighted_error: sums.weighted(),
        factorization_time,
        binarization_time: started.elapsed().saturating_sub(factorization_time),
    })
}

/// Says which tensor a solver's failure belongs to.
fn named(name: &str, error: Error) -> Error {
    match error {
        Error::Factorization { message } => {
            Error::Factorization { message: format!("Factorization failed for {name}: {message}") }
        }
        other => other,
    }
}

/// 32 bytes from the seed and the name of a tensor.
fn seed(seed: u64, name: &str) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into()
}

/// Zero scales and positive signs.
fn zero(shape: &FactorShape) -> Solution {
    let path = PathSolution {
        left: vec![1.0; shape.rows * shape.rank],
        right: vec![1.0; shape.rank * shape.cols],
        row_scale: vec![0.0; shape.rows],
        latent_scale: shape.middle_scale.then(|| vec![0.0; shape.rank]),
        column_scale: vec![0.0; shape.cols],
    };
    Solution {
        paths: vec![path; shape.paths],
        error: 0.0,
        weighted_error: 0.0,
        factorization_time: Duration::ZERO,
        binarization_time: Duration::ZERO,
    }
}

/// Magnitudes of the latents of a path, left `[m, rank]` and right `[n, rank]`.
type Confidence = [Vec<f32>; 2];

struct Job<'a> {
    shape: &'a FactorShape,
    config: &'a SolverConfig,
    engine: &'a dyn Engine,
    /// Normalised matrix.
    target: &'a [f32],
    rng: ChaCha8Rng,
    factorization_time: Duration,
}

impl Job<'_> {
    /// All paths in the normalised space, scales fitted.
    fn paths(&mut self) -> Result<(Vec<Path>, Vec<Confidence>)> {
        let (mut paths, confidence): (Vec<_>, Vec<_>) = if self.shape.paths == 1 {
            vec![self.first(self.target, self.shape.rank)?]
        } else if self.config.init == Init::Admm {
            split(self.first(self.target, 2 * self.shape.rank)?)
        } else {
            let first = self.first(self.target, self.shape.rank)?;
            let residual = subtract(self.target, std::iter::once(&first.0));
            let second = self.first(&residual, self.shape.rank)?;
            vec![first, second]
        }
        .into_iter()
        .unzip();
        if paths.len() == 1 {
            fit(self.target, &mut paths[0], self.config);
        } else {
            // Each path fits what the other one leaves, by turns.
            for _ in 0..2 {
                for at in 0..2 {
                    let residual = subtract(self.target, std::iter::once(&paths[1 - at]));
                    fit(&residual, &mut paths[at], self.config);
                }
            }
        }
        Ok((paths, confidence))
    }

    /// Signs with first scales for `target`.
    fn first(&mut self, target: &[f32], rank: usize) -> Result<(Path, Confidence)> {
        let (m, n) = (self.shape.rows, self.shape.cols);
        let started = Instant::now();
        let found = if self.config.init == Init::Admm {
            let schedule =
                Schedule { iterations: self.config.iterations, ridge: self.config.ridge };
            let [left, right] =
                admm::factorize(self.engine, target, (m, n), rank, schedule, &mut self.rng)?;
            let confidence = [&left, &right]
                .map(|f| confidence(&f.latents, &wide(&f.row_envelope), &wide(&f.latent_envelope)));
            let path = Path {
                rank,
                left: signs(&left.latents),
                right: signs(&right.latents),
                row: wide(&left.row_envelope),
                latent: self.shape.middle_scale.then(|| vec![1.0; rank]),
                column: wide(&right.row_envelope),
            };
            (path, confidence)
        } else {
            let view = MatRef::from_row_major_slice(target, m, n);
            let svd = truncated_svd_in(self.config.precision, view, rank, &mut self.rng)?;
            let mut factors = svid::balanced_factors(&svd);
            if self.config.init == Init::Itq {
                factors = itq::rotate(&factors, self.config.itq_iterations, &mut self.rng)?;
            }
            let binary = svid::binarize(&factors);
            let ones = vec![1.0; rank];
            let confidence = [
                confidence(&binary.latents[0], &binary.row_scale, &ones),
                confidence(&binary.latents[1], &binary.column_scale, &ones),
            ];
            let path = Path {
                rank,
                left: signs(&binary.latents[0]),
                right: signs(&binary.latents[1]),
                row: binary.row_scale,
                latent: self.shape.middle_scale.then_some(binary.latent_scale),
                column: binary.column_scale,
            };
            (path, confidence)
        };
        self.factorization_time += started.elapsed();
        let (mut path, confidence) = found;
        fit_magnitude(target, &mut path);
        Ok((path, confidence))
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn signs(latents: &[f32]) -> Vec<f32> {
    latents.iter().map(|&v| if v >= 0.0 { 1.0 } else { -1.0 }).collect()
}

/// Latents relative to their envelope `row · latentᵀ`, scaled to mean 1.
fn confidence(latents: &[f32], row: &[f64], latent: &[f64]) -> Vec<f32> {
    let mut relative = Vec::with_capacity(latents.len());
    for (values, &u) in latents.chunks_exact(latent.len()).zip(row) {
        relative.extend(values.iter().zip(latent).map(|(&y, &v)| {
            let envelope = u * v;
            if envelope > 0.0 { (f64::from(y.abs()) / envelope) as f32 } else { 1.0 }
        }));
    }
    let mean = relative.iter().map(|&v| f64::from(v)).sum::<f64>() / relative.len().max(1) as f64;
    if mean > 0.0 && mean.is_finite() {
        for v in &mut relative {
            *v = (f64::from(*v) / mean) as f32;
        }
    } else {
        relative.fill(1.0);
    }
    relative
}

/// Scales a path as a whole to least squares.
fn fit_magnitude(target: &[f32], path: &mut Path) {
    let n = path.column.len();
    let product = path.product();
    let (mut numerator, mut denominator) = (0.0, 0.0);
    let rows = target.chunks_exact(n).zip(product.chunks_exact(n));
    for ((target, product), &h) in rows.zip(&path.row) {
        for ((&t, &p), &g) in target.iter().zip(product).zip(&path.column) {
            let fitted = f64::from(p) * h * g;
            numerator += f64::from(t) * fitted;
            denominator += fitted * fitted;
        }
    }
    let factor = if denominator > 0.0 { numerator / denominator } else { 0.0 };
    path.column.iter_mut().for_each(|g| *g *= factor);
}

/// Cuts a path of rank `2 r` into two of rank `r`, each with scales of its own to fit: the first
/// takes the even latent dimensions, the second the odd ones.
fn split((path, confidence): (Path, Confidence)) -> Vec<(Path, Confidence)> {
    let rank = path.rank / 2;
    let every_other = |values: &[f32], at: usize| -> Vec<f32> {
        values.iter().skip(at).step_by(2).copied().collect()
    };
    (0..2)
        .map(|at| {
            let half = Path {
                rank,
                left: every_other(&path.left, at),
                right: every_other(&path.right, at),
                row: path.row.clone(),
                latent: path.latent.as_ref().map(|_| vec![1.0; rank]),
                column: path.column.clone(),
            };
            (half, [every_other(&confidence[0], at), every_other(&confidence[1], at)])
        })
        .collect()
}

/// Fits the scales and flips signs by turns; leaves the scales fitted and non-negative.
fn fit(target: &[f32], path: &mut Path, config: &SolverConfig) {
    fit_scales(target, path, config.refit_rounds);
    for _ in 0..config.polish_rounds {
        let (m, n, rank) = (path.row.len(), path.column.len(), path.rank);
        let view = MatRef::from_row_major_slice(target, m, n);
        let left = Problem {
            target: view,
            own_scale: &path.row,
            other: &path.right,
            other_scale: &path.column,
            latent_scale: path.latent.as_deref(),
        };
        let mut flips = polish::descend(&left, &mut path.left, rank);
        let right = Problem {
            target: view.transpose(),
            own_scale: &path.column,
            other: &path.left,
            other_scale: &path.row,
            latent_scale: path.latent.as_deref(),
        };
        flips += polish::descend(&right, &mut path.right, rank);
        if flips == 0 {
            break;
        }
        fit_scales(target, path, config.refit_rounds);
    }
    path.make_scales_positive();
}

fn fit_scales(target: &[f32], path: &mut Path, rounds: usize) {
    if rounds == 0 {
        return;
    }
    if path.latent.is_some() {
        refit_latent(target, path);
    }
    let product = path.product();
    refit(target, &product, &mut path.row, &mut path.column, rounds);
}

/// What the caller gets of a path.
fn path_solution(path: &Path, confidence: Confidence, stored: StoredScales) -> PathSolution {
    let (rank, n) = (path.rank, path.column.len());
    let [left_confidence, right_confidence] = confidence;
    let left = left_confidence.iter().zip(&path.left).map(|(&c, &s)| c.copysign(s)).collect();
    let mut right = vec![0.0f32; rank * n];
    let rows = right_confidence.chunks_exact(rank).zip(path.right.chunks_exact(rank));
    for (j, (confidence, signs)) in rows.enumerate() {
        for (k, (&c, &s)) in confidence.iter().zip(signs).enumerate() {
            right[k * n + j] = c.copysign(s);
        }
    }
    let [row, latent, column] = stored.map(|s| s.iter().map(|&v| v as f32).collect::<Vec<_>>());
    PathSolution {
        left,
        right,
        row_scale: row,
        latent_scale: path.latent.is_some().then_some(latent),
        column_scale: column,
    }
}
