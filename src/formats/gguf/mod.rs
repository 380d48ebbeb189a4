//! The GGUF container, versions 2 and 3: metadata, tensor directory, mapped tensor data.
//!
//! The reader keeps the order of the file, knows every tensor type of ggml by name and size (also
//! those whose values this crate does not decode), and refuses what llama.cpp's loader refuses:
//! duplicate names, offsets that are not the running sum of the padded sizes, types out of range,
//! rows that do not fill whole blocks, more than four dimensions, data outside the file.
//! Format: `docs/gguf.md` of ggml.

mod cursor;
mod reader;
mod types;
mod value;

pub use reader::{GgufFile, TensorInfo};
pub use types::{TENSOR_TYPES, TensorType};
pub use value::{Array, Value, ValueType};
