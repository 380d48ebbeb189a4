//! The tensor types of ggml: ids, names and block sizes.

use crate::codec::StoredType;

/// An element type as GGUF files number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// The number in the file.
    pub id: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Values in a block.
    pub block_values: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// How its values are read.
    pub stored: StoredType,
}

const fn known(id: u32, stored: StoredType) -> TensorType {
    let (block_values, block_bytes) = stored.block();
    TensorType { id, name: stored.name(), block_values, block_bytes, stored }
}

/// All types, by id. Numbers that are missing were withdrawn or never reach a file.
pub const TENSOR_TYPES: [TensorType; 33] = [
    known(0, StoredType::F32),
    known(1, StoredType::F16),
    known(2, StoredType::Q4_0),
    known(3, StoredType::Q4_1),
    known(6, StoredType::Q5_0),
    known(7, StoredType::Q5_1),
    known(8, StoredType::Q8_0),
    known(10, StoredType::Q2_K),
    known(11, StoredType::Q3_K),
    known(12, StoredType::Q4_K),
    known(13, StoredType::Q5_K),
    known(14, StoredType::Q6_K),
    known(16, StoredType::IQ2_XXS),
    known(17, StoredType::IQ2_XS),
    known(18, StoredType::IQ3_XXS),
    known(19, StoredType::IQ1_S),
    known(20, StoredType::IQ4_NL),
    known(21, StoredType::IQ3_S),
    known(22, StoredType::IQ2_S),
    known(23, StoredType::IQ4_XS),
    known(24, StoredType::I8),
    known(25, StoredType::I16),
    known(26, StoredType::I32),
    known(27, StoredType::I64),
    known(28, StoredType::F64),
    known(29, StoredType::IQ1_M),
    known(30, StoredType::BF16),
    known(34, StoredType::TQ1_0),
    known(35, StoredType::TQ2_0),
    known(39, StoredType::MXFP4),
    known(40, StoredType::NVFP4),
    known(41, StoredType::Q1_0),
    known(42, StoredType::Q2_0),
];

impl TensorType {
    /// The type with that number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<&'static Self> {
        TENSOR_TYPES.iter().find(|kind| kind.id == id)
    }

    /// Bytes of a tensor, or `None` if rows do not fill whole blocks or the size overflows.
    /// `shape` is outermost first.
    #[must_use]
    pub fn byte_length(&self, shape: &[usize]) -> Option<usize> {
        let (columns, outer) = shape.split_last()?;
        if !columns.is_multiple_of(self.block_values) {
            return None;
        }
        let row = (columns / self.block_values).checked_mul(self.block_bytes)?;
        outer.iter().try_fold(row, |bytes, &dimension| bytes.checked_mul(dimension))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits per weight as ggml publishes them, for types whose block sizes are stated nowhere else
    /// in this crate.
    #[test]
    fn sizes_are_those_of_ggml() {
        for (name, bits) in [
            ("IQ2_XXS", 2.0625),
            ("IQ2_XS", 2.3125),
            ("IQ3_XXS", 3.0625),
            ("IQ1_S", 1.5625),
            ("IQ4_NL", 4.5),
            ("IQ3_S", 3.4375),
            ("IQ2_S", 2.5625),
            ("IQ4_XS", 4.25),
            ("IQ1_M", 1.75),
            ("TQ1_0", 1.6875),
            ("TQ2_0", 2.0625),
            ("MXFP4", 4.25),
            ("NVFP4", 4.5),
            ("Q1_0", 1.125),
            ("Q2_0", 2.25),
            ("Q2_K", 2.625),
            ("Q3_K", 3.4375),
            ("Q4_K", 4.5),
            ("Q5_K", 5.5),
            ("Q6_K", 6.5625),
        ] {
            let kind = TENSOR_TYPES.iter().find(|kind| kind.name == name).unwrap();
            let actual = (kind.block_bytes * 8) as f64 / kind.block_values as f64;
            assert!((actual - bits).abs() < 1e-12, "{name}: {actual}");
        }
        for (i, kind) in TENSOR_TYPES.iter().enumerate() {
            assert!(TENSOR_TYPES[..i].iter().all(|k| k.id != kind.id && k.name != kind.name));
        }
    }
}
