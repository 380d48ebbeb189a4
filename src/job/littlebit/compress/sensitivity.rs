//! The pass that decides where the bits go: every matrix alone is factorized, at the rate that all
//! would have if bits were spread evenly, and what the model loses by it is measured. Signs are
//! found in a few iterations: what matters is how one matrix compares with another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use super::request::Weighting;
use super::work::{Run, lock};
use super::{pack, statistics};
use crate::arch::ModelConfig;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::device::{Backend, threads};
use crate::files::checkpoint::UnitData;
use crate::graph::{Decoder, LinearLayer, Observer, StoredLinear};
use crate::job::littlebit::estimate;
use crate::job::littlebit::normalise::Importance;
use crate::job::littlebit::plan::{CompressionPlan, LayerPlan, Loss, Losses};
use crate::job::littlebit::solve::{SolverConfig, solve};
use crate::job::littlebit::speed::Speed;
use crate::measure::InputStatistics;
use crate::measure::original::Original;
use crate::text::CalibrationWindows;
use crate::weight::{StoredTensor, Weight};
use crate::{Error, Result};

/// Tokens that the loss is measured on.
const TOKENS: usize = 512;

/// Iterations of the solver.
const ITERATIONS: usize = 20;

/// Name of the losses in their unit.
const UNIT: &str = "divergence";

/// The solver as it is used here.
pub(super) fn solver(full: &SolverConfig) -> SolverConfig {
    SolverConfig {
        iterations: full.iterations.min(ITERATIONS),
        itq_iterations: full.itq_iterations.min(ITERATIONS),
        polish_rounds: 0,
        ..full.clone()
    }
}

/// Time of running blocks as they are stored over that of their products: attention and norms.
const OVERHEAD: f64 = 1.3;

/// Bytes that the pass needs besides those of the solver.
pub(super) fn memory(config: &ModelConfig) -> u64 {
    4 * (TOKENS * config.vocab_size) as u64
}

/// Seconds that it takes on a machine.
pub(super) fn seconds(
    plan: &CompressionPlan,
    config: &ModelConfig,
    full: &SolverConfig,
    speed: &Speed,
) -> f64 {
    let head = config.vocab_size as f64 * config.hidden_size as f64;
    let blocks = config.num_layers as f64;
    // Behind the matrices of a block lie half of the blocks on average; the head always does.
    let behind = plan.factorized_weights() as f64 * f64::midpoint(blocks, 1.0) + head * blocks;
    let layers = config.linear_names(0).len().max(1);
    let flops = OVERHEAD * 2.0 * behind * (TOKENS * layers) as f64;
    let compared = (TOKENS * config.vocab_size * layers) as f64 * blocks;
    // As many at a time as there are threads; all wait for the last one. Then they are multiplied out.
    let solver = solver(full);
    let costs: Vec<f64> = plan
        .layers()
        .map(|layer| {
            let shape = &layer.shape;
            let product = shape.rows as f64 * shape.cols as f64 * shape.rank as f64;
            estimate::flops(shape, &solver) + 2.0 * product * shape.paths as f64
        })
        .collect();
    let solving: f64 = costs
        .chunks(layers)
        .flat_map(|block| block.chunks(speed.threads.max(1)))
        .map(|group| group.iter().copied().fold(0.0, f64::max))
        .sum();
    solving / speed.solver + flops / speed.layers + compared / speed.logits
}

/// The original, stopped in front of a block.
struct Walk {
    original: Original,
    /// The block that is next, and what goes into it, `[tokens, hidden]`.
    block: usize,
    input: Tensor,
}

impl Walk {
    /// Runs the next block as it is. Gives what went into it.
    fn advance(&mut self, observer: Option<&mut dyn Observer>) -> Result<Tensor> {
        let output = self.original.pass(self.block, &self.input, observer)?;
        self.block += 1;
        Ok(std::mem::replace(&mut self.input, output))
    }
}

