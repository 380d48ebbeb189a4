//! A linear layer computed from its packed factors.

use candle_core::{DType, Device, Storage, Tensor};

use super::LinearLayer;
use crate::Result;
use crate::codec::signs::Kernel;
use crate::weight::FactorizedLinear;

impl LinearLayer for FactorizedLinear {
    fn dims(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.in_features || x.dtype() != DType::F32 {
            let (dtype, expected) = (x.dtype(), self.in_features);
            return Err(candle_core::Error::Msg(format!(
                "a factorized layer takes f32 [tokens, {expected}], not {dtype:?} [{tokens}, {inputs}]"
            ))
            .into());
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return Err(candle_core::Error::Msg(
                "a factorized layer in main memory takes its input from there".into(),
            )
            .into());
        };
        let start = layout.start_offset();
        let values = &storage.as_slice::<f32>()?[start..start + tokens * inputs];
        let mut out = vec![0.0; tokens * self.out_features];
        Kernel::best().apply(self, values, &mut out);
        Ok(Tensor::from_vec(out, (tokens, self.out_features), &Device::Cpu)?)
    }
}

/// The layer on a device: a copy of the factors on a GPU, or the layer itself in main memory,
/// where it shares the mapped bytes of its file.
///
/// # Errors
/// When the device's memory does not suffice, or this build has no code for the device.
pub fn on_device(layer: &FactorizedLinear, device: &Device) -> Result<Box<dyn LinearLayer>> {
    match device {
        Device::Cpu => Ok(Box::new(layer.clone())),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Box::new(super::cuda::CudaFactorized::new(layer, device)?)),
        _ => Err(crate::Error::Unsupported {
            message: format!("factorized layers cannot run on {:?}", device.location()),
            suggestion: "Run on the CPU".into(),
        }),
    }
}
