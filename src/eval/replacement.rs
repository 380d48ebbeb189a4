//! What a model loses when one linear layer is exchanged for another: everything behind it is run
//! again on a short text, and the Kullback–Leibler divergence of the next-token distributions from
//! the original's is the loss. The blocks in front have not changed, so they are not run again.

use candle_core::Tensor;
use rayon::prelude::*;

use super::rows;
use crate::calibration::CalibrationWindows;
use crate::inference::{Decoder, LinearLayer, Observer};
use crate::{Error, Result};

/// Logits of the original that are kept in memory, bytes.
const MOST_LOGITS: usize = 512 << 20;
/// Rows of logits that are made at a time.
const ROWS: usize = 256;

/// The original model on a text, stopped in front of a block.
#[derive(Debug)]
pub struct Replacement {
    decoder: Decoder,
    /// Sequences, and tokens of each.
    batch: usize,
    length: usize,
    /// The block that is next, and what goes into it, `[tokens, hidden]`.
    block: usize,
    input: Tensor,
    /// The original's logits, `[tokens, vocabulary]`, and `ln Σ exp` of each row.
    logits: Vec<f32>,
    sums: Vec<f64>,
}

impl Replacement {
    /// Runs the original, in front of its first block in the end. Reads as many of the windows as
    /// have logits of half a gigabyte, but at least one.
    ///
    /// # Errors
    /// What running the model can fail with.
    pub fn new(decoder: Decoder, windows: &CalibrationWindows) -> Result<Self> {
        let (length, vocabulary) = (windows.length, decoder.config().vocab_size);
        let most = MOST_LOGITS / 4 / vocabulary.max(1) / length.max(1);
        let batch = windows.count().min(most).max(1);
        let tokens = &windows.tokens[..batch * length];
        let hidden = decoder.hidden(tokens, batch, None, None)?;
        let input = decoder.embed(tokens)?;
        let (mut logits, mut sums) = (Vec::new(), Vec::new());
        each_block_of_logits(&decoder, &hidden, |_, values| {
            sums.par_extend(values.par_chunks_exact(vocabulary).map(rows::log_sum_exp));
            logits.extend_from_slice(values);
        })?;
        Ok(Self { decoder, batch, length, block: 0, input, logits, sums })
    }

    /// Tokens that are read.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.batch * self.length
    }

    /// The block whose layers are exchanged next.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// Runs that block as it is and goes on to the one behind it. Gives what went into it, for
    /// [`divergence`](Self::divergence).
    ///
    /// # Errors
    /// What running the model can fail with.
    pub fn advance(&mut self, observer: Option<&mut dyn Observer>) -> Result<Tensor> {
        let positions = self.decoder.positions(self.batch, self.length, 0);
        let output =
            self.decoder.block(self.block).forward(&self.input, &positions, None, observer)?;
        self.block += 1;
        Ok(std::mem::replace(&mut self.input, output))
    }

    /// Mean divergence from the original, nats per token, with `layer` in the place of layer
    /// `number` of block `block`, whose input is `input`. The original is there again afterwards.
    ///
    /// # Errors
    /// [`Error::General`] for a layer that does not exist, and what running the model can fail with.
    pub fn divergence(
        &mut self,
        block: usize,
        number: usize,
        input: &Tensor,
        layer: Box<dyn LinearLayer>,
    ) -> Result<f64> {
        let original = self.exchange(block, number, layer)?;
        let hidden = self.behind(block, input);
        self.exchange(block, number, original)?;
        let hidden = hidden?;
        let vocabulary = self.decoder.config().vocab_size;
        let mut total = 0.0;
        each_block_of_logits(&self.decoder, &hidden, |first, values| {
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

    fn exchange(
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

    /// Runs everything from block `first` on.
    fn behind(&self, first: usize, input: &Tensor) -> Result<Tensor> {
        let positions = self.decoder.positions(self.batch, self.length, 0);
        let mut x = input.clone();
        for block in &self.decoder.blocks()[first..] {
            x = block.forward(&x, &positions, None, None)?;
        }
        self.decoder.final_norm(&x)
    }
}

/// Calls `visit` with the first row and the values of a few rows of logits at a time.
fn each_block_of_logits(
    decoder: &Decoder,
    hidden: &Tensor,
    mut visit: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let count = hidden.dim(0)?;
    for first in (0..count).step_by(ROWS) {
        let rows = hidden.narrow(0, first, ROWS.min(count - first))?.contiguous()?;
        rows::with_values(&decoder.logits(&rows)?, |values| {
            visit(first, values);
            Ok(())
        })?;
    }
    Ok(())
}
