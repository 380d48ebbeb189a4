//! Makes language models small: reads Hugging Face and GGUF models, quantizes them to GGUF at every
//! level of llama.cpp, or factorizes their linear layers into binary low-rank factors (below one
//! bit per weight) in `.littlebit` files, measures what that cost, and runs the result from its
//! packed bits.
//!
//! Layers, outermost first; each uses only those below it:
//!
//! | module | role |
//! |---|---|
//! | [`cli`] | arguments, output, progress bars: the only code that prints or reads the environment |
//! | [`quantize`], [`littlebit`], [`convert`] | the jobs that write models |
//! | [`analyze`], [`profile`], [`quality`], [`eval`], [`calibration`] | what matters in a model, and what a change cost |
//! | [`inference`] | the decoder graph over exchangeable linear layers |
//! | [`source`], [`formats`], [`checkpoint`] | models in, files out, work kept |
//! | [`linalg`], [`tensor`], [`backend`] | matrices, stored types, devices |
//! | [`confine`] | libraries at work on files that anyone may have made |
//!
//! The library never prints, never exits and never reads the environment. Shapes are written
//! `[rows, cols]`; a linear layer's weight is `[out, in]`.

pub mod analyze;
pub mod arch;
pub mod backend;
pub mod calibration;
pub mod checkpoint;
pub mod cli;
pub mod confine;
pub mod convert;
pub mod error;
pub mod eval;
pub mod formats;
pub mod inference;
pub mod linalg;
pub mod littlebit;
pub mod profile;
pub mod progress;
pub mod quality;
pub mod quantize;
pub(crate) mod redact;
pub mod settings;
pub mod source;
pub mod suggest;
pub mod tensor;

pub use error::{Error, Result};
