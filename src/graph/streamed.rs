//! A model that is run one block at a time: nothing but the block at work is made ready, so that
//! several models can take turns in the memory of one block each.

use candle_core::{Device, Tensor};

use super::block::Block;
use super::norm::RmsNorm;
use super::rope::{Positions, Ropes};
use super::weights::{Embedding, Head, Weights};
use crate::Result;
use crate::device::Backend;
use crate::model::LocalModel;

/// The parts of a decoder, made when they are asked for.
pub struct StreamedDecoder<'m> {
    model: &'m LocalModel,
    weights: Weights<'m>,
    embedding: Embedding,
    rope: Ropes,
    device: Device,
}

impl<'m> StreamedDecoder<'m> {
    /// Checks the configuration; touches no weights.
    ///
    /// # Errors
    /// As [`super::decoder::Decoder::new`], as far as the configuration and the embedding are concerned.
    pub fn new(model: &'m LocalModel, backend: &Backend) -> Result<Self> {
        let weights = Weights::new(model, &backend.device)?;
        Ok(Self {
            embedding: weights.embedding()?,
            rope: Ropes::new(&model.config)?,
            device: backend.device.clone(),
            weights,
            model,
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'m LocalModel {
        self.model
    }

    /// Embeddings of `tokens`, f32 `[tokens, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embedding.rows(tokens)
    }

    /// Rotations for `batch` sequences of `seq` tokens from the first position on.
    #[must_use]
    pub fn positions(&self, batch: usize, seq: usize) -> Positions {
        self.rope.positions(batch, seq, 0)
    }

    /// Block `index`, made ready to run. On the CPU stored and factorized weights stay in the
    /// mapped file; on another device they are copied there until the block is dropped.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than the configuration implies.
    pub fn block(&self, index: usize) -> Result<Block> {
        self.weights.block(index)
    }

    /// Tells the system that the pages of block `index` will not be needed soon.
    pub fn release_block(&self, index: usize) {
        let prefix = format!("model.layers.{index}.");
        for (name, weight) in &self.model.weights {
            if name.starts_with(&prefix) {
                weight.release();
            }
        }
    }

    /// What follows the last block.
    ///
    /// # Errors
    /// As [`Self::block`].
    pub fn output(&self) -> Result<OutputLayer> {
        Ok(OutputLayer {
            norm: self.weights.final_norm()?,
            head: self.weights.head()?,
            device: self.device.clone(),
        })
    }
}

impl std::fmt::Debug for StreamedDecoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamedDecoder({})", self.model.name)
    }
}

/// The final norm and the head.
pub struct OutputLayer {
    norm: RmsNorm,
    head: Head,
    device: Device,
}

impl OutputLayer {
    /// The final norm of what the last block gave, `[rows, hidden]`.
    pub fn norm(&self, x: &Tensor) -> Result<Tensor> {
        if self.device.is_cpu() { self.norm.fused(x) } else { self.norm.ops(x) }
    }

    /// Logits of normed hidden states: `[rows, hidden]` to f32 `[rows, vocab]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }
}

impl std::fmt::Debug for OutputLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutputLayer({:?})", self.head.dims())
    }
}
