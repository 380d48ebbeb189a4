//! Reading candle's CPU tensors as plain slices and running loops over them on all cores.

use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;

use crate::{Error, Result};

/// Calls `read` with the values of a CPU tensor of f32, row-major. Copies only if the tensor is
/// not contiguous.
///
/// # Errors
/// If the tensor lives elsewhere or has another element type.
pub(crate) fn with_f32<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(Error::General(format!(
            "expected an f32 tensor on the CPU, got {:?} on {:?}",
            tensor.dtype(),
            tensor.device().location()
        )));
    };
    let start = layout.start_offset();
    Ok(read(&values[start..start + tensor.elem_count()]))
}

/// Runs `job` on a thread of the rayon pool. Parallel loops that start there hand work to their
/// neighbours directly, where a thread outside the pool would sleep and wake once per loop: two
/// hundred times per generated token.
pub(crate) fn in_pool<R: Send>(job: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() { job() } else { rayon::scope(|_| job()) }
}

/// Values below which a loop is not worth distributing.
const PARALLEL: usize = 1 << 14;

/// Applies `job(row, values)` to each row of `width` values of `data`.
pub(crate) fn for_rows(data: &mut [f32], width: usize, job: impl Fn(usize, &mut [f32]) + Sync) {
    if data.len() < PARALLEL {
        data.chunks_exact_mut(width).enumerate().for_each(|(row, values)| job(row, values));
    } else {
        let minimum = (PARALLEL / 4 / width).max(1);
        data.par_chunks_exact_mut(width)
            .with_min_len(minimum)
            .enumerate()
            .for_each(|(row, values)| job(row, values));
    }
}
