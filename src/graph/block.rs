//! One transformer block: attention and MLP, each behind a norm and added to what came in.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::{self, Geometry};
use super::cache::{Cached, LayerCache};
use super::linear::Projection;
use super::norm::RmsNorm;
use super::rope::Positions;
use super::slices::{for_rows, in_pool, with_f32};
use super::tracked;
use crate::codec::vector::kernels;
use crate::{Error, Result};

/// Sees what goes into the linear layers.
pub trait Observer: Send {
    /// Called before the layers in `names` (without `.weight`) multiply `x`, f32 `[tokens, in]`.
    /// Layers that share an input are named together, so that it is looked at once: q, k and v;
    /// o; gate and up; down. `x` lies on the decoder's device.
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> Result<()>;
}

/// How a block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// Fused loops over slices: the fast way on the CPU. No gradients.
    Fused,
    /// Candle operations that run on every device and have gradients.
    Operations,
    /// Fused loops with backward passes of their own, for training on the CPU. Whole sequences
    /// only: no cache.
    Tracked,
}

/// A block with its weights.
#[derive(Debug)]
pub struct Block {
    /// Norm before attention.
    pub input_norm: RmsNorm,
    /// Queries.
    pub query: Projection,
    /// Keys.
    pub key: Projection,
    /// Values.
    pub value: Projection,
    /// Output of attention.
    pub output: Projection,
    /// Norm of each head of the queries and of the keys, if the family has them.
    pub head_norms: Option<(RmsNorm, RmsNorm)>,
    /// Norm before the MLP.
    pub post_norm: RmsNorm,
    /// Gate of the MLP.
    pub gate: Projection,
    /// Up projection of the MLP.
    pub up: Projection,
    /// Down projection of the MLP.
    pub down: Projection,
    /// Heads and window.
    pub geometry: Geometry,
    /// How it computes.
    pub execution: Execution,
}

