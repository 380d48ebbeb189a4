//! Integers of linear layers in the layouts of GPTQ, AWQ and compressed-tensors checkpoints.
//!
//! [`Grouped`](crate::codec::affine::Grouped) is the layer as numbers, whatever the file: an integer
//! per weight, a scale and a zero point per row and group. [`gptq`], [`awq`] and [`w8a8`] turn it
//! into the tensors of a checkpoint and back; [`PackedTensor`](crate::weight::PackedTensor) reads
//! rows out of the packed bytes without unpacking the rest.
//!
//! The layouts are described in `docs/packed-formats.md`, with their sources.

pub(crate) mod assemble;
pub(crate) mod awq;
pub(crate) mod config;
pub(crate) mod gptq;
pub(crate) mod runtimes;
pub mod w8a8;

use safetensors::Dtype;

use super::model_directory::TensorSlot;
#[cfg(test)]
use crate::base::SharedBytes;
pub use config::{AwqConfig, GptqConfig, QuantizationConfig, W8A8Config};

/// One tensor of a packed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What follows the layer's name: `qweight`, `scales`, …
    pub suffix: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian contents.
    pub bytes: Vec<u8>,
}

impl Part {
    fn new(suffix: &'static str, dtype: Dtype, shape: [usize; 2], bytes: Vec<u8>) -> Self {
        Self { suffix, dtype, shape: shape.to_vec(), bytes }
    }

    /// The contents in memory that is shared.
    #[cfg(test)]
    fn shared(&self) -> SharedBytes {
        SharedBytes::from_vec(self.bytes.clone())
    }

    /// Name, type and shape of the part of the layer `layer` (`model.layers.0.mlp.up_proj`).
    #[must_use]
    pub fn slot(&self, layer: &str) -> TensorSlot {
        slot(layer, self.suffix, self.dtype, self.shape.clone())
    }
}

/// The place of a part in a file.
fn slot(layer: &str, suffix: &str, dtype: Dtype, shape: Vec<usize>) -> TensorSlot {
    TensorSlot { name: format!("{layer}.{suffix}"), dtype, shape }
}

#[cfg(test)]
mod tests;
