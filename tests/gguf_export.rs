//! GGUF files as this crate writes them, against bytes made by hand, llama.cpp and the sources.
//!
//! - `container`: layout, writer, split files.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

#[path = "gguf_export/container.rs"]
mod container;
#[path = "sources/gguf_bytes.rs"]
mod gguf_bytes;
