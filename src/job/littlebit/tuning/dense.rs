//! A dense layer that learns: before a block is factorized, its weights take up what the blocks
//! before it got wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor, Var};

use super::adam::{Moments, Rule, update};
use crate::Result;
use crate::graph::LinearLayer;
use crate::graph::slices::with_f32;
use crate::graph::tracked::{values, wrap};
use crate::linalg::products::{Operand, multiply};

/// A weight `[out, in]` that learns, shared between the decoder that runs it and the optimiser.
#[derive(Debug, Clone)]
pub(crate) struct LearningDense(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dims: (usize, usize),
    weight: RwLock<Vec<f32>>,
    gradient: Mutex<Vec<f32>>,
    anchor: Var,
}

impl LearningDense {
    /// A layer of that weight, `[out, in]`.
    ///
    /// # Errors
    /// Never on the CPU.
    pub(crate) fn new(weight: Vec<f32>, dims: (usize, usize)) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            dims,
            gradient: Mutex::new(vec![0.0; weight.len()]),
            weight: RwLock::new(weight),
            anchor: Var::zeros(1, DType::F32, &Device::Cpu)?,
        })))
    }

    /// The weight.
    pub(crate) fn weight(&self) -> RwLockReadGuard<'_, Vec<f32>> {
        self.0.weight.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weight, to put another one in its place.
    pub(crate) fn set_weight(&self, weight: &[f32]) {
        self.0.weight.write().unwrap_or_else(PoisonError::into_inner).copy_from_slice(weight);
    }

    /// Sum of the gradients since they were last cleared.
    pub(crate) fn gradient(&self) -> MutexGuard<'_, Vec<f32>> {
        self.0.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinearLayer for LearningDense {
    fn dims(&self) -> (usize, usize) {
        self.0.dims
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let anchor = self.0.anchor.as_tensor();
        Ok(x.contiguous()?.apply_op2(anchor, Apply(self.clone()))?)
    }
}

struct Apply(LearningDense);

impl CustomOp2 for Apply {
    fn name(&self) -> &'static str {
        "dense-linear"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.0.0.dims;
        let (tokens, _) = layout.shape().dims2()?;
        let mut out = vec![0.0; tokens * outputs];
        let weight = self.0.weight();
        let x = Operand::new(values(storage, layout)?, tokens, inputs);
        multiply(&mut out, x, Operand::new(&weight, outputs, inputs).t(), false);
        Ok((CpuStorage::F32(out), (tokens, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (outputs, inputs) = self.0.0.dims;
        let tokens = x.dim(0)?;
        let wanted = x.track_op();
        let weight = self.0.weight();
        let mut gradient = self.0.gradient();
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let dy = Operand::new(dy, tokens, outputs);
                multiply(&mut gradient, dy.t(), Operand::new(x, tokens, inputs), true);
                wanted.then(|| {
                    let mut dx = vec![0.0; tokens * inputs];
                    multiply(&mut dx, dy, Operand::new(&weight, outputs, inputs), false);
                    dx
                })
            })
        })
        .and_then(|inner| inner)
        .map_err(wrap)?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape().clone(), x.device())).transpose()?;
        Ok((dx, None))
    }
}

/// Adam for dense layers. The rate is relative to the root mean square of each weight.
#[derive(Debug)]
pub(crate) struct DenseAdam {
    layers: Vec<LearningDense>,
    moments: Vec<Moments>,
    sizes: Vec<f32>,
    steps: i32,
}

impl DenseAdam {
    /// An optimiser that has seen nothing yet.
    #[must_use]
    pub(crate) fn new(layers: Vec<LearningDense>) -> Self {
        let moments = layers.iter().map(|layer| Moments::of(layer.weight().len())).collect();
        let sizes = layers
            .iter()
            .map(|layer| {
                let weight = layer.weight();
                let squares: f64 = weight.iter().map(|v| f64::from(*v).powi(2)).sum();
                (squares / weight.len().max(1) as f64).sqrt() as f32
            })
            .collect();
        Self { layers, moments, sizes, steps: 0 }
    }

    /// Moves every weight against its gradient and clears the gradients.
    pub(crate) fn step(&mut self, rate: f32) {
        self.steps += 1;
        for ((layer, moments), size) in self.layers.iter().zip(&mut self.moments).zip(&self.sizes) {
            let mut weight = layer.0.weight.write().unwrap_or_else(PoisonError::into_inner);
            let mut gradient = layer.gradient();
            let rate = rate * size;
            update(&mut weight, &mut gradient, moments.both(), rate, self.steps, Rule::Plain);
        }
    }
}
