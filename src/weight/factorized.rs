//! A linear layer as binary factors with scales, in the layout in which it is stored and computed.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use rayon::prelude::*;

use super::scale_type::ScaleType;
use crate::codec::signs::BitMatrix;
use crate::{Error, Result};

/// Columns that [`FactorizedLinear::reconstruct_rows`] unpacks at a time: wide enough for the
/// matrix product, small enough that a task holds only `rank * 512` unpacked signs.
const RECONSTRUCT_COLUMNS: usize = 512;

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
    /// How a file stores the three.
    pub scale_type: ScaleType,
}

impl Factor {
    /// The latent dimension.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.right.rows
    }

    /// Checks that the shapes agree with `[out, in]` and with each other, and that every scale is
    /// finite. `path` is only for the message.
    fn check(&self, out_features: usize, in_features: usize, path: usize) -> Result<()> {
        let fail = |what: String| Err(Error::Reconstruction(format!("path {path}: {what}")));
        let rank = self.rank();
        for (name, matrix, rows, cols) in
            [("left", &self.left, out_features, rank), ("right", &self.right, rank, in_features)]
        {
            if (matrix.rows, matrix.cols) != (rows, cols) {
                return fail(format!(
                    "the {name} factor is {} × {} instead of {rows} × {cols}",
                    matrix.rows, matrix.cols
                ));
            }
            if BitMatrix::byte_length(rows, cols) != Some(matrix.bytes.len()) {
                return fail(format!(
                    "the {name} factor of {rows} × {cols} has {} bytes",
                    matrix.bytes.len()
                ));
            }
        }
        let scales = [
            ("row", Some(&self.row_scale), out_features),
            ("latent", self.latent_scale.as_ref(), rank),
            ("column", Some(&self.column_scale), in_features),
        ];
        for (name, values, length) in scales {
            let Some(values) = values else { continue };
            if values.len() != length {
                return fail(format!("{} {name} scales instead of {length}", values.len()));
            }
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return fail(format!("{name} scale {index} is {}", values[index]));
            }
        }
        Ok(())
    }

    /// Bytes as stored: signs with their padding, and scales.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let scales = [Some(&self.row_scale), self.latent_scale.as_ref(), Some(&self.column_scale)];
        let scales = scales.into_iter().flatten().map(|s| self.scale_type.bytes(s.len()));
        (self.left.bytes.len() + self.right.bytes.len()) as u64 + scales.sum::<u64>()
    }
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

impl FactorizedLinear {
    /// Puts checked paths together.
    ///
    /// # Errors
    /// [`Error::Reconstruction`] naming the path when there is none, a shape disagrees or a scale
    /// is not finite.
    pub fn new(out_features: usize, in_features: usize, paths: Vec<Factor>) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::Reconstruction("a factorized layer without paths".into()));
        }
        if out_features == 0 || in_features == 0 || paths.iter().any(|path| path.rank() == 0) {
            return Err(Error::Reconstruction(format!(
                "a factorized layer of {out_features} × {in_features} with an empty factor"
            )));
        }
        for (index, path) in paths.iter().enumerate() {
            path.check(out_features, in_features, index)?;
        }
        Ok(Self { out_features, in_features, paths })
    }

    /// Bits as stored, all scales counted: `8 * bytes` of the signs (a number of columns that is
    /// no multiple of eight is padded) and what the scales' type takes.
    #[must_use]
    pub fn bits(&self) -> u64 {
        8 * self.paths.iter().map(Factor::bytes).sum::<u64>()
    }

    /// The dense weight of some rows, `[rows.len(), in]` row-major, in f32.
    ///
    /// For measuring errors and for formats that cannot hold factors; running a model never needs
    /// it. Beside `out` it holds `rows.len() * rank` values, and `512 * rank` per thread.
    ///
    /// # Panics
    /// When `rows` is outside the weight or `out` has another size.
    pub fn reconstruct_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.out_features, "rows {rows:?} of {} rows", self.out_features);
        assert_eq!(out.len(), rows.len() * self.in_features, "out is not [rows, in]");
        if rows.is_empty() {
            return;
        }
        for (index, path) in self.paths.iter().enumerate() {
            let accumulate = if index == 0 { Accum::Replace } else { Accum::Add };
            let rank = path.rank();
            let left = scaled_left_rows(path, rows.clone());
            let left = MatRef::from_row_major_slice(&left, rows.len(), rank);
            let whole = MatMut::from_row_major_slice_mut(&mut *out, rows.len(), self.in_features);
            whole.par_col_chunks_mut(RECONSTRUCT_COLUMNS).enumerate().for_each(|(chunk, block)| {
                let first = chunk * RECONSTRUCT_COLUMNS;
                let width = block.ncols();
                let mut right = vec![0.0; rank * width];
                path.right.unpack_groups(first / 8..(first + width).div_ceil(8), &mut right);
                for line in right.chunks_exact_mut(width) {
                    for (value, scale) in line.iter_mut().zip(&path.column_scale[first..]) {
                        *value *= scale.to_f32();
                    }
                }
                let right = MatRef::from_row_major_slice(&right, rank, width);
                matmul(block, accumulate, left, right, 1.0, Par::Seq);
            });
        }
    }
}

/// `diag(h) · U± · diag(l)` of some rows, row-major.
fn scaled_left_rows(path: &Factor, rows: Range<usize>) -> Vec<f32> {
    let rank = path.rank();
    let mut left = vec![0.0; rows.len() * rank];
    path.left.unpack_rows(rows.clone(), &mut left);
    for (line, row_scale) in left.chunks_exact_mut(rank).zip(&path.row_scale[rows]) {
        for value in &mut *line {
            *value *= row_scale.to_f32();
        }
        if let Some(latent_scale) = &path.latent_scale {
            for (value, scale) in line.iter_mut().zip(latent_scale) {
                *value *= scale.to_f32();
            }
        }
    }
    left
}
