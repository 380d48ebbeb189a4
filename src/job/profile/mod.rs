//! Types of each tensor's own: profiles ([`mod@format`], [`presets`], [`store`]), what their rules mean
//! for a model ([`rules`], [`widths`], [`validate`]), how one is made ([`create`]), and what the
//! model loses by the error of one tensor ([`sensitivity`] measured, [`weight`] estimated).

pub mod format;
pub mod presets;
pub mod rules;
pub mod sensitivity;
pub mod store;
pub mod weight;
pub mod widths;

pub use format::{Assignment, Profile, Strategy};
pub use rules::Rules;
