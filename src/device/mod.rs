//! Where tensors are computed.

#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod memory;
pub(crate) mod threads;

use candle_core::Device;

use crate::{Error, Result};

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU if this build and this machine have one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU, or an error.
    Cuda,
}

/// A compute device.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The device as candle knows it.
    pub device: Device,
    name: String,
    /// Whether the processor is used as any other device is, without what is made for it.
    plain: bool,
}

impl Backend {
    /// The processor.
    #[must_use]
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, name: "cpu".into(), plain: false }
    }

    /// The processor by way of the operations that run on every device.
    #[cfg(test)]
    pub(crate) fn plain_cpu() -> Self {
        Self { plain: true, ..Self::cpu() }
    }

    /// Whether the loops that are made for the processor are to be used.
    #[must_use]
    pub(crate) fn is_fused(&self) -> bool {
        self.device.is_cpu() && !self.plain
    }

    /// Opens the device. `gpus_hidden`: `CUDA_VISIBLE_DEVICES` allows none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a GPU is demanded and there is none to use.
    pub fn choose(choice: DeviceChoice, gpus_hidden: bool) -> Result<Self> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu());
        }
        match Self::gpu(gpus_hidden) {
            Ok(backend) => Ok(backend),
            Err(_) if choice == DeviceChoice::Auto => Ok(Self::cpu()),
            Err(why) => Err(Error::InvalidArgument(format!("--device cuda: {why}"))),
        }
    }

    #[cfg(feature = "cuda")]
    fn gpu(gpus_hidden: bool) -> std::result::Result<Self, String> {
        if gpus_hidden {
            return Err("CUDA_VISIBLE_DEVICES hides all GPUs".into());
        }
        match cuda::probe(0) {
            Ok(Some(device)) => Ok(Self { device, name: "cuda:0".into(), plain: false }),
            Ok(None) => Err("there is no CUDA device".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_: bool) -> std::result::Result<Self, String> {
        Err("this build has no CUDA support (build with --features cuda)".into())
    }

    /// `cpu`, or `cuda:` and the number of the GPU.
    #[must_use]
    pub fn describe(&self) -> String {
        self.name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_auto_means_cpu_and_cuda_is_refused() {
        assert_eq!(Backend::choose(DeviceChoice::Auto, true).unwrap().describe(), "cpu");
        assert_eq!(Backend::choose(DeviceChoice::Cpu, false).unwrap().describe(), "cpu");
        let error = Backend::choose(DeviceChoice::Cuda, true).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
