//! The loss of a sample at the head of the model, and its gradient there.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::Result;
use crate::graph::attention::soft_cap;
use crate::graph::slices::with_f32;
use crate::linalg::products::{Operand, multiply};
use crate::weight::StoredTensor;

/// Values of the head that are decoded at a time.
const TILE_VALUES: usize = 1 << 24;

/// The output matrix, `[vocabulary, hidden]`, as stored.
pub(super) struct Head<'m> {
    weight: &'m StoredTensor,
    /// `c`, where logits are `c tanh(product / c)`.
    soft_cap: Option<f32>,
}

/// A loss and its gradient.
pub(super) struct Loss {
    /// Nats, summed over the tokens.
    pub(super) loss: f64,
    /// `[tokens, hidden]`.
    pub(super) gradient: Tensor,
}

impl<'m> Head<'m> {
    pub(super) fn new(weight: &'m StoredTensor, soft_cap: Option<f64>) -> Self {
        Self { weight, soft_cap: soft_cap.map(|cap| cap as f32) }
    }

    /// Negative log-likelihood of `tokens[1..]` given normed final states `hidden`, `[tokens,
    /// hidden]`. With the probabilities `p` of a row and its target `t`, the gradient of its logits
    /// is `p − e_t`; that of the states is its product with the weight. The last row predicts
    /// nothing.
    pub(super) fn loss(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Loss> {
        let (rows, width) = hidden.dims2()?;
        let vocabulary = self.weight.rows();
        let scored = rows.saturating_sub(1).min(tokens.len().saturating_sub(1));
        let mut logits = vec![0.0; scored * vocabulary];
        with_f32(hidden, |hidden| {
            let x = Operand::new(&hidden[..scored * width], scored, width);
            self.tiles(|first, count, weight| {
                let mut part = vec![0.0; scored * count];
                multiply(&mut part, x, Operand::new(weight, count, width).t(), false);
                for (row, part) in part.chunks_exact(count).enumerate() {
                    let at = row * vocabulary + first;
                    logits[at..at + count].copy_from_slice(part);
                }
            });
        })?;
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(vocabulary)
            .zip(&tokens[1..=scored])
            .map(|(row, &target)| {
                let Some(cap) = self.soft_cap else { return to_gradient(row, target as usize) };
                soft_cap(row, cap);
                let slopes: Vec<f32> = row.iter().map(|z| 1.0 - (z / cap).powi(2)).collect();
                let loss = to_gradient(row, target as usize);
                row.iter_mut().zip(slopes).for_each(|(value, slope)| *value *= slope);
                loss
            })
            .collect();
        let mut gradient = vec![0.0; rows * width];
        self.tiles(|first, count, weight| {
            let dlogits = Operand::part(&logits[first..], vocabulary, scored, count);
            let weight = Operand::new(weight, count, width);
            multiply(&mut gradient[..scored * width], dlogits, weight, true);
        });
        let gradient = Tensor::from_vec(gradient, (rows, width), hidden.device())?;
        Ok(Loss { loss: losses.iter().sum(), gradient })
    }

    /// Calls `visit` with the first row, the number of rows and the values of each tile.
    fn tiles(&self, mut visit: impl FnMut(usize, usize, &[f32])) {
        let (rows, cols) = (self.weight.rows(), self.weight.cols());
        let tile = (TILE_VALUES / cols.max(1)).clamp(1, rows.max(1));
        for first in (0..rows).step_by(tile) {
            let count = tile.min(rows - first);
            let mut values = vec![0.0; count * cols];
            values.par_chunks_exact_mut(cols).enumerate().for_each(|(row, out)| {
                self.weight.read_rows(first + row..first + row + 1, out);
            });
            visit(first, count, &values);
        }
    }
}

/// Turns a row of logits into the gradient of its loss, which is given back.
fn to_gradient(row: &mut [f32], target: usize) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at_target = f64::from(row[target] - largest);
    row.iter_mut().for_each(|value| *value = (*value - largest).exp());
    let sum: f64 = row.iter().map(|value| f64::from(*value)).sum();
    let scale = (1.0 / sum) as f32;
    row.iter_mut().for_each(|value| *value *= scale);
    row[target] -= 1.0;
    sum.ln() - at_target
}
