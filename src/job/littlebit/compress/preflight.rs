//! What can be known before hours of work: whether it would fail.

use std::path::Path;

use super::cost::{self, Amount};
use super::request::CompressRequest;
use super::units::UnitStore;
use super::{fits, recover};
use crate::base::progress::Progress;
use crate::files::space;
use crate::job::littlebit::plan::{CompressionPlan, PlannedTensor};
use crate::job::littlebit::report::StageEstimate;
use crate::model::LocalModel;
use crate::weight::{Weight, range};
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

/// Estimates time and memory from counts of operations and some tenths of a second of measured
/// speed. A GPU is not measured; there the figures are those of the processor.
pub(super) fn estimate(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
) -> Result<Estimate> {
    estimate_with(model, plan, request, &Amount::expected(model, request))
}

/// The same where it is known how much text there is.
pub(super) fn estimate_with(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    text: &Amount,
) -> Result<Estimate> {
    let threads = rayon::current_num_threads();
    let peak_memory_bytes = fits::needed(model, plan, request, request.recipe.as_ref(), threads);
    Ok(Estimate { stages: cost::stages(model, plan, request, text)?, peak_memory_bytes })
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
    check_finite(model, plan, progress)
}

/// Says how long a run will take, or what of it is left where an earlier one was interrupted.
pub(super) fn announce_time(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    text: &Amount,
    store: &UnitStore,
    progress: &dyn Progress,
) -> Result<()> {
    let mut estimate = estimate_with(model, plan, request, text)?;
    let done = recover::finished(store, model.config.num_layers, request);
    let resumed = !store.done().is_empty();
    for stage in &mut estimate.stages {
        stage.seconds *= 1.0 - done.share(stage.stage);
    }
    progress.note(&if resumed {
        format!("Estimated time left: {}", estimate.describe())
    } else {
        format!("Estimated time: {}", estimate.describe())
    });
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
    check_graph(model, request)?;
    let folder = folder_of(request);
    space::check_writable(folder)?;
    space::check_free_space(folder, size)?;
    match fits::shortage(model, plan, request) {
        Some((message, suggestion)) => Err(Error::OutOfMemory { message, suggestion }),
        None => Ok(()),
    }
}

/// Refuses to recover what has no gradients here.
fn check_graph(model: &LocalModel, request: &CompressRequest) -> Result<()> {
    let config = &model.config;
    let what = if config.experts.is_some() {
        "a mixture of experts"
    } else if config.logit_soft_cap.is_some() {
        "soft caps on logits"
    } else {
        return Ok(());
    };
    if request.recipe.is_none() {
        return Ok(());
    }
    Err(Error::Unsupported {
        message: format!("{} has {what}, through which nothing is tuned", config.class_name),
        suggestion: "Use --effort none".to_owned(),
    })
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
        let warning = range::check(&stored.name, source, stored.dtype)?;
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
