//! The decoder graph and generation.
//!
//! [`Decoder`] is one graph for all families, made of what `arch` says about a block, over [`linear::LinearLayer`]s that may be
//! dense, block-quantized or factorized. Activations are f32. [`Generator`] streams tokens from it.

pub mod attention;
pub mod block;
pub mod cache;
pub mod decoder;
mod engine;
mod experts;
pub mod generate;
pub mod linear;
pub mod norm;
mod places;
pub mod rope;
pub mod slices;
pub mod streamed;
pub(crate) mod tracked;
pub mod vector;
pub mod weights;
pub mod writing;

pub use block::{Block, Execution, Norms, Observer};
pub use cache::{CacheType, KvCache};
pub use decoder::Decoder;
pub use generate::{Generator, Sampling};
pub use linear::{LinearLayer, Projection, StoredLinear};
pub use streamed::StreamedDecoder;
