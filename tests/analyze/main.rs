//! Analysis against others.
//!
//! - `peers`: importance against what llama.cpp computes, and our files in its hands, where the
//!   environment names its library (`LLM_QUANTIZE_TEST_LLAMA_LIB`).

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "../parity/llama_library.rs"]
mod llama_library;
mod peers;
