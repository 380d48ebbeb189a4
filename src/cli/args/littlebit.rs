//! Arguments of the `littlebit` commands.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};

use super::quality::BenchmarkArgs;
use super::{CheckpointArgs, ComputeArgs, HubArgs, OutputArgs};
use crate::codec::StoredType;
use crate::job::littlebit::tuning::{Effort, Recipe};

#[derive(Debug, Subcommand)]
pub(crate) enum LittlebitCommand {
    /// Compress a model using LittleBit factorization
    Compress(Box<CompressArgs>),
    /// Convert between LittleBit formats
    Convert(ConvertArgs),
    /// Display information about a .littlebit file
    Info(LittlebitInfoArgs),
    /// Validate compressed model quality
    Validate(ValidateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// Model path (HF Hub ID, local directory or GGUF file)
    pub(crate) model: String,

    /// Target bits per weight of the factorized layers (0.1-2.0)
    #[arg(long, default_value_t = 0.5, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) target_bpw: f64,

    /// Manual latent rank (auto-selected if not set)
    #[arg(long, value_name = "INT")]
    pub(crate) rank: Option<usize>,

    /// Max perplexity increase in percent; the target is raised until it is met
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) quality_threshold: Option<f64>,

    /// Output format
    #[arg(long = "format", id = "file_format", value_enum, default_value_t = FileFormat::Littlebit, value_name = "TEXT")]
    pub(crate) format: FileFormat,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Custom calibration dataset (.txt, .json, .jsonl)
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of calibration samples (64-1024), which is also that of the sequences that recovery
    /// learns from [default: 256, or what --effort and --recipe say]
    #[arg(long, value_name = "INT")]
    pub(crate) calibration_samples: Option<usize>,

    /// Text that perplexity is measured on [default: the test part of the calibration dataset]
    #[arg(long, value_name = "PATH")]
    pub(crate) eval_data: Option<PathBuf>,

    /// Tokens that perplexity is measured on; 0 means all of the text
    #[arg(long, default_value_t = 32_768, value_name = "INT")]
    pub(crate) eval_tokens: usize,

    /// How long the compressed layers learn from the original [default: balanced]
    ///
    /// Layers are tuned block by block, then the whole model is distilled (see docs/recovery.md).
    /// The expected time is printed before the work starts, and by --dry-run.
    #[arg(long, value_enum, value_name = "EFFORT")]
    pub(crate) effort: Option<Effort>,

    /// Recipe file (TOML) with single knobs of the effort; --dry-run prints all of them
    #[arg(long, value_name = "PATH")]
    pub(crate) recipe: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,

    /// Skip post-compression quality validation
    #[arg(long)]
    pub(crate) skip_validation: bool,

    /// Most memory to use (500MB, 4GB, …) [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = super::byte_size)]
    pub(crate) max_memory: Option<u64>,

    /// Print what would be written, from the headers alone, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Also write ranks, scales and statistics without the bits: PATH.safetensors and PATH.json
    #[arg(long, value_name = "PATH")]
    pub(crate) export_metadata: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) solver: SolverArgs,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// How matrices are factorized.
#[derive(Debug, Args)]
#[command(next_help_heading = "Factorization options")]
pub(crate) struct SolverArgs {
    /// Solver
    #[arg(long, value_enum, default_value_t = InitArg::Admm, value_name = "SOLVER")]
    pub(crate) init: InitArg,

    /// Two paths, the second one on the residual of the first (at the same total bits)
    #[arg(long)]
    pub(crate) residual: bool,

    /// A third scale per path, on the latent dimension (always with dual-svid and itq)
    #[arg(long)]
    pub(crate) latent_scale: bool,

    /// How scales are stored
    #[arg(long, value_enum, default_value_t = ScalesArg::Auto, value_name = "TYPE")]
    pub(crate) scales: ScalesArg,

    /// Iterations of the solver [default: 120 for admm, 50 for itq]
    #[arg(long, value_name = "INT")]
    pub(crate) iterations: Option<usize>,

    /// Weigh errors by how large each input is on the calibration text
    #[arg(long, value_enum, default_value_t = WeightingArg::Activation, value_name = "KIND")]
    pub(crate) weighting: WeightingArg,

