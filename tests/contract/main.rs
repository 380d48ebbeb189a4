//! The contract of the command line, tested on the real binary: exit codes, JSON documents, what
//! goes to which stream.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod workspace; // a private folder and a way to run the binary in it

/// What holds for every command.
mod every_command {
    mod accounting; // tensors, heads, names and settings that must not be lost
    mod docs; // the documentation says what the binary says
    mod early; // what is refused, and said, before a model is downloaded
    mod errors; // every exit code, provoked by a real cause
    mod extremes; // values that a format cannot hold, refused or named
    mod options; // every option does something or is refused
    mod outlives; // terminals, signals, threads and folders that fail a run
    mod streams; // stdout and stderr discipline, verbosity, help
    #[cfg(unix)]
    mod untrusted; // templates, tokenizers, names, pipes and devices that mean no good
    mod words; // warnings, `--format` anywhere, the last line, names that were meant
}

/// `littlebit compress`, `convert`, `info`, `validate`.
mod littlebit {
    mod compress; // `littlebit compress` end to end on the tiny model, and its JSON
    mod convert; // `littlebit convert`, and `compress --format`
    mod inspect; // `littlebit info`, `littlebit validate`; `info` and `generate` of any file
    mod layer_errors; // `--include-layers` where scales were moved, and more models than styles
    mod recipe; // `--effort` and `--recipe`, and where a recipe is written down
    mod recovery; // tuning and distillation after factorization
    mod resume; // checkpoints, kills, Ctrl-C
}

/// `quantize MODEL gguf|gptq|awq|smoothquant`, and the profiles of `-q dynamic`.
mod quantize {
    mod dynamic; // `quantize MODEL gguf -q dynamic`
    mod gguf; // `quantize MODEL gguf`
    mod packed; // `quantize MODEL awq|gptq|smoothquant`
    mod profile; // `profile`
    mod resume; // what becomes of `quantize MODEL gguf` when it is interrupted
}

/// `analyze` and `quality`.
mod measure {
    mod analyze; // importance matrices, super weights, their files and pictures
    pub(crate) mod quality; // `quality report` and `compare`, and what other commands measure
}

mod convert; // top-level `convert`, and what `info` and `generate` make of its directories

// Shared with the other programs.
#[path = "../common/fake_hub.rs"]
#[allow(dead_code, reason = "the tests of the library use the rest")]
mod fake_hub; // a hub on loopback
#[path = "../common/handmade.rs"]
mod handmade; // a small GGUF model, made byte by byte
