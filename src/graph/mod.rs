//! The decoder graph and generation.
//!
//! [`Decoder`] is one graph for all supported families, over [`linear::LinearLayer`]s that may be
//! dense, block-quantized or factorized. Activations are f32. [`Generator`] streams tokens from it.

pub mod attention;
pub mod block;
pub mod cache;
pub mod decoder;
pub mod generate;
pub mod linear;
pub mod norm;
pub mod rope;
pub mod slices;
pub mod stages;
pub mod streamed;
pub(crate) mod tracked;
pub mod weights;
pub mod writing;

pub use block::{Block, Execution, Observer};
pub use cache::{CacheType, KvCache};
pub use decoder::Decoder;
pub use generate::{Generator, Sampling};
pub use linear::stored::StoredLinear;
pub use linear::{LinearLayer, Projection};
pub use streamed::StreamedDecoder;
