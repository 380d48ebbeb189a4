//! What layers of 8-bit weights and 8-bit activations lose.

/// Signal and noise of a layer's outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Noise {
    /// Sum of the squared outputs.
    pub signal: f64,
    /// Sum of the squared errors.
    pub noise: f64,
}

impl Noise {
    /// Adds outputs and what they should be.
    pub(crate) fn add(&mut self, exact: &[f32], rounded: &[f32]) {
        for (exact, rounded) in exact.iter().zip(rounded) {
            self.signal += f64::from(*exact).powi(2);
            self.noise += f64::from(exact - rounded).powi(2);
        }
    }

    /// Signal to quantization noise, decibels.
    #[must_use]
    pub(crate) fn decibels(&self) -> f64 {
        const MOST: f64 = 200.0;
        if self.noise == 0.0 {
            return MOST;
        }
        (10.0 * (self.signal / self.noise).log10()).clamp(-MOST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decibels_are_ten_times_the_logarithm() {
        let mut noise = Noise::default();
        noise.add(&[10.0, 0.0], &[9.0, 0.0]);
        assert!((noise.decibels() - 20.0).abs() < 1e-9);
    }
}
