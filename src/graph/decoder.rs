//! The decoder graph of a model, as its configuration describes it.

use candle_core::{Device, Tensor};

use super::block::{Block, Execution, Observer};
use super::cache::{CacheType, KvCache};
use super::linear::LinearLayer;
use super::norm::RmsNorm;
use super::rope::{Positions, Ropes};
use super::slices::in_pool;
use super::weights::{Embedding, Head, Weights};
use crate::arch::ModelConfig;
use crate::device::Backend;
use crate::model::LocalModel;
use crate::weight::StoredTensor;
use crate::{Error, Result};

/// A model that can be run. On the CPU it holds no copy of the weights: they stay in the mapped
/// file.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Head,
    rope: Ropes,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({}, {} blocks)", self.config.class_name, self.blocks.len())
    }
}

impl Decoder {
    /// Builds the graph over a model's weights.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the configuration implies, or does not fit
    /// on the device.
    pub fn new(model: &LocalModel, backend: &Backend) -> Result<Self> {
        Self::of(model, &Weights::new(model, &backend.device)?)
    }

    /// The graph without matrices, which are to be put into its blocks before these are used; there
    /// is no head.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn without_matrices(model: &LocalModel, backend: &Backend) -> Result<Self> {
        Self::of(model, &Weights::without_matrices(model, &backend.device)?)
    }

    fn of(model: &LocalModel, weights: &Weights<'_>) -> Result<Self> {
        let config = model.config.clone();
        Ok(Self {
            rope: Ropes::new(&config)?,
            device: weights.device().clone(),
            embedding: weights.embedding()?,
            blocks: (0..config.num_layers).map(|i| weights.block(i)).collect::<Result<_>>()?,
            norm: weights.final_norm()?,
            head: weights.head()?,
            config,
        })
    }

    /// Shape and hyper-parameters.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Chooses how blocks compute; see [`Execution`].
    ///
    /// # Errors
    /// If fused execution is asked for on another device than the CPU.
    pub fn set_execution(&mut self, execution: Execution) -> Result<()> {
        if execution != Execution::Operations && !self.device.is_cpu() {
            return Err(Error::General("this execution is for the CPU".into()));
        }
        self.blocks.iter_mut().for_each(|block| block.execution = execution);
        Ok(())
    }

    /// An empty cache for one sequence of up to the model's context.
    #[must_use]
    pub fn cache(&self, kind: CacheType) -> KvCache {
        let width = self.config.num_kv_heads * self.config.head_dim;
        KvCache::new(self.blocks.len(), width, kind, self.config.max_positions, &self.device)
    }

    /// Embeddings of `tokens`, f32 `[tokens, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embedding.rows(tokens)
    }

    /// Puts another table of embeddings in the place of the model's, of the same shape.
    pub(crate) fn set_embedding(&mut self, table: StoredTensor) {
        self.embedding.set_table(table);
    }

    /// Rotations for `batch` sequences of `seq` tokens from position `start` on.
    #[must_use]
    pub fn positions(&self, batch: usize, seq: usize, start: usize) -> Positions {
        self.rope.positions(batch, seq, start)
    }

    /// Whether a text must be run as a whole, because its rotations depend on its length.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        self.rope.depends_on_length()
    }

    /// The blocks, first to last.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Block `index`.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn block(&self, index: usize) -> &Block {
        &self.blocks[index]
    }

    /// Block `index`, to exchange its weights.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block_mut(&mut self, index: usize) -> &mut Block {
        &mut self.blocks[index]
    }

    /// The final norm of what the last block gave, `[rows, hidden]`.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        if self.device.is_cpu() { self.norm.fused(x) } else { self.norm.ops(x) }
    }

    /// The same with a backward pass, on the CPU.
    pub(crate) fn final_norm_tracked(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.tracked(x)
    }

    /// The same with a backward pass, on every device.
    pub(crate) fn final_norm_by_operations(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.ops(x)
    }

    /// Runs `tokens`, `[batch, seq]` row-major, and returns the normed final hidden states,
    /// f32 `[batch · seq, hidden]`. With a cache, the one sequence continues after its tokens.
    ///
    /// # Errors
    /// If the tokens are not `batch` equal sequences, one is outside the vocabulary, or they do
    /// not fit the context of the cache.
    pub fn hidden(
        &self,
        tokens: &[u32],
        batch: usize,
        mut cache: Option<&mut KvCache>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<Tensor> {
        if batch == 0 || tokens.is_empty() || !tokens.len().is_multiple_of(batch) {
            return Err(Error::General(format!(
                "{} tokens are not {batch} sequences",
                tokens.len()
            )));
        }
        if cache.is_some() && batch != 1 {
            return Err(Error::General("a key/value cache holds one sequence".into()));
        }
        let seq = tokens.len() / batch;
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        if let Some(cache) = &cache {
            cache.check_room(seq)?;
        }
        let positions = self.positions(batch, seq, start);
        let mut run = || {
            let mut x = self.embed(tokens)?;
            for (index, block) in self.blocks.iter().enumerate() {
                let layer = match &mut cache {
                    Some(cache) => Some(cache.layer(index).ok_or_else(|| {
                        Error::General("a key/value cache of another model".into())
                    })?),
                    None => None,
                };
                x = block.forward(&x, &positions, layer, observer.as_deref_mut())?;
            }
            self.final_norm(&x)
        };
        let hidden = if self.device.is_cpu() { in_pool(run) } else { run() };
        if let (Err(_), Some(cache)) = (&hidden, cache) {
            // Some blocks have seen the tokens and others have not.
            cache.truncate(start);
        }
        hidden
    }

    /// One more token of each of many sequences that are all as long: hidden states as
    /// [`hidden`](Self::hidden) gives them, `[sequences, hidden]`. `seen` has an entry per block,
    /// with the keys and values of each sequence, and is continued. On the CPU only.
    pub(super) fn step(
        &self,
        tokens: &[u32],
        seen: &mut [Vec<(Vec<f32>, Vec<f32>)>],
        position: usize,
    ) -> Result<Tensor> {
        let positions = self.positions(tokens.len(), 1, position);
        in_pool(|| {
            let mut x = self.embed(tokens)?;
            for (block, seen) in self.blocks.iter().zip(seen) {
                x = block.step(&x, &positions, seen)?;
            }
            self.final_norm(&x)
        })
    }

    /// [`logits`](Self::logits) with another matrix in the place of the head's.
    pub fn logits_by(&self, head: &dyn LinearLayer, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits_by(head, hidden)
    }

    /// Logits of any rows of hidden states: `[rows, hidden]` to f32 `[rows, vocab]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }
}
