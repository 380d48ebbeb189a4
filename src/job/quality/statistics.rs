//! What is kept of every token, and the figures that llama-perplexity prints of it: both
//! perplexities, their ratio with the paired standard error, Kullback–Leibler divergence, the
//! change of the probability of the right token, and how often both models prefer the same token.

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;

use super::stream::Visitor;
use crate::Result;
use crate::graph::slices::with_f32;
use crate::measure::perplexity::Moments;
use crate::measure::rows::{self, Targets};

/// Share of the divergences that fall into a decade's bins: how many bins a factor of 10 has.
const BINS_PER_DECADE: i32 = 4;
/// Decades of the histogram: 10⁻⁶ to 10² nats.
const DECADES: (i32, i32) = (-6, 2);

/// Mean, spread and percentiles of a quantity over all scored tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Distribution {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean: `σ / √(n − 1)`.
    pub stderr: f64,
    /// Smallest value.
    pub min: f64,
    /// 0.1th percentile. Percentiles are interpolated between neighbours, as llama-perplexity does.
    pub p0_1: f64,
    /// 1st percentile.
    pub p1: f64,
    /// 5th percentile.
    pub p5: f64,
    /// 10th percentile.
    pub p10: f64,
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Largest value.
    pub max: f64,
}

impl Distribution {
    /// Of values in any order.
    pub(super) fn of(values: &[f32]) -> Self {
        let mut moments = Moments::default();
        values.iter().for_each(|&value| moments.add(f64::from(value)));
        let mut sorted = values.to_vec();
        sorted.par_sort_unstable_by(f32::total_cmp);
        let at = |share| percentile(&sorted, share);
        Self {
            mean: moments.mean(),
            stderr: moments.standard_error(),
            min: at(0.0),
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            median: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

/// The value below which `share` of the sorted values lie, interpolated between neighbours.
fn percentile(sorted: &[f32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let below = place.floor();
    let rest = place - below;
    let (low, high) = (sorted[below as usize], sorted[(below as usize + 1).min(last)]);
    f64::from(low) * (1.0 - rest) + f64::from(high) * rest
}

/// Tokens whose divergence lies in `[from, to)`, nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Bin {
    /// Lower bound; 0 for the first bin.
    pub from: f64,
    /// Upper bound.
    pub to: f64,
    /// Tokens.
    pub tokens: u64,
}

/// Counts values in logarithmic bins. The first takes everything below, the last everything above.
fn histogram(values: &[f32]) -> Vec<Bin> {
    let edges: Vec<f64> = (DECADES.0 * BINS_PER_DECADE..=DECADES.1 * BINS_PER_DECADE)
        .map(|step| 10f64.powf(f64::from(step) / f64::from(BINS_PER_DECADE)))
        .collect();
    let mut bins: Vec<Bin> = std::iter::once(0.0)
        .chain(edges.iter().copied())
        .zip(&edges)
        .map(|(from, &to)| Bin { from, to, tokens: 0 })
        .collect();
    let last = bins.len() - 1;
    for &value in values {
        let bin = edges.partition_point(|&edge| edge <= f64::from(value));
        bins[bin.min(last)].tokens += 1;
    }
    bins
}

/// What one model's tokens say beside the original's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenFigures {
    pub(super) perplexity: f64,
    pub(super) perplexity_stderr: f64,
    /// `ln(perplexity / original's)`, with the standard error of the paired differences.
    pub(super) ln_ratio: f64,
    pub(super) ln_ratio_stderr: f64,
    /// Correlation of both models' losses, token by token.
    pub(super) correlation: f64,
    pub(super) divergence: Distribution,
    pub(super) histogram: Vec<Bin>,
    /// Change of the probability of the token that follows, percentage points.
    pub(super) probability: Distribution,
    /// Root of the mean square of the same, and its standard error.
    pub(super) probability_rms: f64,
    pub(super) probability_rms_stderr: f64,
    /// Share of tokens, percent, and its standard error.
    pub(super) same_top: f64,
    pub(super) same_top_stderr: f64,
    /// Relative error of the hidden states behind each block: `‖x̂ − x‖² / ‖x‖²` over all tokens.
    pub(super) hidden_errors: Vec<f64>,
}

/// The original's side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OriginalFigures {
    pub(super) perplexity: f64,
    pub(super) perplexity_stderr: f64,
    pub(super) tokens: u64,
}

/// Sums up a run over an original (the first model) and others.
pub(super) struct Collector {
    original: Moments,
    original_losses: Vec<f32>,
    others: Vec<Side>,
}

#[derive(Default)]
struct Side {
    loss: Moments,
    losses: Vec<f32>,
    difference: Moments,
    divergences: Vec<f32>,
    shifts: Vec<f32>,
    same_top: u64,
    /// Per block: squared error and squared length of the original's hidden states.
    hidden: Vec<(f64, f64)>,
}

/// One token of one model.
struct Token {
    original_loss: f64,
    loss: f64,
    divergence: f64,
    shift: f64,
    same_top: bool,
}

impl Collector {
    /// For an original and `others` more models.
    pub(super) fn new(others: usize) -> Self {
        Self {
            original: Moments::default(),
            original_losses: Vec::new(),
            others: (0..others).map(|_| Side::default()).collect(),
        }
    }

