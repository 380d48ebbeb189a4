//! The blocks, one after the other: each is quantized on what the quantized blocks before it give.

mod awq;
mod gptq;
mod smoothquant;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;

use super::block::{BlockWeights, host};
use super::channels::Channels;
use super::finished::{Finished, LayerReport, Levels};
use super::gram::Gram;
use super::held;
use super::plan::PackedPlan;
use super::request::{Method, PackedRequest};
use super::store::Store;
use crate::arch::ModelConfig;
use crate::base::progress::Progress;
use crate::codec::affine::nearest;
use crate::device::Backend;
use crate::graph::{Block, Decoder};
use crate::job::activations::Activations;
use crate::model::LocalModel;
use crate::text::CalibrationWindows;
use crate::{Error, Result};

/// Tokens that a block reads at a time.
const BATCH_TOKENS: usize = 2048;

/// Name of a finished block among the checkpoints.
pub(super) fn block_unit(index: usize) -> String {
    format!("block.{index}")
}

/// Everything that the blocks share.
pub(super) struct Work<'a> {
    pub(super) model: &'a LocalModel,
    pub(super) plan: &'a PackedPlan,
    pub(super) request: &'a PackedRequest,
    pub(super) backend: &'a Backend,
    pub(super) decoder: Decoder,
    /// Calibration, `None` where nothing is calibrated.
    pub(super) text: Option<Text>,
    pub(super) store: &'a Store,
    pub(super) progress: &'a dyn Progress,
}

/// Calibration windows and the activations between two blocks for all of them.
pub(super) struct Text {
    pub(super) windows: CalibrationWindows,
    /// Residual stream.
    pub(super) x: Activations,
    /// What attention gives before its output layer; kept between two stages of GPTQ.
    pub(super) attended: Option<Activations>,
}

impl Text {
    /// Embeds the windows.
    pub(super) fn new(
        windows: CalibrationWindows,
        decoder: &Decoder,
        with_attended: bool,
        scratch: Option<&Path>,
    ) -> Result<Self> {
        let config = decoder.config();
        let (count, length) = (windows.count(), windows.length);
        let mut x = Activations::new(count, length * config.hidden_size, scratch)?;
        for (index, tokens) in windows.iter().enumerate() {
            x.set(index, &host(&decoder.embed(tokens)?)?)?;
        }
        let width = length * config.num_heads * config.head_dim;
        let attended =
            if with_attended { Some(Activations::new(count, width, scratch)?) } else { None };
        Ok(Self { windows, x, attended })
    }

    /// Sequences that are read together, in order.
    fn batches(&self) -> Vec<Range<usize>> {
        let (count, step) = (self.windows.count(), (BATCH_TOKENS / self.windows.length).max(1));
        (0..count).step_by(step).map(|from| from..count.min(from + step)).collect()
    }
}

/// Sequences `range`, `[sequences · tokens, width]`.
fn gather(
    from: &Activations,
    range: Range<usize>,
    width: usize,
    backend: &Backend,
) -> Result<Tensor> {
    let mut values = Vec::new();
    range.for_each(|index| values.extend_from_slice(from.sequence(index)));
    let rows = values.len() / width;
    Ok(Tensor::from_vec(values, (rows, width), &backend.device)?)
}

fn scatter(to: &mut Activations, range: Range<usize>, x: &Tensor) -> Result<()> {
    let values = host(x)?;
    let length = values.len() / range.len().max(1);
    range.zip(values.chunks_exact(length)).try_for_each(|(index, values)| to.set(index, values))
}

/// What goes into the layers of a stage: second moments, and extremes of every channel.
pub(super) struct Inputs {
    pub(super) gram: Option<Gram>,
    pub(super) channels: Channels,
}

/// Divides each row of `x`, `[tokens, width]`, by the root mean square of the same row of `stream`,
/// `[tokens, hidden]`.
///
/// What a layer adds to the residual stream is seen by others through a norm that divides by the size
/// of the stream. Tokens on which it is enormous (the first one of a text, mostly: arXiv 2402.17762)
/// would otherwise decide everything, though their errors matter no more than those of others.
fn as_norms_see_it(x: &mut [f32], stream: &[f32], tokens: usize) {
    let (width, hidden) = (x.len() / tokens.max(1), stream.len() / tokens.max(1));
    for (row, stream) in x.chunks_exact_mut(width).zip(stream.chunks_exact(hidden)) {
        let squares: f64 = stream.iter().map(|&v| f64::from(v).powi(2)).sum();
        let size = (squares / hidden as f64).sqrt() as f32;
        if size > 0.0 {
            row.iter_mut().for_each(|value| *value /= size);
        }
    }
}

impl Inputs {
    fn new(channels: usize, gram: bool) -> Self {
        Self { gram: gram.then(|| Gram::new(channels)), channels: Channels::new(channels) }
    }

    /// Adds inputs; `stream` is the residual stream behind the layer, where it adds to it.
    fn add(&mut self, x: &Tensor, stream: Option<&Tensor>) -> Result<()> {
        let tokens = x.dim(0)?;
        let mut x = host(x)?;
        self.channels.add(&x);
        let Some(gram) = &mut self.gram else { return Ok(()) };
        if let Some(stream) = stream {
            as_norms_see_it(&mut x, &host(stream)?, tokens);
        }
        gram.add(&x)
    }
}

