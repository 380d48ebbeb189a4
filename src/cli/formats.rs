//! `quantize MODEL OUTPUT_FORMAT`: the format is a command of its own, so that each has its own
//! options. People type them at any place, also before the format: such ones are moved behind it
//! before the command line is parsed.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// The command that has formats.
const QUANTIZE: &str = "quantize";

/// The command with the options of `quantize` at each of its formats as well.
pub(super) fn share(command: Command) -> Command {
    command.mut_subcommand(QUANTIZE, |quantize| {
        quantize.mut_args(|argument| {
            let option = !argument.is_positional();
            argument.global(option)
        })
    })
}

/// The command line with the options of `quantize` behind the format.
pub(super) fn options_last(command: &Command, words: Vec<OsString>) -> Vec<OsString> {
    let Some(line) = Line::read(command, &words) else { return words };
    // What begins with a dash would be taken for an option, unless it is one's path.
    let (Some(format), false) = (line.format, begins_with_dash(line.model)) else { return words };
    let mut sorted = words[..=line.command].to_vec();
    sorted.push(if line.is_format(line.model) {
        // A folder that is called as a format is.
        let mut path = OsString::from("./");
        path.push(line.model);
        path
    } else {
        line.model.to_owned()
    });
    sorted.push(format.to_owned());
    sorted.extend(line.options.into_iter().cloned());
    if line.plain && !line.rest.is_empty() {
        sorted.push("--".into());
    }
    sorted.extend_from_slice(line.rest);
    sorted
}

/// Says which formats have an option that the chosen one has not, and which formats there are.
pub(super) fn explain(error: &mut clap::Error, command: &Command, words: &[OsString]) {
    let unknown = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
    let Some(line) = Line::read(command, words).filter(|_| unknown) else { return };
    let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let mut names = line.formats().filter(|format| format.has(&argument)).map(Command::get_name);
    let tip = if line.format.is_some_and(|format| !line.is_format(format)) {
        let all: Vec<&str> = line.formats().map(Command::get_name).collect();
        format!("the output format is {}", listed(&all, "or"))
    } else if let Some(first) = names.next() {
        let all: Vec<&str> = std::iter::once(first).chain(names).collect();
        let plural = if all.len() == 1 { "" } else { "s" };
        format!("{argument} is an option of the output format{plural} {}", listed(&all, "and"))
    } else {
        return;
    };
    error.insert(ContextKind::SuggestedArg, ContextValue::None);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
}

/// `awq, gptq and smoothquant`.
fn listed(names: &[&str], last: &str) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [front @ .., end] => format!("{} {last} {end}", front.join(", ")),
    }
}

/// A command line of `quantize`, up to the format.
struct Line<'a> {
    quantize: &'a Command,
    /// Place of the command's word.
    command: usize,
    model: &'a OsStr,
    /// The word at the format's place.
    format: Option<&'a OsStr>,
    /// Words of options, in order.
    options: Vec<&'a OsString>,
    /// Whether `--` was among the words.
    plain: bool,
    /// What stands behind the format.
    rest: &'a [OsString],
}

impl<'a> Line<'a> {
    /// The words as clap will read them, if they are `quantize` and a model.
    fn read(command: &'a Command, words: &'a [OsString]) -> Option<Self> {
        let mut at = 1;
        while begins_with_dash(words.get(at)?) {
            at += if takes_next(&[command], &words[at]) { 2 } else { 1 };
        }
        let quantize = command.find_subcommand(QUANTIZE).filter(|_| words[at] == QUANTIZE)?;
        let known: Vec<&Command> =
            std::iter::once(quantize).chain(quantize.get_subcommands()).collect();
        let (mut model, mut format, mut options, mut plain) = (None, None, Vec::new(), false);
        let mut next = at + 1;
        while let Some(word) = words.get(next).filter(|_| format.is_none()) {
            next += 1;
            if !plain && word == "--" {
                plain = true;
            } else if !plain && begins_with_dash(word) {
                options.push(word);
                if takes_next(&known, word) {
                    options.extend(words.get(next));
                    next += 1;
                }
            } else if model.is_none() {
                model = Some(word.as_os_str());
            } else {
                format = Some(word.as_os_str());
            }
        }
        let rest = words.get(next..).unwrap_or_default();
        Some(Self { quantize, command: at, model: model?, format, options, plain, rest })
    }