    pub(super) fn finish(self) -> (OriginalFigures, Vec<TokenFigures>) {
        let perplexity = self.original.mean().exp();
        let original = OriginalFigures {
            perplexity,
            perplexity_stderr: perplexity * self.original.standard_error(),
            tokens: self.original.count,
        };
        let others = self
            .others
            .into_iter()
            .map(|side| side.finish(self.original.mean(), &self.original_losses))
            .collect();
        (original, others)
    }
}

impl Side {
    fn finish(self, original_loss: f64, original_losses: &[f32]) -> TokenFigures {
        let perplexity = self.loss.mean().exp();
        let count = self.divergences.len() as f64;
        let share = self.same_top as f64 / count.max(1.0);
        let mut squares = Moments::default();
        self.shifts.iter().for_each(|&shift| squares.add(f64::from(shift).powi(2)));
        let rms = squares.mean().sqrt();
        TokenFigures {
            perplexity,
            perplexity_stderr: perplexity * self.loss.standard_error(),
            ln_ratio: self.loss.mean() - original_loss,
            ln_ratio_stderr: self.difference.standard_error(),
            correlation: correlation(original_losses, &self.losses),
            divergence: Distribution::of(&self.divergences),
            histogram: histogram(&self.divergences),
            probability: Distribution::of(&self.shifts),
            probability_rms: rms,
            // The error of a square root is half of the relative error of what is under it.
            probability_rms_stderr: if rms > 0.0 {
                squares.standard_error() / (2.0 * rms)
            } else {
                0.0
            },
            same_top: share * 100.0,
            same_top_stderr: (share * (1.0 - share) / (count - 1.0).max(1.0)).sqrt() * 100.0,
            hidden_errors: self
                .hidden
                .iter()
                .map(|&(error, length)| if length > 0.0 { error / length } else { 0.0 })
                .collect(),
        }
    }
}

/// Pearson's coefficient; 1 where a side does not vary.
fn correlation(x: &[f32], y: &[f32]) -> f64 {
    let count = x.len().max(1) as f64;
    let mean = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f64::from(x) - mean_x, f64::from(y) - mean_y);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    if xx * yy > 0.0 { xy / (xx * yy).sqrt() } else { 1.0 }
}

impl Visitor for Collector {
    fn block(&mut self, block: usize, hidden: &[&Tensor]) -> Result<()> {
        let Some((original, others)) = hidden.split_first() else { return Ok(()) };
        let original = original.to_device(&candle_core::Device::Cpu)?;
        let length = with_f32(&original, |x| sum_in_parts(x, x, |x, _| x * x))?;
        for (side, other) in self.others.iter_mut().zip(others) {
            let other = other.to_device(&candle_core::Device::Cpu)?;
            let error = with_f32(&original, |x| {
                with_f32(&other, |y| sum_in_parts(x, y, |x, y| (x - y) * (x - y)))
            })??;
            if side.hidden.len() <= block {
                side.hidden.resize(block + 1, (0.0, 0.0));
            }
            side.hidden[block].0 += error;
            side.hidden[block].1 += length;
        }
        Ok(())
    }

