//! The decoder graph and generation.
//!
//! [`Decoder`] is one graph for all families, made of what [`arch`](crate::arch) says about a block,
//! over [`linear::LinearLayer`]s that may be dense, block-quantized or factorized. Activations are
//! f32. [`Generator`] streams tokens from it.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod decoder;
mod engine;
mod experts;
pub mod generate;
pub mod linear;
pub(crate) mod norm;
mod places;
pub mod rope;
pub(crate) mod slices;
pub(crate) mod streamed;
pub(crate) mod tracked;
pub(crate) mod weights;
pub(crate) mod writing;

pub use block::{Block, Execution, Norms, Observer};
pub use cache::{CacheType, KvCache};
pub use decoder::Decoder;
pub use generate::{Generator, Sampling};
pub use linear::stored::StoredLinear;
pub use linear::{LinearLayer, Projection};
pub use streamed::StreamedDecoder;