impl Work<'_> {
    /// Block `index`: from the checkpoint if it is there, else quantized and kept. Then the
    /// calibration text runs through it.
    pub(super) fn block(&mut self, index: usize) -> Result<Finished> {
        let unit = block_unit(index);
        let bits = self.request.method.bits();
        let groups = match self.request.method {
            Method::SmoothQuant(_) => None,
            Method::Gptq(_) | Method::Awq => Some((bits, self.plan.groups.as_slice())),
        };
        let layout = &self.plan.layout;
        let last = index + 1 == self.model.config.num_layers;
        if let Some(unit) = self.store.load(&unit)? {
            let finished = Finished::from_unit(&unit, layout, groups)?;
            if !last {
                self.advance_text(index, &finished)?;
            }
            return Ok(finished);
        }
        let weights = BlockWeights::read(self.model, index, layout)?;
        let mut finished = match (self.request.method, self.text.is_some()) {
            (method, false) => self.nearest(index, &weights, method)?,
            (Method::Gptq(settings), true) => self.gptq(index, weights, settings)?,
            (Method::Awq, true) => self.awq(index, weights)?,
            (Method::SmoothQuant(alpha), true) => self.smoothquant(index, weights, alpha)?,
        };
        finished.round_plain(self.plan.plain);
        self.check_finite(index, &finished)?;
        self.store.save(&unit, &finished.to_unit()?)?;
        if !last {
            self.advance_text(index, &finished)?;
        }
        Ok(finished)
    }

    /// Runs the text through a finished block.
    fn advance_text(&mut self, index: usize, finished: &Finished) -> Result<()> {
        let Some(text) = &mut self.text else { return Ok(()) };
        let like = self.decoder.block(index);
        let config = &self.model.config;
        let block = finished.block(&self.plan.layout, like, config, &self.backend.device)?;
        let hidden = self.model.config.hidden_size;
        for range in text.batches() {
            let positions = self.decoder.positions(range.len(), text.windows.length, 0);
            let x = gather(&text.x, range.clone(), hidden, self.backend)?;
            let x = block.forward(&x, &positions, None, None)?;
            scatter(&mut text.x, range, &x)?;
        }
        Ok(())
    }

    /// Refuses integers that do not hold `weight`; names groups that became zero.
    fn check_held(&self, layer: &str, weight: &[f32], levels: &Levels) -> Result<()> {
        if let Some(warning) = held::check(layer, weight, levels)? {
            self.progress.warn(&warning);
        }
        Ok(())
    }

    /// Weights that overflow the 16 bits they are stored in.
    fn check_finite(&self, index: usize, finished: &Finished) -> Result<()> {
        let values = finished.biases.iter().flatten();
        let finite = values
            .chain(&finished.norms)
            .all(|values| values.iter().all(|value| value.is_finite()));
        if finite {
            return Ok(());
        }
        Err(Error::UnsupportedConversion(format!(
            "norms or biases of block {index} do not fit {}",
            self.plan.plain.torch_name()
        )))
    }

    /// The running block of `weights`.
    fn running(&self, index: usize, weights: &BlockWeights) -> Result<Block> {
        weights.block(self.decoder.block(index), &self.model.config, &self.backend.device)
    }

    fn name(&self, index: usize, linear: usize) -> String {
        ModelConfig::module_name(index, &self.plan.layout.slots[linear].name)
    }

    fn report(&self, index: usize, linear: usize, method: &str) -> LayerReport {
        let (out, inputs) = self.plan.layout.shape(linear);
        LayerReport {
            name: self.name(index, linear),
            shape: [out, inputs],
            method: method.into(),
            relative_error: None,
            damping: None,
            dead_columns: None,
            ratio: None,
            alpha: None,
            sqnr_db: None,
            factors: None,
            activations: None,
            fallback: None,
        }
    }

    /// Rounds to nearest, without text.
    fn nearest(&self, index: usize, weights: &BlockWeights, method: Method) -> Result<Finished> {
        let layers = self.plan.layout.slots.len();
        let mut linears = Vec::with_capacity(layers);
        for (linear, (_, inputs)) in self.plan.layout.shapes().enumerate() {
            let weight = &weights.linears[linear];
            linears.push(match method {
                Method::Gptq(settings) => Levels::Groups(self.round(linear, weight, settings)),
                Method::Awq => {
                    let matrix = (weight.as_slice(), self.plan.layout.shape(linear));
                    let grid = awq::GRID;
                    let fit = |_: usize, values: &[f32]| grid.fit(values, None);
                    let group = self.plan.groups[linear];
                    Levels::Groups(super::awq::scales::round_with(matrix, grid, group, fit))
                }
                Method::SmoothQuant(_) => {
                    Levels::Rows(nearest::round_rows(weight, inputs, self.plan.plain_dtype())?)
                }
            });
            self.check_held(&self.name(index, linear), weight, &linears[linear])?;
        }
        let reports = (0..layers).map(|linear| self.report(index, linear, "rtn")).collect();
        Ok(Finished::new(weights, linears, reports))
    }

    /// Channels that go into the layers of a stage.
    fn width(&self, stage: usize) -> usize {
        self.plan.layout.width(stage)
    }
}