    fn logits(&mut self, targets: &Targets, logits: &[Tensor]) -> Result<()> {
        let Some((original, others)) = logits.split_first() else { return Ok(()) };
        for (index, (side, other)) in self.others.iter_mut().zip(others).enumerate() {
            for token in compare(original, other, targets)? {
                if index == 0 {
                    self.original.add(token.original_loss);
                    self.original_losses.push(token.original_loss as f32);
                }
                side.loss.add(token.loss);
                side.losses.push(token.loss as f32);
                side.difference.add(token.loss - token.original_loss);
                side.divergences.push(token.divergence as f32);
                side.shifts.push(token.shift as f32);
                side.same_top += u64::from(token.same_top);
            }
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let mut text = format!("perplexity {:.4}", self.original.mean().exp());
        for side in &self.others {
            text.push_str(&format!(", {:.4}", side.loss.mean().exp()));
        }
        text
    }
}

/// `Σ f(x, y)` in f64, in parts of a fixed size, so that the sum does not depend on the number of
/// threads.
fn sum_in_parts(x: &[f32], y: &[f32], term: impl Fn(f64, f64) -> f64 + Sync) -> f64 {
    const PART: usize = 1 << 15;
    let parts: Vec<f64> = x
        .par_chunks(PART)
        .zip(y.par_chunks(PART))
        .map(|(x, y)| x.iter().zip(y).map(|(&x, &y)| term(f64::from(x), f64::from(y))).sum())
        .collect();
    parts.iter().sum()
}

fn compare(p: &Tensor, q: &Tensor, targets: &Targets) -> Result<Vec<Token>> {
    let (_, columns) = p.dims2()?;
    let tokens: Vec<Token> = rows::with_values(p, |p| {
        rows::with_values(q, |q| {
            let rows = p.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
            Ok(rows
                .zip(targets.tokens)
                .map(|((p, q), &target)| compare_row(p, q, target as usize))
                .collect())
        })
    })?;
    for (row, token) in tokens.iter().enumerate() {
        if !token.original_loss.is_finite() {
            return Err(targets.not_finite(row, "the original"));
        }
        // An infinite divergence: the quantized model excludes a token that the original thinks
        // possible.
        if !(token.loss.is_finite() && token.divergence.is_finite()) {
            return Err(targets.not_finite(row, "the quantized model"));
        }
    }
    Ok(tokens)
}

fn compare_row(p: &[f32], q: &[f32], target: usize) -> Token {
    let (p_sum, q_sum) = (rows::log_sum_exp(p), rows::log_sum_exp(q));
    let (original_loss, loss) = (p_sum - f64::from(p[target]), q_sum - f64::from(q[target]));
    Token {
        original_loss,
        loss,
        divergence: rows::divergence(p, p_sum, q, q_sum),
        shift: 100.0 * ((-loss).exp() - (-original_loss).exp()),
        same_top: rows::argmax(p) == rows::argmax(q),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn percentiles_interpolate() {
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (share, expected) in [(0.0, 1.0), (0.5, 4.0), (0.9, 12.8), (0.125, 1.5), (1.0, 16.0)] {
            assert!((percentile(&sorted, share) - expected).abs() < 1e-6, "{share}");
        }
        assert!(percentile(&[], 0.5).abs() < 1e-12);
        assert!((percentile(&[7.0], 0.99) - 7.0).abs() < 1e-12);
    }

    #[test]
    fn every_value_is_in_one_bin() {
        let values = [0.0, 1e-9, 1.1e-6, 0.0999, 0.1, 3.0, 99.0, 100.0, 1e6];
        let bins = histogram(&values);
        assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<u64>(), values.len() as u64);
        assert_eq!((bins[0].tokens, bins[0].to), (2, 1e-6));
        assert_eq!(bins.last().map(|bin| bin.tokens), Some(3), "{bins:?}");
        for pair in bins.windows(2) {
            assert!((pair[0].to - pair[1].from).abs() < 1e-15 && pair[0].to > pair[0].from);
        }
        let of = |value: f64| bins.iter().find(|bin| bin.from <= value && value < bin.to).unwrap();
        assert_eq!((of(0.0999).tokens, of(0.100_000_1).tokens), (1, 1));
    }

    /// Everything again by its definition, in f64, from probabilities.
    #[test]
    fn figures_are_those_of_the_definitions() {
        const ROWS: usize = 40;
        const COLUMNS: usize = 33;
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |scale: f32| -> Vec<f32> {
            (0..ROWS * COLUMNS).map(|_| random.random_range(-scale..scale)).collect()
        };
        let p = draw(4.0);
        let q: Vec<f32> = p.iter().zip(draw(1.0)).map(|(p, noise)| p + noise).collect();
        let tokens: Vec<u32> = (0..ROWS as u32).map(|row| row * 7 % COLUMNS as u32).collect();
        let tensor =
            |values: &[f32]| Tensor::from_slice(values, (ROWS, COLUMNS), &Device::Cpu).unwrap();
        let mut collector = Collector::new(1);
        let targets = Targets { tokens: &tokens, window: 0, position: 1 };
        collector.logits(&targets, &[tensor(&p), tensor(&q)]).unwrap();
        let (original, mut others) = collector.finish();
        let figures = others.remove(0);

        let softmax = |row: &[f32]| -> Vec<f64> {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row.iter().map(|&x| f64::from(x).exp() / sum).collect()
        };
        let (mut p_loss, mut q_loss, mut kld, mut shift) = (vec![], vec![], vec![], vec![]);
        let mut same = 0.0;
        for (row, &token) in tokens.iter().enumerate() {
            let at = row * COLUMNS..(row + 1) * COLUMNS;
            let (p, q) = (softmax(&p[at.clone()]), softmax(&q[at]));
            p_loss.push(-p[token as usize].ln());
            q_loss.push(-q[token as usize].ln());
            shift.push(100.0 * (q[token as usize] - p[token as usize]));
            kld.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            let top = |x: &[f64]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
            same += f64::from(u8::from(top(&p) == top(&q)));
        }
        let n = ROWS as f64;
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
        let variance = |x: &[f64]| x.iter().map(|v| (v - mean(x)).powi(2)).sum::<f64>() / n;
        let error = |x: &[f64]| (variance(x) / (n - 1.0)).sqrt();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}");
        close(original.perplexity, mean(&p_loss).exp());
        close(original.perplexity_stderr, mean(&p_loss).exp() * error(&p_loss));
        assert_eq!(original.tokens, ROWS as u64);
        close(figures.perplexity, mean(&q_loss).exp());
        close(figures.perplexity_stderr, mean(&q_loss).exp() * error(&q_loss));
        close(figures.ln_ratio, mean(&q_loss) - mean(&p_loss));
        // llama-perplexity's form: from variances and the covariance.
        let covariance: f64 = p_loss
            .iter()
            .zip(&q_loss)
            .map(|(p, q)| (p - mean(&p_loss)) * (q - mean(&q_loss)))
            .sum::<f64>()
            / n;
        let paired = variance(&p_loss) + variance(&q_loss) - 2.0 * covariance;
        close(figures.ln_ratio_stderr, (paired / (n - 1.0)).sqrt());
        close(figures.correlation, covariance / (variance(&p_loss) * variance(&q_loss)).sqrt());
        close(figures.divergence.mean, mean(&kld));
        close(figures.divergence.stderr, error(&kld));
        close(figures.divergence.max, kld.iter().copied().fold(0.0, f64::max));
        close(figures.probability.mean, mean(&shift));
        let squares: Vec<f64> = shift.iter().map(|x| x * x).collect();
        close(figures.probability_rms, mean(&squares).sqrt());
        close(figures.probability_rms_stderr, error(&squares) / (2.0 * mean(&squares).sqrt()));
        close(figures.same_top, 100.0 * same / n);
        assert!(figures.same_top > 0.0 && figures.same_top < 100.0);
    }

    #[test]
    fn hidden_errors_are_relative_to_the_original() {
        let tensor = |values: [f32; 4]| Tensor::new(&values, &Device::Cpu).unwrap();
        let mut collector = Collector::new(1);
        let (x, y) = (tensor([3.0, 0.0, 0.0, 4.0]), tensor([3.0, 1.0, 0.0, 2.0]));
        collector.block(0, &[&x, &y]).unwrap();
        collector.block(1, &[&x, &x]).unwrap();
        let (_, others) = collector.finish();
        assert_eq!(others[0].hidden_errors, [0.2, 0.0]);
    }
}
