//! What can be typed. These structures hold exactly that; checks of values happen in the library.

pub(crate) mod analyze;
pub(crate) mod convert;
pub(crate) mod littlebit;
pub(crate) mod profile;
pub(crate) mod quality;
pub(crate) mod quantize;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::output::{OutputFormat, Verbosity};
use crate::{Error, Result};
use analyze::AnalyzeArgs;
use convert::ConvertArgs;
use littlebit::LittlebitCommand;
use profile::ProfileCommand;
use quality::QualityCommand;
use quantize::QuantizeArgs;

/// Make language models small, measure what it cost, run the result.
#[derive(Debug, Parser)]
#[command(
    name = "llm-quantize",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    args_override_self = true
)]
pub(crate) struct Cli {
    /// What stdout carries: text for people, or one JSON document (also on failure)
    #[arg(long = "format", id = "global_format", value_enum, default_value_t = OutputFormat::Human, value_name = "FORMAT")]
    pub(crate) output_format: OutputFormat,

    /// What stderr carries
    #[arg(
        long = "verbosity",
        id = "global_verbosity",
        value_enum,
        default_value_t = Verbosity::Normal,
        value_name = "LEVEL"
    )]
    pub(crate) verbosity: Verbosity,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quantize a model to another format, at any level of llama.cpp
    Quantize(Box<QuantizeArgs>),
    /// Compute importance matrix and analyze model for optimal quantization
    Analyze(Box<AnalyzeArgs>),
    /// Compress below one bit per weight by binary low-rank factorization
    Littlebit {
        #[command(subcommand)]
        command: LittlebitCommand,
    },
    /// Manage and create dynamic quantization profiles
    Profile {
        #[command(subcommand)]
        command: ProfileCommand,
    },
    /// Generate quality reports and compare quantization results
    Quality {
        #[command(subcommand)]
        command: QualityCommand,
    },
    /// Convert between quantized formats: gguf, awq, gptq
    Convert(ConvertArgs),
    /// Show a model's architecture and size, and look for NaN and Inf in its weights
    Info(InfoArgs),
    /// Generate text with a model, compressed or not
    Generate(GenerateArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one page per command into a folder
    Man {
        /// Folder for the pages of all commands
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

impl Command {
    /// What a `--format` of the command's own makes of stdout, if it has one and it was given.
    pub(crate) fn output_format(&self) -> Option<OutputFormat> {
        match self {
            Self::Quality { command } => command.output_format(),
            Self::Profile { command: ProfileCommand::Show(args) } => args.format,
            _ => None,
        }
    }

    /// How many threads it was told to use.
    pub(crate) fn threads(&self) -> Option<usize> {
        let args = match self {
            Self::Quantize(args) => args.threads,
            Self::Analyze(args) => args.compute.threads,
            Self::Littlebit { command: LittlebitCommand::Compress(args) } => args.compute.threads,
            Self::Littlebit { command: LittlebitCommand::Validate(args) } => args.compute.threads,
            Self::Profile { command: ProfileCommand::Create(args) } => args.threads,
            Self::Quality { command: QualityCommand::Report(args) } => args.compute.threads,
            Self::Quality { command: QualityCommand::Compare(args) } => args.compute.threads,
            Self::Convert(args) => args.threads,
            Self::Generate(args) => args.compute.threads,
            _ => return None,
        };
        args.threads
    }
}

/// Where a model comes from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubArgs {
    /// Branch, tag or commit of a hub model (same as MODEL@REVISION)
    #[arg(long, value_name = "REVISION", help_heading = "Hub options")]
    pub(crate) revision: Option<String>,

    /// Use only what is already in the cache
    #[arg(long, help_heading = "Hub options")]
    pub(crate) offline: bool,

    /// Download cache [default: LLM_QUANTIZE_CACHE, else the Hugging Face cache]
    #[arg(long, value_name = "DIR", help_heading = "Hub options")]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// Where a file or folder is written.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OutputArgs {
    /// Output directory
    #[arg(long, short = 'o', default_value = ".", value_name = "PATH")]
    pub(crate) output_dir: PathBuf,

    /// Output filename [default: from the name of the model]
    #[arg(long, short = 'n', value_name = "TEXT")]
    pub(crate) output_name: Option<String>,
}

impl OutputArgs {
    /// Refuses a name that is a path.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn check_name(&self) -> Result<()> {
        if self.output_name.as_deref().is_some_and(|n| n.is_empty() || n.contains(['/', '\\'])) {
            return Err(Error::InvalidArgument(
                "--output-name is a file name; use --output-dir for the folder".into(),
            ));
        }
        Ok(())
    }
}

/// Where unfinished work is kept.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CheckpointArgs {
    /// Disable checkpoints
    #[arg(long, conflicts_with = "resume")]
    pub(crate) no_checkpoints: bool,

    /// Checkpoint directory [default: LLM_QUANTIZE_CHECKPOINT_DIR, else ./.checkpoint]
    #[arg(long, value_name = "PATH", conflicts_with = "no_checkpoints")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// Resume from checkpoint
    #[arg(long, value_name = "PATH")]
    pub(crate) resume: Option<PathBuf>,
}

impl CheckpointArgs {
    /// Refuses a folder for checkpoints where none are written to it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn check(&self) -> Result<()> {
        match (&self.checkpoint_dir, &self.resume) {
            (Some(directory), Some(resume)) if directory != resume => {
                Err(Error::InvalidArgument(format!(
                    "--checkpoint-dir {} does nothing with --resume {}: the run goes on in that \
                     folder",
                    directory.display(),
                    resume.display()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// How many processor threads work.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ThreadArgs {
    /// Processor threads [default: all]
    #[arg(long, short = 't', value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Where the work is done.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ComputeArgs {
    /// Device for tensor work [default: cuda if there is one, else cpu]
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceArg>,

    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceArg {
    Cpu,
    Cuda,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Local directory, GGUF file, .littlebit file, or hub id (org/name[@revision])
    pub(crate) model: String,

    /// List every tensor with its type, shape and size
    #[arg(long)]
    pub(crate) tensors: bool,

    /// Do not read the weights to look for NaN and Inf
    #[arg(long)]
    pub(crate) skip_scan: bool,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Local directory, GGUF file, .littlebit file, or hub id (org/name[@revision])
    pub(crate) model: String,

    /// Text to continue
    #[arg(long, short = 'p', value_name = "TEXT")]
    pub(crate) prompt: String,

    /// Most tokens to generate
    #[arg(long, short = 'n', default_value_t = 128, value_name = "N")]
    pub(crate) max_tokens: usize,

    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub(crate) temperature: f64,

    /// Sample from the smallest set of tokens with this total probability
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,

    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub(crate) seed: u64,

    /// Treat the prompt as a user's message and apply the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Reads `500MB`, `4GB`, `1.5g` or a plain number of bytes (units of 1024).
pub(crate) fn byte_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let factor = match lower[digits.len()..].trim_start() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0_f64.powi(4),
        unit => return Err(format!("unknown unit `{unit}`")),
    };
    match digits.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok((value * factor) as u64),
        _ => Err("expected a size such as 500MB or 4GB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        crate::cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_units() {
        assert_eq!(byte_size("4GB"), Ok(4 << 30));
        assert_eq!(byte_size("1.5 k"), Ok(1536));
        assert_eq!(byte_size("77"), Ok(77));
        for bad in ["", "GB", "-1", "4 parsecs", "inf"] {
            assert!(byte_size(bad).is_err(), "{bad}");
        }
    }
}
