//! Causal attention of whole sequences with its backward pass. Nothing of the size of the scores is
//! kept: the backward pass computes them again, a block of queries at a time.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{values, wrap};
use crate::codec::vector::kernels;
use crate::graph::attention::Geometry;
use crate::graph::rope::Positions;
use crate::graph::slices::with_f32;
use crate::linalg::products::{Operand, multiply_here};
use crate::{Error, Result};

/// Queries whose scores are there at the same time.
const QUERY_BLOCK: usize = 128;

/// `queries` `[batch · seq, heads · d]`, `keys` and `values` `[batch · seq, kv_heads · d]`.
pub(crate) fn attention(
    geometry: &Geometry,
    positions: &Positions,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    if positions.start != 0 {
        return Err(Error::General("tracked attention starts at position 0".into()));
    }
    let op = Attention { geometry: *geometry, seq: positions.seq };
    Ok(queries.apply_op3(keys, values, op)?)
}

struct Attention {
    geometry: Geometry,
    seq: usize,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (queries, keys, rows) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let given = Given {
            geometry: self.geometry,
            seq: self.seq,
            queries,
            keys,
            values: rows,
            out: &[],
            dout: &[],
        };
        Ok((CpuStorage::F32(given.attend()), l1.shape().clone()))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let slices = |tensor: &Tensor| with_f32(tensor, <[f32]>::to_vec).map_err(wrap);
        let given = Given {
            geometry: self.geometry,
            seq: self.seq,
            queries: &slices(queries)?,
            keys: &slices(keys)?,
            values: &slices(values)?,
            out: &slices(out)?,
            dout: &slices(dout)?,
        };
        let [dq, dk, dv] = given.gradients();
        let tensor = |values: Vec<f32>, like: &Tensor| {
            Tensor::from_vec(values, like.shape().clone(), like.device()).map(Some)
        };
        Ok((tensor(dq, queries)?, tensor(dk, keys)?, tensor(dv, values)?))
    }
}

struct Given<'a> {
    geometry: Geometry,
    seq: usize,
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
}

/// Where the values of one head of one sequence lie.
struct Place {
    query: usize,
    key: usize,
    /// Distance of two rows of queries and of two rows of keys.
    wide: usize,
    narrow: usize,
}

impl Place {
    fn query(&self, token: usize) -> usize {
        self.query + token * self.wide
    }
}

/// A block of queries and the keys that they see.
struct Span {
    first: usize,
    count: usize,
    from: usize,
    length: usize,
}

/// Gradients of one query head of one sequence, each `[seq, d]`.
struct HeadGradients {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Given<'_> {
    /// The output, `[batch · seq, heads · d]`.
    fn attend(&self) -> Vec<f32> {
        let Geometry { heads, head_dim: d, .. } = self.geometry;
        let batch = self.queries.len() / (self.seq * heads * d);
        let parts: Vec<Vec<f32>> = (0..batch * heads)
            .into_par_iter()
            .map(|index| {
                let place = self.place(index / heads, index % heads);
                let (mut weights, mut out) = (Vec::new(), vec![0.0; self.seq * d]);
                for first in (0..self.seq).step_by(QUERY_BLOCK) {
                    let span = self.weights(&place, first, &mut weights, None);
                    let p = Operand::new(&weights, span.count, span.length);
                    let values = self.keys_of(self.values, &place, &span);
                    let rows = first * d..(first + span.count) * d;
                    multiply_here(&mut out[rows], p, values, false);
                }
                out
            })
            .collect();
        let mut out = vec![0.0; self.queries.len()];
        for (index, part) in parts.iter().enumerate() {
            let place = self.place(index / heads, index % heads);
            for (token, row) in part.chunks_exact(d).enumerate() {
                let at = place.query(token);
                out[at..at + d].copy_from_slice(row);
            }
        }
        out
    }

    fn place(&self, sequence: usize, head: usize) -> Place {
        let Geometry { heads, kv_heads, head_dim: d, .. } = self.geometry;
        Place {
            query: sequence * self.seq * heads * d + head * d,
            key: sequence * self.seq * kv_heads * d + head / (heads / kv_heads) * d,
            wide: heads * d,
            narrow: kv_heads * d,
        }
    }

