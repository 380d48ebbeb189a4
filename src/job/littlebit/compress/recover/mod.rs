//! An attempt with recovery: block by block factorized and tuned, then the whole model distilled.
//!
//! Every block that is done is a unit of the checkpoint store, and the distillation saves itself
//! ten times. Both chains of activations are computed again when a run is resumed: a forward pass
//! costs a small part of what it leads to.

mod blocks;
mod distil;
mod finish;
mod finished;
mod interleave;
pub(super) mod reading;
mod state;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::assemble::as_stored;
use super::request::CompressRequest;
use super::work::Run;
use crate::arch::ModelConfig;
use crate::device::{Backend, memory};
use crate::graph::weights::EMBEDDING;
use crate::graph::{Decoder, Execution};
use crate::job::activations::Activations;
use crate::job::littlebit::plan::{CompressionPlan, LayerPlan};
use crate::job::littlebit::report::{LayerReport, RecoveryReport};
use crate::job::littlebit::tuning::layer::LearningLayer;
use crate::job::littlebit::tuning::{Recipe, with_values};
use crate::{Error, Result};
pub(super) use finished::finished;
use reading::Reading;

/// The two models, their activations, and what they read.
struct Job<'a> {
    run: &'a Run<'a>,
    recipe: &'a Recipe,
    plan: &'a CompressionPlan,
    layers: Vec<&'a LayerPlan>,
    reading: Reading,
    /// Sequences that blocks learn from, and those to decide with.
    learn: Vec<usize>,
    decide: Vec<usize>,
    /// The original.
    teacher: Decoder,
    /// The model as far as it is compressed, with the embedding that its file will hold.
    student: Decoder,
    /// Activations of the one and of the other, before the block that is next.
    original: Activations,
    compressed: Activations,
}

/// A tuned matrix.
struct Tuned {
    name: String,
    layer: LearningLayer,
    /// Mean squares of its inputs on the compressed chain, by which its error was weighted.
    inputs: Option<Vec<f32>>,
}

impl Run<'_> {
    /// Factorizes and tunes every block, then distils; finished matrices are in the store.
    pub(super) fn recover(
        &self,
        plan: &CompressionPlan,
        recipe: &Recipe,
    ) -> Result<(Vec<LayerReport>, RecoveryReport)> {
        let mut job = Job::new(self, plan, recipe)?;
        let (tuned, blocks) = job.blocks()?;
        let (distillation, steps) = job.distil(&tuned)?;
        let length = job.reading.windows.length as u64;
        let tokens = |steps: usize, batch: usize| (steps * batch) as u64 * length;
        let report = RecoveryReport {
            sequences: job.reading.windows.count() - job.decide.len(),
            written_sequences: job.reading.written,
            block_sequences: job.learn.len(),
            held_out_sequences: job.decide.len(),
            sequence_length: job.reading.windows.length,
            tokens_per_block: tokens(recipe.blocks.steps, recipe.blocks.batch),
            distillation_tokens: tokens(steps, recipe.distillation.batch),
            blocks,
            distillation,
        };
        Ok((job.finish(&tuned)?, report))
    }

    /// Where activations of `bytes` bytes lie: in memory (nowhere), or in a file beside the output
    /// when they would take more than half of what may be used.
    fn scratch(&self, bytes: usize) -> Option<PathBuf> {
        let available = memory::available_bytes();
        let limit = self.request.max_memory.map_or(available, |limit| limit.min(available));
        if bytes as u64 <= limit / 2 {
            return None;
        }
        let folder = match self.request.output.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        self.progress.verbose("activations are kept in a scratch file");
        Some(folder.to_path_buf())
    }

    fn check_stop(&self) -> Result<()> {
        if self.progress.stop_requested() { Err(self.interrupted()) } else { Ok(()) }
    }
}

impl<'a> Job<'a> {
    fn new(run: &'a Run<'a>, plan: &'a CompressionPlan, recipe: &'a Recipe) -> Result<Self> {
        let host = Backend::cpu();
        let mut teacher = Decoder::new(run.model, &host)?;
        let reading = Reading::new(run, recipe, &teacher)?;
        let on_host = run.backend.is_fused();
        if !on_host {
            // Whole only where the blocks' outputs are learned from to the end.
            teacher = if recipe.distillation.steps > 0 && recipe.distillation.hidden_weight > 0.0 {
                Decoder::new(run.model, run.backend)?
            } else {
                Decoder::without_matrices(run.model, run.backend)?
            };
        }
        let count = reading.on_chains();
        let values = reading.windows.length * run.model.config.hidden_size;
        let scratch = run.scratch(2 * 4 * count * values);
        let mut student = Decoder::without_matrices(run.model, run.backend)?;
        student.set_embedding(as_stored(run.model, plan, EMBEDDING)?);
        for decoder in [&mut teacher, &mut student] {
            decoder.set_execution(if on_host {
                Execution::Tracked
            } else {
                Execution::Operations
            })?;
        }
        let mut job = Self {
            run,
            recipe,
            plan,
            layers: plan.layers().collect(),
            learn: reading.learn(),
            decide: reading.decide(),
            student,
            original: Activations::new(count, values, scratch.as_deref())?,
            compressed: Activations::new(count, values, scratch.as_deref())?,
            teacher,
            reading,
        };
        for (index, tokens) in job.reading.windows.iter().take(count).enumerate() {
            let x = job.teacher.embed(tokens)?;
            with_values(&x, |x| job.original.set(index, x))??;
            let x = job.student.embed(tokens)?;
            with_values(&x, |x| job.compressed.set(index, x))??;
        }
        Ok(job)
    }

    fn config(&self) -> &'a ModelConfig {
        &self.run.model.config
    }

    /// The matrices of a block in their order.
    fn plans_of(&self, block: usize) -> Result<Vec<&'a LayerPlan>> {
        self.config()
            .linear_names(block)
            .into_iter()
            .map(|name| {
                let found = self.layers.iter().copied().find(|layer| layer.name == name);
                found.ok_or_else(|| Error::General(format!("the plan has no {name}")))
            })
            .collect()
    }
}

/// Refuses a recipe that the device cannot follow: dense weights learn on the processor only.
pub(super) fn check(request: &CompressRequest, backend: &Backend) -> Result<()> {
    let dense = request
        .recipe
        .as_ref()
        .is_some_and(|recipe| recipe.blocks.interleaved || recipe.blocks.absorption_steps > 0);
    if dense && !backend.is_fused() {
        return Err(Error::InvalidArgument(
            "blocks.interleaved and blocks.absorption-steps let dense weights learn, which is done \
             on the processor only: leave them out, or use --device cpu"
                .into(),
        ));
    }
    Ok(())
}

/// The first 48 bits of a hash as the end of a unit's name.
fn short(hash: &[u8]) -> String {
    hash.iter().take(6).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Splits sequences evenly over the text: `held_out` of them to decide with, the others to learn
/// from.
fn divide(count: usize, held_out: usize) -> (Vec<usize>, Vec<usize>) {
    let held_out = held_out.clamp(1, count / 2);
    let every = count / held_out;
    (0..count).partition(|index| index % every != every / 2 || index / every >= held_out)
}

#[cfg(test)]
mod tests;
