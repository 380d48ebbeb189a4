//! What can be known before hours of work: whether it would fail.

use std::path::Path;

use super::{CompressRequest, Weighting, fits, sensitivity, statistics};
use crate::formats::space;
use crate::littlebit::estimate;
use crate::littlebit::plan::{CompressionPlan, PlannedTensor};
use crate::littlebit::report::StageEstimate;
use crate::littlebit::tuning::estimate::{self as tuning, RecoveryEstimate};
use crate::progress::Progress;
use crate::source::{LocalModel, Weight};
use crate::tensor::ggml;
use crate::{Error, Result};

/// What a run needs on this machine.
pub(super) struct Estimate {
    pub(super) stages: Vec<StageEstimate>,
    pub(super) peak_memory_bytes: u64,
}

impl Estimate {
    /// All stages together.
    pub(super) fn seconds(&self) -> f64 {
        self.stages.iter().map(|stage| stage.seconds).sum()
    }

    /// `about 2.1 h (activations 4 min, tuning 40 min, distillation 1.3 h)`: stages that take a
    /// twentieth of it or more.
    fn describe(&self) -> String {
        let all = self.seconds();
        let parts: Vec<String> = self
            .stages
            .iter()
            .filter(|stage| stage.seconds >= 0.05 * all)
            .map(|stage| format!("{} {}", stage.stage, describe_seconds(stage.seconds)))
            .collect();
        format!("about {} ({})", describe_seconds(all), parts.join(", "))
    }
}

/// Estimates time and memory from a tenth of a second of the solver's own work and, with a recipe,
/// as much of recovery's: factorization, recovery, and two operations per weight for each token of
/// calibration and evaluation. A GPU is not measured; there the figures are those of the processor.
pub(super) fn estimate(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
) -> Result<Estimate> {
    let threads = rayon::current_num_threads();
    let rate = estimate::calibrate()?;
    let solver = estimate::estimate(plan, &request.solver, threads, rate);
    let peak_memory_bytes = fits::needed(model, plan, request, request.recipe.as_ref(), threads);
    let forward =
        |tokens: usize| 2.0 * plan.parameters as f64 * tokens as f64 / (rate * threads as f64);
    let factorization = StageEstimate { stage: "factorization", seconds: solver.seconds };
    let mut stages = match &request.recipe {
        Some(recipe) => {
            let RecoveryEstimate { mut stages, .. } =
                tuning::estimate(plan, &model.config, recipe, tuning::calibrate());
            stages.insert(1.min(stages.len()), factorization);
            if request.goes_by_loss() {
                let machine = (threads, rate);
                let (seconds, _) = sensitivity::cost(plan, &model.config, &request.solver, machine);
                stages.insert(0, StageEstimate { stage: "sensitivity", seconds });
            }
            stages
        }
        None if request.weighting == Weighting::Activation => {
            let window = statistics::window(model.config.max_positions);
            let seconds = forward(request.calibration_samples * window);
            vec![StageEstimate { stage: "calibration", seconds }, factorization]
        }
        None => vec![factorization],
    };
    // The coherence test costs about as much as two thousand tokens.
    if !request.skip_validation {
        let seconds = forward(2 * (request.eval_tokens + 2000));
        stages.push(StageEstimate { stage: "evaluation", seconds });
    }
    Ok(Estimate { stages, peak_memory_bytes })
}

/// Refuses what would fail later: what [`refuse_early`] refuses, and weights that are not numbers.
pub(super) fn refuse(
    model: &LocalModel,
    plan: &CompressionPlan,
    size: u64,
    request: &CompressRequest,
    progress: &dyn Progress,
) -> Result<()> {
    let folder = folder_of(request);
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    refuse_early(model, plan, size, request)?;
    let estimate = estimate(model, plan, request)?;
    check_finite(model, plan, progress)?;
    progress.note(&format!("Estimated time: {}", estimate.describe()));
    Ok(())
}

/// Refuses, without a look at a weight, a folder that cannot be written, and a disk or a memory that
/// is too small.
pub(super) fn refuse_early(
    model: &LocalModel,
    plan: &CompressionPlan,
    size: u64,
    request: &CompressRequest,
) -> Result<()> {
    let folder = folder_of(request);
    space::check_writable(folder)?;
    space::check_free_space(folder, size)?;
    match fits::shortage(model, plan, request) {
        Some((message, suggestion)) => Err(Error::OutOfMemory { message, suggestion }),
        None => Ok(()),
    }
}

/// What [`refuse_early`] would refuse for lack of disk or memory, as warnings.
pub(super) fn shortages(
    model: &LocalModel,
    plan: &CompressionPlan,
    size: u64,
    request: &CompressRequest,
) -> Vec<String> {
    let disk = space::shortage(folder_of(request), size);
    let memory = fits::shortage(model, plan, request)
        .map(|(message, suggestion)| format!("{message}; the run will be refused. {suggestion}"));
    disk.into_iter().chain(memory).collect()
}

fn folder_of(request: &CompressRequest) -> &Path {
    match request.output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Reads every matrix once: a NaN must not be found after hours.
fn check_finite(model: &LocalModel, plan: &CompressionPlan, progress: &dyn Progress) -> Result<()> {
    use rayon::prelude::*;
    progress.start("Checking", model.weights.len() as u64, "tensors");
    let weights: Vec<_> = model.weights.iter().collect();
    let found = weights.into_par_iter().find_map_first(|(name, weight)| {
        progress.advance(1);
        let Weight::Stored(tensor) = weight else { return None };
        let (index, value) = tensor.first_non_finite()?;
        tensor.bytes.release();
        let (row, column) = (index / tensor.cols(), index % tensor.cols());
        let name = name
            .strip_suffix(".weight")
            .filter(|n| plan.layers().any(|l| l.name == *n))
            .unwrap_or(name);
        Some(Error::Factorization {
            message: format!("Factorization failed for {name}: {value} at [{row}, {column}]"),
        })
    });
    progress.finish();
    found.map_or(Ok(()), Err)?;
    // What is not factorized has a type of its own.
    for tensor in &plan.tensors {
        let PlannedTensor::Stored(stored) = tensor else { continue };
        let Some(Weight::Stored(source)) = model.weights.get(&stored.name) else { continue };
        let warning = ggml::range::check(&stored.name, source, stored.dtype)?;
        warning.iter().for_each(|warning| progress.warn(warning));
        source.bytes.release();
    }
    Ok(())
}

/// `40 s`, `12 min`, `3.5 h`.
fn describe_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{:.0} s", s.max(1.0)),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
