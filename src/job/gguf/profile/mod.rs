//! Profiles beside a model: made from one, and checked against one.

pub mod create;
pub mod validate;
