//! The operations of a block on the CPU with backward passes of their own: one pass over the
//! values where candle's elementary operations make a tensor for each step. Gradients flow to
//! activations; norms stay as they are.

mod attention;
mod gated;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub(crate) use attention::attention;
pub(crate) use gated::gated;

use super::norm::RmsNorm;
use super::rope::Turns;
use super::slices::{for_rows, with_f32};
use crate::Result;
use crate::codec::vector::kernels;

/// The values of a contiguous argument.
pub(crate) fn values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => Err(candle_core::Error::Msg("the argument is not contiguous".into())),
    }
}

/// An error of this crate inside of a candle operation.
pub(crate) fn wrap(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// See [`RmsNorm`]; `x` is `[rows, n · width]`.
pub(crate) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    Ok(x.apply_op1(NormOp(norm.clone()))?)
}

struct NormOp(RmsNorm);

impl CustomOp1 for NormOp {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = values(storage, layout)?.to_vec();
        self.0.in_place(&mut out);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// With `s = 1 / sqrt(mean(x²) + ε)` and `a = w ∘ dy`: `dx = s a − x s³ (a · x) / n`.
    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let weight = self.0.weight();
        let width = weight.len();
        let mut out = with_f32(dy, <[f32]>::to_vec).map_err(wrap)?;
        with_f32(x, |x| {
            for_rows(&mut out, width, |row, dy| {
                let x = &x[row * width..(row + 1) * width];
                let square = (kernels().dot_f32)(x, x) / width as f32;
                let scale = 1.0 / (square + self.0.epsilon()).sqrt();
                dy.iter_mut().zip(weight).for_each(|(dy, w)| *dy *= w);
                let pull = (kernels().dot_f32)(dy, x) * scale.powi(3) / width as f32;
                dy.iter_mut().zip(x).for_each(|(dy, x)| *dy = *dy * scale - x * pull);
            });
        })
        .map_err(wrap)?;
        Ok(Some(Tensor::from_vec(out, x.shape().clone(), x.device())?))
    }
}

/// Turns `x`, `[tokens, heads · d]`.
pub(crate) fn rope(x: &Tensor, turns: &Arc<Turns>, heads: usize) -> Result<Tensor> {
    Ok(x.apply_op1(RopeOp { turns: Arc::clone(turns), heads })?)
}

struct RopeOp {
    turns: Arc<Turns>,
    heads: usize,
}

impl CustomOp1 for RopeOp {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = values(storage, layout)?.to_vec();
        self.turns.apply(&mut out, self.heads, |_| {}, 1.0);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut out = with_f32(dy, <[f32]>::to_vec).map_err(wrap)?;
        self.turns.apply(&mut out, self.heads, |_| {}, -1.0);
        Ok(Some(Tensor::from_vec(out, x.shape().clone(), x.device())?))
    }
}
