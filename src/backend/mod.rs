//! Where tensors are computed.

use candle_core::Device;

/// A compute device.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The device as candle knows it.
    pub device: Device,
}

impl Backend {
    /// The processor.
    #[must_use]
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }
}
