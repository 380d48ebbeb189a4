//! GGUF at every level of llama.cpp: [`level`] names them, [`mix`] chooses a type for each tensor.

pub mod ggml_type;
pub mod level;
pub mod mix;
