//! `littlebit validate`.

use super::quality;
use crate::Error;
use crate::cli::args::littlebit::ValidateArgs;
use crate::cli::bars::Bars;
use crate::cli::output::Report;
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::job::littlebit::report::ValidationReport;
use crate::job::littlebit::validate::{self, ValidateRequest};
use crate::model::{LocalModel, gguf_ext};
use crate::text::TextOptions;

pub(super) fn run(args: &ValidateArgs, context: &Context) -> Result<(), Failure> {
    let invalid = |message: &str| Err(Error::InvalidArgument(message.into()).into());
    if args.quality_threshold.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
        return invalid("--quality-threshold must be a percentage above 0");
    }
    if args.calibration_samples == 0 {
        return invalid("--calibration-samples must be at least 1");
    }
    if !args.compressed.exists() {
        let message = format!("{} does not exist", args.compressed.display());
        return Err(Error::model_not_found(message).into());
    }
    context.given.refuse_hub(&args.hub, &[&args.original], true)?;
    let benchmarks = quality::benchmark_requests(&args.benchmarks, &args.hub, context)?;
    early::model(&args.original)?;
    early::text(None, args.calibration_data.as_deref())?;
    let compressed = gguf_ext::open_either(&args.compressed)?.model()?;
    let progress = Bars::new(&context.output);
    early::benchmarks(&benchmarks, &progress)?;
    let settings = &context.settings;
    let backend = models::backend(&args.compute, context)?;
    let request = ValidateRequest {
        original_name: args.original.clone(),
        compressed: args.compressed.clone(),
        text: TextOptions {
            evaluation: args.calibration_data.clone(),
            ..models::text_options(&args.hub, context)
        },
        samples: args.calibration_samples,
        coherence: args.coherence_test,
        coherence_threshold: settings.coherence_threshold,
        quality_threshold: args.quality_threshold.unwrap_or(settings.quality_threshold_percent),
        threshold_is_demanded: args.quality_threshold.is_some(),
        benchmarks,
    };
    let judge = |model: &LocalModel| validate::check_pair(model, &compressed, &request);
    let original = models::open_if(&args.original, &args.hub, context, &judge, &progress)?;
    drop(compressed);
    interrupt::watch();
    let (report, failure) = validate::validate(&original, &request, &backend, &progress)?;
    match failure {
        None => {
            context.output.result(&report);
            Ok(())
        }
        Some(error) => {
            context.output.human_result(&report);
            Err(Failure { error: Box::new(error), result: serde_json::to_value(&report).ok() })
        }
    }
}

impl Report for ValidationReport {
    fn human(&self) -> String {
        let quality = &self.quality_metrics;
        let mut out = format!(
            "Validation: {} vs {}\n\nQuality Metrics:\n\
             \x20 Perplexity (Original): {:.2} ± {:.2}\n\
             \x20 Perplexity (Compressed): {:.2} ± {:.2}\n\
             \x20 Perplexity Delta: {:+.1}% (± {:.1})\n",
            self.compressed_model,
            self.original_model,
            quality.perplexity_original,
            quality.perplexity_original_stderr,
            quality.perplexity_compressed,
            quality.perplexity_compressed_stderr,
            quality.perplexity_delta_pct,
            quality.perplexity_delta_stderr_pct,
        );
        if let (Some(divergence), Some(same)) = (quality.kl_divergence, quality.same_top_token_pct)
        {
            out.push_str(&format!(
                "  KL Divergence: {divergence:.4} nats per token\n  Same Top Token: {same:.1}%\n"
            ));
        }
        out.push_str(&format!(
            "  Measured on: {}, {} tokens in windows of {}\n",
            quality.dataset, quality.tokens_scored, quality.window
        ));
        if let Some(coherence) = &self.coherence {
            out.push_str(&format!(
                "\nCoherence Test: {} ({}/{} prompts coherent, score {:.2})\n",
                if coherence.passed { "PASSED" } else { "FAILED" },
                coherence.coherent_prompts,
                coherence.total_prompts,
                coherence.score
            ));
        }
        for benchmark in &self.benchmarks {
            out.push_str(&format!("\nBenchmark: {}\n", benchmark.human()));
        }
        out.push_str(&format!("\nVerdict: {}\n", self.verdict));
        out
    }
}
