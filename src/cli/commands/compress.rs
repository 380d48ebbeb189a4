//! `littlebit compress`.

use super::kept::Kept;
use super::littlebit_convert;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::littlebit::{CompressArgs, FileFormat, InitArg, ScalesArg, WeightingArg};
use crate::cli::bars::Bars;
use crate::cli::output::{Report, duration, grouped};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::littlebit::{LittleBitFile, metadata_export};
use crate::job::convert::littlebit::{self, Target};
use crate::job::gguf::Level;
use crate::job::littlebit::compress::{self, CompressRequest, Weighting};
use crate::job::littlebit::plan::PlanRequest;
use crate::job::littlebit::report::{BlockReport, CompressionReport};
use crate::job::littlebit::scale_choice::ScaleChoice;
use crate::job::littlebit::solve::{Init, SolverConfig};
use crate::job::littlebit::tuning::{Effort, Recipe};
use crate::model::LocalModel;
use crate::text::TextOptions;
use crate::weight::ScaleType;
use crate::{Error, Result};

/// Calibration windows without an effort.
const CALIBRATION_SAMPLES: usize = 256;

/// End of the name of the native file from which another one is made.
const NATIVE: &str = ".native.littlebit";

/// Level of `--format gguf-lossy`, as of `littlebit convert`.
const LOSSY_LEVEL: &str = "Q4_K_M";

pub(super) fn run(args: &CompressArgs, context: &Context) -> Result<(), Failure> {
    check(args)?;
    plan_request(args, context).check()?;
    let recovery = recovery(args)?;
    refuse_idle(args, recovery.1.is_some(), context)?;
    early::output_folder(&args.output.output_dir)?;
    if let Some(path) = &args.export_metadata {
        early::output_file(path)?;
    }
    early::resume(args.checkpoints.resume.as_deref())?;
    early::text(args.calibration_data.as_deref(), args.eval_data.as_deref())?;
    early::model(&args.model)?;
    let progress = Bars::new(&context.output);
    let backend = models::backend(&args.compute, context)?;
    if args.dry_run {
        let (model, located) = models::open_outline(&args.model, &args.hub, context, &progress)?;
        let request = request(args, recovery, context, &model);
        let mut report = compress::dry_run(&model, &request, &backend)?;
        report.warnings.extend(located.shortage());
        context.output.result(&report);
        return Ok(());
    }
    let judge = |model: &LocalModel| {
        compress::refuse_early(model, &request(args, recovery.clone(), context, model), &backend)
    };
    let model = models::open_if(&args.model, &args.hub, context, &judge, &progress)?;
    let mut request = request(args, recovery, context, &model);
    let kept = Kept::new(&args.checkpoints, &request.output, context, &progress)?;
    request.resume_command = kept.resume_command();
    request.checkpoints = kept.into();
    interrupt::watch();
    let mut report = match compress::compress(&model, &request, &backend, &progress) {
        Ok(report) => report,
        Err(failure) => {
            if let Some(kept) = &failure.report {
                progress.complete(&kept.output_path, kept.compressed_size_bytes, "");
            }
            let result = failure.report.and_then(|r| serde_json::to_value(*r).ok());
            return Err(Failure { error: Box::new(failure.error), result });
        }
    };
    if let Some(path) = &args.export_metadata {
        let file = LittleBitFile::open(&request.output)?;
        metadata_export::export(&file, path)?;
        progress.note(&format!("Metadata: {0}.safetensors, {0}.json", path.display()));
    }
    if let Some(target) = target(args.format)? {
        convert_to(target, args, &request, &mut report, &progress)?;
    }
    progress.complete(&report.output_path, report.compressed_size_bytes, "");
    context.output.result(&report);
    Ok(())
}

/// What the native file is converted to in the end, if it is not to stay.
fn target(format: FileFormat) -> Result<Option<Target>> {
    Ok(match format {
        FileFormat::Littlebit => None,
        FileFormat::GgufExt => Some(Target::GgufExt),
        FileFormat::GgufLossy => Some(Target::GgufLossy(Level::parse(LOSSY_LEVEL)?)),
    })
}

