//! Causal softmax attention with grouped keys: `softmax(q kᵀ / √d) v`.
//!
//! Two implementations: `fused` for the CPU, over slices, and `operations` from candle
//! operations, for other devices and for gradients. Neither holds more than a block of queries
//! times the keys they see, so memory grows with the length of a sequence and not with its square.

use std::cell::Cell;

use candle_core::{D, DType, Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::cache::Cached;
use super::rope::Positions;
use crate::Result;
use crate::arch::spec::Attention;
use crate::codec::vector::kernels;

/// What attention needs to know about a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Geometry {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that a position sees, itself included, if not all.
    pub window: Option<usize>,
    /// What scores are multiplied with.
    pub scale: f64,
    /// `c`, where scores become `c tanh(score / c)`.
    pub soft_cap: Option<f64>,
}

impl Geometry {
    /// First position that `position` sees.
    pub(super) fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// That of a block.
    #[must_use]
    pub(crate) fn of(attention: &Attention) -> Self {
        let Attention { heads, kv_heads, head_dim, window, scale, soft_cap, .. } = *attention;
        Self { heads, kv_heads, head_dim, window, scale, soft_cap }
    }

    /// Bends scores to within the soft cap, if there is one.
    pub(super) fn cap(&self, scores: &mut [f32]) {
        if let Some(cap) = self.soft_cap {
            soft_cap(scores, cap as f32);
        }
    }

    /// Values of a token's keys.
    #[must_use]
    pub(crate) fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Values of a token's queries.
    #[must_use]
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// `c tanh(x / c)`
pub(crate) fn soft_cap(values: &mut [f32], cap: f32) {
    values.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
}

/// Up to this many queries per sequence, each is computed by itself: dot products with the keys
/// are cheaper than setting up a matrix product.
const FEW_QUERIES: usize = 4;

/// Queries in a block of the matrix path.
const QUERY_BLOCK: usize = 128;

/// Scores that a block may hold (4 MiB of f32).
const SCORE_BLOCK: usize = 1 << 20;

/// Multiply-adds below which one thread does everything.
const PARALLEL_WORK: usize = 1 << 17;

thread_local! {
    /// Buffer for scores, taken and put back, so that a thread that is given other work in between
    /// finds an empty one instead of a borrowed one.
    static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static DECODED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Attention of `queries`, `[batch · seq, heads · d]`, over `keys` and `values`, which are
/// `[batch · (start + seq), kv_heads · d]`, for sequences of `seq` queries from position `start` on.
/// Gives `[batch · seq, heads · d]`.
pub(crate) fn fused(
    geometry: &Geometry,
    (seq, start): (usize, usize),
    queries: &[f32],
    keys: Cached<'_>,
    values: Cached<'_>,
) -> Vec<f32> {
    let Geometry { heads, head_dim, .. } = *geometry;
    let length = start + seq;
    let mut out = vec![0.0; queries.len()];
    if out.is_empty() {
        return out;
    }
    if seq <= FEW_QUERIES {
        let job = |(at, out): (usize, &mut [f32])| {
            let (row, head) = (at / heads, at % heads);
            let (sequence, position) = (row / seq, start + row % seq);
            let view = HeadView::new(geometry, head, sequence * length);
            let query = &queries[at * head_dim..(at + 1) * head_dim];
            single(geometry, &view, position, query, keys, values, out);
        };
        let seen = length - geometry.first_seen(start);
        if out.len() * seen < PARALLEL_WORK {
            out.chunks_exact_mut(head_dim).enumerate().for_each(job);
        } else {
            out.par_chunks_exact_mut(head_dim).enumerate().for_each(job);
        }
        return out;
    }

    // Head by head into [batch, heads, seq, d], so that every block is contiguous.
    let block = (SCORE_BLOCK / length).clamp(8, QUERY_BLOCK);
    let mut by_head = vec![0.0; queries.len()];
    by_head.par_chunks_exact_mut(seq * head_dim).enumerate().for_each(|(at, out)| {
        let (sequence, head) = (at / heads, at % heads);
        let view = HeadView::new(geometry, head, sequence * length);
        out.par_chunks_mut(block * head_dim).enumerate().for_each(|(index, out)| {
            let first = index * block;
            let count = out.len() / head_dim;
            let width = heads * head_dim;
            let offset = (sequence * seq + first) * width + head * head_dim;
            let query = &queries[offset..offset + (count - 1) * width + head_dim];
            let query = MatRef::from_row_major_slice_with_stride(query, count, head_dim, width);
            many(geometry, &view, start + first, query, keys, values, out);
        });
    });
    out.par_chunks_exact_mut(heads * head_dim).enumerate().for_each(|(row, out)| {
        let (sequence, token) = (row / seq, row % seq);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let at = ((sequence * heads + head) * seq + token) * head_dim;
            out.copy_from_slice(&by_head[at..at + head_dim]);
        }
    });
    out
}

/// Where the keys of one head of one sequence lie in the rows.
struct HeadView {
    /// First row of the sequence.
    row: usize,
    /// First column of the head.
    column: usize,
    /// Columns of a row.
    width: usize,
    head_dim: usize,
}

impl HeadView {
    fn new(geometry: &Geometry, head: usize, row: usize) -> Self {
        let group = geometry.heads / geometry.kv_heads;
        Self {
            row,
            column: head / group * geometry.head_dim,
            width: geometry.key_width(),
            head_dim: geometry.head_dim,
        }
    }

