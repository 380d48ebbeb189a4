//! Several models over the same windows of text, block by block: first every window of a group goes
//! through block 0 of the first model, then through block 0 of the second, and so on. At no time is
//! more than one block of one model made ready; what stays in memory are the hidden states of the
//! group, and of the logits, which are compared as soon as they exist, a few hundred rows.
//!
//! Windows run in the same batches whatever the memory is, so the figures do not depend on it.

use candle_core::Tensor;

use crate::base::progress::Progress;
use crate::device::memory;
use crate::graph::StreamedDecoder;
use crate::graph::streamed::OutputLayer;
use crate::measure::rows::{self, Targets};
use crate::text::EvaluationWindows;
use crate::{Error, Result};

/// Most memory for the hidden states of a group of windows, all models together, bytes.
const MOST_HIDDEN: u64 = 512 << 20;
/// The same as a share of the memory that is there.
const SHARE_OF_MEMORY: u64 = 8;

/// Takes what the models give.
pub(super) trait Visitor {
    /// Hidden states of a batch behind block `block`: one tensor per model, f32 `[tokens, hidden]`.
    fn block(&mut self, block: usize, hidden: &[&Tensor]) -> Result<()>;

    /// A block of logits, f32 `[rows, vocabulary]` per model, with the tokens to predict. Blocks
    /// come in the order of the text.
    fn logits(&mut self, targets: &Targets, logits: &[Tensor]) -> Result<()>;

    /// A line about how far things are, for `--verbosity debug`.
    fn summary(&self) -> String;
}

/// A batch of windows in flight.
struct Batch {
    first: usize,
    windows: usize,
    /// Per model.
    hidden: Vec<Tensor>,
}

/// Runs all windows through all models.
///
/// # Errors
/// [`Error::General`] for a token outside of a vocabulary, [`Error::Interrupted`], and whatever a
/// model's parts and the visitor fail with.
pub(super) fn run(
    models: &[StreamedDecoder],
    windows: &EvaluationWindows,
    progress: &dyn Progress,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    for model in models {
        rows::check_tokens(&windows.tokens, model.model().config.vocab_size)?;
    }
    let group = windows_per_group(models, windows);
    run_in_groups(models, windows, group, progress, visitor)
}

fn run_in_groups(
    models: &[StreamedDecoder],
    windows: &EvaluationWindows,
    group: usize,
    progress: &dyn Progress,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let layers = models.first().map_or(0, |model| model.model().config.num_layers);
    let groups = windows.count().div_ceil(group);
    // Logits take about as long for a batch as a few blocks do for the group.
    let batches = windows.count().div_ceil(rows::windows_per_batch(windows.length));
    progress.start("Measuring", (groups * models.len() * layers + batches) as u64, "steps");
    let mut first = 0;
    while first < windows.count() {
        let count = group.min(windows.count() - first);
        run_group(models, windows, first..first + count, progress, visitor)?;
        first += count;
        progress.debug(&format!("{first} windows: {}", visitor.summary()));
    }
    progress.finish();
    Ok(())
}

/// Windows whose hidden states fit the bound: whole batches, at least one.
fn windows_per_group(models: &[StreamedDecoder], windows: &EvaluationWindows) -> usize {
    let batch = rows::windows_per_batch(windows.length);
    let width: usize = models.iter().map(|model| model.model().config.hidden_size).sum();
    let batch_bytes = (batch * windows.length * width * size_of::<f32>()).max(1) as u64;
    let bound = MOST_HIDDEN.min(memory::available_bytes() / SHARE_OF_MEMORY);
    batch * ((bound / batch_bytes).max(1) as usize)
}

fn run_group(
    models: &[StreamedDecoder],
    windows: &EvaluationWindows,
    range: std::ops::Range<usize>,
    progress: &dyn Progress,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let length = windows.length;
    let per_batch = rows::windows_per_batch(length);
    let mut batches = Vec::new();
    for first in range.clone().step_by(per_batch) {
        let count = per_batch.min(range.end - first);
        let tokens = &windows.tokens[first * length..(first + count) * length];
        let hidden = models.iter().map(|model| model.embed(tokens)).collect::<Result<_>>()?;
        batches.push(Batch { first, windows: count, hidden });
    }
    let layers = models.first().map_or(0, |model| model.model().config.num_layers);
    for layer in 0..layers {
        for (index, model) in models.iter().enumerate() {
            let block = model.block(layer)?;
            for batch in &mut batches {
                stop_if_asked(progress)?;
                let positions = model.positions(batch.windows, length);
                batch.hidden[index] =
                    block.forward(&batch.hidden[index], &positions, None, None)?;
            }
            drop(block);
            model.release_block(layer);
            progress.advance(1);
        }
        for batch in &batches {
            visitor.block(layer, &batch.hidden.iter().collect::<Vec<_>>())?;
        }
    }
    let outputs = models.iter().map(StreamedDecoder::output).collect::<Result<Vec<_>>>()?;
    for batch in batches {
        stop_if_asked(progress)?;
        compare_batch(models, &outputs, windows, &batch, visitor)?;
        progress.advance(1);
    }
    Ok(())
}

/// Logits of a batch, window by window, in blocks that never span two windows.
fn compare_batch(
    models: &[StreamedDecoder],
    outputs: &[OutputLayer],
    windows: &EvaluationWindows,
    batch: &Batch,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let length = windows.length;
    let hidden = outputs
        .iter()
        .zip(&batch.hidden)
        .map(|(output, hidden)| output.norm(hidden))
        .collect::<Result<Vec<_>>>()?;
    let vocabulary = models.iter().map(|model| model.model().config.vocab_size).max();
    let block = rows::rows_per_block(vocabulary.unwrap_or(1));
    for index in 0..batch.windows {
        let window = batch.first + index;
        let tokens = &windows.tokens[window * length..(window + 1) * length];
        let mut position = windows.first_target;
        while position < length {
            let count = block.min(length - position);
            let logits = outputs
                .iter()
                .zip(&hidden)
                .map(|(output, hidden)| {
                    let rows = hidden.narrow(0, index * length + position - 1, count)?;
                    output.logits(&rows.contiguous()?)
                })
                .collect::<Result<Vec<_>>>()?;
            let targets = Targets { tokens: &tokens[position..position + count], window, position };
            visitor.logits(&targets, &logits)?;
            position += count;
        }
    }
    Ok(())
}

fn stop_if_asked(progress: &dyn Progress) -> Result<()> {
    if progress.stop_requested() { Err(Error::Interrupted { resume: None }) } else { Ok(()) }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
