//! A tensor in the type it is stored in, readable row by row as f32.

use std::ops::Range;

use rayon::prelude::*;

use super::{SharedBytes, ggml};
use crate::{Error, Result};

/// Element types that can be read: the plain ones of safetensors and the block types of GGUF.
/// Block layouts: `docs` of ggml, type ids as in the GGUF file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
pub enum StoredType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    Q1_0,
    Q2_0,
    MXFP4,
    NVFP4,
    I8,
    I16,
    I32,
    I64,
    F64,
}

impl StoredType {
    /// Values in a block and bytes that a block takes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 | Self::I32 => (1, 4),
            Self::F16 | Self::BF16 | Self::I16 => (1, 2),
            Self::I8 => (1, 1),
            Self::I64 | Self::F64 => (1, 8),
            Self::NVFP4 => (64, 36),
            Self::MXFP4 => (32, 17),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_0 => (64, 18),
            Self::Q1_0 => (128, 18),
            Self::IQ1_S => (256, 50),
            Self::TQ1_0 => (256, 54),
            Self::IQ1_M => (256, 56),
            Self::IQ2_XXS | Self::TQ2_0 => (256, 66),
            Self::IQ2_XS => (256, 74),
            Self::IQ2_S => (256, 82),
            Self::Q2_K => (256, 84),
            Self::IQ3_XXS => (256, 98),
            Self::Q3_K | Self::IQ3_S => (256, 110),
            Self::IQ4_XS => (256, 136),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of a row of `columns` values, or `None` if they do not fill whole blocks.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if columns.is_multiple_of(values) { (columns / values).checked_mul(bytes) } else { None }
    }

    /// The type with blocks of 32 that llama.cpp writes instead of one with larger blocks where
    /// rows do not fill those.
    #[must_use]
    pub const fn narrower(self) -> Option<Self> {
        match self {
            Self::IQ1_S
            | Self::IQ1_M
            | Self::IQ2_XXS
            | Self::IQ2_XS
            | Self::IQ2_S
            | Self::IQ3_XXS
            | Self::IQ3_S
            | Self::IQ4_XS => Some(Self::IQ4_NL),
            Self::Q2_0 | Self::Q2_K | Self::Q3_K | Self::TQ1_0 | Self::TQ2_0 => Some(Self::Q4_0),
            Self::Q4_K => Some(Self::Q5_0),
            Self::Q5_K => Some(Self::Q5_1),
            Self::Q6_K => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Bits that a value takes, block overhead included.
    #[must_use]
    pub fn bits_per_weight(self) -> f64 {
        let (values, bytes) = self.block();
        (bytes * 8) as f64 / values as f64
    }

    /// The name in ggml's spelling (`Q4_K`), lower case in the `.littlebit` header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ1_S => "IQ1_S",
            Self::IQ1_M => "IQ1_M",
            Self::IQ2_XXS => "IQ2_XXS",
            Self::IQ2_XS => "IQ2_XS",
            Self::IQ2_S => "IQ2_S",
            Self::IQ3_XXS => "IQ3_XXS",
            Self::IQ3_S => "IQ3_S",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::Q1_0 => "Q1_0",
            Self::Q2_0 => "Q2_0",
            Self::MXFP4 => "MXFP4",
            Self::NVFP4 => "NVFP4",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }

    /// Whether tensors of the type are copied as they are, never encoded: tables of integers, what
    /// has more digits than f32, and blocks whose values mean something only with another tensor's.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        matches!(self, Self::NVFP4 | Self::I8 | Self::I16 | Self::I32 | Self::I64 | Self::F64)
    }

    /// All types that weights may be written in, in the order of the enum.
    pub const ALL: [Self; 27] = [
        Self::F32,
        Self::F16,
        Self::BF16,
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
        Self::IQ1_S,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ3_XXS,
        Self::IQ3_S,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::Q1_0,
        Self::Q2_0,
        Self::MXFP4,
    ];

    /// The type of that name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

/// How the rows of a matrix lie in the file compared with the Hugging Face order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowOrder {
    /// As in Hugging Face checkpoints.
    #[default]
    Plain,
    /// As llama.cpp's converter lays out q and k of the llama architecture: within each of
    /// `heads` heads, Hugging Face row `half * (d/2) + pair` lies at `2 * pair + half`.
    RopePairs {
        /// Number of heads that the rows belong to.
        heads: usize,
    },
}

impl RowOrder {
    /// Row of the file that holds Hugging Face row `row` of a matrix of `rows` rows.
    #[must_use]
    pub fn file_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::RopePairs { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                let (half, pair) = (within / (dim / 2), within % (dim / 2));
                head * dim + 2 * pair + half
            }
        }
    }
}

