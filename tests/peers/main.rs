//! Against real peers: llama.cpp's library, real models, answers of transformers,
//! a Python package.
//!
//! Every test here needs something that is not in the repository, so every one is ignored, with
//! what it needs as the reason: `cargo test --test peers -- --ignored` runs them all, and one that
//! lacks what its reason names fails. `.ci/run` fetches what can be fetched, runs what it has the
//! needs of, and lists the others.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]

mod needs; // what the environment names

/// llama.cpp's library, on models that are made here.
mod llama_cpp {
    mod architectures; // what this crate does not run: llama.cpp beside candle-transformers
    mod encoders; // rows of every block type, beside ggml's encoders
    mod files; // llama.cpp loads what is written, and does the same with it
    mod ggml; // calls ggml's encoders
    mod importance; // importance matrices beside the values in llama.cpp's graph
    pub(crate) mod library; // calls llama.cpp
    mod quantize; // whole files of every level, beside llama.cpp's own
}

/// SmolLM2-135M-Instruct, a model of 135 million weights in blocks of Q4_1.
mod smollm2 {
    mod benchmarks; // choices of a benchmark beside llama.cpp's logits
    mod conversions; // perplexity before and after every conversion
    mod factorization; // a real matrix beside another implementation
    mod logits; // all logits of a text, and greedy text, beside llama.cpp's
    mod perplexity; // perplexity beside llama.cpp's; coherence
    mod source; // shape, values, token ids, chat format
}

/// stories15M, a model in f32 with the tokenizer of Llama 2.
mod stories15m {
    mod round_trip; // the directory against the files made from it
}

/// Tiny models of transformers' classes with transformers' answers.
mod transformers {
    mod decoder; // our decoder gives the same answers
    mod files; // llama.cpp gives the same answers for the files made from them
}

/// The Python package that llama.cpp's converter writes with.
mod python_gguf {
    mod reader; // it reads what is written: values of every type, metadata, vocabulary
}

/// The text that the papers measure with.
mod wikitext {
    mod archive; // out of the archive of the hub
}

// Shared with the other programs.
#[path = "../common/conversions.rs"]
mod conversions; // every conversion of a model, and the perplexity of its result
#[path = "../common/directories.rs"]
#[allow(dead_code, reason = "the tests of the library use the rest")]
mod directories; // Hugging Face directories of tiny models of every class
#[path = "../common/export.rs"]
mod export; // writes a model at full precision
#[path = "../common/handmade.rs"]
mod handmade; // a small GGUF model, made byte by byte
#[path = "../common/logits.rs"]
mod logits; // logits of a decoder, and how far they are from others
#[path = "../common/round_trip.rs"]
mod round_trip; // a directory beside the file made from it
