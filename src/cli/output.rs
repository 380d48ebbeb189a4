//! The two streams. Everything the tool prints goes through [`Output`].

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::shown;
use crate::base::redact::conceal;
use crate::base::size::human_bytes;
use crate::{Error, Result};

/// What stdout carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    Human,
    Json,
}

/// What stderr carries, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Verbosity {
    /// Errors only
    Quiet,
    /// Progress, notes and warnings
    Normal,
    /// Also a line per matrix
    Verbose,
    /// Also internals
    Debug,
}

/// A command's result, as a person reads it; scripts get its serialization.
pub(crate) trait Report: Serialize {
    fn human(&self) -> String;
}

/// Where a command writes, and how.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: OutputFormat,
    pub(crate) verbosity: Verbosity,
    color: bool,
    bars: bool,
    /// Every warning of the run, in order, at any verbosity: key `warnings` of the JSON document.
    warnings: Arc<Mutex<Vec<String>>>,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    status: &'static str,
    error_code: u8,
    error_type: &'a str,
    message: String,
    suggestion: String,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a serde_json::Value>,
}

impl Output {
    pub(crate) fn new(
        format: OutputFormat,
        verbosity: Verbosity,
        no_color: bool,
        no_bars: bool,
    ) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = terminal && !no_bars && verbosity >= Verbosity::Normal;
        let warnings = Arc::default();
        Self { format, verbosity, color: terminal && !no_color, bars, warnings }
    }

    /// Keeps a warning for the JSON document. The caller shows it, if it is a new one.
    pub(crate) fn keep_warning(&self, text: &str) -> bool {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !warnings.iter().any(|known| known == text);
        if new {
            warnings.push(text.to_owned());
        }
        new
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A result as JSON, with every warning of the run: those that were shown, in their order, then
    /// those that only the result has.
    pub(crate) fn document(&self, report: &impl Serialize) -> Result<serde_json::Value> {
        let mut document = serde_json::to_value(report).map_err(|error| {
            Error::General(format!("the result cannot be written as JSON: {error}"))
        })?;
        if let Some(object) = document.as_object_mut() {
            let mut warnings = self.warnings();
            let own = object.get("warnings").and_then(serde_json::Value::as_array);
            for text in own.into_iter().flatten().filter_map(serde_json::Value::as_str) {
                if !warnings.iter().any(|known| known == text) {
                    warnings.push(text.to_owned());
                }
            }
            // Where the report has the key, it stays in its place.
            object.insert("warnings".into(), warnings.into());
        }
        Ok(document)
    }

    /// Whether progress bars may be drawn.
    pub(crate) fn bars(&self) -> bool {
        self.bars
    }

    /// Prints the result: the one thing that reaches stdout.
    pub(crate) fn result(&self, report: &impl Report) {
        match self.format {
            OutputFormat::Human => Self::print_human(report),
            OutputFormat::Json => match self.document(report) {
                Ok(document) => Self::print_json(&document),
                Err(error) => {
                    note_failure(Err(std::io::Error::other(error.to_string())));
                }
            },
        }
    }

    /// Prints the human form of a result that comes with a failure; in JSON mode it is a part of
    /// the error document.
    pub(crate) fn human_result(&self, report: &impl Report) {
        if self.format == OutputFormat::Human {
            Self::print_human(report);
        }
    }

    fn print_human(report: &impl Report) {
        // A report that is no JSON has no names of files either; what can be cleaned without is.
        let json = serde_json::to_value(report).unwrap_or_default();
        Self::print_plain(&shown::report(&report.human(), &json));
    }

    /// Prints text that is the result in both formats (help, completion scripts).
    pub(crate) fn print_plain(text: &str) {
        let text = conceal(text);
        let mut stdout = std::io::stdout().lock();
        let end: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.write_all(end))
            .and_then(|()| stdout.flush());
        note_failure(written);
    }

    /// Prints data for other programs: as it is, unless a person is looking at it.
    pub(crate) fn print_data(text: &str) {
        let terminal = std::io::stdout().is_terminal();
        Self::print_plain(&if terminal { shown::lines(text) } else { text.into() });
    }

    /// Prints a piece of text at once, without a line end: generated tokens, as they are, but for
    /// what a terminal would obey.
    pub(crate) fn print_piece(text: &str) {
        let mut stdout = std::io::stdout().lock();
        let spoken = stdout.is_terminal().then(|| shown::spoken(text));
        let text = spoken.as_deref().unwrap_or(text);
        note_failure(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
    }

    /// Whether something that belongs on stdout could not be written.
    pub(crate) fn stdout_failed() -> bool {
        STDOUT_FAILED.load(Ordering::Relaxed)
    }

    fn print_json(value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => Self::print_plain(&shown::json(&text)),
            Err(error) => say(&format!("error: the result cannot be written as JSON: {error}\n")),
        }
    }

    /// Reports a failure: text on stderr, and in JSON mode the error object on stdout.
    pub(crate) fn error(&self, error: &Error, result: Option<&serde_json::Value>) {
        let message = conceal(&error.to_string());
        let message = shown::one_line(&message);
        say(&format!("{} {message}\n", self.paint("error:", "31;1")));
        match self.format {
            OutputFormat::Human => {
                let hint = conceal(&error.suggestion());
                let hint = shown::one_line(&hint);
                say(&format!("{} {hint}\n", self.paint("hint:", "36;1")));
            }
            OutputFormat::Json => Self::print_json(&ErrorDocument {
                status: "error",
                error_code: error.exit_code(),
                error_type: error.type_name(),
                message: error.to_string(),
                suggestion: error.suggestion(),
                warnings: self.warnings(),
                result,
            }),
        }
    }

    /// Reports a command line that does not parse (`text`: clap's message with usage).
    pub(crate) fn usage_error(&self, text: &str) {
        say(&shown::lines(text));
        if self.format == OutputFormat::Json {
            let (message, tips) = usage_message(text);
            let error = Error::InvalidArgument(message);
            Self::print_json(&ErrorDocument {
                status: "error",
                error_code: error.exit_code(),
                error_type: error.type_name(),
                message: error.to_string(),
                suggestion: tips.unwrap_or_else(|| error.suggestion()),
                warnings: self.warnings(),
                result: None,
            });
        }
    }

    /// Asks a person. Where there is none, the answer is no.
    pub(crate) fn confirm(&self, question: &str) -> bool {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return false;
        }
        say(&format!("{} [y/N] ", self.paint(&shown::one_line(question), "1")));
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    }

    /// A line on stderr, if the verbosity reaches `level`.
    pub(crate) fn line(&self, level: Verbosity, text: &str) {
        if self.verbosity >= level {
            say(&format!("{}\n", conceal(text)));
        }
    }

    /// The text in a colour, where colours are wanted.
    pub(crate) fn paint(&self, text: &str, code: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Set when stdout took less than it was given.
static STDOUT_FAILED: AtomicBool = AtomicBool::new(false);

/// Says once that stdout cannot be written. A reader that went away (`| head`) is not an error.
fn note_failure(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
        && !STDOUT_FAILED.swap(true, Ordering::Relaxed)
    {
        say(&format!("error: standard output: {error}\n"));
    }
}

/// Everything that reaches stderr. What cannot be written is lost: a full disk, a reader that went
/// away or a terminal that was closed are no reason to lose the work as well.
fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
}

