//! Arguments of `quantize`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::HubArgs;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("goal").required(true).args(["quant_level", "target_size", "target_bpw", "dynamic"]).multiple(true))]
pub(crate) struct QuantizeArgs {
    /// Model path (HF Hub ID, local directory or GGUF file)
    pub(crate) model: String,

    /// Output format
    #[arg(value_enum, value_name = "OUTPUT_FORMAT")]
    pub(crate) output_format: TargetFormat,

    /// Level: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M, Q2_K, IQ4_NL, IQ1_S, TQ1_0,
    /// … in any case, or 4bit, 8bit, ternary (docs/quantize.md has all)
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: Option<String>,

    /// Output directory
    #[arg(long, short = 'o', default_value = ".", value_name = "PATH")]
    pub(crate) output_dir: PathBuf,

    /// Output filename [default: from model and level]
    #[arg(long, short = 'n', value_name = "TEXT")]
    pub(crate) output_name: Option<String>,

    /// Print tensors, types, sizes and the total, exact to the byte, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Processor threads [default: all]
    #[arg(long, short = 't', value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Disable checkpoints
    #[arg(long, conflicts_with = "resume")]
    pub(crate) no_checkpoints: bool,

    /// Checkpoint directory [default: LLM_QUANTIZE_CHECKPOINT_DIR, else ./.checkpoint]
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// Resume from checkpoint
    #[arg(long, value_name = "PATH")]
    pub(crate) resume: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) types: TypeArgs,

    #[command(flatten)]
    pub(crate) file: FileArgs,

    #[command(flatten)]
    pub(crate) dynamic: DynamicArgs,

    #[command(flatten)]
    pub(crate) packed: PackedArgs,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,

    #[command(flatten)]
    pub(crate) quality: QualityArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Which type each tensor gets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Types")]
pub(crate) struct TypeArgs {
    /// Importance matrix of the model (GGUF or .dat, as llama-imatrix writes them)
    #[arg(long, value_name = "PATH")]
    pub(crate) imatrix: Option<PathBuf>,

    /// Type for tensors whose name the pattern is found in; repeatable, the first one that is found
    /// wins
    #[arg(long, value_name = "REGEX=TYPE")]
    pub(crate) tensor_type: Vec<String>,

    /// Type of the output matrix, also where the embeddings serve as one
    #[arg(long, value_name = "TYPE")]
    pub(crate) output_tensor_type: Option<String>,

    /// Type of the token embeddings
    #[arg(long, value_name = "TYPE")]
    pub(crate) token_embedding_type: Option<String>,

    /// The level's base type for every tensor, without its mix
    #[arg(long)]
    pub(crate) pure: bool,

    /// Leave the output matrix as it is
    #[arg(long)]
    pub(crate) leave_output_tensor: bool,

    /// Quantize tensors that are quantized already, at a loss
    #[arg(long)]
    pub(crate) allow_requantize: bool,

    /// Choose types by measured error so that the files fit a size (500MB, 4GB, …)
    #[arg(long, value_name = "SIZE", value_parser = super::byte_size)]
    pub(crate) target_size: Option<u64>,

    /// Choose types by measured error so that the files take that many bits per weight
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) target_bpw: Option<f64>,
}

/// What the file says and how it is split.
#[derive(Debug, Args)]
#[command(next_help_heading = "File")]
pub(crate) struct FileArgs {
    /// Pre-tokenizer to write instead of the one that is found (llama-bpe, qwen2, …)
    #[arg(long, value_name = "NAME")]
    pub(crate) pre: Option<String>,

    /// Set a metadata value; TYPE is int, float, bool or str; repeatable
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub(crate) override_kv: Vec<String>,

    /// Leave out where the model and the importance matrix come from
    #[arg(long)]
    pub(crate) no_provenance: bool,

    /// Largest size of a file (2GB, …); more are written where one would be larger
    #[arg(long, value_name = "SIZE", value_parser = super::byte_size)]
    pub(crate) split_max_size: Option<u64>,
}

/// Types of each layer's own (`-q dynamic`).
#[derive(Debug, Args)]
#[command(next_help_heading = "Dynamic")]
pub(crate) struct DynamicArgs {
    /// Types of each layer's own; the same as --quant-level dynamic
    #[arg(long)]
    pub(crate) dynamic: bool,

    /// Profile: attention-high, balanced, compression-max, or path to a custom .dqprofile
    #[arg(long, value_name = "TEXT")]
    pub(crate) profile: Option<String>,

    /// Enable super weight protection (requires --imatrix)
    #[arg(long)]
    pub(crate) protect_super_weights: bool,

    /// Super weight coverage fraction [default: 0.0001]
    #[arg(long, value_name = "FLOAT")]
    pub(crate) protection_coverage: Option<f64>,

    /// How the loss by each tensor's error is known
    #[arg(long, value_enum, default_value_t = SensitivityArg::Estimated, value_name = "HOW")]
    pub(crate) sensitivity: SensitivityArg,
}

/// Where a tensor's weight in a budget comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SensitivityArg {
    /// By its role and place in the model
    Estimated,
    /// By running the model with each tensor quantized, on --calibration-data
    Measured,
}

/// How integers are found and grouped (awq, gptq and smoothquant).
#[derive(Debug, Args)]
#[command(next_help_heading = "AWQ, GPTQ and SmoothQuant")]
pub(crate) struct PackedArgs {
    /// Weights along a row that share a scale; -1 is the whole row [default: 128]
    #[arg(long, value_name = "INT", allow_negative_numbers = true)]
    pub(crate) group_size: Option<i64>,

    /// Quantize columns in the order of their activations (gptq)
    #[arg(long)]
    pub(crate) desc_act: bool,

    /// Zero points instead of a symmetric grid (gptq)
    #[arg(long)]
    pub(crate) asym: bool,

    /// What is added to the Hessian's diagonal, as a fraction of its mean (gptq) [default: 0.01]
    #[arg(long, value_name = "FLOAT")]
    pub(crate) damp_percent: Option<f64>,

    /// Enable SmoothQuant W8A8 transformation
    #[arg(long)]
    pub(crate) smoothquant: bool,

    /// SmoothQuant alpha factor, 0 to 1, or `auto` to search one for each block [default: 0.5]
    #[arg(long, value_name = "FLOAT")]
    pub(crate) alpha: Option<String>,
}

/// Text that is read while quantizing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Custom calibration dataset
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of calibration samples [default: 256]
    #[arg(long, value_name = "INT")]
    pub(crate) calibration_samples: Option<usize>,
}

/// What is measured of the written model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Quality")]
pub(crate) struct QualityArgs {
    /// Generate quality report after quantization
    #[arg(long)]
    pub(crate) quality_report: bool,

    /// Run output coherence validation
    #[arg(long)]
    pub(crate) coherence_check: bool,

    /// Fail with exit status 11 if perplexity rises by more than this many percent
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) quality_threshold: Option<f64>,
}

/// Formats of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetFormat {
    /// One file for llama.cpp and everything built on it
    Gguf,
    /// 4-bit integers in a Hugging Face directory (AutoAWQ's GEMM layout)
    Awq,
    /// 2-, 3-, 4- or 8-bit integers in a Hugging Face directory (GPTQ v1)
    Gptq,
    /// 8-bit weights and activations in a Hugging Face directory (compressed-tensors)
    Smoothquant,
}
