//! `quantize`: one file for each kind of output.

pub(super) mod dynamic;
mod gguf;
mod packed;
mod quality;

use crate::cli::args::quantize::{FormatArgs, QuantizeArgs};
use crate::cli::{Context, Failure};

pub(crate) fn run(args: &QuantizeArgs, context: &Context) -> Result<(), Failure> {
    args.output.check_name()?;
    args.checkpoints.check()?;
    match &args.format {
        FormatArgs::Gguf(own) => gguf::run(args, own, context),
        FormatArgs::Awq(own) => packed::run(args, own.into(), context),
        FormatArgs::Gptq(own) => packed::run(args, own.into(), context),
        FormatArgs::Smoothquant(own) => packed::run(args, own.into(), context),
    }
}
