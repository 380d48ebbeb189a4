//! `act(gate) ∘ up`.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{values, wrap};
use crate::Result;
use crate::arch::spec::Activation;
use crate::codec::vector::kernels;
use crate::graph::engine::fused;
use crate::graph::slices::with_f32;

/// Values that a thread works on at a time.
const CHUNK: usize = 1 << 12;

pub(crate) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.apply_op2(up, Gated(activation))?)
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
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
            .for_each(|((out, gate), up)| fused::gated(self.0, gate, up, out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    /// With `σ = 1 / (1 + exp(-w))`, where `w` is `g` for SiLU and what `gelu_inner` says for GELU:
    /// `dup = dy g σ`, `dgate = dy up σ (1 + g w' (1 − σ))`.
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
                            gradients(self.0, (gate, up), dy, dgate, dup);
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

fn gradients(
    activation: Activation,
    (gate, up): (&[f32], &[f32]),
    dy: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    match activation {
        Activation::Silu => dup.iter_mut().zip(gate).for_each(|(out, g)| *out = -g),
        Activation::GeluTanh => {
            dup.iter_mut().zip(gate).for_each(|(out, g)| *out = -fused::gelu_inner(*g));
        }
    }
    let _ = (kernels().exp_sum)(dup, 0.0);
    for i in 0..gate.len() {
        let sigma = 1.0 / (1.0 + dup[i]);
        let bent = match activation {
            Activation::Silu => gate[i] * (1.0 - sigma),
            Activation::GeluTanh => gate[i] * fused::gelu_slope(gate[i]) * (1.0 - sigma),
        };
        dgate[i] = dy[i] * up[i] * sigma * (1.0 + bent);
        dup[i] = dy[i] * gate[i] * sigma;
    }
}
