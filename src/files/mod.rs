//! Files: what they are, and the layouts that this crate reads and writes itself. Nothing here knows
//! what a model computes.

pub mod atomic;
pub(crate) mod chat_files;
pub mod checkpoint;
pub(crate) mod detect;
pub mod gguf;
pub mod imatrix;
pub mod littlebit;
pub(crate) mod lock;
pub mod model_directory;
pub mod packed;
pub(crate) mod pieces;
pub(crate) mod present;
pub(crate) mod safetensors;
pub(crate) mod scratch;
pub(crate) mod space;
pub mod super_weights;
pub(crate) mod texts;
