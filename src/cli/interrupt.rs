//! Signals. Ctrl-C: the first one asks the work to stop at the next safe point, the second one ends
//! the process. A file-size limit: an error of the write that hits it, not the end of the process.

#![allow(unsafe_code, reason = "signal dispositions have no safe interface")]

use std::sync::atomic::{AtomicUsize, Ordering};

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Makes a write beyond the file-size limit fail, so that the temporary file is removed and the
/// user is told; by default the signal would end the process.
pub(crate) fn survive_file_size_limit() {
    // SAFETY: SIG_IGN installs no handler, and nothing else in the process uses this signal.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    SIGNALS.load(Ordering::Relaxed) > 0
}

/// Takes over SIGINT and SIGTERM for the rest of the process.
#[expect(clippy::print_stderr, clippy::exit, reason = "this runs outside of any command")]
pub(crate) fn install() {
    let handler = || {
        if SIGNALS.fetch_add(1, Ordering::Relaxed) == 0 {
            eprintln!("\nStopping after the current layer; press Ctrl-C again to stop at once");
        } else {
            std::process::exit(130);
        }
    };
    // Without a handler the default action remains, which ends the process: checkpoints are
    // written so that this loses one layer at most.
    let _ = ctrlc::set_handler(handler);
}