/// Puts a GGUF file in the place of the native one, which stays if that fails.
fn convert_to(
    target: Target,
    args: &CompressArgs,
    request: &CompressRequest,
    report: &mut CompressionReport,
    progress: &dyn Progress,
) -> Result<()> {
    let native = &request.output;
    let stem = native.file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_suffix(NATIVE).unwrap_or(&stem);
    let name = match &args.output.output_name {
        Some(_) => format!("{stem}.gguf"),
        None => littlebit_convert::default_name(stem, target),
    };
    let (file, from) = littlebit::open(native)?;
    let parameters = 8.0 * report.compressed_size_bytes as f64 / report.file_bpw;
    let converted =
        littlebit::convert(&file, from, target, &args.output.output_dir.join(name), progress)
            .inspect_err(|_| {
                progress.warn(&format!("The compressed model is kept in {}", native.display()));
            })?;
    drop(file);
    std::fs::remove_file(native).map_err(|e| Error::io(native, e))?;
    if report.quality_metrics.is_some() && !converted.lossless {
        let warning = format!(
            "quality was measured on the binary factors; {} loses some more",
            converted.output_path
        );
        progress.warn(&warning);
        report.warnings.push(warning);
    }
    for warning in converted.warnings {
        progress.warn(&warning);
        report.warnings.push(warning);
    }
    report.compression_ratio = report.original_size_bytes as f64 / converted.file_size as f64;
    report.file_bpw = 8.0 * converted.file_size as f64 / parameters;
    report.compressed_size_bytes = converted.file_size;
    report.output_path = converted.output_path;
    report.format = converted.format;
    Ok(())
}

/// What can be refused before anything is opened.
fn check(args: &CompressArgs) -> Result<()> {
    let invalid = |message: &str| Err(Error::InvalidArgument(message.into()));
    if args.format != FileFormat::Littlebit && args.dry_run {
        return invalid("--dry-run knows the size of the native format only; leave --format out");
    }
    if args.quality_threshold.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
        return invalid("--quality-threshold must be a percentage above 0");
    }
    if args.calibration_samples.is_some_and(|samples| !(64..=1024).contains(&samples)) {
        return invalid("--calibration-samples must be between 64 and 1024");
    }
    if args.solver.iterations == Some(0) {
        return invalid("--iterations must be at least 1");
    }
    if args.skip_validation && args.quality_threshold.is_some() {
        return invalid("--quality-threshold cannot be met with --skip-validation");
    }
    args.output.check_name()
}

/// Options that mean nothing beside others: named, never ignored.
fn refuse_idle(args: &CompressArgs, recovers: bool, context: &Context) -> Result<()> {
    let given = &context.given;
    let unread = !recovers && args.solver.weighting == WeightingArg::None;
    let unmeasured = args.skip_validation || args.eval_data.is_some();
    let text = "there is nothing to calibrate";
    given.refuse(
        "with --effort none and --weighting none",
        &[("calibration-samples", unread, text), ("calibration-data", unread && unmeasured, text)],
    )?;
    let quality = "perplexity is not measured";
    given.refuse(
        "with --skip-validation",
        &[
            // Beside it the whole of --calibration-data is read to calibrate.
            ("eval-data", args.skip_validation && args.calibration_data.is_none(), quality),
            ("eval-tokens", args.skip_validation, quality),
        ],
    )?;
    let direct = args.solver.init == InitArg::DualSvid;
    given.refuse(
        "with --init dual-svid",
        &[("iterations", direct, "it is for the solvers admm and itq")],
    )?;
    given
        .refuse("with --dry-run", &[("export-metadata", args.dry_run, "nothing is factorized")])?;
    args.checkpoints.check()?;
    given.refuse_hub(&args.hub, &[&args.model], true)
}

