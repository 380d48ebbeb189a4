//! `quantize`: one file for each output format.

pub(super) mod dynamic;
mod gguf;
mod packed;
mod quality;

use super::kept::Asked;
use crate::cli::args::quantize::{QuantizeArgs, TargetFormat};
use crate::cli::{Context, Failure};
use crate::{Error, Result};

/// What the command line says about checkpoints.
fn asked(args: &QuantizeArgs) -> Asked<'_> {
    Asked {
        none: args.no_checkpoints,
        directory: args.checkpoint_dir.as_deref(),
        resume: args.resume.as_deref(),
    }
}

pub(crate) fn run(args: &QuantizeArgs, context: &Context) -> Result<(), Failure> {
    if args.output_name.as_deref().is_some_and(|n| n.is_empty() || n.contains(['/', '\\'])) {
        return Err(Error::InvalidArgument(
            "--output-name is a file name; use --output-dir for the folder".into(),
        )
        .into());
    }
    match args.output_format {
        TargetFormat::Gguf => gguf::run(args, context),
        TargetFormat::Awq | TargetFormat::Gptq | TargetFormat::Smoothquant => {
            packed::run(args, context)
        }
    }
}
