//! A server that sends a byte now and then keeps every single read alive: what counts is how much
//! arrives in a while.

use std::time::{Duration, Instant};

/// What must arrive in a window of time, unless the file ends: 4 KiB a second with the usual one of a
/// minute.
const LEAST_BYTES: u64 = 256 << 10;

/// Counts what arrives.
pub(super) struct Pace {
    window: Duration,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// For a connection on which a single silence may last `stall_timeout`.
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self { window: stall_timeout.saturating_mul(2), began: Instant::now(), bytes: 0 }
    }

    /// Notes bytes that arrived; fails when they come too slowly.
    pub(super) fn received(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes += bytes as u64;
        let passed = self.began.elapsed();
        if passed < self.window {
            return Ok(());
        }
        if self.bytes < LEAST_BYTES {
            let seconds = passed.as_secs_f64();
            return Err(format!("only {} bytes in {seconds:.0} s", self.bytes));
        }
        (self.began, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}
