//! Arguments of `quantize`: a command for each format, with the options that all of them have
//! before it or behind it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{CheckpointArgs, HubArgs, OutputArgs, ThreadArgs};

/// What every format takes; its options are those of the formats as well.
#[derive(Debug, Args)]
#[command(
    disable_help_subcommand = true,
    subcommand_value_name = "OUTPUT_FORMAT",
    subcommand_help_heading = "Output formats, each with options of its own (MODEL OUTPUT_FORMAT --help)"
)]
pub(crate) struct QuantizeArgs {
    /// Model path (HF Hub ID, local directory or GGUF file)
    pub(crate) model: String,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Print tensors, types, sizes and the total, exact to the byte, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) threads: ThreadArgs,

    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,

    #[command(flatten)]
    pub(crate) quality: QualityArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,

    #[command(subcommand)]
    pub(crate) format: FormatArgs,
}

/// The formats of the contract.
#[derive(Debug, Subcommand)]
pub(crate) enum FormatArgs {
    /// One file for llama.cpp and everything built on it: -q Q4_K_M, dynamic, …
    Gguf(Box<GgufArgs>),
    /// 4-bit integers in a Hugging Face directory (AutoAWQ's GEMM layout): -q 4bit
    Awq(AwqArgs),
    /// 2-, 3-, 4- or 8-bit integers in a Hugging Face directory (GPTQ v1): -q 4bit, …
    Gptq(GptqArgs),
    /// 8-bit weights and activations in a Hugging Face directory (compressed-tensors)
    Smoothquant(SmoothquantArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GgufArgs {
    /// Level: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M, Q2_K, IQ4_NL, IQ1_S, TQ1_0,
    /// … in any case, or 4bit, 8bit, ternary, dynamic (docs/quantize.md has all)
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: Option<String>,

    #[command(flatten)]
    pub(crate) types: TypeArgs,

    #[command(flatten)]
    pub(crate) file: FileArgs,

    #[command(flatten)]
    pub(crate) dynamic: DynamicArgs,

    /// Text for --quality-report and --sensitivity measured
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of its samples [default: 256 for the report, 2 for the sensitivity]
    #[arg(long, value_name = "INT")]
    pub(crate) calibration_samples: Option<usize>,
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
    #[arg(long, value_name = "TYPE", conflicts_with = "leave_output_tensor")]
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
    #[arg(long, requires = "imatrix")]
    pub(crate) protect_super_weights: bool,

    /// Super weight coverage fraction [default: 0.0001]
    #[arg(long, value_name = "FLOAT", requires = "protect_super_weights")]
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

#[derive(Debug, Args)]
pub(crate) struct AwqArgs {
    /// Level: 4bit
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: String,

    #[command(flatten)]
    pub(crate) group: GroupArgs,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GptqArgs {
    /// Level: 2bit, 3bit, 4bit or 8bit
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: String,

    #[command(flatten)]
    pub(crate) group: GroupArgs,

    /// Quantize columns in the order of their activations
    #[arg(long)]
    pub(crate) desc_act: bool,

    /// Zero points instead of a symmetric grid
    #[arg(long)]
    pub(crate) asym: bool,

    /// What is added to the Hessian's diagonal, as a fraction of its mean [default: 0.01]
    #[arg(long, value_name = "FLOAT")]
    pub(crate) damp_percent: Option<f64>,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SmoothquantArgs {
    /// Level: w8a8 or 8bit, which is the only one [default: w8a8]
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: Option<String>,

    /// Enable SmoothQuant W8A8 transformation
    #[arg(long)]
    pub(crate) smoothquant: bool,

    /// SmoothQuant alpha factor, 0 to 1, or `auto` to search one for each block [default: 0.5]
    #[arg(long, value_name = "FLOAT", requires = "smoothquant")]
    pub(crate) alpha: Option<String>,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
}

/// Weights that share a scale.
#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// Weights along a row that share a scale; -1 is the whole row [default: 128]
    #[arg(long, value_name = "INT", allow_negative_numbers = true)]
    pub(crate) group_size: Option<i64>,
}

/// Text that integers are fitted to.
#[derive(Debug, Args)]
pub(crate) struct CalibrationArgs {
    /// Custom calibration dataset (.txt, .json, .jsonl)
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of calibration samples; 0 rounds every weight to nearest [default: 256]
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
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true, requires = "quality_report")]
    pub(crate) quality_threshold: Option<f64>,
}
