//! Threads, as many as can be had: a limit on processes makes a run slower, not impossible.

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use crate::{Error, Result};

/// Threads that are left for other work where not all could be had.
const SPARE: usize = 3;

/// Starts the threads that everything is computed on, once and before anything is: `wanted`, or one
/// for each processor. Where the system refuses so many, those that it gives; then a warning says so.
///
/// # Errors
/// [`Error::InvalidArgument`] for no threads at all.
pub(crate) fn start(wanted: Option<usize>) -> Result<Option<String>> {
    if wanted == Some(0) {
        return Err(Error::InvalidArgument("--threads must be at least 1".into()));
    }
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    start_on(wanted.unwrap_or_else(processors), |name, work| {
        Builder::new().name(name).spawn(work).map(|_| ())
    })
}

/// Work for a thread.
type Work = Box<dyn FnOnce() + Send>;

fn start_on(
    wanted: usize,
    spawn: impl Fn(String, Work) -> io::Result<()>,
) -> Result<Option<String>> {
    // The pool ends the process when one of its threads cannot be started, so it gets threads that
    // are there already and wait for what to do.
    let (give, given) = channel::<rayon::ThreadBuilder>();
    let given = Arc::new(Mutex::new(given));
    let mut started = 0;
    let mut refused = None;
    while started < wanted && refused.is_none() {
        let given = Arc::clone(&given);
        let wait = move || {
            let work = given.lock().unwrap_or_else(PoisonError::into_inner).recv();
            if let Ok(work) = work {
                work.run();
            }
        };
        match spawn(format!("worker-{started}"), Box::new(wait)) {
            Ok(()) => started += 1,
            Err(error) => refused = Some(error),
        }
    }
    let used = match refused {
        Some(_) => started.saturating_sub(SPARE).max(started.min(1)),
        None => started,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(used.max(1));
    // With no thread at all, everything is done on this one.
    let pool = if used == 0 { pool.use_current_thread() } else { pool };
    pool.spawn_handler(move |work| give.send(work).map_err(|_| io::Error::other("no thread")))
        .build_global()
        .map_err(|e| Error::General(format!("cannot start {used} threads: {e}")))?;
    Ok(refused.map(|error| {
        format!("the system refuses {wanted} threads ({error}); {} are used", used.max(1))
    }))
}

/// Runs `job` on up to `count` threads at once, and on this one where no other can be had, until all
/// of them return. `job` takes its share from a common list, so that fewer threads do the same work.
pub(crate) fn on_several(count: usize, job: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        let spawn = |_: &usize| Builder::new().spawn_scoped(scope, &job).is_ok();
        if (0..count).take_while(spawn).count() == 0 {
            job();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_list_is_worked_off_by_any_number_of_threads() {
        for count in [0, 1, 5] {
            let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            on_several(count, || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= 1000 {
                        break;
                    }
                    sum.fetch_add(at, Ordering::Relaxed);
                }
            });
            assert_eq!(sum.into_inner(), 499_500, "{count} threads");
        }
        assert_eq!(start(Some(0)).unwrap_err().exit_code(), 2);
    }
}
