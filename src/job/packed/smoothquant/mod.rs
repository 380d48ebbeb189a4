//! SmoothQuant (arXiv 2211.10438): part of the activations' range moves into the weights, so that
//! both fit 8 bits. Weights get a scale per row, activations one per token as they come.

pub(crate) mod descend;
pub(crate) mod migrate;
pub(crate) mod noise;
