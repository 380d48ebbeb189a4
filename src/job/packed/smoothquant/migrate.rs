//! How much of each channel's range moves: equation 4 of the paper,
//! `s_j = max|x_j|^α / max|w_j|^(1−α)`.

use serde::{Deserialize, Serialize};

/// Smallest factor.
const LEAST: f32 = 1e-5;

/// The strengths that `--alpha auto` tries.
pub(crate) const STRENGTHS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Factors of all channels: what activations are divided and weights multiplied by. `x` and `w` are
/// the largest absolute values of each channel; channels that receive nothing, or lead nowhere, are
/// left alone.
#[must_use]
pub(crate) fn factors(x: &[f32], w: &[f32], alpha: f64) -> Vec<f32> {
    let alpha = alpha as f32;
    x.iter()
        .zip(w)
        .map(|(&x, &w)| {
            if x == 0.0 || w == 0.0 {
                return 1.0;
            }
            (x.powf(alpha) / w.powf(1.0 - alpha)).max(LEAST)
        })
        .collect()
}

/// Largest absolute value of each column over several matrices of `inputs` columns.
#[must_use]
pub(crate) fn largest_of_columns(weights: &[&[f32]], inputs: usize) -> Vec<f32> {
    let mut largest = vec![0.0f32; inputs];
    for row in weights.iter().flat_map(|weight| weight.chunks_exact(inputs)) {
        largest.iter_mut().zip(row).for_each(|(most, value)| *most = most.max(value.abs()));
    }
    largest
}

/// Spread of the factors of a group of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FactorStatistics {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Geometric mean.
    pub geometric_mean: f64,
    /// Channels.
    pub channels: usize,
}

impl FactorStatistics {
    /// Of `factors`.
    #[must_use]
    pub(crate) fn of(factors: &[f32]) -> Self {
        let logarithms: f64 = factors.iter().map(|&f| f64::from(f).ln()).sum();
        Self {
            min: f64::from(factors.iter().copied().fold(f32::INFINITY, f32::min)),
            max: f64::from(factors.iter().copied().fold(0.0, f32::max)),
            geometric_mean: (logarithms / factors.len().max(1) as f64).exp(),
            channels: factors.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_half_makes_both_ranges_equal() {
        let (x, w) = ([16.0, 1.0, 0.0], [1.0, 4.0, 2.0]);
        let s = factors(&x, &w, 0.5);
        assert_eq!(s, [4.0, 0.5, 1.0]);
        for (s, (x, w)) in s.iter().zip(x.iter().zip(w)).take(2) {
            assert!((x / s - w * s).abs() < 1e-6, "the paper's example for α = 0.5");
        }
        assert!((factors(&x, &w, 1.0)[0] - 16.0).abs() < 1e-4);
        assert_eq!(largest_of_columns(&[&[1.0, -2.0, 0.5, 1.0], &[-3.0, 0.0]], 2), [3.0, 2.0]);
    }
}
