//! The pass over the samples that both methods share: what is finished is saved, an interrupted pass
//! goes on where it was, and the sums are the same either way.

use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::collector::Sums;
use super::gradient::Gradients;
use super::text::Chunks;
use super::weights::{decode, stored};
use crate::arch::ModelConfig;
use crate::base::progress::Progress;
use crate::device::{Backend, memory};
use crate::files::checkpoint::CheckpointStore;
use crate::files::imatrix::Method;
use crate::graph::linear::product::ProductLinear;
use crate::graph::{Decoder, LinearLayer, Observer};
use crate::linalg::products::Arithmetic;
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// Unit of the checkpoint.
const UNIT: &str = "sums";
/// Tokens that go through a block together. Fixed: sums are rounded in this order.
const BATCH_TOKENS: usize = 2048;
/// Samples that are worth a suggestion where longer ones do not fit.
const SHORT_SAMPLE: usize = 512;
/// Most batches between two checkpoints, and how long a stretch should take.
const MOST_BATCHES: usize = 8;
const STRETCH: Duration = Duration::from_secs(30);

/// Everything that a pass needs.
pub(super) struct Pass<'a> {
    pub(super) model: &'a LocalModel,
    pub(super) backend: &'a Backend,
    pub(super) chunks: &'a Chunks,
    pub(super) method: Method,
    pub(super) process_output: bool,
    pub(super) store: Option<&'a CheckpointStore>,
    pub(super) resume_command: Option<&'a str>,
    /// Whether the user asked to go on with an interrupted run.
    pub(super) asked: bool,
    pub(super) progress: &'a dyn Progress,
}

/// Name of the output matrix among the linear layers.
pub(super) const OUTPUT: &str = "output";

/// What products are computed in: a part of what decides the last bits of a result.
pub(super) fn arithmetic(backend: &Backend) -> &'static str {
    if backend.device.is_cpu() { Arithmetic::best().name() } else { "device" }
}

impl Pass<'_> {
    /// Runs over all samples that are not in the checkpoint. Gives the sums, and how many samples
    /// were there before.
    pub(super) fn run(&self) -> Result<(Sums, usize)> {
        if self.method != Method::Activation {
            stored(self.model, "model.embed_tokens.weight")?;
        }
        require_memory(&self.model.config, self.method, self.chunks.length)?;
        let mut sums = match self.store.map(|store| store.load(UNIT)).transpose()?.flatten() {
            Some(unit) => Sums::from_unit(&unit)?,
            None => Sums::default(),
        };
        let resumed = sums.samples;
        let layers = self.model.config.num_layers;
        if let Some(store) = self.store {
            let completed = resumed * layers / self.chunks.count().max(1);
            store.announce(completed, layers, self.asked, self.progress);
        }
        if resumed == self.chunks.count() {
            return Ok((sums, resumed));
        }
        let mut decoder = Decoder::new(self.model, self.backend)?;
        let gradients = match self.method {
            Method::Activation => None,
            Method::Gradient | Method::Fisher => Some(Gradients::new(self.model, self.method)?),
        };
        let mut work = Work::new(self.progress, layers, self.chunks.count(), resumed);
        let batch = batch(self.chunks.length);
        let mut batches = 1;
        while sums.samples < self.chunks.count() {
            let began = Instant::now();
            let length = self.chunks.length;
            let stretch = (batches * batch).min(self.chunks.count() - sums.samples);
            let range = sums.samples * length..(sums.samples + stretch) * length;
            let tokens = &self.chunks.tokens[range];
            let mut stop = |share: f64| self.step(&mut work, stretch as f64 * share);
            match &gradients {
                None => self.activations(&mut decoder, tokens, &mut sums, &mut stop)?,
                Some(gradients) => {
                    gradients.add(&mut decoder, tokens, length, &mut sums, &mut stop)?;
                }
            }
            sums.samples += stretch;
            if let Some(store) = self.store {
                store.save(UNIT, &sums.to_unit())?;
            }
            // Gradients keep the inputs of all blocks of a stretch.
            if gradients.is_none() && began.elapsed() < STRETCH / 2 {
                batches = (2 * batches).min(MOST_BATCHES);
            }
        }
        self.progress.finish();
        Ok((sums, resumed))
    }

    /// Counts finished work, in samples, and ends the pass if the user asked to.
    fn step(&self, work: &mut Work, samples: f64) -> Result<()> {
        work.advance(samples);
        if self.progress.stop_requested() {
            let resume = self.store.and(self.resume_command).map(str::to_owned);
            return Err(Error::Interrupted { resume });
        }
        Ok(())
    }

    /// Adds the squared inputs of all linear layers. `stop` is told the share of the tokens' work.
    fn activations(
        &self,
        decoder: &mut Decoder,
        tokens: &[u32],
        sums: &mut Sums,
        stop: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<()> {
        let length = self.chunks.length;
        let layers = decoder.blocks().len();
        let parts: Vec<&[u32]> = tokens.chunks(batch(length) * length).collect();
        let mut states =
            parts.iter().map(|tokens| decoder.embed(tokens)).collect::<Result<Vec<Tensor>>>()?;
        for block in 0..layers {
            // Weights are decoded once for all batches of the stretch, where that pays.
            let kept = self.install_products(decoder, block);
            for (state, part) in states.iter_mut().zip(&parts) {
                let positions = decoder.positions(part.len() / length, length, 0);
                *state = decoder.block(block).forward(state, &positions, None, Some(sums))?;
                stop(part.len() as f64 / tokens.len() as f64 / layers as f64)?;
            }
            for (projection, layer) in
                decoder.block_mut(block).projections_mut().into_iter().zip(kept)
            {
                projection.layer = layer;
            }
        }
        if self.process_output {
            for state in &states {
                sums.linear_input(&[OUTPUT], &decoder.final_norm(state)?)?;
            }
        }
        Ok(())
    }

    /// Puts decoded weights into a block where products of those are faster; gives back the layers
    /// that were there.
    fn install_products(&self, decoder: &mut Decoder, block: usize) -> Vec<Box<dyn LinearLayer>> {
        if !self.backend.device.is_cpu() || Arithmetic::best() != Arithmetic::Bf16 {
            return Vec::new();
        }
        let names = self.model.config.linear_names(block);
        let stored: Vec<Option<&Weight>> =
            names.iter().map(|name| self.model.weights.get(&format!("{name}.weight"))).collect();
        if !stored.iter().all(|weight| matches!(weight, Some(Weight::Stored(_)))) {
            return Vec::new();
        }
        let projections = decoder.block_mut(block).projections_mut();
        projections
            .into_iter()
            .zip(stored)
            .filter_map(|(projection, weight)| match weight {
                Some(Weight::Stored(tensor)) => {
                    let layer = ProductLinear::of(decode(tensor), (tensor.rows(), tensor.cols()));
                    Some(std::mem::replace(&mut projection.layer, Box::new(layer)))
                }
                _ => None,
            })
            .collect()
    }
}

