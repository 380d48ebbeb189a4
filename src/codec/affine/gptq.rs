//! What of the layout of GPTQ checkpoints is needed to read their integers.

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Less one: `checkpoint_format` "gptq".
    V1,
    /// As they are: `checkpoint_format` "gptq_v2".
    V2,
}

/// Whether the layout can hold such a layer: columns and rows of integers must fill 32-bit words.
#[must_use]
pub(crate) fn fits(out: usize, inputs: usize, bits: u8) -> bool {
    let bits = usize::from(bits);
    (inputs * bits).is_multiple_of(32) && (out * bits).is_multiple_of(32)
}
