//! `littlebit compress`: from an opened model to a verified file and a report.
//!
//! The order is fixed: plan, refuse what would fail later, measure where bits are needed (with a
//! recipe that asks for it) and plan again, statistics of the inputs, factorize
//! matrix by matrix (each one a checkpoint unit), assemble, verify, measure. Everything random is
//! seeded per matrix, so neither threads nor an interruption change a bit of the result.

mod assemble;
mod bracket;
mod cost;
mod facts;
mod fits;
mod pack;
mod preflight;
mod quality;
mod recover;
mod request;
mod sensitivity;
mod statistics;
mod units;
mod work;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

pub(crate) use request::{Checkpoints, CompressRequest, Weighting};

use super::plan::{CompressionPlan, headers_of, plan};
use super::report::{CalibrationReport, CompressionReport, LayerSummary, SolverReport};
use super::tuning::Recipe;
use crate::base::progress::Progress;
use crate::device::{Backend, memory};
use crate::model::LocalModel;
use crate::text::options;
use crate::{Error, Result};
use cost::Amount;
use facts::Facts;
use units::UnitStore;
use work::Run;

/// Name and version of this program, as files and fingerprints record it.
const TOOL: &str = concat!("llm-quantize ", env!("CARGO_PKG_VERSION"));

/// A compression that failed. When it missed its quality threshold, the best result was kept and
/// its report is here.
#[derive(Debug)]
pub(crate) struct CompressFailure {
    /// Why.
    pub error: Error,
    /// The best result.
    pub report: Option<Box<CompressionReport>>,
}

impl From<Error> for CompressFailure {
    fn from(error: Error) -> Self {
        Self { error, report: None }
    }
}

/// The plan alone, without reading a weight: with the exact ranks and the exact size of the file,
/// unless ranks go by what the model loses, which is measured in the run. Then ranks are those of
/// equal bits per weight, a warning says so, and the size is right to a hundredth.
pub(crate) fn dry_run(
    model: &LocalModel,
    request: &CompressRequest,
    backend: &Backend,
) -> Result<CompressionReport> {
    check(request)?;
    recover::check(request, backend)?;
    refuse_packed(model)?;
    let plan = plan(&headers_of(model), &request.plan)?;
    let facts = Facts::planned(request);
    let size = assemble::layout(model, &plan, request, &facts)?.file_size();
    let estimate = preflight::estimate(model, &plan, request)?;
    let mut report = skeleton(model, &plan, request, backend, size)?;
    report.layers = plan.layers().map(|layer| pack::report_of(layer, None)).collect();
    report.warnings.extend(preflight::shortages(model, &plan, size, request));
    report.warnings.extend(embedding_warning(&plan));
    if request.goes_by_loss() {
        report.warnings.push(
            "These ranks are those of equal bits per weight. The run first measures where the \
             model is sensitive and moves bits there; their number stays within 1 % of this \
             (blocks.rank-allocation = \"uniform\" keeps these ranks)"
                .to_owned(),
        );
    }
    report.status = "planned";
    report.duration_seconds = estimate.seconds();
    report.estimated_stages = estimate.stages;
    report.peak_memory_bytes = Some(estimate.peak_memory_bytes);
    Ok(report)
}

/// Refuses what [`compress`] would refuse for the shapes and settings of a model, without a look at a
/// weight: to be asked before gigabytes of weights are moved.
///
/// # Errors
/// Those of [`compress`].
pub(crate) fn refuse_early(
    model: &LocalModel,
    request: &CompressRequest,
    backend: &Backend,
) -> Result<()> {
    check(request)?;
    recover::check(request, backend)?;
    refuse_packed(model)?;
    let plan = plan(&headers_of(model), &request.plan)?;
    let size = assemble::layout(model, &plan, request, &Facts::planned(request))?.file_size();
    preflight::refuse_early(model, &plan, size, request)?;
    model.tokenizer().map(drop)
}

/// Factors are found from weights that are numbers, not from integers that were rounded already.
fn refuse_packed(model: &LocalModel) -> Result<()> {
    let Some(packed) = model.packed() else { return Ok(()) };
    Err(Error::Unsupported {
        message: format!("{} is already quantized ({})", model.name, packed.type_name()),
        suggestion: "Use the original f32, f16 or bf16 checkpoint, or a GGUF file".to_owned(),
    })
}

