//! Weights as they lie in files: bytes that are mapped once and shared, and the types they are
//! stored in.

pub mod bytes;
pub mod ggml;
pub mod stored;
pub mod stored_type;

pub use bytes::SharedBytes;
pub use stored::{RowOrder, StoredTensor, StoredType};
