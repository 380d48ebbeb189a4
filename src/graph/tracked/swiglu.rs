//! `silu(gate) ∘ up`.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{values, wrap};
use crate::Result;
use crate::codec::vector::kernels;
use crate::graph::slices::with_f32;

/// Values that a thread works on at a time.
const CHUNK: usize = 1 << 12;

pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.apply_op2(up, SiluMul)?)
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(s1, l1)?, values(s2, l2)?);
        let mut out = vec![0.0; gate.len()];
        out.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((out, gate), up)| (kernels().silu_mul)(gate, up, out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    /// With `σ = 1 / (1 + exp(-g))`: `dup = dy g σ`, `dgate = dy up σ (1 + g (1 − σ))`.
    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dgate = vec![0.0; gate.elem_count()];
        let mut dup = vec![0.0; gate.elem_count()];
        with_f32(gate, |gate| {
            with_f32(up, |up| {
                with_f32(dy, |dy| {
                    let inputs =
                        gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
                    dgate
                        .par_chunks_mut(CHUNK)
                        .zip(dup.par_chunks_mut(CHUNK))
                        .zip(inputs)
                        .for_each(|((dgate, dup), ((gate, up), dy))| {
                            gradients(gate, up, dy, dgate, dup);
                        });
                })
            })
        })
        .and_then(|inner| inner)
        .and_then(|inner| inner)
        .map_err(wrap)?;
        let shape = gate.shape();
        Ok((
            Some(Tensor::from_vec(dgate, shape.clone(), gate.device())?),
            Some(Tensor::from_vec(dup, shape.clone(), gate.device())?),
        ))
    }
}

fn gradients(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    dup.iter_mut().zip(gate).for_each(|(out, g)| *out = -g);
    let _ = (kernels().exp_sum)(dup, 0.0);
    for i in 0..gate.len() {
        let sigma = 1.0 / (1.0 + dup[i]);
        dgate[i] = dy[i] * up[i] * sigma * (1.0 + gate[i] * (1.0 - sigma));
        dup[i] = dy[i] * gate[i] * sigma;
    }
}
