//! What a compression, a plan and a validation report: the JSON documents of the contract, with
//! measured figures only.

use serde::Serialize;

use crate::measure::tasks::BenchmarkReport;
use crate::measure::{CoherenceSummary, QualityMetrics};

/// Result of `littlebit compress`, and with `status: "planned"` of its dry run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CompressionReport {
    /// `success`, or `planned` for a dry run.
    pub status: &'static str,
    /// The file that was (or would be) written.
    pub output_path: String,
    /// `littlebit`.
    pub format: &'static str,
    /// Hub id or name of the source.
    pub source_model: String,
    /// Bits per weight asked for.
    pub target_bpw: f64,
    /// Bits per weight of the factorized layers, all scales counted.
    pub achieved_bpw: f64,
    /// Bits of the whole file per parameter of the model.
    pub file_bpw: f64,
    /// Original size over compressed size.
    pub compression_ratio: f64,
    /// Size of the source's weights, bytes.
    pub original_size_bytes: u64,
    /// Size of the file, bytes.
    pub compressed_size_bytes: u64,
    /// Wall time of the run, seconds (a dry run: an estimate for this machine).
    pub duration_seconds: f64,
    /// Peak resident memory of the process, bytes (a dry run: an estimate).
    pub peak_memory_bytes: Option<u64>,
    /// Measured on text that calibration did not see; absent with `--skip-validation`.
    pub quality_metrics: Option<QualityMetrics>,
    /// The factorized layers in brief.
    pub per_layer_summary: LayerSummary,
    /// How the layers were factorized.
    pub solver: SolverReport,
    /// How much time recovery was given: `none`, `fast`, `balanced` or `max`.
    pub effort: &'static str,
    /// Every knob of recovery as a recipe file has them; absent with `--effort none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<toml::Table>,
    /// What each stage will take on this machine; in a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub estimated_stages: Vec<StageEstimate>,
    /// How quality was recovered after factorization; absent with `--effort none` and in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryReport>,
    /// What the statistics of the inputs were measured on.
    pub calibration: Option<CalibrationReport>,
    /// Every target tried for `--quality-threshold`, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub iterations: Vec<Iteration>,
    /// Layers of the model that an interrupted run had finished.
    pub resumed_layers: usize,
    /// Every factorized layer.
    pub layers: Vec<LayerReport>,
    /// What the user should know, in the order in which it came up.
    pub warnings: Vec<String>,
}

/// The factorized layers in brief.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LayerSummary {
    /// Transformer blocks.
    pub total_layers: usize,
    /// Mean rank over the factorized matrices.
    pub average_rank: f64,
    /// Smallest bits per weight of a matrix.
    pub min_bpw: f64,
    /// Largest bits per weight of a matrix.
    pub max_bpw: f64,
    /// Mean over the matrices of ‖W − Ŵ‖² / ‖W‖²; absent in a plan.
    pub mean_relative_error: Option<f64>,
    /// The same with each column weighted by its mean squared input.
    pub mean_weighted_error: Option<f64>,
}

impl LayerSummary {
    /// Sums up `layers` of a model of `blocks` transformer blocks. Errors are given when every
    /// layer has one.
    #[must_use]
    pub(crate) fn of(layers: &[LayerReport], blocks: usize) -> Self {
        let count = layers.len().max(1) as f64;
        let mean = |figure: &dyn Fn(&LayerReport) -> Option<f64>| -> Option<f64> {
            if layers.is_empty() {
                return None;
            }
            Some(layers.iter().map(figure).sum::<Option<f64>>()? / count)
        };
        Self {
            total_layers: blocks,
            average_rank: layers.iter().map(|l| l.rank as f64).sum::<f64>() / count,
            min_bpw: layers.iter().map(|l| l.bpw).reduce(f64::min).unwrap_or(0.0),
            max_bpw: layers.iter().map(|l| l.bpw).reduce(f64::max).unwrap_or(0.0),
            mean_relative_error: mean(&|l| l.relative_error),
            mean_weighted_error: mean(&|l| l.weighted_error),
        }
    }
}

