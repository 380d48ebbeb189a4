//! The work of the commands: each takes a request, refuses early what cannot be done, says what it
//! will do, does it and reports.
//!
//! Lowest first, each using only those above it: [`checkpoints`] and [`activations`], which several
//! share; [`quality`] and [`profile`]; [`gguf`]; [`analyze`]; [`packed`]; [`littlebit`]; [`convert`].

pub(crate) mod activations;
pub mod analyze;
pub(crate) mod checkpoints;
pub(crate) mod convert;
pub mod gguf;
pub mod littlebit;
pub(crate) mod packed;
pub mod profile;
pub(crate) mod quality;

pub use checkpoints::Checkpoints;
