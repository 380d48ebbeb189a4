//! What is measured, as reports have it.

use serde::Serialize;

use super::verdict::quality_passed;
use super::{CoherenceReport, Comparison};

/// Perplexity before and after, and what it was measured on.
#[derive(Debug, Clone, Serialize)]
pub struct QualityMetrics {
    /// Of the source model.
    pub perplexity_original: f64,
    /// Of the compressed model.
    pub perplexity_compressed: f64,
    /// Rise in percent.
    pub perplexity_delta_pct: f64,
    /// Whether the rise is within the threshold.
    pub quality_passed: bool,
    /// The threshold, percent.
    pub quality_threshold_pct: f64,
    /// Standard error of the original's perplexity.
    pub perplexity_original_stderr: f64,
    /// Standard error of the compressed model's perplexity.
    pub perplexity_compressed_stderr: f64,
    /// Standard error of the rise, percent: from the differences token by token.
    pub perplexity_delta_stderr_pct: f64,
    /// Mean Kullback–Leibler divergence from the original, nats per token; measured by `validate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<f64>,
    /// Tokens for which both models think the same token most likely, percent; measured by
    /// `validate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_top_token_pct: Option<f64>,
    /// Text that was scored.
    pub dataset: String,
    /// Tokens that were scored.
    pub tokens_scored: u64,
    /// Window length, tokens.
    pub window: usize,
    /// Share of sample prompts continued coherently and their mean score, 0–1; absent when the
    /// coherence test was not run.
    pub coherence_score: Option<f64>,
}

/// Result of the coherence test.
#[derive(Debug, Clone, Serialize)]
pub struct CoherenceSummary {
    /// Whether the score reaches the threshold.
    pub passed: bool,
    /// Mean score, 0–1.
    pub score: f64,
    /// Threshold, 0–1.
    pub threshold: f64,
    /// Prompts continued coherently.
    pub coherent_prompts: usize,
    /// Prompts.
    pub total_prompts: usize,
}

/// The figures of a comparison as they are reported.
pub(crate) fn quality_metrics(
    comparison: &Comparison,
    dataset: &str,
    threshold: f64,
    coherence: Option<&CoherenceReport>,
) -> QualityMetrics {
    QualityMetrics {
        perplexity_original: comparison.original.perplexity,
        perplexity_compressed: comparison.compressed.perplexity,
        perplexity_delta_pct: comparison.delta_percent,
        quality_passed: quality_passed(comparison.delta_percent, threshold),
        quality_threshold_pct: threshold,
        perplexity_original_stderr: comparison.original.standard_error,
        perplexity_compressed_stderr: comparison.compressed.standard_error,
        perplexity_delta_stderr_pct: comparison.delta_standard_error,
        kl_divergence: comparison.divergence.map(|d| d.mean),
        same_top_token_pct: comparison.divergence.map(|d| d.same_top_percent),
        dataset: dataset.into(),
        tokens_scored: comparison.original.tokens,
        window: comparison.original.window_length,
        coherence_score: coherence.map(CoherenceReport::score),
    }
}

/// The coherence test as it is reported: passed when enough prompts are coherent and the mean
/// score reaches `threshold`.
pub(crate) fn coherence_summary(report: &CoherenceReport, threshold: f64) -> CoherenceSummary {
    CoherenceSummary {
        passed: report.passed() && report.score() >= threshold,
        score: report.score(),
        threshold,
        coherent_prompts: report.coherent(),
        total_prompts: report.prompts.len(),
    }
}
