//! A model as a Hugging Face directory, written: shards of tensors, their index, and the files beside
//! them.

mod companions;
mod layout;
mod writer;

pub(crate) use companions::COPIED;
pub use companions::SideFile;
pub(crate) use writer::check_target;
pub use writer::{DEFAULT_SHARD_BYTES, DirectoryWriter, TensorSlot, WrittenDirectory};
