//! Root-mean-square layer normalization: `y = x / sqrt(mean(x²) + ε) · w`.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::slices::{for_rows, with_f32};
use super::tracked;
use crate::Result;
use crate::codec::vector::kernels;

/// A norm with its weight.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Arc<[f32]>,
    /// The weight on a device other than the CPU, or for the differentiable path.
    tensor: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// A norm over vectors of `weight.len()` values.
    pub fn new(weight: Vec<f32>, epsilon: f64, device: &Device) -> Result<Self> {
        let tensor = Tensor::from_slice(&weight, weight.len(), device)?;
        Ok(Self { weight: weight.into(), tensor, epsilon })
    }

    /// Length of the vectors.
    #[must_use]
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// Normalizes each row of `x`, `[rows, width]` on the CPU.
    pub(crate) fn fused(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = with_f32(x, <[f32]>::to_vec)?;
        self.in_place(&mut out);
        Ok(Tensor::from_vec(out, x.shape().clone(), x.device())?)
    }

    /// Normalizes each run of `width` values of `data`.
    pub(crate) fn in_place(&self, data: &mut [f32]) {
        for_rows(data, self.width(), |_, row| self.row(row));
    }

    /// Normalizes one vector.
    pub(crate) fn row(&self, row: &mut [f32]) {
        let square = (kernels().dot_f32)(row, row) / row.len() as f32;
        let scale = 1.0 / (square + self.epsilon as f32).sqrt();
        for (value, weight) in row.iter_mut().zip(&*self.weight) {
            *value = *value * scale * weight;
        }
    }

    /// Normalizes each run of `width` values on the CPU, with a backward pass.
    pub(crate) fn tracked(&self, x: &Tensor) -> Result<Tensor> {
        tracked::rms_norm(x, self)
    }

    /// Its weight, one value per dimension.
    pub(super) fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// What is added to the mean square.
    pub(super) fn epsilon(&self) -> f32 {
        self.epsilon as f32
    }

    /// Normalizes the last dimension with candle operations that have gradients.
    pub(crate) fn ops(&self, x: &Tensor) -> Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (square + self.epsilon)?.sqrt()?;
        Ok(x.broadcast_div(&scale)?.broadcast_mul(&self.tensor)?)
    }
}
