//! The GGUF container: metadata, tensor directory, mapped tensor data. Versions 2 and 3 are read,
//! version 3 is written.
//!
//! The reader keeps the order of the file, knows every tensor type of ggml by name and size
//! ([`StoredType`](crate::codec::StoredType)), and refuses what llama.cpp's loader refuses:
//! duplicate names, offsets that are not the running sum of the padded sizes, types out of range,
//! rows that do not fill whole blocks, more than four dimensions, data outside the file.
//! The writer knows every byte's place before it writes the first ([`FileLayout`]), and puts files
//! into place only when they are whole ([`GgufWriter`]; [`PartialGguf`] can be taken up again).
//! Format: `docs/gguf.md` of ggml.

mod cursor;
mod layout;
mod partial;
mod reader;
mod value;
mod writer;

pub use layout::{FileLayout, LayoutFile, PlannedTensor, split_path};
pub use partial::{PartialGguf, part_path};
pub use reader::{GgufFile, TensorInfo};
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, WrittenFile};
