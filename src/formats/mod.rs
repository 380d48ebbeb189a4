//! Files: what they are, and the layouts that this crate reads and writes itself.

pub mod atomic;
pub mod detect;
pub mod gguf;
pub mod gguf_ext;
pub mod imatrix;
pub(crate) mod input;
pub mod littlebit;
pub(crate) mod lock;
pub mod model_directory;
pub mod packed;
pub(crate) mod pieces;
pub mod scratch;
pub mod size;
pub mod space;
pub mod super_weights;
