//! The operations that a block is made of, in three ways: [`Fused`] loops over slices, the fast way on
//! the processor, without gradients; [`Operations`] of candle, which run on every device and have
//! gradients; [`Tracked`] loops with backward passes of their own, for training on the processor.

pub(super) mod fused;
mod operations;
mod tracked;

use candle_core::Tensor;

pub(super) use fused::Fused;
pub(super) use operations::Operations;
pub(super) use tracked::Tracked;

use super::attention::Geometry;
use super::cache::LayerCache;
use super::linear::Projection;
use super::norm::RmsNorm;
use super::rope::Positions;
use crate::Result;
use crate::arch::spec::{Activation, RopeOf};

/// What a block does to activations, f32 `[tokens, width]`.
pub(super) trait Engine {
    /// A norm over runs of its width.
    fn norm(&self, norm: &RmsNorm, x: &Tensor) -> Result<Tensor>;

    /// Layers that multiply the same input.
    fn linears(&self, layers: &[&Projection], x: &Tensor) -> Result<Vec<Tensor>>;

    /// Norms each head of `x`, `[tokens, heads · d]`, if there is a norm, and turns it to its
    /// position.
    fn rotate(&self, x: &Tensor, heads: &Heads<'_>, positions: &Positions) -> Result<Tensor>;

    /// Attention of `queries`, `[tokens, heads · d]`, over `keys` and `values`,
    /// `[tokens, kv_heads · d]`, and over what the memory holds.
    fn attention(
        &self,
        geometry: &Geometry,
        positions: &Positions,
        qkv: [&Tensor; 3],
        memory: Memory<'_>,
    ) -> Result<Tensor>;

    /// `act(gate) · up`
    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor>;

    /// `x + y`
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor>;
}

/// Heads that are normed and turned.
pub(super) struct Heads<'a> {
    /// Their number.
    pub(super) count: usize,
    /// Of each.
    pub(super) norm: Option<&'a RmsNorm>,
    /// Which rotations.
    pub(super) rope: RopeOf,
}

/// What a sequence has seen before.
pub(super) enum Memory<'a> {
    /// Nothing: sequences start here, and see only themselves.
    None,
    /// The tokens of one sequence, which is continued.
    Cache(&'a mut LayerCache),
    /// Keys and values of many sequences, each of which is continued by one token.
    Many(&'a mut [(Vec<f32>, Vec<f32>)]),
}

/// A part of the columns.
pub(super) fn columns(x: &Tensor, from: usize, count: usize) -> Result<Tensor> {
    Ok(x.narrow(1, from, count)?.contiguous()?)
}
