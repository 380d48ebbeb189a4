//! What can be known before hours of work: whether it would fail.

use super::{CompressRequest, Weighting, statistics};
use crate::backend::memory;
use crate::formats::space;
use crate::littlebit::estimate;
use crate::littlebit::plan::CompressionPlan;
use crate::progress::Progress;
use crate::source::{LocalModel, Weight};
use crate::{Error, Result};

/// What a run needs on this machine.
pub(super) struct Estimate {
    pub(super) seconds: f64,
    pub(super) peak_memory_bytes: u64,
}

/// Memory of the program itself and of activations, bytes: what a run takes beyond the solver's
/// matrices and the mapped files.
const BASE_MEMORY: u64 = 96 << 20;

/// Estimates time and memory from a tenth of a second of the solver's own work: factorization, and
/// two operations per weight for each token of calibration and evaluation. A GPU is not measured;
/// there the figures are those of the processor.
pub(super) fn estimate(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
) -> Result<Estimate> {
    let threads = rayon::current_num_threads();
    let rate = estimate::calibrate()?;
    let solver = estimate::estimate(plan, &request.solver, threads, rate);
    let window = statistics::window(model.config.max_positions);
    let calibrated = match request.weighting {
        Weighting::Activation => request.calibration_samples * window,
        Weighting::None => 0,
    };
    // The coherence test costs about as much as two thousand tokens.
    let evaluated = if request.skip_validation { 0 } else { 2 * (request.eval_tokens + 2000) };
    let tokens = (calibrated + evaluated) as f64;
    let forward = 2.0 * plan.parameters as f64 * tokens / (rate * threads as f64);
    Ok(Estimate {
        seconds: solver.seconds + forward,
        peak_memory_bytes: solver.memory_bytes + BASE_MEMORY,
    })
}

/// Refuses what would fail later: a folder that cannot be written, a disk or a memory that is too
/// small, weights that are not numbers.
pub(super) fn refuse(
    model: &LocalModel,
    plan: &CompressionPlan,
    size: u64,
    request: &CompressRequest,
    progress: &dyn Progress,
) -> Result<()> {
    let folder = match request.output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => std::path::Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    space::check_writable(folder)?;
    space::check_free_space(folder, size)?;

    let estimate = estimate(model, plan, request)?;
    if let Some(limit) = request.max_memory
        && estimate.peak_memory_bytes > limit
    {
        return Err(Error::OutOfMemory(format!(
            "the work needs about {}, --max-memory allows {}",
            space::describe_bytes(estimate.peak_memory_bytes),
            space::describe_bytes(limit)
        )));
    }
    memory::require(estimate.peak_memory_bytes, "the work")?;
    check_finite(model, plan, progress)?;
    progress.note(&format!("Estimated time: {}", describe_seconds(estimate.seconds)));
    Ok(())
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
    found.map_or(Ok(()), Err)
}

/// `about 40 s`, `about 12 min`, `about 3.5 h`.
fn describe_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("about {:.0} s", s.max(1.0)),
        s if s < 5400.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} h", s / 3600.0),
    }
}
