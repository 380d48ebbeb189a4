//! Arguments of `convert`.

use clap::{Args, ValueEnum};

use super::{HubArgs, OutputArgs, ThreadArgs};

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Quantized model: GGUF file, directory of a GPTQ, AWQ or W8A8 checkpoint, or hub id
    pub(crate) input_model: String,

    /// Format to write
    #[arg(value_enum, value_name = "OUTPUT_FORMAT")]
    pub(crate) output_format: ConvertFormat,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Skip the quality warning of conversions that lose something
    #[arg(long)]
    pub(crate) force: bool,

    /// Level to write: of gguf any level of `quantize`, of gptq 2bit, 3bit, 4bit or 8bit, of awq 4bit,
    /// of hf F16, BF16 or F32 [default: the smallest one that keeps most values]
    #[arg(long, short = 'q', value_name = "LEVEL")]
    pub(crate) quant_level: Option<String>,

    /// Weights along a row that share a scale (awq, gptq); -1 is the whole row [default: as the source
    /// has them]
    #[arg(long, value_name = "INT", allow_negative_numbers = true)]
    pub(crate) group_size: Option<i64>,

    /// Largest file of a directory (units of 1024) [default: 5 GB]
    #[arg(long, value_name = "SIZE", value_parser = super::byte_size)]
    pub(crate) max_shard_size: Option<u64>,

    /// Leave out of a GGUF file where the model comes from
    #[arg(long)]
    pub(crate) no_provenance: bool,

    /// Find out what would be kept and lost, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) threads: ThreadArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConvertFormat {
    /// One file for llama.cpp and everything built on it
    Gguf,
    /// 4-bit integers in a Hugging Face directory (AutoAWQ's GEMM layout)
    Awq,
    /// 2-, 3-, 4- or 8-bit integers in a Hugging Face directory (GPTQ)
    Gptq,
    /// Plain numbers in a Hugging Face directory
    Hf,
}