/// `6,738,415,616`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `mm:ss`, or `h:mm:ss` from an hour on.
pub(crate) fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// Seconds as people read them: `12.3 s`, from two minutes on a clock.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { clock(seconds.round() as u64) }
}

/// The rows `Time:` and `Peak memory:` of a result, as far as they were measured.
pub(crate) fn cost_rows(seconds: Option<f64>, peak: Option<u64>) -> String {
    let row = |label: &str, value: String| format!("{label:<20}{value}\n");
    seconds.map_or(String::new(), |seconds| row("Time:", duration(seconds)))
        + &peak.map_or(String::new(), |bytes| row("Peak memory:", human_bytes(bytes)))
}

/// What is wrong and the tips, without the usage lines that people get to see below it.
fn usage_message(text: &str) -> (String, Option<String>) {
    let lines = text.lines().map(str::trim).take_while(|line| {
        !(line.starts_with("Usage:") || line.starts_with("For more information"))
    });
    let (tips, lines): (Vec<&str>, Vec<&str>) =
        lines.filter(|line| !line.is_empty()).partition(|line| line.starts_with("tip:"));
    let message = lines.join(" ");
    let tips: Vec<&str> = tips.into_iter().map(|tip| tip["tip:".len()..].trim()).collect();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    (message, (!tips.is_empty()).then(|| tips.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(6_738_415_616), "6,738,415,616");
        assert_eq!(grouped(12), "12");
        assert_eq!(grouped(1_000), "1,000");
    }

    #[test]
    fn times_read_as_clocks() {
        assert_eq!(clock(135), "02:15");
        assert_eq!(clock(3 * 3600 + 62), "3:01:02");
    }
}
