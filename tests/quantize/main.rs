//! GGUF quantization.
//!
//! - `mixes`: the type of every tensor of three real models at every level, against llama.cpp.
//! - `importance`: importance matrix files, built byte by byte from the description of the formats.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod importance;
mod mixes;