/// The effort and its recipe: `--calibration-samples` before the recipe file before the effort.
fn recovery(args: &CompressArgs) -> Result<(Effort, Option<Recipe>)> {
    let (effort, mut recipe) = match &args.recipe {
        Some(path) => Recipe::open(path, args.effort)?,
        None => Recipe::parse("", args.effort)?,
    };
    if let (Some(recipe), Some(samples)) = (&mut recipe, args.calibration_samples) {
        recipe.text.sequences = samples;
        recipe.distillation.sequences = samples;
    }
    recipe.as_ref().map_or(Ok(()), Recipe::check)?;
    Ok((effort, recipe))
}

fn init(init: InitArg) -> Init {
    match init {
        InitArg::DualSvid => Init::DualSvid,
        InitArg::Itq => Init::Itq,
        InitArg::Admm => Init::Admm,
    }
}

/// Bits, ranks and types.
fn plan_request(args: &CompressArgs, context: &Context) -> PlanRequest {
    let solver = &args.solver;
    PlanRequest {
        target_bpw: args.target_bpw,
        rank: args.rank,
        residual: solver.residual,
        middle_scale: solver.latent_scale || init(solver.init).has_middle_scale(),
        scales: match solver.scales {
            ScalesArg::Auto => ScaleChoice::Auto,
            ScalesArg::F16 => ScaleChoice::Fixed(ScaleType::F16),
            ScalesArg::Log8 => ScaleChoice::Fixed(ScaleType::Log8),
        },
        embedding_type: solver.embedding_type.0,
        bounds: (context.settings.min_bpw, context.settings.max_bpw),
    }
}

fn request(
    args: &CompressArgs,
    (effort, recipe): (Effort, Option<Recipe>),
    context: &Context,
    model: &LocalModel,
) -> CompressRequest {
    let settings = &context.settings;
    let solver = &args.solver;
    let init = init(solver.init);
    let defaults = SolverConfig::for_init(init);
    let kept = Kept::stated(&args.checkpoints, context);
    CompressRequest {
        plan: plan_request(args, context),
        solver: SolverConfig {
            iterations: solver.iterations.unwrap_or(defaults.iterations),
            itq_iterations: solver.iterations.unwrap_or(defaults.itq_iterations),
            seed: solver.seed,
            precision: settings.svd_precision,
            ..defaults
        },
        weighting: match solver.weighting {
            WeightingArg::Activation => Weighting::Activation,
            WeightingArg::None => Weighting::None,
        },
        text: TextOptions {
            calibration: args.calibration_data.clone(),
            evaluation: args.eval_data.clone(),
            ..models::text_options(&args.hub, context)
        },
        calibration_samples: match &recipe {
            Some(recipe) => recipe.text.sequences,
            None => args.calibration_samples.unwrap_or(CALIBRATION_SAMPLES),
        },
        effort,
        recipe,
        eval_tokens: args.eval_tokens,
        quality_threshold: args.quality_threshold,
        warn_threshold: settings.quality_threshold_percent,
        search_iterations: settings.rank_search as usize,
        skip_validation: args.skip_validation,
        output: args.output.output_dir.join(output_name(args, &model.name)),
        max_memory: args.max_memory,
        resume_command: kept.resume_command(),
        checkpoints: kept.into(),
    }
}

/// `--output-name`, else the last part of the model's name; always with the extension. What does not
/// stay has a name that nobody else gives.
fn output_name(args: &CompressArgs, model: &str) -> String {
    let stem = match &args.output.output_name {
        Some(name) => name.as_str(),
        None => model.rsplit(['/', '\\']).next().unwrap_or(model),
    };
    if args.format != FileFormat::Littlebit {
        return format!("{}{NATIVE}", stem.strip_suffix(".gguf").unwrap_or(stem));
    }
    if stem.ends_with(".littlebit") { stem.into() } else { format!("{stem}.littlebit") }
}

