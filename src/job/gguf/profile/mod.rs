//! Profiles beside a model: made from one, and checked against one.

pub(crate) mod create;
pub(crate) mod validate;
