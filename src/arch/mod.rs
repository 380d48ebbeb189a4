//! Architectures: hyper-parameters and where files say them, the tensors that a model has, and their
//! names.

pub mod catalog;
pub mod config;
pub mod config_json;
pub(crate) mod config_keys;
mod config_rope;
pub mod names;
pub(crate) mod role;

pub use config::{Architecture, ModelConfig};