/// Compresses `model` into `request.output`.
pub(crate) fn compress(
    model: &LocalModel,
    request: &CompressRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<CompressionReport, CompressFailure> {
    let began = Instant::now();
    check(request)?;
    recover::check(request, backend)?;
    refuse_packed(model)?;
    announce(model, request, progress);
    let plan = plan(&headers_of(model), &request.plan)?;
    progress.verbose(&format!("Scales: {} ({})", plan.scales(), request.plan.scales.name()));
    let planned = Facts::planned(request);
    let size = assemble::layout(model, &plan, request, &planned)?.file_size();
    preflight::refuse(model, &plan, size, request, progress)?;

    let tokenizer = model.tokenizer()?;
    let calibration_tokens = match &request.recipe {
        Some(recipe) => {
            let (sequences, length) = recipe.text_of(model.config.max_positions);
            sequences * length
        }
        None => request.calibration_samples * statistics::window(model.config.max_positions),
    };
    let text = options::open_text(
        &request.text,
        &tokenizer,
        calibration_tokens,
        (request.eval_tokens > 0).then_some(request.eval_tokens),
        progress,
    )?;
    let facts = Facts::measured(model, request, &text, progress)?;
    let fingerprint = facts.fingerprint(model, request, backend, &text)?;
    let store = UnitStore::open(&request.checkpoints, &fingerprint, progress)?;
    let resumed_layers = store.announce(
        &model.config,
        request.recipe.is_some(),
        matches!(request.checkpoints, Checkpoints::Resume(_)),
        progress,
    );
    let amount = Amount::of(&text, Some(&tokenizer));
    preflight::announce_time(model, &plan, request, &amount, &store, progress)?;
    let run = Run {
        model,
        request,
        backend,
        progress,
        store: &store,
        tokenizer: &tokenizer,
        text: &text,
        facts: &facts,
        warnings: Mutex::default(),
        opinions: OnceLock::new(),
    };
    if let Some(warning) = embedding_warning(&plan) {
        run.warn(warning);
    }
    let outcome = quality::search(&run, plan).map_err(|error| match error {
        Error::Interrupted { .. } => run.interrupted(),
        other => other,
    })?;

    let mut report = skeleton(model, &outcome.plan, request, backend, outcome.file_size)?;
    report.per_layer_summary = LayerSummary::of(&outcome.layers, model.config.num_layers);
    report.layers = outcome.layers;
    report.quality_metrics = outcome.quality;
    report.recovery = outcome.recovery;
    report.resumed_layers = resumed_layers;
    report.iterations = outcome.iterations;
    report.calibration = outcome.calibration.or_else(|| {
        report.recovery.as_ref().map(|recovery| CalibrationReport {
            dataset: text.name.clone(),
            samples: recovery.sequences - recovery.written_sequences,
            tokens: ((recovery.sequences - recovery.written_sequences) * recovery.sequence_length)
                as u64,
        })
    });
    report.warnings = run.warnings.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.duration_seconds = began.elapsed().as_secs_f64();
    report.peak_memory_bytes = memory::peak_resident_bytes();
    if let Some(error) = outcome.unmet {
        // Finished work is kept in the checkpoint.
        return Err(CompressFailure { error, report: Some(Box::new(report)) });
    }
    store.finish()?;
    Ok(report)
}

/// Refuses a recipe that makes no sense, whoever made it.
fn check(request: &CompressRequest) -> Result<()> {
    request.recipe.as_ref().map_or(Ok(()), Recipe::check)
}

/// What to say when embeddings do not get the type that was asked for.
fn embedding_warning(plan: &CompressionPlan) -> Option<String> {
    let (name, asked, got) = plan.fallback()?;
    Some(format!(
        "{name} is stored as {} instead of {}: its rows do not fill whole blocks",
        got.name(),
        asked.name()
    ))
}

fn announce(model: &LocalModel, request: &CompressRequest, progress: &dyn Progress) {
    progress.note(&format!("LittleBit compression: {}", model.name));
    progress.note(&format!("Target: {} BPW, Format: littlebit", request.plan.target_bpw));
    match request.plan.rank {
        Some(rank) => progress.note(&format!("Rank selection: MANUAL ({rank})")),
        None => progress.note("Rank selection: AUTO"),
    }
    match &request.recipe {
        Some(recipe) => {
            let summary = recipe.summary(model.config.max_positions);
            progress.note(&format!("Recovery: {} ({summary})", request.effort.name()));
        }
        None => progress.note("Recovery: none (factorization only)"),
    }
    progress.note(&format!(
        "Model loaded: {} layers, {} parameters",
        model.config.num_layers,
        short_count(model.parameter_count())
    ));
}

/// `6.7B`, `134.5M`.
fn short_count(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c >= 1e9 => format!("{:.1}B", c / 1e9),
        c if c >= 1e6 => format!("{:.1}M", c / 1e6),
        c if c >= 1e3 => format!("{:.1}K", c / 1e3),
        c => c.to_string(),
    }
}

/// A report with everything that the plan decides.
fn skeleton(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    backend: &Backend,
    size: u64,
) -> Result<CompressionReport> {
    let layers: Vec<_> = plan.layers().map(|layer| pack::report_of(layer, None)).collect();
    Ok(CompressionReport {
        status: "success",
        output_path: request.output.display().to_string(),
        format: "littlebit",
        source_model: model.name.clone(),
        target_bpw: plan.target_bpw,
        achieved_bpw: plan.achieved_bpw(),
        file_bpw: plan.file_bits_per_parameter(size),
        compression_ratio: plan.compression_ratio(size),
        original_size_bytes: plan.original_bytes,
        compressed_size_bytes: size,
        duration_seconds: 0.0,
        peak_memory_bytes: None,
        quality_metrics: None,
        per_layer_summary: LayerSummary::of(&layers, model.config.num_layers),
        solver: SolverReport {
            init: request.solver.init.name(),
            paths: if request.plan.residual { 2 } else { 1 },
            latent_scale: request.plan.middle_scale,
            scales: plan.scales(),
            iterations: request.solver_iterations(),
            seed: request.solver.seed,
            weighting: request.weighting.name(),
            device: backend.describe(),
        },
        effort: request.effort.name(),
        recipe: request.recipe.as_ref().map(Recipe::table).transpose()?,
        estimated_stages: Vec::new(),
        recovery: None,
        calibration: None,
        iterations: Vec::new(),
        resumed_layers: 0,
        layers: Vec::new(),
        warnings: Vec::new(),
    })
}
