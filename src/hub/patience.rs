//! Trying again: how often, and after which pauses.

use std::time::Duration;

use super::client::Trouble;
use crate::base::progress::Progress;
use crate::{Error, Result};

/// The longest pause between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The attempts that are left for one task.
pub(super) struct Patience {
    allowed: u32,
    used: u32,
    wait: Duration,
}

impl Patience {
    pub(super) fn new(retries: u32, wait: Duration) -> Self {
        Self { allowed: retries, used: 0, wait }
    }

    /// Waits before the next attempt, or gives the trouble back when there is none. `task` says
    /// what is being tried.
    pub(super) fn wait_after(
        &mut self,
        trouble: Trouble,
        task: &str,
        progress: &dyn Progress,
    ) -> Result<(), Trouble> {
        let (reason, asked) = match &trouble {
            Trouble::Fatal(_) | Trouble::Missing(_) => return Err(trouble),
            Trouble::Unreachable(reason) => (reason.as_str(), None),
            Trouble::Passing { reason, wait } => (reason.as_str(), *wait),
        };
        if self.used >= self.allowed {
            return Err(trouble);
        }
        let doubled = self.wait.saturating_mul(1 << self.used.min(10));
        let pause = asked.unwrap_or(doubled).min(LONGEST_WAIT);
        self.used += 1;
        progress.warn(&format!(
            "{task}: {reason}; attempt {} of {} in {:.1} s",
            self.used + 1,
            self.allowed + 1,
            pause.as_secs_f64()
        ));
        sleep(pause, progress).map_err(Trouble::Fatal)
    }

    /// After progress the count starts again: a large file over a bad line may break many times.
    pub(super) fn renew(&mut self) {
        self.used = 0;
    }
}

/// Sleeps in slices, so that Ctrl-C is noticed.
pub(super) fn sleep(pause: Duration, progress: &dyn Progress) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(100);
    let mut left = pause;
    while !left.is_zero() {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
    Ok(())
}
