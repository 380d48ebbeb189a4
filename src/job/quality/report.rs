//! The documents: `quality report` (also the `.qreport` file) and `quality compare`. Every number
//! was measured in the run that wrote it.

use serde::Serialize;

use super::layers::LayerError;
use super::statistics::{Bin, Distribution, OriginalFigures, TokenFigures};
use crate::measure::tasks::BenchmarkReport;
use crate::measure::verdict;

/// Result of `quality report`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct QualityReport {
    /// `success`.
    pub status: &'static str,
    /// The original as the user named it.
    pub original_model: String,
    /// The quantized model as the user named it.
    pub quantized_model: String,
    /// The figures of the contract, and what they were computed from.
    pub metrics: Metrics,
    /// How far the distributions are apart.
    pub divergence: Divergence,
    /// What was read.
    pub measured_on: MeasuredOn,
    /// Error of each layer's weights, in the order of the model; empty unless asked for.
    pub layer_errors: Vec<LayerError>,
    /// Error of the hidden states behind each block; empty unless asked for.
    pub block_errors: Vec<BlockError>,
    /// Mean score of the coherence test, 0 to 1; absent when it was not run.
    pub coherence_score: Option<f64>,
    /// More about the test; absent when it was not run.
    pub coherence: Option<Coherence>,
    /// Share of the parameters that are super weights and stored in 8 bits or more; absent without
    /// a mask.
    pub super_weight_coverage: Option<f64>,
    /// Benchmarks that were asked for.
    pub benchmarks: Vec<BenchmarkReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// When the report was finished, RFC 3339.
    pub timestamp: String,
    /// Wall time, seconds.
    pub duration_seconds: f64,
    /// Peak resident memory of the process, bytes; pages of mapped files are counted.
    pub peak_memory_bytes: Option<u64>,
    /// Version of the program.
    pub tool_version: &'static str,
}

/// Perplexity and size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Metrics {
    /// Of the original.
    pub perplexity_original: f64,
    /// Standard error of it.
    pub perplexity_original_stderr: f64,
    /// Of the quantized model.
    pub perplexity_quantized: f64,
    /// Standard error of it.
    pub perplexity_quantized_stderr: f64,
    /// Rise, percent of the original's.
    pub perplexity_delta_pct: f64,
    /// Standard error of the rise: from the differences token by token, because both models read
    /// the same text.
    pub perplexity_delta_stderr_pct: f64,
    /// `ln(quantized / original)`.
    pub perplexity_ln_ratio: f64,
    /// Standard error of it.
    pub perplexity_ln_ratio_stderr: f64,
    /// Correlation of the two models' losses, token by token.
    pub correlation: f64,
    /// Whether the rise is within the threshold.
    pub quality_passed: bool,
    /// The threshold, percent.
    pub quality_threshold_pct: f64,
    /// Size.
    #[serde(flatten)]
    pub size: Size,
}

/// What the models take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Size {
    /// Bits of the quantized model's files per parameter.
    pub effective_bpw: f64,
    /// Size of the quantized model over that of the original.
    pub compression_ratio: f64,
    /// The original, bytes.
    pub original_size_bytes: u64,
    /// The quantized model, bytes.
    pub quantized_size_bytes: u64,
    /// Parameters of the model; a tied head counts once.
    pub parameter_count: u64,
}

/// Distance of the quantized model's next-token distributions from the original's.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the report")]
pub(crate) struct Divergence {
    /// Kullback–Leibler divergence of a token, nats.
    pub kl_divergence: Distribution,
    /// The same, counted in logarithmic bins.
    pub kl_histogram: Vec<Bin>,
    /// Change of the probability of the token that follows in the text, percentage points.
    pub probability_change: Distribution,
    /// Root of the mean square of that change.
    pub probability_change_rms: f64,
    /// Standard error of it.
    pub probability_change_rms_stderr: f64,
    /// Tokens for which both models think the same token most likely, percent.
    pub same_top_token_pct: f64,
    /// Standard error of it.
    pub same_top_token_stderr_pct: f64,
}

impl Divergence {
    pub(super) fn of(figures: &TokenFigures) -> Self {
        Self {
            kl_divergence: figures.divergence.clone(),
            kl_histogram: figures.histogram.clone(),
            probability_change: figures.probability.clone(),
            probability_change_rms: figures.probability_rms,
            probability_change_rms_stderr: figures.probability_rms_stderr,
            same_top_token_pct: figures.same_top,
            same_top_token_stderr_pct: figures.same_top_stderr,
        }
    }
}

