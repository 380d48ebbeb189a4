//! Layers of 8-bit weights and 8-bit activations, and what they lose.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::graph::LinearLayer;
use crate::graph::slices::with_f32;
use crate::job::packed::block::Dense;

/// Largest absolute level.
const MOST: f32 = 127.0;

/// A layer that rounds each token's inputs to 8 bits before it multiplies, as W8A8 kernels do.
#[derive(Debug, Clone)]
pub(crate) struct RoundedInputs(Dense);

impl RoundedInputs {
    /// Over the values of a weight `[out, in]`.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn new(
        values: Arc<Vec<f32>>,
        dims: (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        Dense::new(values, dims, device).map(Self)
    }
}

impl LinearLayer for RoundedInputs {
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(&round_inputs(x)?)
    }
}

/// Each row of `x` rounded to 255 levels up to its largest absolute value.
///
/// # Errors
/// Those of the device.
pub(crate) fn round_inputs(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let scale =
            (x.abs()?.max_keepdim(1)? / f64::from(MOST))?.clamp(f32::MIN_POSITIVE, f32::MAX)?;
        return Ok(x.broadcast_div(&scale)?.round()?.broadcast_mul(&scale)?);
    }
    let width = x.dim(1)?;
    let mut values = with_f32(x, <[f32]>::to_vec)?;
    values.par_chunks_exact_mut(width).for_each(|row| {
        let largest = row.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        if largest > 0.0 {
            let scale = largest / MOST;
            row.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
        }
    });
    Ok(Tensor::from_vec(values, x.shape().clone(), x.device())?)
}

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
    fn tokens_use_their_whole_range() {
        let x = Tensor::from_vec(vec![127.0f32, 0.4, -3.6, 0.0, 0.0, 0.0], (2, 3), &Device::Cpu);
        let rounded = round_inputs(&x.unwrap()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rounded, [[127.0, 0.0, -4.0], [0.0, 0.0, 0.0]]);
    }

    #[test]
    fn decibels_are_ten_times_the_logarithm() {
        let mut noise = Noise::default();
        noise.add(&[10.0, 0.0], &[9.0, 0.0]);
        assert!((noise.decibels() - 20.0).abs() < 1e-9);
    }
}
