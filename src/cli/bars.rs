//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::interrupt;
use super::output::{Output, Verbosity, clock};
use super::shown::one_line;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;

/// Seconds between two plain lines of a stage.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Behind the counts of a stage that goes on where an interrupted run has stopped.
const RESUMED: &str = " [resumed]";
/// Between two drawings of a bar that does not move.
const TICK: Duration = Duration::from_millis(250);

struct Stage {
    name: String,
    total: u64,
    unit: String,
    done: u64,
    /// How many of them an interrupted run had done.
    resumed: u64,
    began: Instant,
    /// When the first unit began that was not done before.
    worked: Instant,
    reported: Instant,
    bar: Option<ProgressBar>,
}

impl Stage {
    /// Units that this run has done itself.
    fn fresh(&self) -> f64 {
        self.done.saturating_sub(self.resumed) as f64
    }
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
            let rate = stage.fresh() / stage.worked.elapsed().as_secs_f64().max(1e-3);
            format!(
                "{}/{} {}/s",
                human_bytes(stage.done),
                human_bytes(stage.total),
                human_bytes(rate as u64)
            )
        } else {
            format!("{}/{} {}", stage.done, stage.total, stage.unit)
        };
        let resumed = if stage.resumed > 0 { RESUMED } else { "" };
        let name = &stage.name;
        let mut text = format!("{name} {percent:3}% {counts}{resumed} [{} elapsed", clock(elapsed));
        if stage.fresh() > 0.0 && stage.done < stage.total {
            let left = stage.worked.elapsed().as_secs_f64() / stage.fresh()
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

/// Draws the bar again until it is finished, so that its clock runs in long steps as well. Where no
/// thread can be had, the bar moves with the work alone.
fn keep_ticking(bar: &ProgressBar) {
    let weak = bar.downgrade();
    let tick = move || {
        loop {
            std::thread::sleep(TICK);
            match weak.upgrade() {
                Some(bar) if !bar.is_finished() => bar.tick(),
                _ => break,
            }
        }
    };
    drop(std::thread::Builder::new().name("ticker".to_owned()).spawn(tick));
}

impl Progress for Bars {
    fn start(&self, name: &str, total: u64, unit: &str) {
        let name = &*one_line(name);
        let bar = self.output.bars().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let counts = if unit == "bytes" { "{size}/{whole} {rate}{msg}" } else { "{pos}/{len} {msg}" };
            let template =
                format!("{{prefix}} {{bar:20}} {{percent:>3}}% {counts} [{{elapsed_precise}} elapsed, {{eta_precise}} left]");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(with_sizes(style).progress_chars("━╸ "));
            }
            bar.set_prefix(name.to_owned());
            if unit != "bytes" {
                bar.set_message(unit.to_owned());
            }
            keep_ticking(&bar);
            bar
        });
        let now = Instant::now();
        *self.stage() = Some(Stage {
            name: name.into(),
            total,
            unit: unit.into(),
            done: 0,
            resumed: 0,
            began: now,
            worked: now,
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

    fn resumed(&self, units: u64) {
        if units == 0 {
            return;
        }
        let mut line = None;
        if let Some(stage) = self.stage().as_mut() {
            let first = stage.resumed == 0;
            stage.done += units;
            stage.resumed += units;
            stage.worked = Instant::now();
            match &stage.bar {
                Some(bar) => {
                    let unit = if stage.unit == "bytes" { "" } else { &stage.unit };
                    bar.set_message(format!("{unit}{RESUMED}"));
                    bar.inc(units);
                    bar.reset_eta();
                }
                None if first || stage.reported.elapsed() >= PLAIN_INTERVAL => {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A stage of ten layers that began a minute and a half ago and worked for the last 30 seconds.
    fn line(done: u64, resumed: u64) -> String {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        Bars::plain_line(&Stage {
            name: "Factorizing".into(),
            total: 10,
            unit: "layers".into(),
            done,
            resumed,
            began: ago(90),
            worked: ago(if resumed > 0 { 30 } else { 90 }),
            reported: ago(0),
            bar: None,
        })
    }

    #[test]
    fn units_of_an_earlier_run_are_marked_and_do_not_count_as_speed() {
        assert_eq!(line(3, 0), "Factorizing  30% 3/10 layers [01:30 elapsed, 03:30 left]");
        assert_eq!(line(6, 6), "Factorizing  60% 6/10 layers [resumed] [01:30 elapsed]");
        // One layer in half a minute, three to go.
        assert_eq!(
            line(7, 6),
            "Factorizing  70% 7/10 layers [resumed] [01:30 elapsed, 01:30 left]"
        );
    }
}
