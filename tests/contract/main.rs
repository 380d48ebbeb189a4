//! The contract of the command line, tested on the real binary: exit codes, JSON documents, what
//! goes to which stream.
//!
//! - `accounting`: tensors, heads, names and settings that must not be lost, by every command
//! - `analyze`: importance matrices, super weights, their files and pictures
//! - `common`: a private folder and a way to run the binary
//! - `compress`: `littlebit compress` end to end on the tiny model, and its JSON
//! - `convert`: `littlebit convert`, and `compress --format`
//! - `convert_packed`: top-level `convert`, and what `info` and `generate` make of its directories
//! - `dynamic`, `profile`: `quantize MODEL gguf -q dynamic`, `profile`
//! - `layer_errors`: `--include-layers` where scales were moved, and more models than styles
//! - `errors`: every exit code, provoked by a real cause
//! - `extremes`: values that a format cannot hold, refused or named
//! - `handmade`: a small GGUF model, made byte by byte
//! - `inspect`: `littlebit info`, `littlebit validate`, `info`, `generate`
//! - `options`: every option of every command does something or is refused
//! - `packed`: `quantize MODEL awq|gptq|smoothquant`
//! - `quality`: `quality report` and `compare`, and what other commands measure
//! - `quantize`, `quantize_resume`: `quantize MODEL gguf`, and what becomes of it when it is interrupted
//! - `recipe`: `--effort` and `--recipe`, and where a recipe is written down
//! - `recovery`: tuning and distillation after factorization
//! - `outlives`: terminals, signals, threads and folders that fail a run
//! - `resume`: checkpoints, kills, Ctrl-C
//! - `streams`: stdout and stderr discipline, verbosity, help
//! - `words`: warnings, `--format` anywhere, the last line, names that were meant
//! - `untrusted`: templates, tokenizers, names, pipes and devices that mean no good

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounting;
mod analyze;
mod common;
mod compress;
mod convert;
mod convert_packed;
mod docs;
mod dynamic;
mod early;
mod errors;
mod extremes;
#[path = "../quantize/handmade.rs"]
mod handmade;
mod inspect;
mod layer_errors;
mod options;
mod outlives;
mod packed;
mod profile;
mod quality;
mod quantize;
mod quantize_resume;
mod recipe;
mod recovery;
mod resume;
mod streams;
#[cfg(unix)]
mod untrusted;
mod words;