impl Metrics {
    pub(super) fn of(
        original: OriginalFigures,
        figures: &TokenFigures,
        size: Size,
        threshold: f64,
    ) -> Self {
        let delta = figures.ln_ratio.exp_m1() * 100.0;
        Self {
            perplexity_original: original.perplexity,
            perplexity_original_stderr: original.perplexity_stderr,
            perplexity_quantized: figures.perplexity,
            perplexity_quantized_stderr: figures.perplexity_stderr,
            perplexity_delta_pct: delta,
            perplexity_delta_stderr_pct: figures.ln_ratio.exp() * figures.ln_ratio_stderr * 100.0,
            perplexity_ln_ratio: figures.ln_ratio,
            perplexity_ln_ratio_stderr: figures.ln_ratio_stderr,
            correlation: figures.correlation,
            quality_passed: verdict::quality_passed(delta, threshold),
            quality_threshold_pct: threshold,
            size,
        }
    }
}

/// Text and protocol of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MeasuredOn {
    /// The text.
    pub dataset: String,
    /// `llama-perplexity`: windows begin with the tokenizer's leading token, the tokens after the
    /// middle are scored.
    pub protocol: &'static str,
    /// Windows that were read.
    pub windows: usize,
    /// Windows that the whole text has.
    pub windows_available: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens that were scored.
    pub tokens_scored: u64,
}

/// Relative error of the hidden states behind a block: `Σ ‖x̂ − x‖² / Σ ‖x‖²` over all tokens read,
/// with everything that the blocks before it did wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BlockError {
    /// `model.layers.0`.
    pub layer_name: String,
    /// The error.
    pub relative_error: f64,
}

/// Outcome of the coherence test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Coherence {
    /// Whether enough prompts are coherent and the score reaches the threshold.
    pub passed: bool,
    /// The threshold, 0 to 1.
    pub threshold: f64,
    /// Prompts with a coherent continuation.
    pub coherent_prompts: usize,
    /// All prompts.
    pub total_prompts: usize,
}

/// Result of `quality compare`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CompareReport {
    /// `success`.
    pub status: &'static str,
    /// The original as the user named it.
    pub original_model: String,
    /// Metrics that were compared: `perplexity`, `size`, `bpw`.
    pub metrics: Vec<&'static str>,
    /// The original's perplexity; absent when perplexity was not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_original: Option<f64>,
    /// Standard error of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_original_stderr: Option<f64>,
    /// Size of the original, bytes.
    pub original_size_bytes: u64,
    /// Parameters of the model.
    pub parameter_count: u64,
    /// One entry per quantized model, in the order given.
    pub results: Vec<Compared>,
    /// What was read; absent when perplexity was not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<MeasuredOn>,
    /// When the comparison was finished, RFC 3339.
    pub timestamp: String,
    /// Wall time, seconds.
    pub duration_seconds: f64,
    /// Peak resident memory of the process, bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Version of the program.
    pub tool_version: &'static str,
}

/// One model of a comparison. A key is absent when its metric was not asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Compared {
    /// The model as the user named it.
    pub quantized_model: String,
    /// Perplexity.
    #[serde(flatten)]
    pub perplexity: Option<ComparedPerplexity>,
    /// Size of the model, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Size over that of the original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_ratio: Option<f64>,
    /// Bits of the model's files per parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_bpw: Option<f64>,
    /// Error of each layer's weights; empty unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layer_errors: Vec<LayerError>,
}

impl Compared {
    /// Mean over the layers of the relative error of their weights, if these were compared.
    #[must_use]
    pub(crate) fn mean_layer_error(&self) -> Option<f64> {
        let sum: f64 = self.layer_errors.iter().map(|layer| layer.relative_error).sum();
        let count = self.layer_errors.len();
        (count > 0).then(|| sum / count as f64)
    }
}

/// The figures of one model that come from reading text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ComparedPerplexity {
    /// Perplexity.
    pub perplexity: f64,
    /// Standard error of it.
    pub perplexity_stderr: f64,
    /// Rise, percent of the original's.
    pub perplexity_delta_pct: f64,
    /// Standard error of the rise.
    pub perplexity_delta_stderr_pct: f64,
    /// Distance of the distributions.
    pub divergence: Divergence,
    /// Whether no other model of the comparison is both smaller (or as small) and better (or as
    /// good, by perplexity).
    pub on_frontier: bool,
}
