//! The work of the commands: each takes a request, refuses early what cannot be done, says what it
//! will do, does it and reports.
//!
//! Lowest first, each using only those above it: [`checkpoints`] and [`activations`], which several
//! share; [`quality`] and [`profile`]; [`gguf`]; [`analyze`]; [`packed`]; [`littlebit`]; [`convert`].

pub mod activations;
pub mod analyze;
pub mod checkpoints;
pub mod convert;
pub mod gguf;
pub mod littlebit;
pub mod packed;
pub mod profile;
pub mod quality;

pub use checkpoints::Checkpoints;
