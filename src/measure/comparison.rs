//! Two models on the same text: perplexity of both, the change with its own (paired) standard
//! error, and how far the distributions are apart. Everything comes from one pass; of the logits
//! only a few numbers per token are kept.

use rayon::prelude::*;

use super::perplexity::{Moments, Perplexity, for_each_batch};
use super::{LanguageModel, rows};
use crate::base::progress::Progress;
use crate::text::EvaluationWindows;
use crate::{Error, Result};

/// A compressed model beside its original.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The original's perplexity.
    pub original: Perplexity,
    /// The compressed model's.
    pub compressed: Perplexity,
    /// Change of perplexity, percent of the original's.
    pub delta_percent: f64,
    /// Standard error of `delta_percent`, from the differences token by token: far smaller than the
    /// two perplexities' own errors suggest, because both models read the same text.
    pub delta_standard_error: f64,
    /// How far the distributions are apart, when both models ran together.
    pub divergence: Option<Divergence>,
}

/// Distance of the compressed model's next-token distributions from the original's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// Mean Kullback–Leibler divergence of a token, nats.
    pub mean: f64,
    /// Standard error of `mean`.
    pub standard_error: f64,
    /// Median.
    pub median: f64,
    /// 99th percentile.
    pub percentile_99: f64,
    /// Tokens for which both models think the same token most likely, percent.
    pub same_top_percent: f64,
    /// Standard error of `same_top_percent`.
    pub same_top_standard_error: f64,
    /// Tokens compared.
    pub tokens: u64,
}

impl Comparison {
    /// Runs both models over the windows.
    ///
    /// # Errors
    /// As [`Perplexity::measure`]; [`Error::InvalidArgument`] when the vocabularies differ in size.
    pub fn measure(
        original: &dyn LanguageModel,
        compressed: &dyn LanguageModel,
        windows: &EvaluationWindows,
        stage: &str,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if original.vocab_size() != compressed.vocab_size() {
            return Err(Error::InvalidArgument(format!(
                "the models have vocabularies of {} and {} tokens: one is not made from the other",
                original.vocab_size(),
                compressed.vocab_size()
            )));
        }
        progress.start(stage, windows.count() as u64, "windows");
        let mut moments = [Moments::default(); 2];
        let mut losses = [Vec::new(), Vec::new()];
        let mut divergences = Vec::new();
        let mut same_top = 0u64;
        for_each_batch(windows, progress, |first, batch| {
            let models = [original, compressed];
            rows::visit_batch(models, windows, first, batch, |targets, [p, q]| {
                for row in compare_rows(&p, &q, targets)? {
                    for (index, loss) in row.losses.into_iter().enumerate() {
                        moments[index].add(loss);
                        losses[index].push(loss as f32);
                    }
                    divergences.push(row.divergence);
                    same_top += u64::from(row.same_top);
                }
                Ok(())
            })?;
            let [p, q] = moments.map(|moments| moments.mean().exp());
            progress.debug(&format!("{} windows: perplexity {p:.4}, {q:.4}", first + batch));
            Ok(())
        })?;
        progress.finish();
        let [original, compressed] = losses;
        let original = Perplexity::from_moments(&moments[0], windows, original);
        let compressed = Perplexity::from_moments(&moments[1], windows, compressed);
        let mut comparison = Self::of(original, compressed)?;
        comparison.divergence = Some(Divergence::of(divergences, same_top));
        Ok(comparison)
    }

    /// Puts two measurements on the same windows side by side.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when they did not score the same number of tokens.
    pub fn of(original: Perplexity, compressed: Perplexity) -> Result<Self> {
        if original.losses.len() != compressed.losses.len() {
            return Err(Error::InvalidArgument(format!(
                "perplexities over {} and {} tokens cannot be compared",
                original.losses.len(),
                compressed.losses.len()
            )));
        }
        let mut differences = Moments::default();
        for (&before, &after) in original.losses.iter().zip(&compressed.losses) {
            differences.add(f64::from(after) - f64::from(before));
        }
        // Of the means themselves: `losses` are rounded to f32.
        let difference = compressed.mean_loss - original.mean_loss;
        Ok(Self {
            delta_percent: difference.exp_m1() * 100.0,
            delta_standard_error: difference.exp() * differences.standard_error() * 100.0,
            original,
            compressed,
            divergence: None,
        })
    }
}

impl Divergence {
    fn of(mut divergences: Vec<f64>, same_top: u64) -> Self {
        let mut moments = Moments::default();
        for &divergence in &divergences {
            moments.add(divergence);
        }
        divergences.sort_unstable_by(f64::total_cmp);
        let percentile = |share: f64| {
            let index = (share * divergences.len().saturating_sub(1) as f64).round() as usize;
            divergences.get(index).copied().unwrap_or(0.0)
        };
        let count = divergences.len() as f64;
        let same = same_top as f64 / count.max(1.0);
        Self {
            mean: moments.mean(),
            standard_error: moments.standard_error(),
            median: percentile(0.5),
            percentile_99: percentile(0.99),
            same_top_percent: same * 100.0,
            same_top_standard_error: (same * (1.0 - same) / (count - 1.0).max(1.0)).sqrt() * 100.0,
            tokens: moments.count,
        }
    }
}

/// What is kept of a token.
struct Row {
    losses: [f64; 2],
    divergence: f64,
    same_top: bool,
}

fn compare_rows(
    p: &candle_core::Tensor,
    q: &candle_core::Tensor,
    targets: &rows::Targets,
) -> Result<Vec<Row>> {
    let (_, columns) = p.dims2()?;
    let compared: Vec<Row> = rows::with_values(p, |p| {
        rows::with_values(q, |q| {
            let rows = p.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
            Ok(rows
                .zip(targets.tokens)
                .map(|((p, q), &target)| {
                    let target = target as usize;
                    let (p_sum, q_sum) = (rows::log_sum_exp(p), rows::log_sum_exp(q));
                    Row {
                        losses: [p_sum - f64::from(p[target]), q_sum - f64::from(q[target])],
                        divergence: rows::divergence(p, p_sum, q, q_sum),
                        same_top: rows::argmax(p) == rows::argmax(q),
                    }
                })
                .collect())
        })
    })?;
    for (row, compared) in compared.iter().enumerate() {
        let which = ["the original", "the compressed model"];
        for (loss, which) in compared.losses.into_iter().zip(which) {
            if !loss.is_finite() {
                return Err(targets.not_finite(row, which));
            }
        }
        // The compressed model excludes a token that the original thinks possible.
        if !compared.divergence.is_finite() {
            return Err(targets.not_finite(row, which[1]));
        }
    }
    Ok(compared)
}
