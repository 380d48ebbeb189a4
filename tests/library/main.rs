//! The library, against independent references: definitions computed by brute force, closed forms,
//! bytes made by hand, recorded answers of other programs, other crates. Needs nothing that is not
//! in the repository.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and report like the tests themselves"
)]
#![expect(clippy::format_collect, reason = "short texts, written as they read")]

mod checkpoints; // torn and flipped files, other runs and processes, many threads, SIGKILL
mod hub; // a fake hub on loopback; its cache beside the `hf-hub` crate

/// Opening models: directories, GGUF files, tokenizers, chat templates.
mod sources {
    mod gguf_file; // the GGUF container
    mod gguf_model; // GGUF files as models, beside the same weights in a directory
    mod hf; // Hugging Face directories, whole, damaged and unsupported
    mod tiny; // small random models built in the test, as safetensors and as GGUF
    mod tokenizers; // tokenizers rebuilt from metadata, long texts, streams
}

/// The decoder against other implementations of the same models.
mod decoder {
    mod candle; // candle-transformers' llama, mistral, qwen2 and qwen3 on the same weights
    mod consistency; // the decoder against itself: cache, batch, threads, both ways to compute
    mod options; // every option of the graph against `reference`
    mod reference; // a forward pass in f64, written as plainly as possible
    mod tiny; // models of random weights from a seed
}

/// Measuring and what it needs.
mod evaluation {
    mod coherence; // the coherence test tells sense from nonsense
    mod decoder; // the same through the real decoder, with random weights
    mod models; // models with known probabilities that the others use
    mod perplexity; // perplexity and divergence of models whose probabilities are known
    mod statistics; // activation statistics
    mod texts; // user files, good and hostile, and the choice of text
    mod tiny_model; // the model of the repository against the program that trained it
    mod windows; // how text is cut
}

/// Binary factors: how they are found, planned, and multiplied.
mod factorization {
    mod kernels; // packed signs against sums in f64, and kernels against each other bit for bit
    mod planner; // plans for published model shapes against arithmetic and the papers' figures
    mod solvers; // the solvers against explicit reconstructions, planted solutions, each other
}

/// The `.littlebit` format.
mod littlebit_file {
    mod allocation; // the largest allocation of a thread, for hostile inputs
    mod by_the_book; // a reader that knows only docs/littlebit-format.md
    mod damage; // truncated, flipped and hostile files
    mod export; // ranks and scales apart from the bits
    mod info; // what `littlebit info` reports
    mod round_trip; // what is written comes back; sizes known in advance; equal bytes
    mod samples; // a small random model in factors
    mod worked_example; // the file printed in the document
}

/// GGUF files as this crate writes them, against bytes made by hand and the sources.
mod gguf_written {
    mod architectures; // metadata and tensors of every Hugging Face class
    mod container; // layout, writer, split files
    mod general; // names, model cards, sampling
    mod round_trip; // directories against the files made from them: token ids and logits
    mod settings; // every setting is written, multiplied in, warned of or refused
    mod tokenizers; // vocabularies, pre-tokenizers, special tokens, chat templates
}

/// Quantization and conversion of whole models.
mod quantization {
    mod conversions; // perplexity before and after every conversion of the tiny model
    mod importance; // importance matrix files, built from the description of the formats
    mod mixes; // the type of every tensor of three real models, against llama.cpp's answers
    mod super_weights; // a super weight, planted: lost without protection
}

mod gguf_bytes; // writes GGUF files, well formed or not

// Shared with the other programs.
#[path = "../common/conversions.rs"]
mod conversions; // every conversion of a model, and the perplexity of its result
#[path = "../common/directories.rs"]
mod directories; // Hugging Face directories of tiny models of every class
#[path = "../common/export.rs"]
mod export; // writes a model at full precision
#[path = "../common/fake_hub.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod fake_hub; // a hub on loopback
#[path = "../common/logits.rs"]
mod logits; // logits of a decoder, and how far they are from others
#[path = "../common/round_trip.rs"]
mod round_trip; // a directory beside the file made from it
