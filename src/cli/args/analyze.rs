//! Arguments of `analyze`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CheckpointArgs, ComputeArgs, HubArgs};

#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// Model path (HF Hub ID, local directory or GGUF file), or an importance matrix to look at
    #[arg(required_unless_present = "merge")]
    pub(crate) model: Option<String>,

    /// Output path for importance matrix [default: ./MODEL.imatrix]
    #[arg(long, short = 'o', value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,

    /// Computation method
    #[arg(long, value_enum, default_value_t = MethodArg::Activation, value_name = "TEXT")]
    pub(crate) method: MethodArg,

    /// Custom calibration dataset (.txt, .json, .jsonl)
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of samples (128-1024), chunks of text taken from everywhere in it [default: 512]
    #[arg(long, value_name = "INT")]
    pub(crate) calibration_samples: Option<usize>,

    /// Instead of samples: the first N consecutive chunks of the text, as llama-imatrix takes them;
    /// -1 is all
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        conflicts_with = "calibration_samples"
    )]
    pub(crate) chunks: Option<i64>,

    /// Tokens of a sample [default: 512, or the model's context if that is less]
    #[arg(long, short = 'c', value_name = "N")]
    pub(crate) ctx_size: Option<usize>,

    /// Seed of the places from which samples are taken
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub(crate) seed: u64,

    /// Also measure what goes into the output matrix
    #[arg(long)]
    pub(crate) process_output: bool,

    /// Form of the importance matrix
    #[arg(long, value_enum, default_value_t = MatrixFormatArg::Gguf, value_name = "TEXT")]
    pub(crate) output_format: MatrixFormatArg,

    /// Add the sums of these importance matrices; without MODEL, only of these
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) merge: Vec<PathBuf>,

    /// Show the statistics of every tensor
    #[arg(long)]
    pub(crate) show_statistics: bool,

    /// Draw the importance of every layer and where super weights are
    #[arg(long, value_name = "PATH.svg|html")]
    pub(crate) plot: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) super_weights: SuperWeightArgs,

    #[command(flatten)]
    pub(crate) kept: KeptArgs,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// The super-weight mask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Super weights")]
pub(crate) struct SuperWeightArgs {
    /// Also output super weight mask, as NAME.superweights.json beside the importance matrix
    #[arg(long)]
    pub(crate) identify_super_weights: bool,

    /// Super weight coverage: share of the model's parameters, at most 0.01 [default: 0.0001]
    #[arg(long, value_name = "FLOAT", requires = "identify_super_weights")]
    pub(crate) coverage: Option<f64>,
}

/// What is kept of the work.
#[derive(Debug, Args)]
#[command(next_help_heading = "Checkpoints and cache")]
pub(crate) struct KeptArgs {
    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,

    /// Neither use nor keep a matrix in the cache (LLM_QUANTIZE_IMATRIX_CACHE)
    #[arg(long)]
    pub(crate) no_cache: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodArg {
    /// Mean square of each column's input, as llama-imatrix
    Activation,
    /// Mean absolute gradient of the loss with respect to each column's weights
    Gradient,
    /// Mean squared gradient: the diagonal of the Fisher information
    Fisher,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MatrixFormatArg {
    /// As llama.cpp writes it since 2025
    Gguf,
    /// As before; all versions read it
    Dat,
}
