//! The binary: everything is in the library.

use std::process::ExitCode;

use llm_quantize::confine::WatchedAllocator;

/// Bounds the memory of work on files that anyone may have made.
#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

/// How many threads candle's own pool has.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

fn main() -> ExitCode {
    keep_candle_from_spinning();
    llm_quantize::cli::main()
}

/// Candle's pool waits for its other threads in a busy loop, at the end of every operation on a
/// tensor. Work is spread by rayon here, and that loop took two fifths of the processor's time while a
/// model learned; one thread has nobody to wait for.
#[expect(unsafe_code, reason = "the environment can be changed in no other way")]
fn keep_candle_from_spinning() {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: this is the first thing that the program does; no other thread exists that could
        // read the environment meanwhile.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
}
