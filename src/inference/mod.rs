//! The decoder graph and generation.

pub mod linear;
