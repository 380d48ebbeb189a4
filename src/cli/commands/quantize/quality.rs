//! `--quality-report` and `--coherence-check` of `quantize`, for every format: the written model is
//! opened again and measured beside its source.

use std::path::Path;

use serde::Serialize;

use super::dynamic::Text;
use crate::base::progress::Progress;
use crate::cli::args::ComputeArgs;
use crate::cli::args::quantize::{QualityArgs, QuantizeArgs};
use crate::cli::output::Report;
use crate::cli::{Context, Failure, early, models};
use crate::job::quality::{self, QualityReport, QualityRequest, TextRequest};
use crate::measure::figures;
use crate::{Error, Result, model};

/// Windows that are read when nobody says how many.
const SAMPLES: usize = 256;

/// What was measured of a written model. A key is absent when it was not asked for.
#[derive(Debug, Serialize)]
pub(super) struct QuantizeQuality {
    #[serde(skip_serializing_if = "Option::is_none")]
    quality_report: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coherence_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coherence: Option<CoherenceOutcome>,
    #[serde(skip)]
    threshold_is_demanded: bool,
}

/// A quality report in brief.
#[derive(Debug, Serialize)]
struct Summary {
    perplexity_original: f64,
    perplexity_quantized: f64,
    perplexity_delta_pct: f64,
    perplexity_original_stderr: f64,
    perplexity_quantized_stderr: f64,
    perplexity_delta_stderr_pct: f64,
    kl_divergence: f64,
    kl_divergence_stderr: f64,
    same_top_token_pct: f64,
    quality_passed: bool,
    quality_threshold_pct: f64,
    dataset: String,
    tokens_scored: u64,
    window: usize,
}

#[derive(Debug, Serialize)]
struct CoherenceOutcome {
    passed: bool,
    threshold: f64,
    coherent_prompts: usize,
    total_prompts: usize,
}

/// Refuses, before anything is quantized, what could not be measured afterwards: a source that
/// cannot be run.
pub(super) fn check(quality: &QualityArgs, source_path: &Path) -> Result<()> {
    if !(quality.quality_report || quality.coherence_check) {
        return Ok(());
    }
    model::open_local(source_path).map(drop)
}

/// Refuses, before the source is looked at, text that is not there and a threshold that makes no
/// sense.
pub(super) fn check_options(quality: &QualityArgs, text: Text<'_>) -> Result<()> {
    if let Some(threshold) = quality.quality_threshold {
        if !(threshold.is_finite() && threshold > 0.0) {
            return Err(Error::InvalidArgument(
                "--quality-threshold must be a percentage above 0".into(),
            ));
        }
    }
    if !(quality.quality_report || quality.coherence_check) {
        return Ok(());
    }
    if text.samples == Some(0) {
        return Err(Error::InvalidArgument("--calibration-samples must be at least 1".into()));
    }
    early::text(None, text.data)
}

/// Measures what was written, as far as the user asked for it.
///
/// # Errors
/// As [`quality::measure`].
pub(super) fn after(
    args: &QuantizeArgs,
    text: Text<'_>,
    (source_path, output_path): (&Path, &Path),
    context: &Context,
    progress: &dyn Progress,
) -> Result<Option<QuantizeQuality>> {
    let asked = &args.quality;
    if !(asked.quality_report || asked.coherence_check) {
        return Ok(None);
    }
    progress.note("Computing quality metrics...");
    let backend = models::backend(&ComputeArgs::default(), context)?;
    let original = model::open_local(source_path)?;
    let quantized = model::open_local(output_path)?;
    let warnings = original.warnings.iter().chain(&quantized.warnings);
    warnings.for_each(|warning| progress.warn(warning));
    let settings = &context.settings;
    let mut result = QuantizeQuality {
        quality_report: None,
        coherence_score: None,
        coherence: None,
        threshold_is_demanded: asked.quality_threshold.is_some(),
    };
    if asked.quality_report {
        let request = QualityRequest {
            original_name: args.model.clone(),
            quantized_name: output_path.display().to_string(),
            text: TextRequest {
                data: text.data.map(Path::to_path_buf),
                hub: models::text_options(&args.hub, context).hub,
                samples: text.samples.unwrap_or(SAMPLES),
            },
            layers: false,
            coherence: false,
            benchmarks: Vec::new(),
            quality_threshold: asked
                .quality_threshold
                .unwrap_or(settings.quality_threshold_percent),
            coherence_threshold: settings.coherence_threshold,
            super_weights: None,
        };
        let report = quality::measure(&original, &quantized, &request, &backend, progress)?;
        let metrics = &report.metrics;
        progress.note(&format!(
            "Perplexity: {:.3} → {:.3} ({:+.1}%)",
            metrics.perplexity_original, metrics.perplexity_quantized, metrics.perplexity_delta_pct
        ));
        result.quality_report = Some(Summary::of(&report));
    }
    if asked.coherence_check {
        let report = quality::measure_coherence(&original, &quantized, &backend, progress)?;
        let outcome = figures::coherence_summary(&report, settings.coherence_threshold);
        result.coherence_score = Some(outcome.score);
        result.coherence = Some(CoherenceOutcome {
            passed: outcome.passed,
            threshold: outcome.threshold,
            coherent_prompts: outcome.coherent_prompts,
            total_prompts: outcome.total_prompts,
        });
    }
    Ok(Some(result))
}

