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

pub mod arch;
pub mod base;
pub mod cli;
pub mod codec;
pub mod confine;
pub mod device;
pub mod files;
pub mod graph;
pub mod hub;
pub mod job;
pub mod linalg;
pub mod measure;
pub mod model;
pub mod settings;
pub mod text;
pub mod tokenizer;
pub mod weight;

pub use crate::base::error::{Error, Result};
