//! Measuring and what it needs, checked against definitions computed by brute force, closed forms
//! and other programs' figures.
//!
//! - `texts`: user files, good and hostile, and the choice of text
//! - `windows`: how text is cut
//! - `perplexity`: perplexity and divergence of models whose probabilities are known
//! - `statistics`: activation statistics
//! - `coherence`: the coherence test tells sense from nonsense
//! - `decoder`: the same through the real decoder, with random weights
//! - `tasks`: benchmarks against llama.cpp's logits; `llama_library` calls it
//! - `peers`: a real model against figures of llama.cpp
//!
//! `models` has the models with known probabilities that the others use.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]
#![expect(clippy::format_collect, reason = "short texts, written as they read")]

mod coherence;
mod decoder;
#[cfg(unix)]
#[path = "../parity/llama_library.rs"]
#[expect(dead_code, reason = "shared with the tests of the decoder")]
mod llama_library;
mod models;
mod peers;
mod perplexity;
mod statistics;
#[cfg(unix)]
mod tasks;
mod texts;
mod windows;
