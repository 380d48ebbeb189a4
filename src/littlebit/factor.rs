//! A linear layer as binary factors with scales, in the layout in which it is stored and computed.

use half::f16;

use crate::tensor::SharedBytes;

/// A matrix of signs, one bit each.
///
/// Eight columns of a row make a byte (bit `j`, least significant first, is column `8c + j`; set
/// means +1). Bytes are stored column group by column group: byte `c * rows + i` belongs to row
/// `i`. Sixteen neighbouring rows are sixteen neighbouring bytes, which is what the kernels read.
/// Columns beyond `cols` in the last group are zero bits.
#[derive(Debug, Clone)]
pub struct BitMatrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `ceil(cols / 8) * rows` bytes.
    pub bytes: SharedBytes,
}

/// One path: `diag(row_scale) · left · diag(latent_scale) · right · diag(column_scale)`.
#[derive(Debug, Clone)]
pub struct Factor {
    /// `U±`, `[out, rank]`.
    pub left: BitMatrix,
    /// `V±ᵀ`, `[rank, in]`.
    pub right: BitMatrix,
    /// `h`, one per output.
    pub row_scale: Vec<f16>,
    /// `l`, one per latent dimension, if the format has it.
    pub latent_scale: Option<Vec<f16>>,
    /// `g`, one per input.
    pub column_scale: Vec<f16>,
}

/// A factorized weight `[out, in]`: the sum of one or two paths (the second one compensates the
/// residual of the first). A layer's bias is a tensor of its own.
#[derive(Debug, Clone)]
pub struct FactorizedLinear {
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// The paths, at least one.
    pub paths: Vec<Factor>,
}
