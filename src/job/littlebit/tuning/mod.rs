//! Recovery: factorized layers learn to do what the original did.
//!
//! Two chains of activations run through the model side by side, block by block: the original's,
//! and that of the compressed blocks so far. Each block is factorized with the statistics of the
//! compressed chain and tuned until it gives what the original block gives on the original chain.
//! Then the whole model learns the original's predictions.

pub(crate) mod adam;
pub(crate) mod block;
#[cfg(feature = "cuda")]
mod cuda_adam;
pub(crate) mod dense;
pub(crate) mod distillation;
pub(crate) mod estimate;
pub mod knobs;
pub(crate) mod layer;
pub(crate) mod loss;
pub(crate) mod packed;
mod placed;
pub(crate) mod recipe;

#[cfg(test)]
mod tests;

pub use recipe::{Effort, Recipe};

use candle_core::{Device, Tensor};

use super::solve::Solution;
use crate::Result;
use crate::graph::slices::{in_pool, with_f32};
use crate::graph::{Block, Decoder, Execution};
use layer::{Learning, LearningLayer, PathValues};

/// A solved matrix as a layer that can learn.
pub(crate) fn learning_layer(
    dims: (usize, usize),
    rank: usize,
    solution: Solution,
) -> Result<LearningLayer> {
    let paths = solution
        .paths
        .into_iter()
        .map(|path| PathValues {
            left: path.left,
            right: path.right,
            bits: None,
            row: path.row_scale,
            latent: path.latent_scale,
            column: path.column_scale,
        })
        .collect();
    LearningLayer::new(dims, rank, paths)
}

/// Puts the layers in the place of a block's, in their order.
pub(crate) fn install(block: &mut Block, layers: &[LearningLayer]) {
    for (projection, layer) in block.projections_mut().into_iter().zip(layers) {
        projection.layer = Box::new(layer.clone());
    }
}

/// Says what all of the layers learn.
pub(crate) fn set_learning(layers: &[LearningLayer], learning: Learning) {
    layers.iter().for_each(|layer| layer.set_learning(learning));
}

/// The values of all layers, to come back to.
pub(crate) fn snapshot(layers: &[LearningLayer]) -> Vec<Vec<PathValues>> {
    layers.iter().map(|layer| layer.paths().clone()).collect()
}

/// Puts a snapshot back.
pub(crate) fn restore(layers: &[LearningLayer], snapshot: &[Vec<PathValues>]) {
    for (layer, paths) in layers.iter().zip(snapshot) {
        layer.paths_mut().clone_from(paths);
    }
}

/// Where the layers of `decoder` have to lie while they are used, if not in its layers themselves.
pub(crate) fn place_of(decoder: &Decoder) -> Option<&Device> {
    let tracked = decoder.blocks().iter().all(|block| block.execution == Execution::Tracked);
    (!tracked).then_some(decoder.device())
}

/// Runs a step of `decoder`: in the thread pool where it computes on the processor.
pub(crate) fn in_its_place<R: Send>(
    decoder: &Decoder,
    step: impl FnOnce() -> Result<R> + Send,
) -> Result<R> {
    if decoder.device().is_cpu() { in_pool(step) } else { step() }
}

/// Copies layers that do not learn to where `decoder` can use them.
pub(crate) fn place(layers: &[LearningLayer], decoder: &Decoder) -> Result<()> {
    let Some(device) = place_of(decoder) else { return Ok(()) };
    layers.iter().try_for_each(|layer| layer.place(device, None))
}

/// Drops the copies that [`place`] or an optimiser made.
pub(crate) fn drop_placed(layers: &[LearningLayer]) {
    layers.iter().for_each(LearningLayer::drop_placed);
}

/// Rows of several sequences as one tensor, `[sequences · tokens, hidden]`, on `device`.
pub(crate) fn rows<'a>(
    sequences: impl IntoIterator<Item = &'a [f32]>,
    hidden: usize,
    device: &Device,
) -> Result<Tensor> {
    let mut values = Vec::new();
    sequences.into_iter().for_each(|sequence| values.extend_from_slice(sequence));
    let tokens = values.len() / hidden;
    Ok(Tensor::from_vec(values, (tokens, hidden), device)?)
}

/// Calls `read` with the values of a tensor of f32, wherever it lies.
pub(crate) fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    if tensor.device().is_cpu() {
        with_f32(tensor, read)
    } else {
        Ok(read(&tensor.flatten_all()?.to_vec1::<f32>()?))
    }
}