    fn queries_of<'v>(&self, from: &'v [f32], place: &Place, span: &Span) -> Operand<'v> {
        let at = place.query(span.first);
        Operand::part(&from[at..], place.wide, span.count, self.geometry.head_dim)
    }

    fn keys_of<'v>(&self, from: &'v [f32], place: &Place, span: &Span) -> Operand<'v> {
        let at = place.key + span.from * place.narrow;
        Operand::part(&from[at..], place.narrow, span.length, self.geometry.head_dim)
    }

    /// `softmax(cap(q kᵀ s))` of a block of queries over the keys that any of them sees. `slopes` gets
    /// what the soft cap does to gradients, if there is one.
    fn weights(
        &self,
        place: &Place,
        first: usize,
        weights: &mut Vec<f32>,
        slopes: Option<&mut Vec<f32>>,
    ) -> Span {
        let kernels = kernels();
        let scale = self.geometry.scale as f32;
        let count = QUERY_BLOCK.min(self.seq - first);
        let from = self.geometry.first_seen(first);
        let length = first + count - from;
        let span = Span { first, count, from, length };
        weights.resize(count * length, 0.0);
        let mut slopes = slopes.filter(|_| self.geometry.soft_cap.is_some());
        if let Some(slopes) = &mut slopes {
            slopes.clear();
            slopes.resize(count * length, 0.0);
        }
        let query = self.queries_of(self.queries, place, &span);
        multiply_here(weights, query, self.keys_of(self.keys, place, &span).t(), false);
        for (i, row) in weights.chunks_exact_mut(length).enumerate() {
            let seen = self.geometry.first_seen(first + i) - from..first + i + 1 - from;
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let (seen_from, seen_to) = (seen.start, seen.end);
            let row = &mut row[seen];
            row.iter_mut().for_each(|score| *score *= scale);
            if let Some(slopes) = &mut slopes {
                slopes_of_cap(&self.geometry, row, &mut slopes[i * length..][seen_from..seen_to]);
            }
            self.geometry.cap(row);
            let largest = (kernels.max)(row);
            let sum = 1.0 / (kernels.exp_sum)(row, largest);
            row.iter_mut().for_each(|weight| *weight *= sum);
        }
        span
    }

    fn gradients(&self) -> [Vec<f32>; 3] {
        let Geometry { heads, kv_heads, head_dim: d, .. } = self.geometry;
        let batch = self.queries.len() / (self.seq * heads * d);
        let parts: Vec<HeadGradients> = (0..batch * heads)
            .into_par_iter()
            .map(|index| self.head(index / heads, index % heads))
            .collect();
        let group = heads / kv_heads;
        let mut dq = vec![0.0; self.queries.len()];
        let mut dk = vec![0.0; self.keys.len()];
        let mut dv = vec![0.0; self.values.len()];
        for (index, part) in parts.iter().enumerate() {
            let (sequence, head) = (index / heads, index % heads);
            for token in 0..self.seq {
                let row = sequence * self.seq + token;
                let from = token * d..(token + 1) * d;
                let to = (row * heads + head) * d;
                dq[to..to + d].copy_from_slice(&part.queries[from.clone()]);
                let to = (row * kv_heads + head / group) * d;
                add(&mut dk[to..to + d], &part.keys[from.clone()]);
                add(&mut dv[to..to + d], &part.values[from]);
            }
        }
        [dq, dk, dv]
    }

    /// With the weights `P = softmax(q kᵀ s)` and `D = rowsum(dO ∘ O)`:
    /// `dS = s P ∘ (dO vᵀ − D)`, times the slopes of a soft cap, `dq = dS k`, `dk = dSᵀ q`, `dv = Pᵀ dO`.
    fn head(&self, sequence: usize, head: usize) -> HeadGradients {
        let (seq, d) = (self.seq, self.geometry.head_dim);
        let scale = self.geometry.scale as f32;
        let place = self.place(sequence, head);
        let mut gradients = HeadGradients {
            queries: vec![0.0; seq * d],
            keys: vec![0.0; seq * d],
            values: vec![0.0; seq * d],
        };
        let (mut weights, mut inner, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..seq).step_by(QUERY_BLOCK) {
            let span = self.weights(&place, first, &mut weights, Some(&mut slopes));
            let Span { count, length, from, .. } = span;
            let dout = self.queries_of(self.dout, &place, &span);
            inner.resize(count * length, 0.0);
            multiply_here(&mut inner, dout, self.keys_of(self.values, &place, &span).t(), false);
            let range = (from * d)..(from + length) * d;
            let p = Operand::new(&weights, count, length);
            multiply_here(&mut gradients.values[range.clone()], p.t(), dout, true);
            for i in 0..count {
                let at = place.query(first + i);
                let (out, dout) = (&self.out[at..at + d], &self.dout[at..at + d]);
                let pull = (kernels().dot_f32)(dout, out);
                let row = i * length..(i + 1) * length;
                for (inner, weight) in inner[row.clone()].iter_mut().zip(&weights[row]) {
                    *inner = scale * weight * (*inner - pull);
                }
            }
            if self.geometry.soft_cap.is_some() {
                inner.iter_mut().zip(&slopes).for_each(|(inner, slope)| *inner *= slope);
            }
            let ds = Operand::new(&inner, count, length);
            let rows = first * d..(first + count) * d;
            let keys = self.keys_of(self.keys, &place, &span);
            multiply_here(&mut gradients.queries[rows], ds, keys, false);
            let query = self.queries_of(self.queries, &place, &span);
            multiply_here(&mut gradients.keys[range], ds.t(), query, true);
        }
        gradients
    }
}

/// `1 − tanh²(score / c)`
fn slopes_of_cap(geometry: &Geometry, scores: &[f32], slopes: &mut [f32]) {
    let Some(cap) = geometry.soft_cap else { return };
    for (slope, score) in slopes.iter_mut().zip(scores) {
        *slope = 1.0 - (score / cap as f32).tanh().powi(2);
    }
}

fn add(sum: &mut [f32], addend: &[f32]) {
    sum.iter_mut().zip(addend).for_each(|(sum, value)| *sum += value);
}
