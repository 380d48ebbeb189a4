//! One file per command: arguments to request, library call, report to [`Output`].

pub(super) mod analyze;
mod compress;
pub(super) mod convert;
pub(super) mod generate;
pub(super) mod info;
mod kept;
mod littlebit_convert;
mod littlebit_info;
pub(super) mod profile;
pub(super) mod quality;
pub(super) mod quantize;
mod validate;

use std::path::{Path, PathBuf};

use super::args::littlebit::LittlebitCommand;
use super::bars::Bars;
use super::output::Output;
use super::{Context, Failure};
use crate::{Error, Result};

pub(super) fn littlebit(command: LittlebitCommand, context: &Context) -> Result<(), Failure> {
    match command {
        LittlebitCommand::Compress(args) => compress::run(&args, context),
        LittlebitCommand::Convert(args) => littlebit_convert::run(&args, context),
        LittlebitCommand::Info(args) => littlebit_info::run(&args, context),
        LittlebitCommand::Validate(args) => validate::run(&args, context),
    }
}

pub(super) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    let name = "llm-quantize";
    if shell == clap_complete::Shell::Bash {
        // The generator loses everything below a name that has a dash.
        let plain = "llm_quantize";
        clap_complete::generate(shell, &mut super::command().name(plain), plain, &mut script);
        let script = String::from_utf8_lossy(&script);
        let (from, to) = (format!("-o default {plain}\n"), format!("-o default {name}\n"));
        return Output::print_plain(&script.replace(&from, &to));
    }
    clap_complete::generate(shell, &mut super::command(), name, &mut script);
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

/// The last lines of a command that wrote these files.
fn complete(paths: &[PathBuf], progress: &Bars) -> Result<()> {
    for path in paths {
        let size = path.metadata().map_err(|e| Error::io(path, e))?.len();
        progress.complete(&path.display().to_string(), size, "");
    }
    Ok(())
}

/// The command line of this process with `--resume` and the checkpoint directory.
fn resume_command(directory: &Path) -> String {
    let mut words: Vec<String> =
        std::env::args_os().map(|word| quote(&word.to_string_lossy())).collect();
    if !words.iter().any(|w| w == "--resume" || w.starts_with("--resume=")) {
        words.extend(["--resume".into(), quote(&directory.to_string_lossy())]);
    }
    words.join(" ")
}

/// A word as a POSIX shell reads it back.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote("--target-bpw=0.5"), "--target-bpw=0.5");
        assert_eq!(quote("my model"), "'my model'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
