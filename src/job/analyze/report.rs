//! What an analysis has found, as the command reports it.

use serde::Serialize;

use super::spikes::SuperWeight;
use super::statistics::{GlobalStatistics, TensorStatistics};

/// The result of `analyze`.
#[derive(Debug, Clone, Serialize)]
pub struct AnalyzeReport {
    /// `success`.
    pub status: &'static str,
    /// The importance matrix; `null` when statistics of a file were asked for and nothing written.
    pub output_path: Option<String>,
    /// `gguf` or `dat`; `null` when nothing was written.
    pub output_format: Option<&'static str>,
    /// The model; `null` when only files were read.
    pub model_path: Option<String>,
    /// `activation_magnitude`, `gradient_sensitivity` or `fisher_information`.
    pub method: &'static str,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Samples read in this run and in those merged.
    pub calibration_samples: u64,
    /// Text of this run.
    pub calibration: Option<CalibrationReport>,
    /// Over all columns of all tensors.
    pub global_statistics: GlobalStatistics,
    /// Over the columns of each tensor.
    pub tensor_statistics: Vec<TensorStatistics>,
    /// The mask.
    pub super_weights: SuperWeightReport,
    /// Files whose sums were added, as they were named.
    pub merged: Vec<String>,
    /// Whether the sums were found in the cache of an earlier run of the same kind.
    pub cached: bool,
    /// Samples that an interrupted run had finished.
    pub resumed_samples: usize,
    /// The same as layers of the model's work.
    pub resumed_layers: usize,
    /// The picture, if one was drawn.
    pub plot_path: Option<String>,
    /// Wall time.
    pub duration_seconds: f64,
    /// Peak resident memory, mapped file pages included.
    pub peak_memory_bytes: Option<u64>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The text that was read.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrationReport {
    /// Where it came from.
    pub dataset: String,
    /// Its SHA-256.
    pub sha256: String,
    /// Samples.
    pub samples: usize,
    /// Tokens of each.
    pub sequence_length: usize,
    /// Tokens in all.
    pub tokens: usize,
    /// What products were computed in: `bf16` operands with `f32` sums, `f32`, or `device`.
    pub arithmetic: &'static str,
}

/// The super-weight mask and the super weights that the search found.
#[derive(Debug, Clone, Serialize)]
pub struct SuperWeightReport {
    /// Whether they were looked for.
    pub identified: bool,
    /// Share of the model's parameters.
    pub coverage: f64,
    /// Weights in the mask.
    pub total_protected: u64,
    /// The mask's file.
    pub mask_path: Option<String>,
    /// How the weights beyond the super weights were scored.
    pub score: Option<&'static str>,
    /// Perplexity of the searched text with the whole model.
    pub perplexity: Option<f64>,
    /// The super weights, by block.
    pub super_weights: Vec<SuperWeight>,
}
