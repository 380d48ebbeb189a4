//! Opening models: directories, GGUF files, tokenizers, chat templates.
//!
//! - `tiny`: small random models built in the test, as safetensors and as GGUF
//! - `gguf_bytes`: writes GGUF files, well formed or not
//! - `gguf_file`: the GGUF container
//! - `gguf_model`: GGUF files as models, beside the same weights in a directory
//! - `tokenizers_test`: tokenizers rebuilt from metadata, long texts, streams
//! - `hf`: Hugging Face directories, whole, damaged and unsupported
//! - `real`: a real model against llama.cpp (needs files that are not in the repository)
//! - `llama`: llama.cpp's library for `real`

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking and tell what they skip"
)]

#[path = "sources/gguf_bytes.rs"]
mod gguf_bytes;
#[path = "sources/gguf_file.rs"]
mod gguf_file;
#[path = "sources/gguf_model.rs"]
mod gguf_model;
#[path = "sources/hf.rs"]
mod hf;
#[path = "sources/llama.rs"]
mod llama;
#[path = "sources/real.rs"]
mod real;
#[path = "sources/tiny.rs"]
mod tiny;
#[path = "sources/tokenizers.rs"]
mod tokenizers_test;
