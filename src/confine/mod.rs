//! Work of libraries on files that anyone may have made.
//!
//! The libraries that read `tokenizer.json` and render chat templates panic, recurse without end or
//! eat all memory on inputs of a few kilobytes. Here they run on a thread of their own, with a known
//! stack, counted memory and counted time; whatever stops them comes back as a [`Fault`].
//!
//! Memory and stack are watched by [`WatchedAllocator`], which a program installs as its allocator;
//! without it only panics and time are caught. A thread that exceeds its limits never runs again: it
//! sleeps, with what it had allocated, until the process ends. So the limits are far above what
//! useful files need, and what can be checked beforehand is checked by the callers.

mod watch;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

pub use watch::WatchedAllocator;
use watch::{Clock, Stop, Watch};

/// How often a thread is looked at.
const POLL: Duration = Duration::from_millis(20);
/// A thread that waits for the processor uses no time of its own; this many times its limit is
/// too long all the same.
const WALL_FACTOR: u32 = 20;

/// What a piece of work may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that it holds at a time.
    pub memory: usize,
    /// Bytes of its stack.
    pub stack: usize,
    /// Processor time.
    pub time: Duration,
}

/// Why a piece of work has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More memory than it may use.
    #[error("it takes more than {} MB of memory", .0 >> 20)]
    Memory(usize),
    /// More stack than it has.
    #[error("it is nested too deeply")]
    Stack,
    /// More time than it may take.
    #[error("it is not done after {} s of processor time", .0.as_secs())]
    Time(Duration),
    /// The library panicked.
    #[error("the library that reads it failed: {0}")]
    Panic(String),
}

/// Runs `work` on a thread of its own; where the system has no more threads, on this one, where only
/// panics are caught.
///
/// # Errors
/// What stopped it.
pub fn run<T: Send + 'static>(
    limits: Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let (sender, receiver) = sync_channel(1);
    let watch = Arc::new(Watch::new());
    let own = Arc::clone(&watch);
    let started = Instant::now();
    // The work goes to the thread once there is one.
    let (give, given) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("confined".to_owned())
        .stack_size(limits.stack)
        .spawn(move || {
            let Ok(work) = given.recv() else { return };
            let watched = own.enter(limits.memory, limits.stack);
            let result = catch(work);
            drop(watched);
            // Nobody listens any more when the time was over.
            let _ = sender.send(result);
        });
    let Ok(thread) = thread else {
        return catch(work);
    };
    // The thread waits for it.
    let _ = give.send(work);
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(result) => {
                // Its stack is given back before the next one is asked for: many short pieces of
                // work would else hold the address space of threads that are still ending.
                let _ = thread.join();
                return result;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fault::Panic("its thread ended".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let used = watch.clock().and_then(Clock::used).unwrap_or_default();
        let fault = match watch.stopped() {
            Some(Stop::Memory) => Fault::Memory(limits.memory),
            Some(Stop::Stack) => Fault::Stack,
            None if used > limits.time || started.elapsed() > limits.time * WALL_FACTOR => {
                Fault::Time(limits.time)
            }
            None => continue,
        };
        ABANDONED.fetch_add(1, Ordering::Relaxed);
        return Err(fault);
    }
}

/// Threads that exceeded their limits.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// How many threads of this process exceeded their limits. Each keeps what it had allocated, so a
/// program that goes on after many of them starts anew at some time.
#[must_use]
pub fn abandoned() -> usize {
    ABANDONED.load(Ordering::Relaxed)
}

/// Runs `work` on this thread; a panic comes back as a [`Fault`] and is not printed.
///
/// # Errors
/// [`Fault::Panic`].
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Fault> {
    hide_caught_panics();
    let before = QUIET.replace(true);
    // What the closure had in hand is not used again.
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        // Dropping a payload of any type may panic in turn.
        std::mem::forget(payload);
        Fault::Panic(text.unwrap_or_else(|| "no reason given".to_owned()))
    })
}

thread_local! {
    /// Whether a panic of this thread will be caught and told of by [`catch`].
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics that are caught become messages of the program; Rust's own report of them would only
/// frighten.
fn hide_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                others(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests;
