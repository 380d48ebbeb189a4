//! One step of Adam in GPU memory (`adam.cu`).

#![allow(unsafe_code, reason = "kernel launches")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{Layout, Result};

use super::adam::{BETA, EPSILON, Rule};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/adam.ptx"));

/// The name under which candle keeps the translated kernel of a device.
const MODULE: &str = "llm_quantize_adam";

/// Threads of a block.
const BLOCK: u32 = 256;

/// Changes values and moments, f32 `[3, n]`, by a gradient of `n` values; `steps` counts from 1.
///
/// # Errors
/// If one of them is not contiguous f32 of that size, or the launch fails.
pub(crate) fn step(
    (state, layout): (&mut CudaStorage, &Layout),
    (gradient, gradient_layout): (&CudaStorage, &Layout),
    rate: f32,
    steps: i32,
    rule: Rule,
) -> Result<()> {
    let (Some((start, end)), Some((from, to))) =
        (layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
    else {
        candle_core::bail!("values that learn and their gradients are contiguous");
    };
    let count = to - from;
    if end - start != 3 * count {
        candle_core::bail!("{count} gradients for {} values with moments", end - start);
    }
    let device = gradient.device();
    let gradient = gradient.as_cuda_slice::<f32>()?.slice(from..to);
    let CudaStorageSlice::F32(state) = &mut state.slice else {
        candle_core::bail!("values that learn are f32");
    };
    let mut state = state.slice_mut(start..end);
    let rate = rate / (1.0 - BETA.0.powi(steps));
    let unbias = 1.0 / (1.0 - BETA.1.powi(steps));
    let (length, rule) = (count as u64, rule as u32);
    let blocks = u32::try_from(count.div_ceil(BLOCK as usize)).map_err(candle_core::Error::wrap)?;
    let config =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
    let function = device.get_or_load_custom_func("adam_step", MODULE, PTX)?;
    let mut call = function.builder();
    call.arg(&mut state).arg(&gradient).arg(&length).arg(&rate).arg(&unbias);
    call.arg(&BETA.0).arg(&BETA.1).arg(&EPSILON).arg(&rule);
    // SAFETY: the argument list is that of `adam_step`; the sizes were checked above, and no two of
    // the buffers overlap, as one of them is borrowed for writing.
    unsafe { call.launch(config) }.w()?;
    Ok(())
}
