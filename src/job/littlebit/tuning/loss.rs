//! What recovery minimises.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::with_values;
use crate::Result;
use crate::codec::vector::kernels;
use crate::graph::slices::with_f32;
use crate::graph::tracked::values;
use crate::linalg::products::{Operand, multiply};

/// `Σ_t w_t ‖y_t − target_t‖²` with weights that make it a mean: of the squared error of each token
/// relative to that token's squared norm, or of all squared errors relative to all squared norms.
pub(super) fn squared_error(y: &Tensor, target: &[f32], relative: bool) -> Result<Tensor> {
    let (tokens, width) = y.dims2()?;
    let norms: Vec<f64> = target
        .chunks_exact(width)
        .map(|row| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().max(1e-12))
        .collect();
    let weights = if relative {
        norms.iter().map(|norm| (1.0 / norm / tokens as f64) as f32).collect()
    } else {
        let total: f64 = norms.iter().sum();
        vec![(1.0 / total) as f32; tokens]
    };
    if y.device().is_cpu() {
        let op = SquaredError { target: target.to_vec(), weights, gradient: Mutex::default() };
        return Ok(y.contiguous()?.apply_op1(op)?);
    }
    squared_error_by_operations(y, target, &weights)
}

/// `Σ_t w_t ‖y_t − target_t‖²` on any device.
pub(super) fn squared_error_by_operations(
    y: &Tensor,
    target: &[f32],
    weights: &[f32],
) -> Result<Tensor> {
    let target = Tensor::from_slice(target, y.shape(), y.device())?;
    let weights = Tensor::from_slice(weights, weights.len(), y.device())?;
    Ok(((y - target)?.sqr()?.sum(D::Minus1)? * weights)?.sum_all()?)
}

struct SquaredError {
    target: Vec<f32>,
    weights: Vec<f32>,
    gradient: Mutex<Vec<f32>>,
}

impl CustomOp1 for SquaredError {
    fn name(&self) -> &'static str {
        "squared-error"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let mut gradient = values(storage, layout)?.to_vec();
        gradient.iter_mut().zip(&self.target).for_each(|(y, target)| *y -= target);
        let mut sum = 0.0;
        for (row, weight) in gradient.chunks_exact_mut(width).zip(&self.weights) {
            sum += f64::from((kernels().dot_f32)(row, row)) * f64::from(*weight);
            row.iter_mut().for_each(|difference| *difference *= 2.0 * weight);
        }
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = gradient;
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, y: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        kept_gradient(&self.gradient, y, dy)
    }
}

/// The gradient that the forward pass left, times that of the loss.
fn kept_gradient(
    kept: &Mutex<Vec<f32>>,
    y: &Tensor,
    dy: &Tensor,
) -> candle_core::Result<Option<Tensor>> {
    let mut gradient = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    let factor = dy.to_scalar::<f32>()?;
    gradient.iter_mut().for_each(|value| *value *= factor);
    Ok(Some(Tensor::from_vec(gradient, y.shape().clone(), y.device())?))
}

/// What the original thinks of the next token: its most likely tokens one by one, all others
/// together.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Opinions {
    /// Tokens listed for each position.
    pub count: usize,
    /// `[positions, count]`.
    pub tokens: Vec<u32>,
    /// Their probabilities, `[positions, count]`.
    pub probabilities: Vec<f32>,
}

impl Opinions {
    /// From logits, `[positions, vocabulary]`.
    #[must_use]
    pub(crate) fn of(logits: &[f32], vocabulary: usize, count: usize) -> Self {
        let count = count.min(vocabulary - 1).max(1);
        let rows: Vec<(Vec<u32>, Vec<f32>)> = logits
            .par_chunks_exact(vocabulary)
            .map(|row| {
                let mut order: Vec<u32> = (0..vocabulary as u32).collect();
                let by_logit =
                    |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
                order.select_nth_unstable_by(count - 1, by_logit);
                order.truncate(count);
                order.sort_unstable_by(by_logit);
                let mut all = row.to_vec();
                let largest = (kernels().max)(&all);
                let sum = (kernels().exp_sum)(&mut all, largest);
                let probabilities = order.iter().map(|&token| all[token as usize] / sum).collect();
                (order, probabilities)
            })
            .collect();
        let mut opinions = Self { count, ..Self::default() };
        for (tokens, probabilities) in rows {
            opinions.tokens.extend(tokens);
            opinions.probabilities.extend(probabilities);
        }
        opinions
    }
}

