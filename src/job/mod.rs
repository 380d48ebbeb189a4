//! Quantization of whole models to other formats than `.littlebit`: which type each tensor gets, and
//! the files that hold them.

pub mod activations;
pub mod analyze;
pub mod checkpoints;
pub mod convert;
pub mod gguf;
pub mod littlebit;
pub mod packed;
pub mod profile;
pub mod quality;

pub use checkpoints::Checkpoints;