/// Refuses a pass over samples of `length` tokens that would not fit in memory.
pub(super) fn require_memory(config: &ModelConfig, method: Method, length: usize) -> Result<()> {
    let needed = memory_needed(config, method, length);
    let Some(message) = memory::shortage(needed, "analyzing a batch of samples") else {
        return Ok(());
    };
    let mut others = Vec::new();
    if length > SHORT_SAMPLE {
        let words = format!("--ctx-size {SHORT_SAMPLE}");
        others.push((words, memory_needed(config, method, SHORT_SAMPLE)));
    }
    if method != Method::Activation {
        let words = "--method activation".to_owned();
        others.push((words, memory_needed(config, Method::Activation, length)));
    }
    let suggestion = memory::what_fits(&others, memory::available_bytes());
    Err(Error::OutOfMemory { message, suggestion })
}

/// Memory of a batch of samples, bytes.
fn memory_needed(config: &ModelConfig, method: Method, length: usize) -> u64 {
    let batch = batch(length) * length;
    let widths = config.hidden_size * 4 + config.num_heads * config.head_dim * 2;
    let inside = 4 * batch * (widths + 3 * config.intermediate_size);
    let block = 4 * config.linear_weights(0);
    let states = match method {
        Method::Activation => MOST_BATCHES,
        Method::Gradient | Method::Fisher => config.num_layers + 2,
    } * 4
        * batch
        * config.hidden_size;
    let more = match method {
        Method::Activation => 0,
        // The scores of a sample, and the largest gradient.
        Method::Gradient | Method::Fisher => 4 * length * config.vocab_size + block / 2,
    };
    (inside + block + states + more) as u64
}

/// Samples that go through a block together.
pub(super) fn batch(length: usize) -> usize {
    (BATCH_TOKENS / length).max(1)
}

/// Finished work, told as layers: a layer is its share of all samples.
struct Work<'a> {
    progress: &'a dyn Progress,
    layers: u64,
    samples: f64,
    done: f64,
    told: u64,
}

impl<'a> Work<'a> {
    fn new(progress: &'a dyn Progress, layers: usize, samples: usize, resumed: usize) -> Self {
        progress.start("Analyzing", layers as u64, "layers");
        let mut work =
            Self { progress, layers: layers as u64, samples: samples as f64, done: 0.0, told: 0 };
        work.done = resumed as f64;
        work.told = work.layers_done();
        progress.resumed(work.told);
        work
    }

    fn layers_done(&self) -> u64 {
        (self.done / self.samples * self.layers as f64 + 1e-6) as u64
    }

    fn advance(&mut self, samples: f64) {
        self.done += samples;
        let layers = self.layers_done();
        if layers > self.told {
            self.progress.advance(layers - self.told);
            self.told = layers;
        }
    }
}