/// A tensor's bytes with their type and shape. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Dimensions, outermost first: `[rows, cols]` for a matrix, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: StoredType,
    /// Row-major contents, rows in `row_order`.
    pub bytes: SharedBytes,
    /// Where each row lies.
    pub row_order: RowOrder,
}

impl StoredTensor {
    /// Checks that `bytes` has exactly the size that shape and type imply.
    pub fn new(shape: Vec<usize>, dtype: StoredType, bytes: SharedBytes) -> Result<Self> {
        let expected = Self::byte_length(&shape, dtype);
        if shape.is_empty() || expected != Some(bytes.len()) {
            return Err(Error::General(format!(
                "a tensor of shape {shape:?} and type {} does not take {} bytes",
                dtype.name(),
                bytes.len()
            )));
        }
        Ok(Self { shape, dtype, bytes, row_order: RowOrder::Plain })
    }

    /// Bytes of a tensor, or `None` when the shape does not fit the type or overflows.
    #[must_use]
    pub fn byte_length(shape: &[usize], dtype: StoredType) -> Option<usize> {
        let columns = shape.last().copied()?;
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        dtype.row_bytes(columns)?.checked_mul(rows)
    }

    /// Number of values.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows: the product of all dimensions but the last.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Columns: the last dimension.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The bytes of a row (in Hugging Face order).
    #[must_use]
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let rows = self.rows();
        let length = self.bytes.len() / rows.max(1);
        let at = self.row_order.file_row(row, rows) * length;
        &self.bytes[at..at + length]
    }

    /// Decodes `rows` into `out`, which is `[rows.len(), cols]`.
    ///
    /// # Panics
    /// If `out` has another length or the range is outside the tensor.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.cols();
        assert_eq!(out.len(), rows.len() * cols, "output of another shape");
        if cols == 0 {
            return;
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            ggml::decode(self.dtype, self.row_bytes(row), out);
        }
    }

    /// All values as f32, `[rows, cols]`, row-major.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.elements()];
        self.read_rows(0..self.rows(), &mut out);
        out
    }

    /// The first NaN or infinity: its index in row-major Hugging Face order, and the value.
    /// Decodes a few rows at a time, in parallel.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        const STEP: usize = 1 << 16;
        let (rows, cols) = (self.rows(), self.cols());
        if cols == 0 {
            return None;
        }
        let step = (STEP / cols).max(1);
        (0..rows.div_ceil(step)).into_par_iter().find_map_first(|part| {
            let rows = part * step..rows.min((part + 1) * step);
            let first = rows.start * cols;
            let mut values = vec![0.0; rows.len() * cols];
            self.read_rows(rows, &mut values);
            let at = values.iter().position(|v| !v.is_finite())?;
            Some((first + at, values[at]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> StoredTensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        StoredTensor::new(shape.to_vec(), StoredType::F32, SharedBytes::from_vec(bytes)).unwrap()
    }

    #[test]
    fn finds_the_first_non_finite_value_in_hugging_face_order() {
        let mut values = vec![0.5f32; 8 * 30_000];
        assert_eq!(tensor(&[8, 30_000], &values).first_non_finite(), None);
        values[200_000] = f32::NEG_INFINITY;
        values[100_001] = f32::INFINITY;
        let mut it = tensor(&[8, 30_000], &values);
        assert_eq!(it.first_non_finite(), Some((100_001, f32::INFINITY)));
        // Two heads of four rows: file rows 0..4 are Hugging Face rows 0, 2, 1, 3. File row 3
        // (value 100,001) stays, file row 6 (value 200,000) is Hugging Face row 5.
        it.row_order = RowOrder::RopePairs { heads: 2 };
        assert_eq!(it.first_non_finite(), Some((100_001, f32::INFINITY)));
        values[100_001] = 0.0;
        let mut it = tensor(&[8, 30_000], &values);
        it.row_order = RowOrder::RopePairs { heads: 2 };
        assert_eq!(it.first_non_finite(), Some((5 * 30_000 + 20_000, f32::NEG_INFINITY)));
    }

    #[test]
    fn refuses_bytes_that_do_not_fit_the_shape() {
        let bytes = || SharedBytes::from_vec(vec![0; 34]);
        assert!(StoredTensor::new(vec![1, 32], StoredType::Q8_0, bytes()).is_ok());
        assert!(StoredTensor::new(vec![2, 32], StoredType::Q8_0, bytes()).is_err());
        assert!(StoredTensor::new(vec![34, 1], StoredType::Q8_0, bytes()).is_err());
        assert!(StoredTensor::new(vec![usize::MAX, 64], StoredType::F32, bytes()).is_err());
        assert!(StoredTensor::new(vec![], StoredType::F32, bytes()).is_err());
    }
}
