//! Linear layers: one trait, so that the decoder does not know whether a weight is dense,
//! block-quantized or factorized.

use candle_core::Tensor;

use crate::Result;

/// `y = x Wᵀ` (without bias) for a weight of any representation.
pub trait LinearLayer: Send + Sync {
    /// `(out, in)`.
    fn dims(&self) -> (usize, usize);

    /// Multiplies `x`, f32 `[tokens, in]`, giving f32 `[tokens, out]` on the same device.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}
