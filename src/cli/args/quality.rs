//! Arguments of the `quality` commands.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ComputeArgs, HubArgs};
use crate::cli::output::OutputFormat;

#[derive(Debug, Subcommand)]
pub(crate) enum QualityCommand {
    /// Generate quality report for quantized model
    Report(Box<QualityReportArgs>),
    /// Compare multiple quantized models
    Compare(Box<CompareArgs>),
}

impl QualityCommand {
    /// What the command's own `--format` makes of stdout.
    pub(crate) fn output_format(&self) -> Option<OutputFormat> {
        match self {
            Self::Report(args) => args.format,
            Self::Compare(args) => match args.format? {
                TableFormat::Json => Some(OutputFormat::Json),
                TableFormat::Human | TableFormat::Csv => Some(OutputFormat::Human),
            },
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct QualityReportArgs {
    /// Original model path (HF Hub ID, local directory or GGUF file)
    pub(crate) original: String,

    /// Quantized model path: GGUF of any type, .littlebit, GGUF-ext, or a directory
    pub(crate) quantized: String,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    /// Include per-layer error breakdown
    #[arg(long)]
    pub(crate) include_layers: bool,

    /// Output report path: a page to look at (.html) or JSON (.qreport, .json); repeatable
    #[arg(long, short = 'o', value_name = "PATH")]
    pub(crate) output: Vec<PathBuf>,

    /// Output format [default: that of the global --format]
    #[arg(long = "format", id = "report_format", value_enum, value_name = "TEXT")]
    pub(crate) format: Option<OutputFormat>,

    /// Fail with exit status 11 if perplexity rises by more than this many percent
    #[arg(long, value_name = "FLOAT", allow_negative_numbers = true)]
    pub(crate) quality_threshold: Option<f64>,

    /// Leave out the coherence test (`coherence_score` is null)
    #[arg(long)]
    pub(crate) skip_coherence: bool,

    #[command(flatten)]
    pub(crate) benchmarks: BenchmarkArgs,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Original model path (HF Hub ID, local directory or GGUF file)
    pub(crate) original: String,

    /// One or more quantized model paths
    #[arg(required = true)]
    pub(crate) quantized: Vec<String>,

    /// Metrics to compare: perplexity, size, bpw; without perplexity no model is run
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "TEXT")]
    pub(crate) metrics: Vec<String>,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    /// Include per-layer error breakdown
    #[arg(long)]
    pub(crate) include_layers: bool,

    /// Output report path: a page to look at (.html), a table (.csv) or JSON (.qreport, .json);
    /// repeatable
    #[arg(long, short = 'o', value_name = "PATH")]
    pub(crate) output: Vec<PathBuf>,

    /// Output format [default: that of the global --format]
    #[arg(long = "format", id = "report_format", value_enum, value_name = "TEXT")]
    pub(crate) format: Option<TableFormat>,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Text that both models read.
#[derive(Debug, Args)]
pub(crate) struct TextArgs {
    /// Calibration data for perplexity (.txt, .json, .jsonl) [default: WikiText-2 test, else built-in]
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Number of samples, each a window of 512 tokens of which the second half is scored
    #[arg(long, default_value_t = 256, value_name = "INT")]
    pub(crate) calibration_samples: usize,
}

/// Benchmarks, and where their data is.
#[derive(Debug, Args)]
pub(crate) struct BenchmarkArgs {
    /// Run specific benchmark: wikitext, hellaswag, arc; repeatable
    #[arg(long, value_enum, value_name = "TEXT")]
    pub(crate) benchmark: Vec<BenchmarkArg>,

    /// Data of the benchmark: .jsonl, .bin, or .txt with six lines a task; text for wikitext
    /// [default: from the hub or its cache]
    #[arg(long, value_name = "PATH", requires = "benchmark")]
    pub(crate) benchmark_data: Option<PathBuf>,

    /// Most tasks (or windows of wikitext): the first ones [default: all]
    #[arg(long, value_name = "INT", requires = "benchmark")]
    pub(crate) benchmark_tasks: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchmarkArg {
    /// Perplexity of WikiText-2's test part, as papers measure it
    Wikitext,
    /// Which ending of a text is the right one
    Hellaswag,
    /// Science questions of schools, easy and hard ones
    Arc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    Human,
    Json,
    Csv,
}
