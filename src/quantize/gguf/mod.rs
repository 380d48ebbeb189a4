//! Models as GGUF files: what a model would hold at full precision, whatever it was read from.

mod finite;
mod from_gguf;
mod hf;
pub mod model;
mod tensor;

pub use finite::{NonFinite, first_non_finite};
pub use model::{GgufModel, ModelShape, SourceOptions, open};
pub use tensor::GgufTensor;
