//! GGUF files as this crate writes them, against bytes made by hand, llama.cpp and the sources.
//!
//! - `container`: layout, writer, split files.
//! - `architectures`: metadata and tensors of every Hugging Face class.
//! - `tokenizers`: vocabularies, pre-tokenizers, special tokens, chat templates.
//! - `general`: names, model cards, sampling.
//! - `settings`: every setting of a configuration is written, multiplied in, warned of or refused.
//! - `transformers`: llama.cpp on the files against the answers of transformers.
//! - `round_trip`: directories against the files made from them: token ids and logits, with our own
//!   reader and, where the environment names its library, with llama.cpp.
//!
//! - `others`: architectures that this crate does not run: llama.cpp on the files against
//!   candle-transformers on the directories.
//!
//! `directories` makes the directories, `export` writes a model at full precision.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

#[path = "gguf_export/architectures.rs"]
mod architectures;
#[path = "gguf_export/container.rs"]
mod container;
#[path = "gguf_export/directories.rs"]
mod directories;
#[path = "gguf_export/export.rs"]
mod export;
#[path = "gguf_export/general.rs"]
mod general;
#[path = "sources/gguf_bytes.rs"]
mod gguf_bytes;
#[cfg(unix)]
#[path = "gguf_export/llama.rs"]
mod llama;
#[cfg(unix)]
#[path = "parity/llama_library.rs"]
#[expect(dead_code, reason = "shared with the tests of the decoder")]
mod llama_library;
#[cfg(unix)]
#[path = "gguf_export/others.rs"]
mod others;
#[path = "gguf_export/round_trip.rs"]
mod round_trip;
#[path = "gguf_export/settings.rs"]
mod settings;
#[path = "gguf_export/tokenizers.rs"]
mod tokenizers;
#[cfg(unix)]
#[path = "gguf_export/transformers.rs"]
mod transformers;
