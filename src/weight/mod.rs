//! The tensors of models, in the representations in which files hold them.

pub(crate) mod factorized;
mod packed;
mod product;
pub(crate) mod range;
pub(crate) mod scale_type;
pub(crate) mod stored;

pub use factorized::{Factor, FactorizedLinear};
pub use packed::{PackedKind, PackedTensor, Scales};
pub use scale_type::ScaleType;
pub use stored::{RowOrder, StoredTensor};

use std::ops::Range;

/// A tensor of a model: as stored, in factors, or in packed integers.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain or block-quantized values.
    Stored(StoredTensor),
    /// A linear layer's weight as binary factors.
    Factorized(FactorizedLinear),
    /// A linear layer's weight in the packed integers of a GPTQ, AWQ or W8A8 checkpoint.
    Packed(PackedTensor),
}

impl Weight {
    /// Dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Stored(tensor) => tensor.shape.clone(),
            Self::Factorized(linear) => vec![linear.out_features, linear.in_features],
            Self::Packed(tensor) => vec![tensor.rows(), tensor.cols()],
        }
    }

    /// Number of values that it stands for.
    #[must_use]
    pub fn elements(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.elements(),
            Self::Factorized(linear) => linear.out_features * linear.in_features,
            Self::Packed(tensor) => tensor.rows() * tensor.cols(),
        }
    }

    /// Rows: the product of all dimensions but the last. A vector is one row.
    #[must_use]
    pub fn rows(&self) -> usize {
        let shape = self.shape();
        shape[..shape.len().saturating_sub(1)].iter().product()
    }

    /// Columns: the last dimension.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(0)
    }

    /// Decodes `rows`, in Hugging Face order, into `out`, which is `[rows.len(), cols]`.
    ///
    /// # Panics
    /// If `out` has another length or the range is outside of the tensor.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Factorized(linear) => linear.reconstruct_rows(rows, out),
            Self::Packed(tensor) => tensor.read_rows(rows, out),
            Self::Stored(tensor) => tensor.read_rows(rows, out),
        }
    }

    /// The type it is stored in: `Q4_K`, `BF16`, `GPTQ 4-bit g128`, `binary factors`.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self {
            Self::Stored(tensor) => tensor.dtype.name().to_owned(),
            Self::Factorized(_) => "binary factors".to_owned(),
            Self::Packed(tensor) => tensor.type_name(),
        }
    }

    /// Gives the mapped pages back to the system; they are read again when needed.
    pub fn release(&self) {
        match self {
            Self::Stored(tensor) => tensor.bytes.release(),
            Self::Packed(tensor) => tensor.release(),
            Self::Factorized(linear) => {
                for path in &linear.paths {
                    path.left.bytes.release();
                    path.right.bytes.release();
                }
            }
        }
    }

    /// Bytes that it takes: block scales, and the scales of factors, included.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.bytes.len(),
            Self::Factorized(linear) => (linear.bits() / 8) as usize,
            Self::Packed(tensor) => tensor.stored_bytes(),
        }
    }
}