/// One factorized matrix.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LayerReport {
    /// `model.layers.0.mlp.up_proj`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Latent rank of each path.
    pub rank: usize,
    /// Paths.
    pub paths: usize,
    /// Bits per weight, scales counted.
    pub bpw: f64,
    /// Bytes in the file.
    pub bytes: u64,
    /// f16 size over factor size.
    pub compression_ratio: f64,
    /// ‖W − Ŵ‖² / ‖W‖²; absent in a plan.
    pub relative_error: Option<f64>,
    /// The same with each column weighted by its mean squared input.
    pub weighted_error: Option<f64>,
    /// Seconds of solving; absent in a plan and for layers taken from a checkpoint.
    pub factorization_seconds: Option<f64>,
}

/// How the layers were factorized.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SolverReport {
    /// `dual-svid`, `itq` or `admm`.
    pub init: &'static str,
    /// Paths per layer.
    pub paths: usize,
    /// Whether each path has a latent scale.
    pub latent_scale: bool,
    /// How scales are stored: `f16`, `log8` or `f16+log8`.
    pub scales: &'static str,
    /// Iterations.
    pub iterations: usize,
    /// Seed.
    pub seed: u64,
    /// `activation` or `none`.
    pub weighting: &'static str,
    /// `cpu` or the GPU's name.
    pub device: String,
}

/// What a stage will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StageEstimate {
    /// `calibration`, `sensitivity`, `writing`, `activations`, `factorization`, `tuning`, `opinions`,
    /// `distillation` or `evaluation`.
    pub stage: &'static str,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// How quality was recovered after factorization.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RecoveryReport {
    /// Sequences that were learned from.
    pub sequences: usize,
    /// Those of them that the original wrote, for lack of text.
    pub written_sequences: usize,
    /// Those of them that blocks were tuned on; the others are for the distillation alone.
    pub block_sequences: usize,
    /// Sequences that decided which state is kept.
    pub held_out_sequences: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Tokens that passed through each block while it was tuned, repetitions counted.
    pub tokens_per_block: u64,
    /// Tokens that passed through the whole model while it was distilled, repetitions counted.
    pub distillation_tokens: u64,
    /// Every block, in order.
    pub blocks: Vec<BlockReport>,
    /// The distillation, if there was one.
    pub distillation: Option<DistillationReport>,
}

/// Tuning of one block: squared error of its output on held-out text, relative to the original's
/// squared output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
pub(crate) struct BlockReport {
    /// As factorized.
    pub error_before: f64,
    /// As tuned.
    pub error_after: f64,
}

/// Distillation: divergence from the original on held-out text, nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
pub(crate) struct DistillationReport {
    /// As tuned block by block.
    pub divergence_before: f64,
    /// As distilled.
    pub divergence_after: f64,
}

/// What the statistics of the inputs were measured on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CalibrationReport {
    /// Text.
    pub dataset: String,
    /// Windows.
    pub samples: usize,
    /// Tokens.
    pub tokens: u64,
}

/// One target tried for `--quality-threshold`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Iteration {
    /// Bits per weight asked for.
    pub target_bpw: f64,
    /// Bits per weight reached.
    pub achieved_bpw: f64,
    /// Perplexity of the result.
    pub perplexity: f64,
    /// Its rise over the original, percent.
    pub perplexity_delta_pct: f64,
    /// Whether it meets the threshold.
    pub passed: bool,
}

/// Result of `littlebit validate`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ValidationReport {
    /// `success`.
    pub status: &'static str,
    /// Original as given.
    pub original_model: String,
    /// Compressed file as given.
    pub compressed_model: String,
    /// Bits per weight that the file states for its factorized layers.
    pub achieved_bpw: f64,
    /// Perplexities.
    pub quality_metrics: QualityMetrics,
    /// Result of `--coherence-test`.
    pub coherence: Option<CoherenceSummary>,
    /// Benchmarks that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub benchmarks: Vec<BenchmarkReport>,
    /// One of the grades of docs/evaluation.md, with its reason.
    pub verdict: String,
    /// Wall time, seconds.
    pub duration_seconds: f64,
    /// Peak resident memory, bytes.
    pub peak_memory_bytes: Option<u64>,
}
