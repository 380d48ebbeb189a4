//! A layer as it would be stored: signs as bits, scales as they are. What is kept of a state that
//! may turn out to be the best one.

use super::layer::{LearningLayer, PathValues};
use crate::littlebit::bits::BitMatrix;

/// Signs and scales of one path.
#[derive(Debug, Clone)]
pub struct PackedPath {
    /// Signs of `U`, `[out, rank]`.
    pub left: BitMatrix,
    /// Signs of `V`, `[rank, in]`.
    pub right: BitMatrix,
    /// `h`.
    pub row: Vec<f32>,
    /// `l`, where the form has it.
    pub latent: Option<Vec<f32>>,
    /// `g`.
    pub column: Vec<f32>,
}

/// Packs the values of a layer.
#[must_use]
pub fn pack(layer: &LearningLayer) -> Vec<PackedPath> {
    let rank = layer.rank();
    layer
        .paths()
        .iter()
        .map(|path| PackedPath {
            left: BitMatrix::from_signs(path.row.len(), rank, &path.left),
            right: BitMatrix::from_signs(rank, path.column.len(), &path.right),
            row: path.row.clone(),
            latent: path.latent.clone(),
            column: path.column.clone(),
        })
        .collect()
}

/// Puts signs (as latents of ±1) and scales into a layer.
pub fn unpack(layer: &LearningLayer, packed: &[PackedPath]) {
    let values = packed.iter().map(|path| PathValues {
        left: signs(&path.left),
        right: signs(&path.right),
        row: path.row.clone(),
        latent: path.latent.clone(),
        column: path.column.clone(),
    });
    *layer.paths_mut() = values.collect();
}

fn signs(bits: &BitMatrix) -> Vec<f32> {
    let mut out = vec![0.0; bits.rows * bits.cols];
    bits.unpack_rows(0..bits.rows, &mut out);
    out
}