    /// Type of embeddings and head, which are not factorized. Rows that do not fill the blocks of 256
    /// values of the `_k` types get what llama.cpp gives them: `q4_k` becomes `q5_0`, `q6_k` `q8_0`
    #[arg(long, value_enum, default_value_t = EmbeddingArg(StoredType::Q8_0), value_name = "TYPE")]
    pub(crate) embedding_type: EmbeddingArg,

    /// Seed of everything random
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileFormat {
    /// Native container, run by `generate`
    Littlebit,
    /// GGUF with the same factors: for GGUF tools, run by `generate`, turned back without loss
    GgufExt,
    /// GGUF with rebuilt weights, quantized to Q4_K_M, for stock runtimes: larger and worse
    GgufLossy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitArg {
    /// Dual sign-value-independent decomposition of the truncated SVD (LittleBit)
    DualSvid,
    /// The same after a rotation that makes the factors sign-like (LittleBit-2)
    Itq,
    /// Alternating direction method of multipliers, weighted by activations (default)
    Admm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightingArg {
    /// By mean squared input, measured on the calibration text
    Activation,
    /// All weights count the same; no calibration pass
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScalesArg {
    /// What takes fewer bits: log8 but for matrices of a few rows and columns
    Auto,
    /// 16 bits each
    F16,
    /// Codes of 8 bits on a logarithmic grid
    Log8,
}

/// A type that embeddings may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EmbeddingArg(pub(crate) StoredType);

impl ValueEnum for EmbeddingArg {
    fn value_variants<'a>() -> &'a [Self] {
        use StoredType::{F16, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q6_K, Q8_0};
        &[
            Self(F16),
            Self(Q8_0),
            Self(Q6_K),
            Self(Q4_K),
            Self(Q5_1),
            Self(Q5_0),
            Self(Q4_1),
            Self(Q4_0),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
            let kinds = EmbeddingArg::value_variants().iter();
            kinds.map(|kind| kind.0.name().to_ascii_lowercase()).collect()
        });
        let at = Self::value_variants().iter().position(|kind| kind == self)?;
        Some(PossibleValue::new(NAMES[at].as_str()))
    }
}

impl ValueEnum for Effort {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::None => "Factorization only".into(),
            _ => Recipe::of(*self).summary(usize::MAX),
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Path to .littlebit or GGUF-ext file
    pub(crate) input: PathBuf,

    /// Target format
    #[arg(value_enum, value_name = "OUTPUT_FORMAT")]
    pub(crate) output_format: FileFormat,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// GGUF quantization for lossy (docs/quantize.md has all levels)
    #[arg(long, default_value = "Q4_K_M", value_name = "TEXT")]
    pub(crate) gguf_quant: String,

    /// Skip quality degradation warning for lossy conversion
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LittlebitInfoArgs {
    /// Path to .littlebit or GGUF-ext file
    pub(crate) file: PathBuf,

    /// Show per-layer statistics
    #[arg(long)]
    pub(crate) layers: bool,

    /// Read the whole file and check every checksum
    #[arg(long)]
    pub(crate) verify: bool,

    /// Also write ranks, scales and statistics without the bits: PATH.safetensors and PATH.json
    #[arg(long, value_name = "PATH")]
    pub(crate) export_metadata: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Original model path (HF Hub ID, local directory or GGUF file)
    pub(crate) original: String,

    /// Compressed model path (.littlebit or GGUF-ext)
    pub(crate) compressed: PathBuf,

    /// Text that perplexity is measured on (.txt, .json, .jsonl) [default: WikiText-2 test, else built-in]
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of samples, each a window of the model's context (at most 2048 tokens)
    #[arg(long, default_value_t = 256, value_name = "INT")]
    pub(crate) calibration_samples: usize,

    /// Run coherence test with sample prompts
    #[arg(long)]
    pub(crate) coherence_test: bool,

    /// Fail with exit status 21 if perplexity rises by more than this many percent
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) quality_threshold: Option<f64>,

    #[command(flatten)]
    pub(crate) benchmarks: BenchmarkArgs,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}