/// Prints the result of a quantization with what was measured of it. A model that is worse than
/// the user allows, or that writes nonsense, is a failure that carries the whole result.
pub(super) fn finish<R: Report>(
    report: &R,
    quality: Option<QuantizeQuality>,
    context: &Context,
) -> Result<(), Failure> {
    let Some(quality) = quality else {
        context.output.result(report);
        return Ok(());
    };
    let failure = quality.failure();
    let whole = WithQuality { report, quality };
    match failure {
        None => {
            context.output.result(&whole);
            Ok(())
        }
        Some(error) => {
            context.output.human_result(&whole);
            Err(Failure { error: Box::new(error), result: serde_json::to_value(&whole).ok() })
        }
    }
}

impl QuantizeQuality {
    fn failure(&self) -> Option<Error> {
        if let Some(report) = &self.quality_report
            && self.threshold_is_demanded
            && !report.quality_passed
        {
            return Some(Error::QualityDegradation(format!(
                "Quantization quality degradation ({:.1}%) exceeds threshold ({}%)",
                report.perplexity_delta_pct, report.quality_threshold_pct
            )));
        }
        let failed = self.coherence.as_ref().is_some_and(|outcome| !outcome.passed);
        failed.then(|| Error::Coherence { score: self.coherence_score.unwrap_or(0.0) })
    }
}

impl Summary {
    fn of(report: &QualityReport) -> Self {
        let (metrics, divergence) = (&report.metrics, &report.divergence);
        Self {
            perplexity_original: metrics.perplexity_original,
            perplexity_quantized: metrics.perplexity_quantized,
            perplexity_delta_pct: metrics.perplexity_delta_pct,
            perplexity_original_stderr: metrics.perplexity_original_stderr,
            perplexity_quantized_stderr: metrics.perplexity_quantized_stderr,
            perplexity_delta_stderr_pct: metrics.perplexity_delta_stderr_pct,
            kl_divergence: divergence.kl_divergence.mean,
            kl_divergence_stderr: divergence.kl_divergence.stderr,
            same_top_token_pct: divergence.same_top_token_pct,
            quality_passed: metrics.quality_passed,
            quality_threshold_pct: metrics.quality_threshold_pct,
            dataset: report.measured_on.dataset.clone(),
            tokens_scored: report.measured_on.tokens_scored,
            window: report.measured_on.window,
        }
    }
}

/// A result with the keys of the measurement beside its own.
#[derive(Serialize)]
struct WithQuality<'a, R: Report> {
    #[serde(flatten)]
    report: &'a R,
    #[serde(flatten)]
    quality: QuantizeQuality,
}

impl<R: Report> Report for WithQuality<'_, R> {
    fn human(&self) -> String {
        let mut out = self.report.human();
        if let Some(report) = &self.quality.quality_report {
            out.push_str(&format!(
                "{:<20}{:.4} ± {:.4} → {:.4} ± {:.4} ({:+.2} ± {:.2} %)\n",
                "Perplexity:",
                report.perplexity_original,
                report.perplexity_original_stderr,
                report.perplexity_quantized,
                report.perplexity_quantized_stderr,
                report.perplexity_delta_pct,
                report.perplexity_delta_stderr_pct
            ));
            out.push_str(&format!(
                "{:<20}{:.5} ± {:.5} nats per token, {:.2} % same top token\n",
                "KL divergence:",
                report.kl_divergence,
                report.kl_divergence_stderr,
                report.same_top_token_pct
            ));
            out.push_str(&format!(
                "{:<20}{}, {} tokens in windows of {}\n",
                "Measured on:", report.dataset, report.tokens_scored, report.window
            ));
        }
        if let (Some(score), Some(test)) = (self.quality.coherence_score, &self.quality.coherence) {
            out.push_str(&format!(
                "{:<20}{} ({}/{} prompts coherent, score {score:.2})\n",
                "Coherence:",
                if test.passed { "PASSED" } else { "FAILED" },
                test.coherent_prompts,
                test.total_prompts
            ));
        }
        out
    }
}