impl Block {
    /// The seven linear layers, in the order of [`crate::arch::config::BLOCK_LINEARS`].
    #[must_use]
    pub fn projections(&self) -> [&Projection; 7] {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down]
    }

    /// The same, to exchange their weights.
    pub fn projections_mut(&mut self) -> [&mut Projection; 7] {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down]
    }

    /// Runs the block on `x`, f32 `[batch · seq, hidden]`, whose rows are at `positions`.
    ///
    /// Without a cache the sequences must start at position 0 and see only themselves. With one,
    /// there is one sequence, `positions.start` is the number of tokens in the cache, and the new
    /// keys and values are appended.
    ///
    /// # Errors
    /// If the shapes do not fit together.
    pub fn forward<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<Tensor> {
        let cached = cache.as_ref().map_or(0, |cache| cache.len());
        if x.dims2()? != (positions.tokens(), self.input_norm.width())
            || positions.start != cached
            || (cache.is_some() && positions.batch != 1)
        {
            return Err(Error::General(format!(
                "a block of width {} cannot take activations {:?} for {} sequences of {} tokens at \
                 position {} with {cached} tokens in the cache",
                self.input_norm.width(),
                x.dims(),
                positions.batch,
                positions.seq,
                positions.start
            )));
        }
        match self.execution {
            Execution::Fused => in_pool(|| self.fused(x, positions, cache, observer)),
            Execution::Operations => self.operations(x, positions, cache, observer),
            Execution::Tracked if cache.is_none() => {
                in_pool(|| self.tracked(x, positions, observer))
            }
            Execution::Tracked => {
                Err(Error::General("tracked execution has no key/value cache".into()))
            }
        }
    }

    /// Runs one more token of each of many sequences, `x` `[sequences, hidden]`, all of them at
    /// the position of `positions`. `keys` and `values` hold what each sequence has seen,
    /// `[tokens, kv_heads · head_dim]`, and get the new rows.
    pub(super) fn step(
        &self,
        x: &Tensor,
        positions: &Positions,
        seen: &mut [(Vec<f32>, Vec<f32>)],
    ) -> Result<Tensor> {
        let (keys_width, queries_width) = (self.geometry.key_width(), self.geometry.query_width());
        let attend = |query: &[f32], key: &[f32], value: &Tensor| {
            let mut attended = vec![0.0; query.len()];
            with_f32(value, |value| {
                attended
                    .par_chunks_exact_mut(queries_width)
                    .zip(query.par_chunks_exact(queries_width))
                    .zip(key.par_chunks_exact(keys_width).zip(value.par_chunks_exact(keys_width)))
                    .zip(seen)
                    .for_each(|(((out, query), (key, value)), (keys, values))| {
                        keys.extend_from_slice(key);
                        values.extend_from_slice(value);
                        let (keys, values) = (Cached::Single(keys), Cached::Single(values));
                        let span = (1, positions.start);
                        out.copy_from_slice(&attention::fused(
                            &self.geometry,
                            span,
                            query,
                            keys,
                            values,
                        ));
                    });
            })?;
            Ok(attended)
        };
        in_pool(|| self.fused_with(x, positions, None, attend))
    }

    fn fused<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<Tensor> {
        let (geometry, span) = (&self.geometry, positions.span());
        let attend = |query: &[f32], key: &[f32], value: &Tensor| match cache {
            Some(cache) => {
                with_f32(value, |value| cache.append(key, value))??;
                let (keys, values) = cache.slices()?;
                Ok(attention::fused(geometry, span, query, keys, values))
            }
            None => with_f32(value, |value| {
                let (keys, values) = (Cached::Single(key), Cached::Single(value));
                attention::fused(geometry, span, query, keys, values)
            }),
        };
        self.fused_with(x, positions, observer, attend)
    }

    /// Fused execution around `attend`, which gets rotated queries and keys, and the values.
    fn fused_with<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        mut observer: Option<&mut (dyn Observer + 'o)>,
        attend: impl FnOnce(&[f32], &[f32], &Tensor) -> Result<Vec<f32>>,
    ) -> Result<Tensor> {
        let geometry = &self.geometry;
        let normed = self.input_norm.fused(x)?;
        observe(&mut observer, &[&self.query, &self.key, &self.value], &normed)?;
        let (query, (key, value)) = rayon::join(
            || self.query.fused(&normed),
            || rayon::join(|| self.key.fused(&normed), || self.value.fused(&normed)),
        );
        let mut query = with_f32(&query?, <[f32]>::to_vec)?;
        let mut key = with_f32(&key?, <[f32]>::to_vec)?;
        let value = value?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            positions.fused(&mut query, geometry.heads, |head| query_norm.row(head));
            positions.fused(&mut key, geometry.kv_heads, |head| key_norm.row(head));
        } else {
            positions.fused(&mut query, geometry.heads, |_| {});
            positions.fused(&mut key, geometry.kv_heads, |_| {});
        }
        let attended = attend(&query, &key, &value)?;
        let attended =
            Tensor::from_vec(attended, (positions.tokens(), geometry.query_width()), x.device())?;
        observe(&mut observer, &[&self.output], &attended)?;
        let attended = self.output.fused(&attended)?;

        let mut sum = with_f32(x, <[f32]>::to_vec)?;
        add(&mut sum, &attended)?;
        let mut normed = sum.clone();
        self.post_norm.in_place(&mut normed);
        let normed = Tensor::from_vec(normed, x.shape().clone(), x.device())?;
        observe(&mut observer, &[&self.gate, &self.up], &normed)?;
        let (gate, up) = rayon::join(|| self.gate.fused(&normed), || self.up.fused(&normed));
        let (gate, up) = (gate?, up?);
        let width = gate.dim(1)?;
        let mut inner = vec![0.0; gate.elem_count()];
        with_f32(&gate, |gate| {
            with_f32(&up, |up| {
                for_rows(&mut inner, width, |row, out| {
                    let range = row * width..(row + 1) * width;
                    (kernels().silu_mul)(&gate[range.clone()], &up[range], out);
                });
            })
        })??;
        let inner = Tensor::from_vec(inner, gate.shape().clone(), x.device())?;
        observe(&mut observer, &[&self.down], &inner)?;
        add(&mut sum, &self.down.fused(&inner)?)?;
        Ok(Tensor::from_vec(sum, x.shape().clone(), x.device())?)
    }

    fn operations<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        mut observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<Tensor> {
        let Geometry { heads, kv_heads, head_dim, .. } = self.geometry;
        let normed = self.input_norm.ops(x)?;
        observe(&mut observer, &[&self.query, &self.key, &self.value], &normed)?;
        let mut query = self.query.operations(&normed)?.reshape((
            positions.batch,
            positions.seq,
            heads,
            head_dim,
        ))?;
        let mut key = self.key.operations(&normed)?.reshape((
            positions.batch,
            positions.seq,
            kv_heads,
            head_dim,
        ))?;
        let value = self.value.operations(&normed)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            query = query_norm.ops(&query)?;
            key = key_norm.ops(&key)?;
        }
        let (query, key) = (positions.ops(&query)?, positions.ops(&key)?);
        let (keys, values) = match cache {
            Some(cache) => {
                let rows = (positions.tokens(), kv_heads * head_dim);
                cache.append_tensors(&key.reshape(rows)?, &value)?
            }
            None => (key, value),
        };
        let shape = (positions.batch, positions.start + positions.seq, kv_heads, head_dim);
        let (keys, values) = (keys.reshape(shape)?, values.reshape(shape)?);
        let attended = attention::operations(&self.geometry, positions, &query, &keys, &values)?;
        observe(&mut observer, &[&self.output], &attended)?;
        let x = (x + self.output.operations(&attended)?)?;

        let normed = self.post_norm.ops(&x)?;
        observe(&mut observer, &[&self.gate, &self.up], &normed)?;
        let gate = self.gate.operations(&normed)?.silu()?;
        let inner = (gate * self.up.operations(&normed)?)?;
        observe(&mut observer, &[&self.down], &inner)?;
        Ok((x + self.down.operations(&inner)?)?)
    }
}