impl Run<'_> {
    /// What the model loses by each matrix of the plan alone, where bits are to go by that. Blocks
    /// that were measured before are taken from the store.
    pub(super) fn losses(&self, plan: &CompressionPlan) -> Result<Option<Losses>> {
        if !self.request.goes_by_loss() {
            return Ok(None);
        }
        let blocks = self.model.config.num_layers;
        let mut losses = Losses::new();
        let mut walk = None;
        self.progress.start("Measuring sensitivity", blocks as u64, "layers");
        for block in 0..blocks {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let layers = layers_of(plan, &self.model.config, block)?;
            let id = format!("sensitivity-{block}");
            let restored = self.store.has(&id);
            let found = if let Some(unit) = self.store.load(&id)? {
                measured(&unit, block, layers.len())?
            } else {
                let walk = match &mut walk {
                    Some(walk) => walk,
                    None => walk.insert(self.walk()?),
                };
                let found = self.losses_of(walk, block, &layers)?;
                let bytes = found.iter().flat_map(|loss| loss.to_le_bytes()).collect();
                self.store.save(&id, UnitData::default().with_bytes(UNIT, bytes))?;
                found
            };
            for (layer, divergence) in layers.iter().zip(found) {
                let bits_per_weight = layer.shape.bits_per_weight();
                self.progress.verbose(&format!(
                    "{}: divergence {divergence:.5} at {bits_per_weight:.3} bits per weight",
                    layer.name
                ));
                losses.insert(layer.name.clone(), Loss { divergence, bits_per_weight });
            }
            if restored {
                self.progress.resumed(1);
            } else {
                self.progress.advance(1);
            }
        }
        self.progress.finish();
        Ok(Some(losses))
    }

    /// The original in front of its first block.
    fn walk(&self) -> Result<Walk> {
        let length = statistics::window(self.model.config.max_positions);
        let windows = CalibrationWindows::sample(
            &self.text.calibration,
            self.tokenizer,
            TOKENS.div_ceil(length),
            length,
            self.request.solver.seed,
        )?;
        let decoder = Decoder::new(self.model, &Backend::cpu())?;
        let original = Original::new(decoder, &windows.tokens, length)?;
        let input = original.decoder().embed(&windows.tokens[..original.tokens()])?;
        Ok(Walk { original, block: 0, input })
    }

    /// Nats per token that are lost by each layer of a block, in their order.
    fn losses_of(&self, walk: &mut Walk, block: usize, layers: &[&LayerPlan]) -> Result<Vec<f64>> {
        while walk.block < block {
            walk.advance(None)?;
        }
        let mut inputs = InputStatistics::new();
        let weighted = self.request.weighting == Weighting::Activation;
        let input = walk.advance(weighted.then_some(&mut inputs as &mut dyn Observer))?;
        let workers = self.workers(layers);
        let mut losses = Vec::new();
        for group in layers.chunks(workers) {
            let next = AtomicUsize::new(0);
            let solved: Vec<_> = group.iter().map(|_| Mutex::new(None)).collect();
            threads::on_several(workers, || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&layer) = group.get(at) else { break };
                    *lock(&solved[at]) = Some(self.rebuilt(layer, &inputs));
                }
            });
            for rebuilt in solved {
                let rebuilt = rebuilt.into_inner().unwrap_or_else(PoisonError::into_inner);
                let rebuilt = rebuilt
                    .unwrap_or_else(|| Err(Error::General("a matrix was left unsolved".into())))?;
                let hidden = walk.original.exchanged(block, losses.len(), &input, rebuilt)?;
                losses.push(walk.original.divergence(&hidden, None)?);
            }
        }
        Ok(losses)
    }

    /// What a matrix becomes by a quick factorization.
    fn rebuilt(&self, layer: &LayerPlan, inputs: &InputStatistics) -> Result<Box<dyn LinearLayer>> {
        let name = format!("{}.weight", layer.name);
        let Some(Weight::Stored(tensor)) = self.model.weights.get(&name) else {
            return Err(Error::model_not_found(format!("the model has no tensor {name}")));
        };
        let weight = tensor.to_f32();
        tensor.bytes.release();
        let columns: Option<Vec<f32>> = inputs
            .layers
            .get(&layer.name)
            .map(|found| found.mean_squares().into_iter().map(|v| v as f32).collect());
        let importance = Importance { rows: None, columns: columns.as_deref() };
        let config = solver(&self.request.solver);
        let engine = self.engine();
        let solution =
            solve(&layer.name, &weight, &layer.shape, &config, importance, engine.as_ref())?;
        let factors = pack::factors_of(&pack::to_unit(layer, &solution, false), layer)?;
        let (rows, cols) = (layer.shape.rows, layer.shape.cols);
        let mut values = weight;
        factors.reconstruct_rows(0..rows, &mut values);
        let bytes = SharedBytes::from_vec(bytemuck::cast_slice(&values).to_vec());
        let tensor = StoredTensor::new(vec![rows, cols], StoredType::F32, bytes)?;
        Ok(Box::new(StoredLinear::new(tensor)?))
    }
}

/// The losses of a unit.
fn measured(unit: &UnitData, block: usize, layers: usize) -> Result<Vec<f64>> {
    let bytes = unit.bytes(UNIT).unwrap_or_default();
    let (values, rest) = bytes.as_chunks::<8>();
    if values.len() != layers || !rest.is_empty() {
        return Err(Error::Checkpoint(format!(
            "the sensitivities of layer {block} are not in the checkpoint"
        )));
    }
    Ok(values.iter().map(|&value| f64::from_le_bytes(value)).collect())
}

/// The matrices of a block in their order.
fn layers_of<'p>(
    plan: &'p CompressionPlan,
    config: &ModelConfig,
    block: usize,
) -> Result<Vec<&'p LayerPlan>> {
    config
        .linear_names(block)
        .into_iter()
        .map(|name| {
            let found = plan.layers().find(|layer| layer.name == name);
            found.ok_or_else(|| Error::General(format!("the plan has no {name}")))
        })
        .collect()
}