    /// Index of the first value of position `position`.
    fn at(&self, position: usize) -> usize {
        (self.row + position) * self.width + self.column
    }

    /// Positions `from..to` as a matrix `[to - from, d]`; halves are widened into `buffer`.
    fn matrix<'a>(
        &self,
        rows: Cached<'a>,
        from: usize,
        to: usize,
        buffer: &'a mut Vec<f32>,
    ) -> MatRef<'a, f32, usize, usize> {
        match rows {
            Cached::Single(rows) => {
                let end = self.at(to - 1) + self.head_dim;
                let rows = &rows[self.at(from)..end];
                MatRef::from_row_major_slice_with_stride(rows, to - from, self.head_dim, self.width)
            }
            Cached::Half(rows) => {
                buffer.resize((to - from) * self.head_dim, 0.0);
                for (position, out) in (from..to).zip(buffer.chunks_exact_mut(self.head_dim)) {
                    let at = self.at(position);
                    rows[at..at + self.head_dim].convert_to_f32_slice(out);
                }
                MatRef::from_row_major_slice(buffer, to - from, self.head_dim)
            }
        }
    }
}

/// One query at `position`, by dot products.
fn single(
    geometry: &Geometry,
    view: &HeadView,
    position: usize,
    query: &[f32],
    keys: Cached<'_>,
    values: Cached<'_>,
    out: &mut [f32],
) {
    let kernels = kernels();
    let scale = geometry.scale as f32;
    let scaled: Vec<f32> = query.iter().map(|q| q * scale).collect();
    let first = geometry.first_seen(position);
    let range = view.at(first)..view.at(position) + view.head_dim;
    let mut scores = SCORES.take();
    scores.clear();
    scores.resize(position + 1 - first, 0.0);
    match keys {
        Cached::Half(keys) => {
            let keys = bytemuck::cast_slice(&keys[range.clone()]);
            (kernels.rows_f16)(keys, 2 * view.width, &scaled, &mut scores);
        }
        Cached::Single(keys) => {
            let keys = bytemuck::cast_slice(&keys[range.clone()]);
            (kernels.rows_f32)(keys, 4 * view.width, &scaled, &mut scores);
        }
    }
    geometry.cap(&mut scores);
    let largest = (kernels.max)(&scores);
    let sum = (kernels.exp_sum)(&mut scores, largest);
    out.fill(0.0);
    match values {
        Cached::Half(values) => {
            let values = bytemuck::cast_slice(&values[range]);
            (kernels.sum_f16)(values, 2 * view.width, &scores, out);
        }
        Cached::Single(values) => {
            let values = bytemuck::cast_slice(&values[range]);
            (kernels.sum_f32)(values, 4 * view.width, &scores, out);
        }
    }
    for value in out.iter_mut() {
        *value /= sum;
    }
    SCORES.set(scores);
}

