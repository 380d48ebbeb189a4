//! AWQ (arXiv 2306.00978): channels with large activations are made larger before rounding and
//! their inputs smaller, so that what matters most is rounded finest; then ranges are clipped where
//! that costs less than it gains.
//!
//! Scales go where they cost nothing: into the norm before q, k, v and gate, up; into the rows of v
//! before o; into the rows of up before down. With grouped keys a channel of v feeds several
//! channels of o, which then share a scale.

pub(crate) mod clip;
pub(crate) mod scales;
