//! What a model loses by the error of one tensor, estimated: for models and budgets where nothing is
//! measured.
//!
//! The figures are means of what [`super::sensitivity`] measured on three models (docs/profiles.md
//! has the table): divergence in nats per token for each unit of the relative squared error. They
//! differ a hundredfold between roles, and not as sizes do: grouped keys and values are small, and
//! what they lose, every query head of the group loses.

use crate::quantize::gguf::mix::{Role, layer, role};

/// Blocks of the models that the figures stand for.
const BLOCKS: f64 = 30.0;

/// Divergence for a relative squared error of 1, nats per token, of the tensor of that GGUF name in
/// a model of `layers` blocks. `tied`: the embeddings serve as the output matrix.
#[must_use]
pub fn estimated(name: &str, layers: usize, tied: bool) -> f64 {
    let figure = match role(name) {
        Role::Embedding if tied => return 9.0,
        Role::Embedding => return 2.0,
        Role::Output => return 8.0,
        Role::AttentionQuery => 0.06,
        Role::AttentionKey => 0.08,
        Role::AttentionValue => 0.25,
        Role::AttentionOutput => 0.12,
        Role::FeedForwardGate => 0.22,
        Role::FeedForwardUp | Role::Other => 0.25,
        Role::FeedForwardDown => 0.4,
    };
    let layers = layers.max(1);
    let depth = match layer(name) {
        // The first blocks write what all others read.
        Some(number) if number * 8 < layers => 2.0,
        _ => 1.0,
    };
    figure * depth * BLOCKS / layers as f64
}
