//! What models compute: one description per family, from which everything else follows.
//!
//! A [`Family`] says how its `config.json` is read and written and what its blocks are made of; a
//! [`spec::BlockSpec`] is a block of one model as data. Nothing outside of this module asks which
//! family a model belongs to.

pub mod catalog;
pub mod config;
pub mod config_json;
mod config_rope;
pub mod families;
pub mod family;
pub mod names;
pub(crate) mod role;
pub mod spec;
pub mod tensors;

pub use config::ModelConfig;
pub use family::Family;
pub use spec::{BlockSpec, Slot};
