//! Quantization of whole models: which type each tensor gets, and the files that hold them.

pub mod gguf;
