//! What compression cost, measured: perplexity and divergence from the original on text
//! ([`perplexity`], [`comparison`]), the sense of what the model writes ([`coherence`]), and what
//! to call the result ([`verdict`]); benchmarks ([`tasks`]); and what a model loses when some of its
//! layers are exchanged ([`original`]).
//!
//! Everything here works on two small traits, so that any model that can be run can be measured.

pub mod coherence;
pub(crate) mod comparison;
pub(crate) mod criteria;
mod decoder;
pub(crate) mod figures;
pub(crate) mod original;
pub(crate) mod perplexity;
pub mod prompts;
pub(crate) mod rows;
pub mod statistics;
pub mod tasks;
pub(crate) mod verdict;

pub use statistics::{ChannelStatistics, InputStatistics};

use candle_core::Tensor;

use crate::Result;

pub use coherence::{CoherenceReport, CoherenceTest};
pub use comparison::Comparison;
pub use figures::{CoherenceSummary, QualityMetrics};
pub use perplexity::Perplexity;
pub use verdict::{Quality, Verdict};

/// A model that says how likely each next token is.
///
/// The two steps are apart because logits are the largest thing in the run: `[tokens, vocabulary]`
/// is taken a few hundred rows at a time.
pub trait LanguageModel {
    /// Tokens in the vocabulary: columns of the logits.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the model was made for, tokens.
    fn context(&self) -> usize;

    /// Final hidden states (after the last norm) of `batch` sequences of equal length laid end to
    /// end: `[tokens.len(), hidden]`. Each sequence starts at position 0 and sees itself only.
    fn hidden(&self, tokens: &[u32], batch: usize) -> Result<Tensor>;

    /// Logits of hidden states, f32 `[rows, hidden]` to f32 `[rows, vocabulary]`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decoding {
    /// The most likely one.
    Greedy,
    /// Drawn from the distribution.
    Sampled {
        /// Divides the logits.
        temperature: f64,
        /// Only the most likely tokens that together have this probability.
        top_p: f64,
        /// Of the random numbers.
        seed: u64,
    },
}

/// A model that continues a text.
pub trait TextGenerator {
    /// Continues `prompt` by exactly `tokens` tokens, going on behind an end-of-text token, so
    /// that every model is judged on equally much.
    fn generate(&self, prompt: &[u32], tokens: usize, decoding: Decoding) -> Result<Vec<u32>>;
}
