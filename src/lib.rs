//! Makes language models small: reads Hugging Face and GGUF models, quantizes them to GGUF at every
//! level of llama.cpp, or factorizes their linear layers into binary low-rank factors (below one
//! bit per weight) in `.littlebit` files, measures what that cost, and runs the result from its
//! packed bits.
//!
//! Layers, lowest first; each uses only those above it, as a test in `layers.rs` checks:
//!
//! | module | role |
//! |---|---|
//! | [`base`], [`confine`], [`linalg`], [`settings`], [`device`] | errors, progress, inputs; guarded libraries; matrices; what a user set; where tensors are computed |
//! | [`codec`] | numbers as files hold them: blocks of ggml, affine grids, signs |
//! | [`weight`] | a tensor of a model: stored, packed or factorized |
//! | [`files`] | the layouts that are read and written, and work that is kept |
//! | [`tokenizer`], [`hub`], [`arch`] | text to tokens; downloads; what a model of a family looks like |
//! | [`model`] | all of it opened as one [`LocalModel`](model::LocalModel) |
//! | [`text`], [`graph`], [`measure`] | what models read, how they are run, what is measured on them |
//! | [`job`] | the work of each command |
//! | [`cli`] | arguments, output, progress bars: the only code that prints or reads the environment |
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
#[cfg(test)]
mod layers;
pub(crate) mod linalg;
pub mod measure;
pub mod model;
pub mod settings;
pub mod text;
pub mod tokenizer;
pub mod weight;

pub use base::{Error, Result};
