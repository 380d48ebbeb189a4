//! NVIDIA GPUs: finding one, and (in `kernels`) what candle cannot compute there. Only with the feature
//! `cuda`.

use candle_core::Device;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result;

use crate::Result;

/// The GPU of this number, or `None` where there is no driver or no such GPU.
///
/// A binary that opens the driver library at run time (see README, "Building with CUDA") asks for
/// the library first, because making a CUDA device without one panics. One that is linked to it
/// could not have started without it.
///
/// # Errors
/// When there is such a GPU but it cannot be used.
pub fn probe(ordinal: usize) -> Result<Option<Device>> {
    if !driver_is_present() || result::init().is_err() {
        return Ok(None);
    }
    let count = result::device::get_count().w()?;
    if usize::try_from(count).is_ok_and(|count| ordinal < count) {
        Ok(Some(Device::new_cuda(ordinal)?))
    } else {
        Ok(None)
    }
}

#[cfg(feature = "dynamic-loading")]
#[expect(unsafe_code, reason = "opens the driver library")]
fn driver_is_present() -> bool {
    // SAFETY: the library's initialisers are those of every program that uses the GPU.
    unsafe { candle_core::cuda_backend::cudarc::driver::sys::is_culib_present() }
}

#[cfg(not(feature = "dynamic-loading"))]
fn driver_is_present() -> bool {
    true
}
