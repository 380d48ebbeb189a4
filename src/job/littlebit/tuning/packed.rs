//! A layer as it would be stored: signs as bits, scales as they are. What is kept of a state that
//! may turn out to be the best one.

use super::layer::{LearningLayer, PathValues};
use crate::codec::signs::BitMatrix;

/// Signs and scales of one path.
#[derive(Debug, Clone)]
pub(crate) struct PackedPath {
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
pub(crate) fn pack(layer: &LearningLayer) -> Vec<PackedPath> {
    let rank = layer.rank();
    layer
        .paths()
        .iter()
        .map(|path| {
            let mut path = path.clone();
            path.freeze(rank);
            let [left, right] = path.bits.unwrap_or_else(|| unreachable!("it was frozen"));
            PackedPath { left, right, row: path.row, latent: path.latent, column: path.column }
        })
        .collect()
}

/// Puts signs and scales into a layer, whose signs cannot learn from then on.
pub(crate) fn unpack(layer: &LearningLayer, packed: &[PackedPath]) {
    let values = packed.iter().map(|path| PathValues {
        left: Vec::new(),
        right: Vec::new(),
        bits: Some([path.left.clone(), path.right.clone()]),
        row: path.row.clone(),
        latent: path.latent.clone(),
        column: path.column.clone(),
    });
    *layer.paths_mut() = values.collect();
}
