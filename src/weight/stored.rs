//! A tensor in the type it is stored in, readable row by row as f32.

use crate::base::SharedBytes;
use crate::codec::{StoredType, ggml};
use crate::{Error, Result};
use std::ops::Range;

use rayon::prelude::*;

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
        let expected = dtype.byte_length(&shape);
        if shape.is_empty() || expected != Some(bytes.len()) {
            return Err(Error::General(format!(
                "a tensor of shape {shape:?} and type {} does not take {} bytes",
                dtype.name(),
                bytes.len()
            )));
        }
        Ok(Self { shape, dtype, bytes, row_order: RowOrder::Plain })
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