impl Block {
    fn tracked<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        mut observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<Tensor> {
        let geometry = &self.geometry;
        let normed = self.input_norm.tracked(x)?;
        observe(&mut observer, &[&self.query, &self.key, &self.value], &normed)?;
        let mut query = self.query.operations(&normed)?;
        let mut key = self.key.operations(&normed)?;
        let value = self.value.operations(&normed)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            query = query_norm.tracked(&query)?;
            key = key_norm.tracked(&key)?;
        }
        let query = tracked::rope(&query, positions, geometry.heads)?;
        let key = tracked::rope(&key, positions, geometry.kv_heads)?;
        let attended = tracked::attention(geometry, positions, &query, &key, &value)?;
        observe(&mut observer, &[&self.output], &attended)?;
        let x = (x + self.output.operations(&attended)?)?;

        let normed = self.post_norm.tracked(&x)?;
        observe(&mut observer, &[&self.gate, &self.up], &normed)?;
        let gate = self.gate.operations(&normed)?;
        let inner = tracked::silu_mul(&gate, &self.up.operations(&normed)?)?;
        observe(&mut observer, &[&self.down], &inner)?;
        Ok((x + self.down.operations(&inner)?)?)
    }
}

fn observe<'o>(
    observer: &mut Option<&mut (dyn Observer + 'o)>,
    projections: &[&Projection],
    x: &Tensor,
) -> Result<()> {
    let Some(observer) = observer else { return Ok(()) };
    let names: Vec<&str> = projections.iter().map(|projection| projection.name.as_str()).collect();
    observer.linear_input(&names, x)
}

fn add(sum: &mut [f32], addend: &Tensor) -> Result<()> {
    with_f32(addend, |addend| sum.iter_mut().zip(addend).for_each(|(sum, value)| *sum += value))
}
