//! Types of each tensor's own: profiles ([`mod@format`], [`presets`], [`store`]), what their rules mean
//! for a tensor ([`rules`], [`widths`]), and what the model loses by the error of one tensor
//! ([`sensitivity`] measured, [`weight`] estimated). [`job::gguf::profile`](super::gguf::profile)
//! makes them and checks them against a model.

pub(crate) mod format;
pub(crate) mod presets;
pub(crate) mod rules;
pub(crate) mod sensitivity;
pub(crate) mod store;
pub(crate) mod weight;
pub(crate) mod widths;

pub use format::{Assignment, Profile, Strategy};
pub use rules::Rules;
