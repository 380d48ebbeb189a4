//! The decoder against other implementations of the same models.
//!
//! - `architectures`: models of transformers' own classes with its answers, where the environment
//!   names them.
//! - `candle`: candle-transformers' llama, mistral, qwen2 and qwen3 on the same weights.
//! - `options`: a forward pass in f64, written for these tests as plainly as possible
//!   (`reference`), for every option of the graph.
//! - `consistency`: the decoder against itself: cache, batch, threads, both ways to compute.
//! - `encoders`: block encoders against ggml's library, where the environment names it;
//!   `ggml_library` calls it.
//! - `llama_cpp`: llama.cpp itself on a real model, where the environment names both;
//!   `llama_library` calls it.
//!
//! `tiny` makes the models: random weights from a seed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

#[path = "parity/architectures.rs"]
mod architectures;
#[path = "parity/candle.rs"]
mod candle;
#[path = "parity/consistency.rs"]
mod consistency;
#[path = "parity/encoders.rs"]
mod encoders;
#[path = "parity/ggml_library.rs"]
mod ggml_library;
#[cfg(unix)]
#[path = "parity/llama_cpp.rs"]
mod llama_cpp;
#[cfg(unix)]
#[path = "parity/llama_library.rs"]
#[expect(dead_code, reason = "shared with the tests of written GGUF files")]
mod llama_library;
#[path = "parity/options.rs"]
mod options;
#[path = "parity/reference.rs"]
mod reference;
#[path = "parity/tiny.rs"]
mod tiny;
