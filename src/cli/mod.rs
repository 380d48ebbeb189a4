//! The command line: arguments in, one result out. The only code that reads the environment,
//! prints, or decides an exit status.
//!
//! stdout carries the result (human text, or exactly one JSON document, also on failure); stderr
//! carries progress, notes, warnings and errors.

mod args;
mod bars;
mod commands;
mod early;
mod formats;
mod globals;
mod idle;
mod interrupt;
mod models;
mod output;
mod shown;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, ValueEnum};

use crate::base::progress::Progress;
use crate::device::threads;
use crate::settings::Settings;
use crate::settings::names::RAYON_NUM_THREADS;
use crate::{Error, Result};
use args::{Cli, Command};
use bars::Bars;
use idle::Given;
use output::{Output, OutputFormat, Verbosity};

/// A failed command: why, and what it had produced when it failed (JSON key `result`).
#[derive(Debug)]
pub(crate) struct Failure {
    error: Box<Error>,
    result: Option<serde_json::Value>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error: Box::new(error), result: None }
    }
}

/// What every command gets: where to write, and the settings.
pub(crate) struct Context {
    output: Output,
    settings: Settings,
    given: Given,
}

/// Parses the process's arguments, runs the command and returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    interrupt::install();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (cli, given) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, &arguments),
    };
    let format = cli.command.output_format().unwrap_or(cli.output_format);
    let output = Output::new(format, cli.verbosity, &|name| std::env::var(name).ok());
    let status = match Settings::from_vars(|name| std::env::var(name).ok()) {
        Ok(settings) => run(cli.command, &Context { output: output.clone(), settings, given }),
        Err(error) => Err(error.into()),
    };
    match status {
        // A result that nobody got is no success.
        Ok(()) if Output::stdout_failed() => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.error(&failure.error, failure.result.as_ref());
            ExitCode::from(failure.error.exit_code())
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<(Cli, Given), clap::Error> {
    let definition = command();
    let words = formats::options_last(&definition, arguments.to_vec());
    let mut matches = definition.clone().try_get_matches_from(words).map_err(|mut error| {
        globals::explain(&mut error);
        formats::explain(&mut error, &definition, arguments);
        error
    })?;
    let typed = matches.clone();
    let mut cli =
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command()))?;
    globals::apply(&typed, &mut cli);
    Ok((cli, Given::of(&typed)))
}

fn run(command: Command, context: &Context) -> Result<(), Failure> {
    // The pool is rayon's, and its variable holds.
    let variable = || {
        let text = std::env::var(RAYON_NUM_THREADS).ok()?;
        text.parse().ok().filter(|count| *count > 0)
    };
    let wanted = command.threads().or_else(variable);
    if let Some(warning) = threads::start(wanted)? {
        Bars::new(&context.output).warn(&warning);
    }
    match command {
        Command::Quantize(args) => commands::quantize::run(&args, context),
        Command::Analyze(args) => commands::analyze::run(&args, context),
        Command::Littlebit { command } => commands::littlebit(command, context),
        Command::Profile { command } => commands::profile::run(&command, context),
        Command::Quality { command } => commands::quality::run(&command, context),
        Command::Convert(args) => commands::convert::run(&args, context),
        Command::Info(args) => commands::info::run(&args, context),
        Command::Generate(args) => commands::generate::run(&args, context),
        Command::Completions { shell } => {
            commands::completions(shell);
            Ok(())
        }
        Command::Man { directory } => commands::man(directory.as_deref()),
    }
}

/// Help and version go to stdout with status 0; anything else that clap refuses is status 2, as
/// JSON if JSON was asked for.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Output::print_plain(&error.render().to_string());
            ExitCode::SUCCESS
        }
        _ => {
            let format = requested_format(arguments);
            let output = Output::new(format, Verbosity::Normal, &|name| std::env::var(name).ok());
            output.usage_error(&error.render().to_string());
            ExitCode::from(2)
        }
    }
}

/// The `--format` of a command line that does not parse: the last one that names a form of stdout.
fn requested_format(arguments: &[OsString]) -> OutputFormat {
    let mut format = OutputFormat::Human;
    let mut words = arguments.iter().skip(1).map(|a| a.to_string_lossy());
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--format") {
            Some("") => words.next().map(std::borrow::Cow::into_owned),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None if word == "--" => break,
            None => None,
        };
        let named = value.and_then(|value| OutputFormat::from_str(&value, false).ok());
        format = named.unwrap_or(format);
    }
    format
}

/// The clap definition, for completions, the man page and the documentation test.
#[must_use]
pub fn command() -> clap::Command {
    globals::everywhere(formats::share(Cli::command()))
}