/// The head of a model, as a loss: mean Kullback–Leibler divergence, nats per token, of the
/// original's next-token distribution to that of logits `hidden · weightᵀ`.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// `[vocabulary, hidden]`.
    weight: Arc<Vec<f32>>,
    vocabulary: usize,
    /// The weight on a device, if that is where it is used.
    placed: Option<Tensor>,
}

/// Logits that a device holds at a time (256 MiB).
const LOGITS_AT_ONCE: usize = 1 << 26;

impl Head {
    /// A head of that weight, `[vocabulary, hidden]`.
    #[must_use]
    pub(crate) fn new(weight: Vec<f32>, vocabulary: usize) -> Self {
        Self { weight: Arc::new(weight), vocabulary, placed: None }
    }

    /// The same on `device`, by candle's operations.
    pub(crate) fn on_device(weight: &[f32], vocabulary: usize, device: &Device) -> Result<Self> {
        let shape = (vocabulary, weight.len() / vocabulary.max(1));
        let placed = Some(Tensor::from_slice(weight, shape, device)?);
        Ok(Self { weight: Arc::default(), vocabulary, placed })
    }

    /// What a model with this head predicts from normed final states `hidden`, `[tokens, hidden]`.
    pub(crate) fn opinions(&self, hidden: &Tensor, count: usize) -> Result<Opinions> {
        let (tokens, width) = hidden.dims2()?;
        if let Some(weight) = &self.placed {
            let logits = hidden.matmul(&weight.t()?)?;
            return with_values(&logits, |logits| Opinions::of(logits, self.vocabulary, count));
        }
        let mut logits = vec![0.0; tokens * self.vocabulary];
        let weight = Operand::new(&self.weight, self.vocabulary, width).t();
        with_f32(hidden, |hidden| {
            multiply(&mut logits, Operand::new(hidden, tokens, width), weight, false);
        })?;
        Ok(Opinions::of(&logits, self.vocabulary, count))
    }

    /// The loss of normed final states `hidden`, `[tokens, hidden]`.
    pub(crate) fn divergence(&self, hidden: &Tensor, opinions: &Arc<Opinions>) -> Result<Tensor> {
        if let Some(weight) = &self.placed {
            return self.divergence_by_operations(weight, hidden, opinions);
        }
        let op = Divergence {
            head: self.clone(),
            opinions: Arc::clone(opinions),
            gradient: Mutex::default(),
            wanted: hidden.track_op(),
        };
        Ok(hidden.contiguous()?.apply_op1(op)?)
    }
}

impl Head {
    /// The loss on a device, some tokens at a time. Its gradient is computed along with it, so that
    /// nothing of the size of the logits is kept.
    fn divergence_by_operations(
        &self,
        weight: &Tensor,
        hidden: &Tensor,
        opinions: &Opinions,
    ) -> Result<Tensor> {
        let (device, (tokens, _)) = (hidden.device(), hidden.dims2()?);
        let count = opinions.count;
        let states = hidden.detach();
        let together = (LOGITS_AT_ONCE / self.vocabulary).max(1);
        let (mut loss, mut gradients) = (0.0f64, Vec::new());
        for first in (0..tokens).step_by(together) {
            let rows = together.min(tokens - first);
            let listed = first * count..(first + rows) * count;
            let given = &opinions.probabilities[listed.clone()];
            let listed = Tensor::from_slice(&opinions.tokens[listed], (rows, count), device)?;
            let p = Tensor::from_slice(given, (rows, count), device)?;
            let p_rest: Vec<f32> = given
                .chunks_exact(count)
                .map(|p| (1.0 - p.iter().map(|p| f64::from(*p)).sum::<f64>()).max(0.0) as f32)
                .collect();
            loss += given
                .iter()
                .chain(&p_rest)
                .filter(|p| **p > 0.0)
                .map(|p| f64::from(*p) * f64::from(*p).ln())
                .sum::<f64>();
            let p_rest = Tensor::from_vec(p_rest, (rows, 1), device)?;

            let logits = states.narrow(0, first, rows)?.contiguous()?.matmul(&weight.t()?)?;
            let above = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
            let q = above.broadcast_div(&above.sum_keepdim(1)?)?;
            let q_listed = q.gather(&listed, 1)?;
            let q_rest = q_listed.sum_keepdim(1)?.affine(-1.0, 1.0)?.maximum(1e-9)?;
            let crossed = (&p * q_listed.maximum(1e-30)?.log()?)?.sum_all()?;
            let crossed = (crossed + (&p_rest * q_rest.log()?)?.sum_all()?)?;
            loss -= f64::from(crossed.to_scalar::<f32>()?);

            // As in `divergence_of`.
            let factor = (p_rest / q_rest)?.affine(-1.0, 1.0)?;
            let others = q.broadcast_mul(&factor)?;
            let change = ((&q_listed - p)? - q_listed.broadcast_mul(&factor)?)?;
            let gradient = others.scatter_add(&listed, &change, 1)?.matmul(weight)?;
            gradients.push((gradient * (1.0 / tokens as f64))?);
        }
        let gradient = Tensor::cat(&gradients, 0)?;
        // The sum has that gradient; its value is replaced by the loss.
        let sum = (hidden * gradient)?.sum_all()?;
        let loss = Tensor::new((loss / tokens as f64) as f32, device)?;
        Ok((&sum + (loss - sum.detach())?)?)
    }
}

