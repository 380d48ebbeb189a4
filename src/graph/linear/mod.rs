//! Linear layers: one trait, so that the decoder does not know whether a weight is dense,
//! block-quantized, factorized or packed.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod factorized;
pub(crate) mod packed;
pub(crate) mod product;
pub(crate) mod stored;

use candle_core::{Device, Tensor};

pub use stored::StoredLinear;

use super::slices::with_f32;
use crate::{Error, Result};

/// `y = x Wᵀ` (without bias) for a weight of any representation.
pub trait LinearLayer: Send + Sync {
    /// `(out, in)`.
    fn dims(&self) -> (usize, usize);

    /// Multiplies `x`, f32 `[tokens, in]`, giving f32 `[tokens, out]` on the same device.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// The place of a layer that is put in later.
#[derive(Debug)]
pub(crate) struct AbsentLinear {
    /// `(out, in)`.
    pub(crate) dims: (usize, usize),
}

impl LinearLayer for AbsentLinear {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn forward(&self, _: &Tensor) -> Result<Tensor> {
        Err(Error::General("a matrix is used that was not put into its block".into()))
    }
}

/// A linear layer with its name and its bias.
pub struct Projection {
    /// Hugging Face name without `.weight`: `model.layers.3.mlp.up_proj`.
    pub name: String,
    /// The weight. May be exchanged for another of the same dimensions.
    pub layer: Box<dyn LinearLayer>,
    bias: Option<Bias>,
}

struct Bias {
    values: Vec<f32>,
    tensor: Tensor,
}

impl Projection {
    /// A layer with a bias of `out` values, or without.
    pub fn new(
        name: String,
        layer: Box<dyn LinearLayer>,
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Result<Self> {
        let bias = match bias {
            Some(values) => {
                Some(Bias { tensor: Tensor::from_slice(&values, values.len(), device)?, values })
            }
            None => None,
        };
        Ok(Self { name, layer, bias })
    }

    /// The bias, one value per output, if there is one.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.values.as_slice())
    }

    /// `x Wᵀ + b` on the CPU.
    pub(crate) fn fused(&self, x: &Tensor) -> Result<Tensor> {
        let out = self.layer.forward(x)?;
        let Some(bias) = &self.bias else { return Ok(out) };
        let mut sums = with_f32(&out, <[f32]>::to_vec)?;
        for row in sums.chunks_exact_mut(bias.values.len()) {
            row.iter_mut().zip(&bias.values).for_each(|(sum, bias)| *sum += bias);
        }
        Ok(Tensor::from_vec(sums, out.shape().clone(), out.device())?)
    }

    /// `x Wᵀ + b` with candle operations.
    pub(crate) fn operations(&self, x: &Tensor) -> Result<Tensor> {
        let out = self.layer.forward(x)?;
        match &self.bias {
            Some(bias) => Ok(out.broadcast_add(&bias.tensor)?),
            None => Ok(out),
        }
    }
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rows, columns) = self.layer.dims();
        write!(f, "Projection({}, [{rows}, {columns}])", self.name)
    }
}
