//! What compression and validation share: opening text, and measuring an original and a compressed
//! model on it.

use std::path::PathBuf;

use super::report::{CoherenceReport, QualityMetrics};
use crate::calibration::documents::ChatRenderer;
use crate::calibration::{TextRequest, TextSource};
use crate::eval::{self, Comparison};
use crate::progress::Progress;
use crate::source::chat::ChatMessage;
use crate::source::hub::{self, HubOptions};
use crate::source::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Which text to use.
#[derive(Debug, Clone, Default)]
pub struct TextOptions {
    /// The user's file to calibrate on.
    pub calibration: Option<PathBuf>,
    /// The user's file to measure with.
    pub evaluation: Option<PathBuf>,
    /// How to reach the hub for WikiText-2, if it may be asked.
    pub hub: Option<HubOptions>,
}

/// Opens the text that the options name, or the default one.
pub(crate) fn open_text(
    options: &TextOptions,
    tokenizer: &Tokenizer,
    calibration_tokens: usize,
    evaluation_tokens: Option<usize>,
    progress: &dyn Progress,
) -> Result<TextSource> {
    let render = tokenizer
        .chat_template()
        .map(|template| |messages: &[ChatMessage]| template.render(messages, false));
    let fetch = |dataset: &str, revision: &str, file: &str| match &options.hub {
        // There is other text to fall back on, so nobody waits for a hub that does not answer.
        Some(hub) => {
            let hub = HubOptions { retries: 0, ..hub.clone() };
            hub::fetch_dataset_file(dataset, revision, file, &hub, progress)
        }
        None => Err(Error::General("the hub is not asked".into())),
    };
    TextSource::open(
        &TextRequest {
            calibration_data: options.calibration.as_deref(),
            evaluation_data: options.evaluation.as_deref(),
            calibration_tokens,
            evaluation_tokens,
            render: render.as_ref().map(|render| render as ChatRenderer<'_>),
            fetch: Some(&fetch),
        },
        progress,
    )
}

/// The figures of a comparison as they are reported.
pub(crate) fn quality_metrics(
    comparison: &Comparison,
    dataset: &str,
    threshold: f64,
    coherence: Option<&eval::CoherenceReport>,
) -> QualityMetrics {
    QualityMetrics {
        perplexity_original: comparison.original.perplexity,
        perplexity_compressed: comparison.compressed.perplexity,
        perplexity_delta_pct: comparison.delta_percent,
        quality_passed: eval::verdict::quality_passed(comparison.delta_percent, threshold),
        quality_threshold_pct: threshold,
        perplexity_original_stderr: comparison.original.standard_error,
        perplexity_compressed_stderr: comparison.compressed.standard_error,
        perplexity_delta_stderr_pct: comparison.delta_standard_error,
        kl_divergence: comparison.divergence.map(|d| d.mean),
        same_top_token_pct: comparison.divergence.map(|d| d.same_top_percent),
        dataset: dataset.into(),
        tokens_scored: comparison.original.tokens,
        window: comparison.original.window_length,
        coherence_score: coherence.map(eval::CoherenceReport::score),
    }
}

/// The coherence test as it is reported: passed when enough prompts are coherent and the mean
/// score reaches `threshold`.
pub(crate) fn coherence_report(report: &eval::CoherenceReport, threshold: f64) -> CoherenceReport {
    CoherenceReport {
        passed: report.passed() && report.score() >= threshold,
        score: report.score(),
        threshold,
        coherent_prompts: report.coherent(),
        total_prompts: report.prompts.len(),
    }
}
