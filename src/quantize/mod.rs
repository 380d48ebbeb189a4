//! Quantization to other formats than `.littlebit`.

pub mod gguf;
