//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::interrupt;
use super::output::{Output, Verbosity, clock, human_bytes};
use super::shown::one_line;
use crate::progress::Progress;

/// Seconds between two plain lines of a stage.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

struct Stage {
    name: String,
    total: u64,
    unit: String,
    done: u64,
    began: Instant,
    reported: Instant,
    bar: Option<ProgressBar>,
}

/// [`Progress`] for people at a terminal and for logs.
pub(crate) struct Bars {
    output: Output,
    stage: Mutex<Option<Stage>>,
}

impl Bars {
    pub(crate) fn new(output: &Output) -> Self {
        Self { output: output.clone(), stage: Mutex::new(None) }
    }

    /// The last line of a run that wrote something: the file (or folder) and its size.
    pub(crate) fn complete(&self, path: &str, size: u64, more: &str) {
        self.note(&format!("Complete: {path} ({}{more})", human_bytes(size)));
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Option<Stage>> {
        // A thread that panicked while holding the lock leaves counters, which stay usable.
        self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn print(&self, level: Verbosity, text: &str) {
        if self.output.verbosity < level {
            return;
        }
        match self.stage().as_ref().and_then(|s| s.bar.as_ref()) {
            Some(bar) => bar.suspend(|| self.output.line(level, text)),
            None => self.output.line(level, text),
        }
    }

    fn tagged(&self, level: Verbosity, text: &str) {
        self.print(level, &format!("{} {text}", self.output.paint("[llm-quantize]", "2")));
    }

    fn plain_line(stage: &Stage) -> String {
        let elapsed = stage.began.elapsed().as_secs();
        let percent = (stage.done * 100).checked_div(stage.total).unwrap_or(100).min(100);
        let counts = if stage.unit == "bytes" {
            let rate = stage.done as f64 / stage.began.elapsed().as_secs_f64().max(1e-3);
            format!(
                "{}/{} {}/s",
                human_bytes(stage.done),
                human_bytes(stage.total),
                human_bytes(rate as u64)
            )
        } else {
            format!("{}/{} {}", stage.done, stage.total, stage.unit)
        };
        let mut text = format!("{} {percent:3}% {counts} [{} elapsed", stage.name, clock(elapsed));
        if stage.done > 0 && stage.done < stage.total {
            let left = stage.began.elapsed().as_secs_f64() / stage.done as f64
                * (stage.total - stage.done) as f64;
            text.push_str(&format!(", {} left", clock(left.round() as u64)));
        }
        text.push(']');
        text
    }
}

/// Sizes in a bar, as they are written everywhere else.
fn with_sizes(style: ProgressStyle) -> ProgressStyle {
    let key = |of: fn(&ProgressState) -> u64, end: &'static str| {
        move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // The bar is drawn into a string.
            let _ = write!(out, "{}{end}", human_bytes(of(state)));
        }
    };
    style
        .with_key("size", key(ProgressState::pos, ""))
        .with_key("whole", key(|state| state.len().unwrap_or(0), ""))
        .with_key("rate", key(|state| state.per_sec() as u64, "/s"))
}

impl Progress for Bars {
    fn start(&self, name: &str, total: u64, unit: &str) {
        let name = &*one_line(name);
        let bar = self.output.bars().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let counts = if unit == "bytes" { "{size}/{whole} {rate}" } else { "{pos}/{len} {msg}" };
            let template =
                format!("{{prefix}} {{bar:20}} {{percent:>3}}% {counts} [{{elapsed_precise}} elapsed, {{eta_precise}} left]");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(with_sizes(style).progress_chars("━╸ "));
            }
            bar.set_prefix(name.to_owned());
            bar.set_message(unit.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        *self.stage() = Some(Stage {
            name: name.into(),
            total,
            unit: unit.into(),
            done: 0,
            began: now,
            reported: now,
            bar,
        });
    }

    fn advance(&self, units: u64) {
        let mut line = None;
        if let Some(stage) = self.stage().as_mut() {
            stage.done += units;
            match &stage.bar {
                Some(bar) => bar.inc(units),
                None if stage.reported.elapsed() >= PLAIN_INTERVAL => {
                    stage.reported = Instant::now();
                    line = Some(Self::plain_line(stage));
                }
                None => {}
            }
        }
        if let Some(line) = line {
            self.output.line(Verbosity::Normal, &line);
        }
    }

    fn finish(&self) {
        if let Some(mut stage) = self.stage().take() {
            stage.done = stage.total;
            if let Some(bar) = &stage.bar {
                bar.finish_and_clear();
            }
            self.output.line(Verbosity::Normal, &Self::plain_line(&stage));
        }
    }

    fn note(&self, text: &str) {
        self.tagged(Verbosity::Normal, &one_line(text));
    }

    fn detail(&self, text: &str) {
        self.print(Verbosity::Normal, &format!("  {}", one_line(text)));
    }

    fn verbose(&self, text: &str) {
        self.print(Verbosity::Verbose, &format!("    {}", one_line(text)));
    }

    fn warn(&self, text: &str) {
        if self.output.keep_warning(text) {
            let warning = self.output.paint("Warning:", "33;1");
            self.tagged(Verbosity::Normal, &format!("{warning} {}", one_line(text)));
        }
    }

    fn debug(&self, text: &str) {
        self.tagged(Verbosity::Debug, &one_line(text));
    }

    fn stop_requested(&self) -> bool {
        interrupt::requested()
    }
}
