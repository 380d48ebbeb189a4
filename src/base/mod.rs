//! What everything uses: errors, progress, opening inputs, JSON, and the words of messages.

pub(crate) mod bytes;
pub(crate) mod error;
pub(crate) mod input;
pub(crate) mod json;
pub(crate) mod lists;
pub mod progress;
pub(crate) mod redact;
pub(crate) mod size;
pub(crate) mod suggest;

pub use bytes::SharedBytes;
pub use error::{Error, Result};