/// Consecutive queries from position `first` on, by matrix products over the keys that any of them
/// sees. `out` is `[queries, d]`.
fn many(
    geometry: &Geometry,
    view: &HeadView,
    first: usize,
    query: MatRef<'_, f32, usize, usize>,
    keys: Cached<'_>,
    values: Cached<'_>,
    out: &mut [f32],
) {
    let kernels = kernels();
    let count = query.nrows();
    let (from, to) = (geometry.first_seen(first), first + count);
    let length = to - from;
    let mut scores = SCORES.take();
    let mut decoded = DECODED.take();
    scores.resize(count * length, 0.0);
    matmul(
        MatMut::from_row_major_slice_mut(&mut scores, count, length),
        Accum::Replace,
        query,
        view.matrix(keys, from, to, &mut decoded).transpose(),
        geometry.scale as f32,
        Par::Seq,
    );
    let mut sums = [0.0; QUERY_BLOCK];
    for ((i, row), sum) in scores.chunks_exact_mut(length).enumerate().zip(&mut sums) {
        let seen = geometry.first_seen(first + i) - from..first + i + 1 - from;
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        let row = &mut row[seen];
        geometry.cap(row);
        let largest = (kernels.max)(row);
        *sum = (kernels.exp_sum)(row, largest);
    }
    matmul(
        MatMut::from_row_major_slice_mut(out, count, view.head_dim),
        Accum::Replace,
        MatRef::from_row_major_slice(&scores, count, length),
        view.matrix(values, from, to, &mut decoded),
        1.0,
        Par::Seq,
    );
    for (row, sum) in out.chunks_exact_mut(view.head_dim).zip(sums) {
        for value in row.iter_mut() {
            *value /= sum;
        }
    }
    SCORES.set(scores);
    DECODED.set(decoded);
}

/// Queries in a block of [`operations`].
const OPERATIONS_BLOCK: usize = 256;

/// The same from candle operations that have gradients: `queries` is `[batch, seq, heads, d]`,
/// `keys` and `values` are `[batch, start + seq, kv_heads, d]`. Gives `[batch · seq, heads · d]`.
pub(crate) fn operations(
    geometry: &Geometry,
    positions: &Positions,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    let Positions { batch, seq, start, .. } = *positions;
    let queries = queries.transpose(1, 2)?.contiguous()?;
    let keys = repeat_heads(keys, geometry)?.transpose(2, 3)?.contiguous()?;
    let values = repeat_heads(values, geometry)?;
    let mut blocks = Vec::with_capacity(seq.div_ceil(OPERATIONS_BLOCK));
    for first in (0..seq).step_by(OPERATIONS_BLOCK) {
        let count = OPERATIONS_BLOCK.min(seq - first);
        let from = geometry.first_seen(start + first);
        let length = start + first + count - from;
        let query = queries.narrow(2, first, count)?.contiguous()?;
        let scores = query.matmul(&keys.narrow(3, from, length)?.contiguous()?)?;
        let mut scores = (scores * geometry.scale)?;
        if let Some(cap) = geometry.soft_cap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if count > 1 {
            let mask = positions.mask((first, geometry.window), || {
                mask(geometry, start + first, count, from, queries.device())
            })?;
            scores = scores.broadcast_add(&mask)?;
        }
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        blocks.push(weights.matmul(&values.narrow(2, from, length)?.contiguous()?)?);
    }
    let out = if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 2)? };
    Ok(out.transpose(1, 2)?.reshape((batch * seq, geometry.query_width()))?)
}

/// `[batch, length, kv_heads, d]` to `[batch, heads, length, d]`.
fn repeat_heads(rows: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    let (batch, length, kv_heads, head_dim) = rows.dims4()?;
    let rows = rows.transpose(1, 2)?.contiguous()?;
    let group = geometry.heads / geometry.kv_heads;
    if group == 1 {
        return Ok(rows);
    }
    Ok(rows.unsqueeze(2)?.expand((batch, kv_heads, group, length, head_dim))?.reshape((
        batch,
        geometry.heads,
        length,
        head_dim,
    ))?)
}

/// Zero where a query sees a key and negative infinity elsewhere, `[count, keys]`, for queries from
/// position `first` on and keys from position `from` on.
fn mask(
    geometry: &Geometry,
    first: usize,
    count: usize,
    from: usize,
    device: &Device,
) -> Result<Tensor> {
    let length = first + count - from;
    let mut mask = vec![f32::NEG_INFINITY; count * length];
    for (i, row) in mask.chunks_exact_mut(length).enumerate() {
        row[geometry.first_seen(first + i) - from..=first + i - from].fill(0.0);
    }
    Ok(Tensor::from_vec(mask, (count, length), device)?.to_dtype(DType::F32)?)
}