    fn formats(&self) -> impl Iterator<Item = &'a Command> {
        self.quantize.get_subcommands()
    }

    fn is_format(&self, word: &OsStr) -> bool {
        self.formats().any(|format| word == format.get_name())
    }
}

/// Whether a word is an option; a lone dash is none.
fn begins_with_dash(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    bytes.len() > 1 && bytes[0] == b'-'
}

/// Whether the word after this option is its value, as far as these commands know it.
fn takes_next(commands: &[&Command], word: &OsStr) -> bool {
    let word: Cow<'_, str> = word.to_string_lossy();
    let options = || commands.iter().flat_map(|command| command.get_arguments());
    let valued = |found: Option<&Arg>| found.is_some_and(|a| a.get_action().takes_values());
    if let Some(long) = word.strip_prefix("--") {
        return valued(options().find(|a| a.get_long() == Some(long)));
    }
    let mut letters = word.chars().skip(1);
    // Of `-tq`, the first one that takes a value takes the rest.
    let taker = letters.find(|&letter| valued(options().find(|a| a.get_short() == Some(letter))));
    taker.is_some() && letters.next().is_none()
}

/// Whether a command has an option of that name.
trait Has {
    fn has(&self, option: &str) -> bool;
}

impl Has for Command {
    fn has(&self, option: &str) -> bool {
        self.get_arguments().any(|argument| {
            let long = argument.get_long().map(|name| format!("--{name}"));
            let short = argument.get_short().map(|name| format!("-{name}"));
            [long, short].iter().flatten().any(|name| name == option)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words = options_last(&crate::cli::command(), words);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_before_the_format_go_behind_it() {
        for (typed, read) in [
            ("q quantize m gguf -q Q4_0 -o d", "q quantize m gguf -q Q4_0 -o d"),
            ("q quantize m -q Q4_0 gguf -o d", "q quantize m gguf -q Q4_0 -o d"),
            ("q quantize -q Q4_0 m gguf", "q quantize m gguf -q Q4_0"),
            ("q quantize -qQ4_0 --pure m gguf", "q quantize m gguf -qQ4_0 --pure"),
            ("q quantize m --group-size -1 gptq", "q quantize m gptq --group-size -1"),
            ("q quantize m --group-size=-1 gptq", "q quantize m gptq --group-size=-1"),
            ("q quantize -o gguf m gptq", "q quantize m gptq -o gguf"),
            (
                "q --format json quantize --format human m gguf --format json",
                "q --format json quantize m gguf --format human --format json",
            ),
            ("q --verbosity=quiet quantize m -t 2 awq", "q --verbosity=quiet quantize m awq -t 2"),
            ("q quantize gguf gguf -q F16", "q quantize ./gguf gguf -q F16"),
            ("q quantize -q F16 -- m gguf", "q quantize m gguf -q F16"),
            ("q quantize -- m gguf x", "q quantize m gguf -- x"),
            ("q quantize m -q Q4_0 ggfu", "q quantize m ggfu -q Q4_0"),
            // As they are: there is no format, or another command.
            ("q quantize gptq --help", "q quantize gptq --help"),
            ("q quantize m -q gguf", "q quantize m -q gguf"),
            ("q quantize -- -m gguf", "q quantize -- -m gguf"),
            ("q quantize", "q quantize"),
            ("q convert m -q Q4_0 gguf", "q convert m -q Q4_0 gguf"),
            ("q --format", "q --format"),
            ("q", "q"),
        ] {
            assert_eq!(sorted(typed), read);
        }
    }

    #[test]
    fn every_place_of_an_option_means_the_same() {
        let read = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let (cli, _) = crate::cli::parse(&words).unwrap();
            format!("{:?}", cli.command)
        };
        let options = ["-q 4bit", "--group-size -1", "-o d", "--offline", "-t 2"];
        let expected = read(&format!("q quantize m gptq {}", options.join(" ")));
        for before in 0..=options.len() {
            for between in before..=options.len() {
                let (front, rest) = options.split_at(before);
                let (middle, back) = rest.split_at(between - before);
                let words = [front, &["m"], middle, &["gptq"], back].concat().join(" ");
                assert_eq!(read(&format!("q quantize {words}")), expected, "{words}");
            }
        }
    }

    #[test]
    fn formats_are_listed() {
        assert_eq!(listed(&["gptq"], "and"), "gptq");
        assert_eq!(listed(&["awq", "gptq", "smoothquant"], "or"), "awq, gptq or smoothquant");
    }
}
