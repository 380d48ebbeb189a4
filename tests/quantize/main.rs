//! GGUF quantization.
//!
//! - `mixes`: the type of every tensor of three real models at every level, against llama.cpp.
//! - `importance`: importance matrix files, built byte by byte from the description of the formats.
//! - `peers`: whole files against llama.cpp's own quantization, where the environment names its
//!   library; `handmade` makes a model for that.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

mod handmade;
mod importance;
#[cfg(unix)]
#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "../parity/llama_library.rs"]
mod llama_library;
mod mixes;
#[cfg(unix)]
mod peers;
mod super_weights;
