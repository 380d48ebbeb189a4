//! What a model loses when some of its layers are exchanged: what lies behind them is run again on a
//! short text, and the Kullback–Leibler divergence of the next-token distributions from the
//! original's is the loss. The blocks in front have not changed, so they are not run again.

use candle_core::Tensor;
use rayon::prelude::*;

use super::rows;
use crate::graph::{Decoder, LinearLayer, Observer};
use crate::{Error, Result};

/// Logits of the original that are kept in memory, bytes.
const MOST_LOGITS: usize = 512 << 20;
/// Rows of logits that are made at a time.
const ROWS: usize = 256;

/// A model and what it predicts for a text.
#[derive(Debug)]
pub(crate) struct Original {
    decoder: Decoder,
    /// Sequences, and tokens of each.
    batch: usize,
    length: usize,
    /// Final hidden states, `[tokens, hidden]`.
    hidden: Tensor,
    /// Logits, `[tokens, vocabulary]`, and `ln Σ exp` of each row.
    logits: Vec<f32>,
    sums: Vec<f64>,
}

impl Original {
    /// Runs the model on sequences of `length` tokens, one after the other in `tokens`: on as many as
    /// have logits of half a gigabyte, but at least on one.
    ///
    /// # Errors
    /// What running the model can fail with.
    pub(crate) fn new(decoder: Decoder, tokens: &[u32], length: usize) -> Result<Self> {
        let vocabulary = decoder.config().vocab_size;
        let most = MOST_LOGITS / 4 / vocabulary.max(1) / length.max(1);
        let batch = (tokens.len() / length.max(1)).min(most).max(1);
        let hidden = decoder.hidden(&tokens[..batch * length], batch, None, None)?;
        let mut original =
            Self { decoder, batch, length, hidden, logits: Vec::new(), sums: Vec::new() };
        let (mut logits, mut sums) = (Vec::new(), Vec::new());
        original.each_block_of_logits(&original.hidden, None, |_, values| {
            sums.par_extend(values.par_chunks_exact(vocabulary).map(rows::log_sum_exp));
            logits.extend_from_slice(values);
        })?;
        (original.logits, original.sums) = (logits, sums);
        Ok(original)
    }

    /// The model, with the layers that it has now.
    #[must_use]
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Tokens that are read.
    #[must_use]
    pub(crate) fn tokens(&self) -> usize {
        self.batch * self.length
    }

    /// Final hidden states of the original, `[tokens, hidden]`.
    #[must_use]
    pub(crate) fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// What block `block` makes of `input`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// What running the model can fail with.
    pub(crate) fn pass(
        &self,
        block: usize,
        input: &Tensor,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Tensor> {
        let positions = self.decoder.positions(self.batch, self.length, 0);
        self.decoder.block(block).forward(input, &positions, None, observer)
    }

    /// Final hidden states when `input` goes into block `first`.
    ///
    /// # Errors
    /// What running the model can fail with.
    pub(crate) fn behind(&self, first: usize, input: &Tensor) -> Result<Tensor> {
        let mut x = input.clone();
        for block in first..self.decoder.blocks().len() {
            x = self.pass(block, &x, None)?;
        }
        self.decoder.final_norm(&x)
    }

    /// Puts `layer` in the place of layer `number` of block `block`; gives the one that was there.
    ///
    /// # Errors
    /// [`Error::General`] for a layer that does not exist.
    pub(crate) fn exchange(
        &mut self,
        block: usize,
        number: usize,
        layer: Box<dyn LinearLayer>,
    ) -> Result<Box<dyn LinearLayer>> {
        if block >= self.decoder.blocks().len() {
            return Err(Error::General(format!("the model has no block {block}")));
        }
        let projections = self.decoder.block_mut(block).projections_mut();
        let place = projections.into_iter().nth(number);
        let place = place.ok_or_else(|| Error::General(format!("no layer {number} in a block")))?;
        Ok(std::mem::replace(&mut place.layer, layer))
    }

    /// Final hidden states with `layer` in the place of layer `number` of block `block`, whose input
    /// is `input`. The original is there again afterwards.
    ///
    /// # Errors
    /// [`Error::General`] for a layer that does not exist, and what running the model can fail with.
    pub(crate) fn exchanged(
        &mut self,
        block: usize,
        number: usize,
        input: &Tensor,
        layer: Box<dyn LinearLayer>,
    ) -> Result<Tensor> {
        let original = self.exchange(block, number, layer)?;
        let hidden = self.behind(block, input);
        self.exchange(block, number, original)?;
        hidden
    }

    /// Mean divergence from the original, nats per token, of what `head` (the model's own without it)
    /// predicts from final hidden states. Not finite where a token has become impossible.
    ///
    /// # Errors
    /// What running the head can fail with.
    pub(crate) fn divergence(
        &self,
        hidden: &Tensor,
        head: Option<&dyn LinearLayer>,
    ) -> Result<f64> {
        let vocabulary = self.decoder.config().vocab_size;
        let mut total = 0.0;
        self.each_block_of_logits(hidden, head, |first, values| {
            let rows: Vec<f64> = values
                .par_chunks_exact(vocabulary)
                .enumerate()
                .map(|(row, q)| {
                    let row = first + row;
                    let p = &self.logits[row * vocabulary..(row + 1) * vocabulary];
                    rows::divergence(p, self.sums[row], q, rows::log_sum_exp(q))
                })
                .collect();
            total += rows.iter().sum::<f64>();
        })?;
        Ok(total / self.tokens() as f64)
    }

    /// Calls `visit` with the first row and the values of a few rows of logits at a time.
    fn each_block_of_logits(
        &self,
        hidden: &Tensor,
        head: Option<&dyn LinearLayer>,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let count = hidden.dim(0)?;
        for first in (0..count).step_by(ROWS) {
            let states = hidden.narrow(0, first, ROWS.min(count - first))?.contiguous()?;
            let logits = match head {
                Some(head) => self.decoder.logits_by(head, &states)?,
                None => self.decoder.logits(&states)?,
            };
            rows::with_values(&logits, |values| {
                visit(first, values);
                Ok(())
            })?;
        }
        Ok(())
    }
}
