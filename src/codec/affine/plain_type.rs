//! The halves in which checkpoints keep what is not packed.

use half::{bf16, f16};

/// Element type of the tensors that stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl PlainType {
    /// The value that the type holds for `value`.
    #[must_use]
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// `values` as little-endian bytes.
    #[must_use]
    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }

    /// `float16` or `bfloat16`, as `torch_dtype` has it.
    #[must_use]
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}
