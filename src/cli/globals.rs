//! `--format` and `--verbosity` at any place: people type them last. They are options of every
//! command that has none of that name itself; what stands deepest holds.

use clap::builder::EnumValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command, ValueEnum};

use super::args::Cli;
use super::output::{OutputFormat, Verbosity};

/// Ids of the two, the same at every level.
const FORMAT: &str = "global_format";
const VERBOSITY: &str = "global_verbosity";

/// The command with the global options at all levels below it.
pub(super) fn everywhere(command: Command) -> Command {
    command.mut_subcommands(|below| {
        let has = |name: &str| below.get_arguments().any(|a| a.get_long() == Some(name));
        let (format, verbosity) = (!has("format"), !has("verbosity"));
        let mut below = everywhere(below);
        if format {
            below = below.arg(
                option::<OutputFormat>(FORMAT, "format", "FORMAT")
                    .help("What stdout carries: human or json [default: human]"),
            );
        }
        if verbosity {
            below = below
                .arg(option::<Verbosity>(VERBOSITY, "verbosity", "LEVEL").help(
                    "What stderr carries: quiet, normal, verbose or debug [default: normal]",
                ));
        }
        below
    })
}

fn option<T: ValueEnum + Clone + Send + Sync + 'static>(
    id: &'static str,
    long: &'static str,
    value: &'static str,
) -> Arg {
    Arg::new(id)
        .long(long)
        .value_name(value)
        .value_parser(EnumValueParser::<T>::new())
        .hide_possible_values(true)
        .help_heading("Global options")
        .display_order(1000)
}

/// Takes the deepest of the global options that were given.
pub(super) fn apply(matches: &ArgMatches, cli: &mut Cli) {
    let mut level = Some(matches);
    while let Some(matches) = level {
        if let Some(format) = given::<OutputFormat>(matches, FORMAT) {
            cli.output_format = format;
        }
        if let Some(verbosity) = given::<Verbosity>(matches, VERBOSITY) {
            cli.verbosity = verbosity;
        }
        level = matches.subcommand().map(|(_, below)| below);
    }
}

fn given<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<T> {
    matches.try_get_one::<T>(id).ok().flatten().cloned()
}

/// Says where the global `--format` belongs, when a command's own one got its value.
pub(super) fn explain(error: &mut clap::Error) {
    let own = |error: &clap::Error| {
        let argument = error.get(ContextKind::InvalidArg)?.to_string();
        let value = error.get(ContextKind::InvalidValue)?.to_string();
        let global = OutputFormat::from_str(&value, false).is_ok();
        (argument.starts_with("--format ") && global).then_some(value)
    };
    if error.kind() == ErrorKind::InvalidValue
        && let Some(value) = own(error)
    {
        let tip = format!(
            "here --format names the file; for {value} on stdout put it before the command: \
             llm-quantize --format {value} …"
        );
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}
