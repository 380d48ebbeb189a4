//! Quantization of whole models to other formats than `.littlebit`: which type each tensor gets, and
//! the files that hold them.

pub mod checkpoints;
pub mod gguf;
pub mod packed;
