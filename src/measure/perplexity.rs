//! Perplexity: `exp` of the mean negative log-likelihood of the tokens of a text.

use super::{LanguageModel, rows};
use crate::base::progress::Progress;
use crate::text::EvaluationWindows;
use crate::{Error, Result};

/// A measured perplexity with what it was measured on.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// `exp(mean_loss)`; infinite when the mean loss exceeds 709 nats.
    pub perplexity: f64,
    /// Standard error of `perplexity`: `perplexity · σ / √(tokens − 1)`, σ the standard deviation
    /// of the losses of single tokens. (Tokens of one text are not independent; llama-perplexity
    /// reports the same figure.)
    pub standard_error: f64,
    /// Mean negative log-likelihood of a token, nats.
    pub mean_loss: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Windows that the model read.
    pub windows: u64,
    /// Tokens of a window.
    pub window_length: usize,
    /// Negative log-likelihood of each scored token, nats, in the order of the text.
    pub losses: Vec<f32>,
}

impl Perplexity {
    /// Runs the model over the windows. Progress is told of every batch of windows, with the
    /// perplexity so far at debug level.
    ///
    /// # Errors
    /// [`Error::General`] when the model gives NaN or no probability at all for a token, or does
    /// not know a token; [`Error::Interrupted`] when progress wants to stop.
    pub fn measure(
        model: &dyn LanguageModel,
        windows: &EvaluationWindows,
        stage: &str,
        progress: &dyn Progress,
    ) -> Result<Self> {
        progress.start(stage, windows.count() as u64, "windows");
        let mut moments = Moments::default();
        let mut losses = Vec::with_capacity(windows.count() * windows.targets_per_window());
        for_each_batch(windows, progress, |first, batch| {
            rows::visit_batch([model], windows, first, batch, |targets, [logits]| {
                for loss in rows::losses(&logits, targets, "the model")? {
                    moments.add(loss);
                    losses.push(loss as f32);
                }
                Ok(())
            })?;
            progress.debug(&format!(
                "{} windows: perplexity {:.4}",
                first + batch,
                moments.mean().exp()
            ));
            Ok(())
        })?;
        progress.finish();
        Ok(Self::from_moments(&moments, windows, losses))
    }

    pub(crate) fn from_moments(
        moments: &Moments,
        windows: &EvaluationWindows,
        losses: Vec<f32>,
    ) -> Self {
        let perplexity = moments.mean().exp();
        Self {
            perplexity,
            standard_error: perplexity * moments.standard_error(),
            mean_loss: moments.mean(),
            tokens: moments.count,
            windows: windows.count() as u64,
            window_length: windows.length,
            losses,
        }
    }
}

/// Calls `run` with the first window and the number of windows of each batch.
pub(crate) fn for_each_batch(
    windows: &EvaluationWindows,
    progress: &dyn Progress,
    mut run: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let mut first = 0;
    while first < windows.count() {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        let batch = rows::windows_per_batch(windows.length).min(windows.count() - first);
        run(first, batch)?;
        progress.advance(batch as u64);
        first += batch;
    }
    Ok(())
}

/// Count, mean and spread of a sequence of numbers, in one pass (Welford, Technometrics 1962):
/// the sum of squares would lose the spread of nearly equal numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Moments {
    pub count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Standard error of the mean: `√(Σ(x − x̄)² / n / (n − 1))`.
    pub(crate) fn standard_error(&self) -> f64 {
        let count = self.count as f64;
        if self.count < 2 { 0.0 } else { (self.squares / count / (count - 1.0)).sqrt() }
    }
}
