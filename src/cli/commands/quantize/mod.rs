//! `quantize`: one file for each output format.

pub(super) mod dynamic;
mod gguf;
mod quality;

use crate::cli::args::quantize::{QuantizeArgs, TargetFormat};
use crate::cli::{Context, Failure};
use crate::{Error, Result};

pub(crate) fn run(args: &QuantizeArgs, context: &Context) -> Result<(), Failure> {
    if args.output_name.as_deref().is_some_and(|n| n.is_empty() || n.contains(['/', '\\'])) {
        return Err(Error::InvalidArgument(
            "--output-name is a file name; use --output-dir for the folder".into(),
        )
        .into());
    }
    match args.output_format {
        TargetFormat::Gguf => gguf::run(args, context),
        format => {
            let name = format!("{format:?}").to_lowercase();
            Err(Error::UnsupportedConversion(format!(
                "this version does not write {name}; it writes gguf"
            ))
            .into())
        }
    }
}
