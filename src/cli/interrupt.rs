//! Signals. Ctrl-C, a request to end, a closed terminal: the first one asks the work to stop at the
//! next safe point, the second one ends the process, with status 130 either way. A file-size limit:
//! an error of the write that hits it, not the end of the process.
//!
//! A signal that is ignored when the program starts stays ignored: `nohup` and background jobs of
//! scripts ask for that.

#![allow(unsafe_code, reason = "signal dispositions have no safe interface")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Signals that ask to stop.
const STOPPING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
const MESSAGE: &[u8] = b"\nStopping after the current layer; press Ctrl-C again to stop at once\n";
const STATUS: libc::c_int = 130;

static SIGNALS: AtomicUsize = AtomicUsize::new(0);
/// Whether somebody looks at [`requested`].
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Takes over the signals for the rest of the process; the first thing that it does.
pub(crate) fn install() {
    // SAFETY: the structures are valid and live through the calls; the handler does only what is
    // allowed in one (atomics, write, _exit). SIG_IGN installs no handler.
    unsafe {
        // By default a write beyond the limit would end the process; ignored, the write fails, the
        // temporary file is removed and the user is told.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = on_signal;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        for signal in STOPPING {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut before) == 0
                && before.sa_sigaction != libc::SIG_IGN
            {
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    }
}

extern "C" fn on_signal(_: libc::c_int) {
    let first = SIGNALS.fetch_add(1, Ordering::Relaxed) == 0;
    if !first || !WATCHED.load(Ordering::Relaxed) {
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(STATUS) }
    }
    // SAFETY: the bytes live for ever, and `write` may be called in a handler. Whether it succeeds
    // does not matter; the error number that the interrupted code may be about to read is kept.
    unsafe {
        #[cfg(target_os = "linux")]
        let place = libc::__errno_location();
        #[cfg(not(target_os = "linux"))]
        let place = libc::__error();
        let number = *place;
        libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
        *place = number;
    }
}

/// From now on the work looks at [`requested`] and stops by itself; before, and in commands that
/// never ask, a signal ends the process at once.
pub(crate) fn watch() {
    WATCHED.store(true, Ordering::Relaxed);
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    SIGNALS.load(Ordering::Relaxed) > 0
}
