//! What a model is expected to lose by its factorized layers, and how that depends on their bits.
//!
//! The loss of a layer is the Kullback–Leibler divergence of the model's next-token distributions
//! from the original's when this layer alone is factorized. It was measured over rates from 0.3 to
//! 1.6 bits per weight on every layer of the tiny model: in the bits it is a power, with exponents
//! from −1.2 to −2.2, half of them above −1.3.

use std::collections::BTreeMap;

/// Exponent of the bits in the loss.
const POWER: f64 = -1.3;

/// Most that a layer is taken to lose, nats per token: a model that knows nothing of its text loses
/// the logarithm of its vocabulary, 12 or so.
const MOST: f64 = 100.0;

/// What the model lost by one layer alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Divergence from the original, nats per token.
    pub divergence: f64,
    /// Bits per weight of the layer while it was measured.
    pub bits_per_weight: f64,
}

impl Loss {
    /// What to expect at another rate, nats per token.
    #[must_use]
    pub fn at(&self, bits_per_weight: f64) -> f64 {
        // Not a number is as bad as can be.
        let measured = if self.divergence <= MOST { self.divergence.max(0.0) } else { MOST };
        measured * (bits_per_weight / self.bits_per_weight).powf(POWER)
    }
}

/// What the model loses by each of its layers, by name without `.weight`.
pub type Losses = BTreeMap<String, Loss>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_a_power_of_the_bits() {
        let loss = Loss { divergence: 0.5, bits_per_weight: 1.0 };
        assert!((loss.at(1.0) - 0.5).abs() < 1e-12);
        assert!((loss.at(2.0) / loss.at(1.0) - 0.406_126).abs() < 1e-6, "{}", loss.at(2.0));
        assert!((loss.at(0.5) / loss.at(0.25) - 0.406_126).abs() < 1e-6);
        for divergence in [f64::NAN, f64::INFINITY, f64::MAX, 1e9] {
            assert!((Loss { divergence, ..loss }.at(1.0) - MOST).abs() < 1e-9);
        }
        assert!(Loss { divergence: -1e-9, ..loss }.at(1.0).abs() < 1e-300);
    }
}
