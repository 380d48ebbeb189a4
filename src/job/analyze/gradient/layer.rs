//! A dense layer whose weight's gradient is reduced to columns as soon as it is known.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::graph::LinearLayer;
use crate::graph::slices::with_f32;
use crate::graph::tracked::{values, wrap};
use crate::linalg::products::{Operand, multiply};

/// Columns that a thread reduces together.
const BLOCK: usize = 64;

/// What becomes of a gradient `[out, in]`: a mean over its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reduction {
    /// Of the absolute values.
    Absolute,
    /// Of the squares.
    Squared,
}

/// A weight `[out, in]`, decoded.
#[derive(Clone)]
pub(super) struct GradientLinear(Arc<Inner>);

struct Inner {
    dims: (usize, usize),
    weight: Vec<f32>,
    reduction: Reduction,
    columns: Mutex<Vec<f64>>,
}

impl GradientLinear {
    pub(super) fn new(weight: Vec<f32>, dims: (usize, usize), reduction: Reduction) -> Self {
        let columns = Mutex::new(vec![0.0; dims.1]);
        Self(Arc::new(Inner { dims, weight, reduction, columns }))
    }

    /// The reduced gradient, one value for each input column, of the backward pass since the last
    /// call.
    pub(super) fn take(&self) -> Vec<f64> {
        let mut columns = self.0.columns.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = vec![0.0; columns.len()];
        std::mem::replace(&mut *columns, empty)
    }
}

impl LinearLayer for GradientLinear {
    fn dims(&self) -> (usize, usize) {
        self.0.dims
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.contiguous()?.apply_op1(Apply(self.clone()))?)
    }
}

struct Apply(GradientLinear);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "linear-with-column-gradients"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Inner { dims: (outputs, inputs), weight, .. } = &*self.0.0;
        let (tokens, _) = layout.shape().dims2()?;
        let mut out = vec![0.0; tokens * outputs];
        let x = Operand::new(values(storage, layout)?, tokens, *inputs);
        multiply(&mut out, x, Operand::new(weight, *outputs, *inputs).t(), false);
        Ok((CpuStorage::F32(out), (tokens, *outputs).into()))
    }

    /// `dW = dyᵀ x` goes into the columns, `dx = dy W` on to what was before.
    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Inner { dims: (outputs, inputs), weight, reduction, columns } = &*self.0.0;
        let (outputs, inputs) = (*outputs, *inputs);
        let tokens = x.dim(0)?;
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let dy = Operand::new(dy, tokens, outputs);
                let mut gradient = vec![0.0; outputs * inputs];
                multiply(&mut gradient, dy.t(), Operand::new(x, tokens, inputs), false);
                let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
                reduce(&gradient, outputs, *reduction, &mut columns);
                let mut dx = vec![0.0; tokens * inputs];
                multiply(&mut dx, dy, Operand::new(weight, outputs, inputs), false);
                dx
            })
        })
        .and_then(|inner| inner)
        .map_err(wrap)?;
        Ok(Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?))
    }
}

/// Adds the mean over the rows of a gradient `[rows, columns]`.
fn reduce(gradient: &[f32], rows: usize, reduction: Reduction, columns: &mut [f64]) {
    let width = columns.len();
    columns.par_chunks_mut(BLOCK).enumerate().for_each(|(block, columns)| {
        let mut sums = [0.0; BLOCK];
        let sums = &mut sums[..columns.len()];
        for row in gradient.chunks_exact(width) {
            let row = &row[block * BLOCK..];
            match reduction {
                Reduction::Absolute => {
                    sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(g.abs()));
                }
                Reduction::Squared => {
                    sums.iter_mut().zip(row).for_each(|(sum, g)| {
                        *sum += f64::from(*g) * f64::from(*g);
                    });
                }
            }
        }
        columns.iter_mut().zip(sums).for_each(|(column, sum)| *column += *sum / rows as f64);
    });
}
