//! What compression and validation share: opening text, and measuring an original and a compressed
//! model on it.

use super::report::{CoherenceReport, QualityMetrics};
pub use crate::calibration::options::TextOptions;
pub(crate) use crate::calibration::options::open_text;
use crate::eval::{self, Comparison};

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