impl Report for CompressionReport {
    fn human(&self) -> String {
        let planned = self.status == "planned";
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row(if planned { "Would write:" } else { "Output:" }, self.output_path.clone());
        row("Source:", self.source_model.clone());
        row("Target BPW:", self.target_bpw.to_string());
        row("Achieved BPW:", format!("{:.4} (factorized layers)", self.achieved_bpw));
        row("Whole file:", format!("{:.3} bits per parameter", self.file_bpw));
        row("Compression Ratio:", format!("{:.1}x", self.compression_ratio));
        row("Original Size:", human_bytes(self.original_size_bytes));
        row("Compressed Size:", human_bytes(self.compressed_size_bytes));
        let summary = &self.per_layer_summary;
        row(
            "Layers:",
            format!(
                "{} (average rank {:.0}, {:.3} to {:.3} bpw)",
                summary.total_layers, summary.average_rank, summary.min_bpw, summary.max_bpw
            ),
        );
        row("Scales:", self.solver.scales.into());
        row("Recovery:", self.recovery_line());
        if let (Some(plain), Some(weighted)) =
            (summary.mean_relative_error, summary.mean_weighted_error)
        {
            row("Mean error:", format!("{plain:.4} of the squared norm, {weighted:.4} weighted"));
        }
        if let Some(quality) = &self.quality_metrics {
            row(
                "Perplexity:",
                format!(
                    "{:.2} ± {:.2} → {:.2} ± {:.2} ({:+.1} ± {:.1} %)",
                    quality.perplexity_original,
                    quality.perplexity_original_stderr,
                    quality.perplexity_compressed,
                    quality.perplexity_compressed_stderr,
                    quality.perplexity_delta_pct,
                    quality.perplexity_delta_stderr_pct
                ),
            );
            row(
                "Measured on:",
                format!(
                    "{}, {} tokens in windows of {}",
                    quality.dataset, quality.tokens_scored, quality.window
                ),
            );
            if let Some(score) = quality.coherence_score {
                row("Coherence:", format!("{score:.2}"));
            }
        }
        let estimated = if planned { " (estimated)" } else { "" };
        row("Time:", format!("{}{estimated}", duration(self.duration_seconds)));
        for stage in &self.estimated_stages {
            row(&format!("  {}:", stage.stage), duration(stage.seconds));
        }
        if let Some(bytes) = self.peak_memory_bytes {
            row("Peak memory:", format!("{}{estimated}", human_bytes(bytes)));
        }
        if !planned {
            return out;
        }
        for warning in &self.warnings {
            out.push_str(&format!("Warning: {warning}\n"));
        }
        // What is read first stands last: the rest may be longer than the screen.
        format!("{}{out}", self.details())
    }
}

impl CompressionReport {
    /// Of a plan: the recipe and every layer.
    fn details(&self) -> String {
        let mut out = String::new();
        if let Some(recipe) = &self.recipe {
            out.push_str(&format!("Recipe:\neffort = \"{}\"\n\n{recipe}\n", self.effort));
        }
        out.push_str(&format!(
            "{:<40} {:<15} {:>4} {:>7} {:>10}\n",
            "Layer", "Shape", "Rank", "BPW", "Bytes"
        ));
        for layer in &self.layers {
            out.push_str(&format!(
                "{:<40} {:<15} {:>4} {:>7.4} {:>10}\n",
                layer.name,
                format!("[{}, {}]", layer.shape[0], layer.shape[1]),
                layer.rank,
                layer.bpw,
                grouped(layer.bytes)
            ));
        }
        out.push('\n');
        out
    }

    /// What recovery did, in a line.
    fn recovery_line(&self) -> String {
        let Some(recovery) = &self.recovery else { return self.effort.into() };
        let mut line = format!(
            "{}, {} sequences of {} tokens",
            self.effort, recovery.sequences, recovery.sequence_length
        );
        if !recovery.blocks.is_empty() {
            let mean = |of: &dyn Fn(&BlockReport) -> f64| {
                recovery.blocks.iter().map(of).sum::<f64>() / recovery.blocks.len() as f64
            };
            let (before, after) = (mean(&|b| b.error_before), mean(&|b| b.error_after));
            line.push_str(&format!(", block error {before:.4} → {after:.4}"));
        }
        if let Some(distillation) = &recovery.distillation {
            line.push_str(&format!(
                ", divergence {:.3} → {:.3} nats per token",
                distillation.divergence_before, distillation.divergence_after
            ));
        }
        line
    }
}
