//! What each input channel of a linear layer receives: extremes, mean, spread, outliers.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// An input counts as an outlier when it is this many times the root mean square of the layer's
/// inputs.
pub(crate) const OUTLIER: f64 = 6.0;

/// Sums over the tokens, channel by channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Channels {
    /// Tokens seen.
    pub tokens: u64,
    /// Smallest value of each channel.
    pub low: Vec<f32>,
    /// Largest value.
    pub high: Vec<f32>,
    /// Sum of the values.
    pub sum: Vec<f64>,
    /// Sum of the absolute values.
    pub absolute: Vec<f64>,
    /// Sum of the squares.
    pub square: Vec<f64>,
}

/// Statistics of a layer's inputs, over all channels and tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ActivationStatistics {
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Channels whose largest absolute value is more than six times the root mean square.
    pub outlier_channels: usize,
}

impl Channels {
    /// No tokens yet.
    #[must_use]
    pub(crate) fn new(channels: usize) -> Self {
        Self {
            tokens: 0,
            low: vec![f32::INFINITY; channels],
            high: vec![f32::NEG_INFINITY; channels],
            sum: vec![0.0; channels],
            absolute: vec![0.0; channels],
            square: vec![0.0; channels],
        }
    }

    /// Adds rows `[tokens, channels]`. Sums are made in the order of the tokens.
    pub(crate) fn add(&mut self, x: &[f32]) {
        let channels = self.sum.len();
        let Self { low, high, sum, absolute, square, .. } = self;
        low.par_iter_mut()
            .zip(high)
            .zip(sum)
            .zip(absolute)
            .zip(square)
            .with_min_len(64)
            .enumerate()
            .for_each(|(channel, ((((low, high), sum), absolute), square))| {
                for &value in x[channel..].iter().step_by(channels) {
                    *low = low.min(value);
                    *high = high.max(value);
                    let value = f64::from(value);
                    *sum += value;
                    *absolute += value.abs();
                    *square += value * value;
                }
            });
        self.tokens += (x.len() / channels.max(1)) as u64;
    }

    /// Largest absolute value of each channel.
    #[must_use]
    pub(crate) fn largest(&self) -> Vec<f32> {
        self.low.iter().zip(&self.high).map(|(low, high)| high.max(-low).max(0.0)).collect()
    }

    /// Mean absolute value of each channel.
    #[must_use]
    pub(crate) fn mean_absolute(&self) -> Vec<f32> {
        let count = self.tokens.max(1) as f64;
        self.absolute.iter().map(|sum| (sum / count) as f32).collect()
    }

    /// Over all channels.
    #[must_use]
    pub(crate) fn statistics(&self) -> ActivationStatistics {
        let count = (self.tokens.max(1) * self.sum.len().max(1) as u64) as f64;
        let mean = self.sum.iter().sum::<f64>() / count;
        let square = self.square.iter().sum::<f64>() / count;
        let threshold = OUTLIER * square.sqrt();
        let fold = |values: &[f32], start: f32, pick: fn(f32, f32) -> f32| {
            f64::from(values.iter().copied().fold(start, pick))
        };
        ActivationStatistics {
            min: fold(&self.low, f32::INFINITY, f32::min),
            max: fold(&self.high, f32::NEG_INFINITY, f32::max),
            mean,
            std: (square - mean * mean).max(0.0).sqrt(),
            outlier_channels: self
                .largest()
                .iter()
                .filter(|&&largest| f64::from(largest) > threshold)
                .count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_small_matrix() {
        let mut channels = Channels::new(2);
        channels.add(&[1.0, -4.0]);
        channels.add(&[3.0, 2.0]);
        assert_eq!(channels.largest(), [3.0, 4.0]);
        assert_eq!(channels.mean_absolute(), [2.0, 3.0]);
        let all = channels.statistics();
        assert_eq!((all.min, all.max, all.mean), (-4.0, 3.0, 0.5));
        // (1 + 16 + 9 + 4) / 4 − 0.25 = 7.25
        assert!((all.std - 7.25f64.sqrt()).abs() < 1e-12);
        assert_eq!(all.outlier_channels, 0);
    }
}
