//! Arithmetic on rows of logits: log-sum-exp, entropy, divergence, all accumulated in f64; and
//! running a model over windows a bounded number of rows at a time.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::LanguageModel;
use crate::graph::slices::with_f32;
use crate::text::EvaluationWindows;
use crate::{Error, Result};

/// Largest block of logits, bytes.
const LOGITS_BYTES: usize = 64 << 20;
/// Tokens that go through the model together when windows are short.
const BATCH_TOKENS: usize = 2048;

/// Calls `visit` with an f32 tensor's values, row-major, wherever it lies.
pub(crate) fn with_values<T>(
    tensor: &Tensor,
    visit: impl FnOnce(&[f32]) -> Result<T>,
) -> Result<T> {
    with_f32(&tensor.to_device(&Device::Cpu)?, visit)?
}

/// `ln Σ exp(x)`, not a number as soon as one logit is not.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let mut max = f32::NEG_INFINITY;
    for &logit in logits {
        if logit > max || logit.is_nan() {
            max = logit;
        }
    }
    if !max.is_finite() {
        return f64::from(max);
    }
    // Differences and exponentials in f32 are exact to 1e-7 where they matter (near the maximum);
    // the sum of a hundred thousand of them is not, so it is kept in f64.
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// Index of the largest logit, the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    best
}

/// Entropy of `softmax(logits)`, nats: `L − Σ p x`.
pub(crate) fn entropy(logits: &[f32], log_sum: f64) -> f64 {
    let mean: f64 = logits
        .iter()
        .map(|&logit| {
            let probability = (f64::from(logit) - log_sum).exp();
            // A token of probability zero (logit −∞) adds nothing.
            if probability > 0.0 { probability * f64::from(logit) } else { 0.0 }
        })
        .sum();
    (log_sum - mean).max(0.0)
}

/// Kullback–Leibler divergence of `softmax(q)` from `softmax(p)`, nats: `Σ p (ln p − ln q)`.
pub(crate) fn divergence(p: &[f32], p_log_sum: f64, q: &[f32], q_log_sum: f64) -> f64 {
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(&p, &q)| {
            let log_p = f64::from(p) - p_log_sum;
            let probability = log_p.exp();
            if probability > 0.0 { probability * (log_p - (f64::from(q) - q_log_sum)) } else { 0.0 }
        })
        .sum();
    sum.max(0.0)
}

/// The tokens to predict in a block of logits and where it lies, for messages.
pub(crate) struct Targets<'a> {
    /// Target of each row.
    pub tokens: &'a [u32],
    /// Window that the rows belong to.
    pub window: usize,
    /// Position of the first target in its window.
    pub position: usize,
}

impl Targets<'_> {
    /// The error for a row whose loss is not finite.
    pub(crate) fn not_finite(&self, row: usize, which: &str) -> Error {
        Error::General(format!(
            "{which} gives no probability for token {} of window {} (its logits are NaN or \
             infinite)",
            self.position + row,
            self.window
        ))
    }
}

/// Rows of logits that are looked at together.
pub(crate) fn rows_per_block(vocab_size: usize) -> usize {
    (LOGITS_BYTES / 4 / vocab_size.max(1)).max(1)
}

/// Windows that go through the model together.
pub(crate) fn windows_per_batch(length: usize) -> usize {
    (BATCH_TOKENS / length.max(1)).max(1)
}

/// Runs windows `first..first + batch` through every model and calls `visit` with each block of
/// targets and the models' logits for it, `[rows, vocabulary]` each. Blocks come in order and
/// never span two windows.
pub(crate) fn visit_batch<const N: usize>(
    models: [&dyn LanguageModel; N],
    windows: &EvaluationWindows,
    first: usize,
    batch: usize,
    mut visit: impl FnMut(&Targets, [Tensor; N]) -> Result<()>,
) -> Result<()> {
    let length = windows.length;
    let tokens = &windows.tokens[first * length..(first + batch) * length];
    let hidden = models.map(|model| {
        check_tokens(tokens, model.vocab_size())?;
        model.hidden(tokens, batch)
    });
    let hidden = all(hidden)?;
    let block = models.iter().map(|model| rows_per_block(model.vocab_size())).min().unwrap_or(1);
    for index in 0..batch {
        let window = &tokens[index * length..(index + 1) * length];
        let mut position = windows.first_target;
        while position < length {
            let rows = block.min(length - position);
            let mut model = models.iter().zip(&hidden);
            let logits = std::array::from_fn(|_| {
                let (model, hidden) = model.next().unwrap_or_else(|| unreachable!());
                let rows = hidden.narrow(0, index * length + position - 1, rows)?;
                model.logits(&rows.contiguous()?)
            });
            let targets = Targets {
                tokens: &window[position..position + rows],
                window: first + index,
                position,
            };
            visit(&targets, all(logits)?)?;
            position += rows;
        }
    }
    Ok(())
}

fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values = results.into_iter().collect::<Result<Vec<T>>>()?;
    values.try_into().map_err(|_| Error::General("a model gave no result".into()))
}

/// Refuses tokens that the model has no embedding for: text encoded with another tokenizer.
pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        None => Ok(()),
        Some(token) => Err(Error::General(format!(
            "token {token} is outside the model's vocabulary of {vocab_size}: the tokenizer does \
             not belong to the model"
        ))),
    }
}

/// Negative log-likelihood of each row's target, nats.
pub(crate) fn losses(logits: &Tensor, targets: &Targets, which: &str) -> Result<Vec<f64>> {
    let losses = if logits.device().is_cpu() {
        losses_on_host(logits, targets.tokens)?
    } else {
        losses_on_device(logits, targets.tokens)?
    };
    match losses.iter().position(|loss| !loss.is_finite()) {
        None => Ok(losses),
        Some(row) => Err(targets.not_finite(row, which)),
    }
}

fn losses_on_host(logits: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let (_, columns) = logits.dims2()?;
    with_values(logits, |values| {
        Ok(values
            .par_chunks_exact(columns)
            .zip(targets)
            .map(|(row, &target)| log_sum_exp(row) - f64::from(row[target as usize]))
            .collect())
    })
}

/// The same with the tensor's own operations, so that only one number a row crosses the bus.
fn losses_on_device(logits: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let index = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let chosen = logits.gather(&index, 1)?.squeeze(1)?;
    let losses = (logits.log_sum_exp(D::Minus1)? - chosen)?;
    Ok(losses.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Probabilities by the definition, in f64 without any shift.
    fn softmax(logits: &[f32]) -> Vec<f64> {
        let exponentials: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.into_iter().map(|x| x / sum).collect()
    }

    #[test]
    fn rows_agree_with_the_definitions() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..20 {
            let mut draw = || (0..257).map(|_| random.random_range(-9.0f32..9.0)).collect();
            let (x, y): (Vec<f32>, Vec<f32>) = (draw(), draw());
            let (p, q) = (softmax(&x), softmax(&y));
            let (lx, ly) = (log_sum_exp(&x), log_sum_exp(&y));
            assert!((lx - x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln()).abs() < 1e-6);
            let h: f64 = p.iter().map(|p| -p * p.ln()).sum();
            assert!((entropy(&x, lx) - h).abs() < 1e-5, "{} {h}", entropy(&x, lx));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            assert!((divergence(&x, lx, &y, ly) - kl).abs() < 1e-5);
        }
    }

    #[test]
    fn extreme_logits_neither_overflow_nor_hide() {
        assert!((log_sum_exp(&[1e30, 1e30]) - 1e30).abs() < 1e23);
        assert!((log_sum_exp(&[-3e4; 4]) - (-3e4 + 4f64.ln())).abs() < 1e-9);
        assert!(log_sum_exp(&[0.0, f32::NAN, 1.0]).is_nan());
        assert!(log_sum_exp(&[f32::NAN, 5.0]).is_nan());
        assert!(log_sum_exp(&[0.0, f32::INFINITY]).is_infinite());
        // A masked token has probability zero and disturbs nothing.
        let masked = [0.0, f32::NEG_INFINITY, 0.0];
        let log_sum = log_sum_exp(&masked);
        assert!((log_sum - 2f64.ln()).abs() < 1e-7);
        assert!((entropy(&masked, log_sum) - 2f64.ln()).abs() < 1e-7);
        assert!(divergence(&masked, log_sum, &masked, log_sum) < 1e-12);
    }

    #[test]
    fn both_ways_to_the_losses_agree() {
        let logits = Tensor::randn(0f32, 3.0, (5, 300), &Device::Cpu).unwrap();
        let targets = [0u32, 299, 17, 5, 128];
        let host = losses_on_host(&logits, &targets).unwrap();
        let device = losses_on_device(&logits, &targets).unwrap();
        for (a, b) in host.iter().zip(&device) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        // Columns of a wider tensor: not contiguous.
        let narrow = logits.narrow(1, 10, 200).unwrap();
        let copied = losses_on_host(&narrow.contiguous().unwrap(), &[3; 5]).unwrap();
        assert_eq!(losses_on_host(&narrow, &[3; 5]).unwrap(), copied);
    }
}
