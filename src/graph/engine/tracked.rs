//! Loops of their own with backward passes, for whole sequences on the processor.

use candle_core::Tensor;

use super::super::attention::Geometry;
use super::super::linear::Projection;
use super::super::norm::RmsNorm;
use super::super::rope::Positions;
use super::super::tracked;
use super::{Engine, Heads, Memory};
use crate::arch::spec::Activation;
use crate::{Error, Result};

pub(in crate::graph) struct Tracked;

impl Engine for Tracked {
    fn norm(&self, norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
        norm.tracked(x)
    }

    fn linears(&self, layers: &[&Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        layers.iter().map(|layer| layer.operations(x)).collect()
    }

    fn rotate(&self, x: &Tensor, heads: &Heads<'_>, positions: &Positions) -> Result<Tensor> {
        let turns = positions.turns(heads.rope);
        match heads.norm {
            Some(norm) => tracked::rope(&norm.tracked(x)?, turns, heads.count),
            None => tracked::rope(x, turns, heads.count),
        }
    }

    fn attention(
        &self,
        geometry: &Geometry,
        positions: &Positions,
        [query, key, value]: [&Tensor; 3],
        memory: Memory<'_>,
    ) -> Result<Tensor> {
        match memory {
            Memory::None => tracked::attention(geometry, positions, query, key, value),
            Memory::Cache(_) | Memory::Many(_) => {
                Err(Error::General("tracked execution has no key/value cache".into()))
            }
        }
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        tracked::gated(activation, gate, up)
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }
}