struct Divergence {
    head: Head,
    opinions: Arc<Opinions>,
    gradient: Mutex<Vec<f32>>,
    wanted: bool,
}

impl CustomOp1 for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        let vocabulary = self.head.vocabulary;
        let hidden = Operand::new(values(storage, layout)?, tokens, width);
        let weight = Operand::new(&self.head.weight, vocabulary, width);
        let mut logits = vec![0.0; tokens * vocabulary];
        multiply(&mut logits, hidden, weight.t(), false);
        let count = self.opinions.count;
        let mut losses = vec![0.0f64; tokens];
        logits.par_chunks_exact_mut(vocabulary).zip(&mut losses).enumerate().for_each(
            |(row, (logits, loss))| {
                let listed = row * count..(row + 1) * count;
                *loss = divergence_of(
                    logits,
                    &self.opinions.tokens[listed.clone()],
                    &self.opinions.probabilities[listed],
                    1.0 / tokens as f32,
                );
            },
        );
        if self.wanted {
            let mut gradient = vec![0.0; tokens * width];
            multiply(&mut gradient, Operand::new(&logits, tokens, vocabulary), weight, false);
            *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = gradient;
        }
        let mean = losses.iter().sum::<f64>() / tokens as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, y: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        kept_gradient(&self.gradient, y, dy)
    }
}

/// Divergence at one position; the logits are replaced by its gradient times `share`.
///
/// With the listed probabilities `p`, `q` and those of the rest `p_r`, `q_r`: the gradient is
/// `q_j − p_j` for a listed token and `q_j (1 − p_r / q_r)` for another.
fn divergence_of(logits: &mut [f32], tokens: &[u32], p: &[f32], share: f32) -> f64 {
    let largest = (kernels().max)(logits);
    let sum = (kernels().exp_sum)(logits, largest);
    let (mut loss, mut listed_p, mut listed_q) = (0.0, 0.0, 0.0);
    for (&token, &p) in tokens.iter().zip(p) {
        let q = f64::from(logits[token as usize] / sum).max(1e-30);
        let p = f64::from(p);
        if p > 0.0 {
            loss += p * (p / q).ln();
        }
        listed_p += p;
        listed_q += q;
    }
    let (p_rest, q_rest) = ((1.0 - listed_p).max(0.0), (1.0 - listed_q).max(1e-9));
    if p_rest > 1e-9 {
        loss += p_rest * (p_rest / q_rest).ln();
    }
    let kept: Vec<f32> = tokens.iter().map(|&token| logits[token as usize] / sum).collect();
    let factor = (1.0 - p_rest / q_rest) as f32 * share / sum;
    logits.iter_mut().for_each(|value| *value *= factor);
    for ((&token, &p), q) in tokens.iter().zip(p).zip(kept) {
        logits[token as usize] = (q - p) * share;
    }
    loss
}
