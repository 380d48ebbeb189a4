//! The tensor types that levels ask for, by ggml's numbers.

use super::types::{TENSOR_TYPES, TensorType};
use crate::codec::StoredType;

/// A tensor type that a level can ask for. The numbers are those of GGUF files; whether this crate
/// can write one is [`ggml::can_encode`](crate::codec::ggml::can_encode)'s answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are ggml's")]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

impl GgmlType {
    /// All types, by number.
    pub const ALL: [Self; 28] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ3_XXS,
        Self::IQ1_S,
        Self::IQ4_NL,
        Self::IQ3_S,
        Self::IQ2_S,
        Self::IQ4_XS,
        Self::IQ1_M,
        Self::BF16,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4,
        Self::NVFP4,
        Self::Q1_0,
        Self::Q2_0,
    ];

    /// Its line in the table of GGUF types.
    #[must_use]
    pub fn layout(self) -> &'static TensorType {
        // Every number of the enum is in the table; the tests go through all of them.
        TensorType::from_id(self as u32).unwrap_or(&TENSOR_TYPES[0])
    }

    /// ggml's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// The type of that name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The type that holds `stored` values in a file.
    #[must_use]
    pub fn of_stored(stored: StoredType) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.layout().stored == stored)
    }

    /// Whether rows of `columns` values fill its blocks.
    #[must_use]
    pub fn fits(self, columns: usize) -> bool {
        columns.is_multiple_of(self.layout().block_values)
    }

    /// Whether values lose precision by the block rather than one by one.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bits that a value takes, block overhead included.
    #[must_use]
    pub fn bits_per_weight(self) -> f64 {
        let layout = self.layout();
        (layout.block_bytes * 8) as f64 / layout.block_values as f64
    }

    /// Bytes of a tensor of `shape` (outermost first), or `None` if its rows do not fill blocks.
    #[must_use]
    pub fn byte_length(self, shape: &[usize]) -> Option<u64> {
        self.layout().byte_length(shape).map(|bytes| bytes as u64)
    }

    /// What to write instead where rows do not fill blocks: a type with blocks of 32, and where
    /// those do not fit either, F16.
    #[must_use]
    pub fn fallback(self, columns: usize) -> Self {
        if self.fits(columns) {
            return self;
        }
        let narrower = match self {
            Self::IQ1_S
            | Self::IQ1_M
            | Self::IQ2_XXS
            | Self::IQ2_XS
            | Self::IQ2_S
            | Self::IQ3_XXS
            | Self::IQ3_S
            | Self::IQ4_XS => Self::IQ4_NL,
            Self::Q2_K | Self::Q3_K | Self::TQ1_0 | Self::TQ2_0 | Self::Q1_0 | Self::Q2_0 => {
                Self::Q4_0
            }
            Self::Q4_K | Self::NVFP4 => Self::Q5_0,
            Self::Q5_K => Self::Q5_1,
            Self::Q6_K => Self::Q8_0,
            _ => Self::F16,
        };
        if narrower.fits(columns) { narrower } else { Self::F16 }
    }

    /// Whether a tensor of this type is worthless without an importance matrix, so that
    /// llama-quantize refuses to write one (token embeddings and output excepted).
    #[must_use]
    pub const fn needs_importance(self) -> bool {
        matches!(
            self,
            Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS | Self::IQ2_S | Self::IQ3_XXS
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_the_table_under_its_name() {
        for kind in GgmlType::ALL {
            assert_eq!(kind.layout().id, kind as u32, "{kind:?}");
            assert_eq!(format!("{kind:?}"), kind.name());
            assert_eq!(GgmlType::from_name(&kind.name().to_lowercase()), Some(kind));
        }
    }

    /// The chain of llama.cpp's `tensor_type_fallback`.
    #[test]
    fn narrow_rows_fall_back() {
        use super::GgmlType::{
            F16, F32, IQ1_S, IQ2_XXS, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K,
            Q6_K, Q8_0, TQ1_0, TQ2_0,
        };
        for (from, to) in [
            (IQ1_S, IQ4_NL),
            (IQ2_XXS, IQ4_NL),
            (IQ4_XS, IQ4_NL),
            (Q2_K, Q4_0),
            (Q3_K, Q4_0),
            (TQ1_0, Q4_0),
            (TQ2_0, Q4_0),
            (Q4_K, Q5_0),
            (Q5_K, Q5_1),
            (Q6_K, Q8_0),
            (Q8_0, Q8_0),
        ] {
            assert_eq!(from.fallback(576), to);
            assert_eq!(from.fallback(172), F16);
            assert_eq!(from.fallback(2048), from);
        }
        assert_eq!(F32.fallback(7), F32);
    }
}
