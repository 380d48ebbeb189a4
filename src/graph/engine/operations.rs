//! Candle operations, which run on every device and have gradients.

use candle_core::Tensor;

use super::super::attention::{self, Geometry};
use super::super::linear::Projection;
use super::super::norm::RmsNorm;
use super::super::rope::Positions;
use super::{Engine, Heads, Memory};
use crate::arch::spec::Activation;
use crate::{Error, Result};

pub(in crate::graph) struct Operations;

impl Engine for Operations {
    fn norm(&self, norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
        norm.ops(x)
    }

    fn linears(&self, layers: &[&Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        layers.iter().map(|layer| layer.operations(x)).collect()
    }

    fn rotate(&self, x: &Tensor, heads: &Heads<'_>, positions: &Positions) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let head_dim = width / heads.count;
        let mut x = x.reshape((positions.batch, positions.seq, heads.count, head_dim))?;
        if let Some(norm) = heads.norm {
            x = norm.ops(&x)?;
        }
        Ok(positions.ops(&x, heads.rope)?.reshape((rows, width))?)
    }

    fn attention(
        &self,
        geometry: &Geometry,
        positions: &Positions,
        [query, key, value]: [&Tensor; 3],
        memory: Memory<'_>,
    ) -> Result<Tensor> {
        let (keys, values) = match memory {
            Memory::None => (key.clone(), value.clone()),
            Memory::Cache(cache) => cache.append_tensors(key, value)?,
            Memory::Many(_) => {
                return Err(Error::General("many sequences by candle operations".into()));
            }
        };
        let Geometry { heads, kv_heads, head_dim, .. } = *geometry;
        let query = query.reshape((positions.batch, positions.seq, heads, head_dim))?;
        let shape = (positions.batch, positions.start + positions.seq, kv_heads, head_dim);
        let (keys, values) = (keys.reshape(shape)?, values.reshape(shape)?);
        attention::operations(geometry, positions, &query, &keys, &values)
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        Ok((gate * up)?)
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }
}
