//! Fused loops over slices. No gradients.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::attention::{self, Geometry};
use super::super::cache::Cached;
use super::super::linear::Projection;
use super::super::norm::RmsNorm;
use super::super::rope::Positions;
use super::super::slices::{for_rows, with_f32};
use super::{Engine, Heads, Memory};
use crate::Result;
use crate::arch::spec::Activation;
use crate::codec::vector::kernels;

pub(in crate::graph) struct Fused;

impl Engine for Fused {
    fn norm(&self, norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
        norm.fused(x)
    }

    fn linears(&self, layers: &[&Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        match layers {
            [] => Ok(Vec::new()),
            [one] => Ok(vec![one.fused(x)?]),
            [first, rest @ ..] => {
                let (first, rest) = rayon::join(|| first.fused(x), || self.linears(rest, x));
                let mut all = vec![first?];
                all.extend(rest?);
                Ok(all)
            }
        }
    }

    fn rotate(&self, x: &Tensor, heads: &Heads<'_>, positions: &Positions) -> Result<Tensor> {
        let mut values = with_f32(x, <[f32]>::to_vec)?;
        let turns = positions.turns(heads.rope);
        match heads.norm {
            Some(norm) => turns.apply(&mut values, heads.count, |head| norm.row(head), 1.0),
            None => turns.apply(&mut values, heads.count, |_| {}, 1.0),
        }
        Ok(Tensor::from_vec(values, x.shape().clone(), x.device())?)
    }

    fn attention(
        &self,
        geometry: &Geometry,
        positions: &Positions,
        [query, key, value]: [&Tensor; 3],
        memory: Memory<'_>,
    ) -> Result<Tensor> {
        let span = positions.span();
        let attended = with_f32(query, |query| {
            with_f32(key, |key| {
                with_f32(value, |value| match memory {
                    Memory::None => {
                        let (keys, values) = (Cached::Single(key), Cached::Single(value));
                        Ok(attention::fused(geometry, span, query, keys, values))
                    }
                    Memory::Cache(cache) => {
                        cache.append(key, value)?;
                        let (keys, values) = cache.slices()?;
                        Ok(attention::fused(geometry, span, query, keys, values))
                    }
                    Memory::Many(seen) => {
                        Ok(many(geometry, positions.start, query, key, value, seen))
                    }
                })
            })
        })
        .and_then(|inner| inner)
        .and_then(|inner| inner)
        .and_then(|inner: Result<Vec<f32>>| inner)?;
        Ok(Tensor::from_vec(attended, query.shape().clone(), query.device())?)
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let width = gate.dim(1)?;
        let mut inner = vec![0.0; gate.elem_count()];
        with_f32(gate, |gate| {
            with_f32(up, |up| {
                for_rows(&mut inner, width, |row, out| {
                    let range = row * width..(row + 1) * width;
                    gated(activation, &gate[range.clone()], &up[range], out);
                });
            })
        })??;
        Ok(Tensor::from_vec(inner, gate.shape().clone(), gate.device())?)
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let mut sum = with_f32(x, <[f32]>::to_vec)?;
        with_f32(y, |y| sum.iter_mut().zip(y).for_each(|(sum, value)| *sum += value))?;
        Ok(Tensor::from_vec(sum, x.shape().clone(), x.device())?)
    }
}

/// `out = act(gate) · up`
pub(in crate::graph) fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => (kernels().silu_mul)(gate, up, out),
        Activation::GeluTanh => {
            out.iter_mut().zip(gate).for_each(|(out, x)| *out = -gelu_inner(*x));
            (kernels().exp_sum)(out, 0.0);
            for ((out, x), up) in out.iter_mut().zip(gate).zip(up) {
                *out = x / (1.0 + *out) * up;
            }
        }
    }
}

/// `w` in `gelu(x) = x σ(w)`: `2 √(2/π) (x + 0.044715 x³)`, for `(1 + tanh(w / 2)) / 2 = σ(w)`.
pub(in crate::graph) fn gelu_inner(x: f32) -> f32 {
    GELU_SCALE * (x + GELU_CUBE * x * x * x)
}

/// `dw / dx`
pub(in crate::graph) fn gelu_slope(x: f32) -> f32 {
    GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x)
}

const GELU_SCALE: f32 = 2.0 * 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

/// One more token of each of many sequences, all at position `start`.
fn many(
    geometry: &Geometry,
    start: usize,
    query: &[f32],
    key: &[f32],
    value: &[f32],
    seen: &mut [(Vec<f32>, Vec<f32>)],
) -> Vec<f32> {
    let (keys_width, queries_width) = (geometry.key_width(), geometry.query_width());
    let mut attended = vec![0.0; query.len()];
    attended
        .par_chunks_exact_mut(queries_width)
        .zip(query.par_chunks_exact(queries_width))
        .zip(key.par_chunks_exact(keys_width).zip(value.par_chunks_exact(keys_width)))
        .zip(seen)
        .for_each(|(((out, query), (key, value)), (keys, values))| {
            keys.extend_from_slice(key);
            values.extend_from_slice(value);
            let (keys, values) = (Cached::Single(keys), Cached::Single(values));
            out.copy_from_slice(&attention::fused(geometry, (1, start), query, keys, values));
        });
    attended
}
