//! One file per command: arguments to request, library call, report to [`Output`].

mod compress;
pub(super) mod generate;
pub(super) mod info;
mod littlebit_info;
mod validate;

use std::path::Path;

use super::args::littlebit::LittlebitCommand;
use super::output::Output;
use super::{Context, Failure};
use crate::Error;

pub(super) fn littlebit(command: LittlebitCommand, context: &Context) -> Result<(), Failure> {
    match command {
        LittlebitCommand::Compress(args) => compress::run(&args, context),
        LittlebitCommand::Info(args) => littlebit_info::run(&args, context),
        LittlebitCommand::Validate(args) => validate::run(&args, context),
    }
}

pub(super) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "llm-quantize", &mut script);
    Output::print_plain(&String::from_utf8_lossy(&script));
}

pub(super) fn man(directory: Option<&Path>) -> Result<(), Failure> {
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        clap_mangen::generate_to(super::command(), directory)
            .map_err(|e| Error::io(directory, e))?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(super::command())
            .render(&mut page)
            .map_err(|e| Error::General(format!("cannot render the man page: {e}")))?;
        Output::print_plain(&String::from_utf8_lossy(&page));
    }
    Ok(())
}
