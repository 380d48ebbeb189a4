//! A dense layer for many tokens at a time, in the arithmetic of training.

use candle_core::Tensor;

use super::LinearLayer;
use crate::Result;
use crate::graph::slices::with_f32;
use crate::linalg::products::{Operand, multiply};
use crate::weight::StoredTensor;

/// A weight `[out, in]`, decoded, on the CPU. Products have no gradients.
#[derive(Debug, Clone)]
pub(crate) struct ProductLinear {
    values: Vec<f32>,
    dims: (usize, usize),
}

impl ProductLinear {
    /// Decodes a matrix `[out, in]`.
    #[must_use]
    pub(crate) fn new(weight: &StoredTensor) -> Self {
        Self { values: weight.to_f32(), dims: (weight.rows(), weight.cols()) }
    }

    /// A matrix that is decoded already, `[out, in]`.
    #[must_use]
    pub(crate) fn of(values: Vec<f32>, dims: (usize, usize)) -> Self {
        Self { values, dims }
    }
}

impl LinearLayer for ProductLinear {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.dims;
        let (tokens, _) = x.dims2()?;
        let mut out = vec![0.0; tokens * outputs];
        let weight = Operand::new(&self.values, outputs, inputs).t();
        with_f32(x, |x| multiply(&mut out, Operand::new(x, tokens, inputs), weight, false))?;
        Ok(Tensor::from_vec(out, (tokens, outputs), x.device())?)
    }
}
