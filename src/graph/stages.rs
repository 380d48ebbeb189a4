//! A block in pieces, for those who change its layers one after the other: what goes into each
//! group of linear layers is computed once and kept, instead of running the block anew for each.
//!
//! The pieces are those of [`Block::forward`] without a cache, for whole sequences.

use candle_core::Tensor;

use super::attention;
use super::block::Block;
use super::cache::Cached;
use super::linear::Projection;
use super::norm::RmsNorm;
use super::rope::Positions;
use super::slices::{for_rows, in_pool, with_f32};
use crate::Result;
use crate::codec::vector::kernels;

impl Block {
    /// Input of q, k and v: the norm of `x`, `[tokens, hidden]`.
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        norm(&self.input_norm, x)
    }

    /// Input of o, `[tokens, heads · head_dim]`: attention over the projections of
    /// [`attention_input`](Self::attention_input), `[tokens, hidden]`.
    pub fn attend(&self, normed: &Tensor, positions: &Positions) -> Result<Tensor> {
        let geometry = &self.geometry;
        if !normed.device().is_cpu() {
            let heads = |count| (positions.batch, positions.seq, count, geometry.head_dim);
            let mut query = self.query.operations(normed)?.reshape(heads(geometry.heads))?;
            let mut key = self.key.operations(normed)?.reshape(heads(geometry.kv_heads))?;
            if let Some((query_norm, key_norm)) = &self.head_norms {
                query = query_norm.ops(&query)?;
                key = key_norm.ops(&key)?;
            }
            let (query, key) = (positions.ops(&query)?, positions.ops(&key)?);
            let value = self.value.operations(normed)?.reshape(heads(geometry.kv_heads))?;
            return attention::operations(geometry, positions, &query, &key, &value);
        }
        in_pool(|| {
            let mut query = with_f32(&self.query.fused(normed)?, <[f32]>::to_vec)?;
            let mut key = with_f32(&self.key.fused(normed)?, <[f32]>::to_vec)?;
            let value = self.value.fused(normed)?;
            let (query_norm, key_norm) = match &self.head_norms {
                Some((query, key)) => (Some(query), Some(key)),
                None => (None, None),
            };
            let prepare = |norm: Option<&RmsNorm>, head: &mut [f32]| {
                if let Some(norm) = norm {
                    norm.row(head);
                }
            };
            positions.fused(&mut query, geometry.heads, |head| prepare(query_norm, head));
            positions.fused(&mut key, geometry.kv_heads, |head| prepare(key_norm, head));
            let attended = with_f32(&value, |value| {
                let (keys, values) = (Cached::Single(&key), Cached::Single(value));
                attention::fused(geometry, positions.span(), &query, keys, values)
            })?;
            let shape = (positions.tokens(), geometry.query_width());
            Ok(Tensor::from_vec(attended, shape, normed.device())?)
        })
    }

    /// The residual stream after attention: `x` plus o of `attended`.
    pub fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        Ok((x + project(&self.output, attended)?)?)
    }

    /// Input of gate and up: the norm of `x`, the residual stream after attention.
    pub fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        norm(&self.post_norm, x)
    }

    /// Input of down, `[tokens, intermediate]`: `silu(gate) · up` of
    /// [`mlp_input`](Self::mlp_input).
    pub fn gated(&self, normed: &Tensor) -> Result<Tensor> {
        let (gate, up) = (project(&self.gate, normed)?, project(&self.up, normed)?);
        if !normed.device().is_cpu() {
            return Ok((gate.silu()? * up)?);
        }
        let width = gate.dim(1)?;
        let mut inner = vec![0.0; gate.elem_count()];
        with_f32(&gate, |gate| {
            with_f32(&up, |up| {
                in_pool(|| {
                    for_rows(&mut inner, width, |row, out| {
                        let range = row * width..(row + 1) * width;
                        (kernels().silu_mul)(&gate[range.clone()], &up[range], out);
                    });
                });
            })
        })??;
        Ok(Tensor::from_vec(inner, gate.shape().clone(), gate.device())?)
    }

    /// The residual stream after the MLP: `x` plus down of `inner`.
    pub fn after_mlp(&self, x: &Tensor, inner: &Tensor) -> Result<Tensor> {
        Ok((x + project(&self.down, inner)?)?)
    }
}

fn norm(norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { norm.fused(x) } else { norm.ops(x) }
}

fn project(projection: &Projection, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { projection.fused(x) } else { projection.operations(x) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::device::Backend;
    use crate::graph::decoder::Decoder;

    #[test]
    fn the_pieces_are_the_block() {
        let model = crate::model::open_local(Path::new("models/tiny")).unwrap();
        let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
        let tokens: Vec<u32> = (0..48).map(|i| (i * 37 + 5) % 2000).collect();
        let x = decoder.embed(&tokens).unwrap();
        let positions = decoder.positions(3, 16, 0);
        let block = decoder.block(1);
        let whole = block.forward(&x, &positions, None, None).unwrap();
        let attended = block.attend(&block.attention_input(&x).unwrap(), &positions).unwrap();
        let middle = block.after_attention(&x, &attended).unwrap();
        let inner = block.gated(&block.mlp_input(&middle).unwrap()).unwrap();
        let pieces = block.after_mlp(&middle, &inner).unwrap();
        assert_eq!(
            whole.to_vec2::<f32>().unwrap(),
            pieces.to_vec2::<f32>().unwrap(),
            "the same operations in the same order"
        );
    }
}
