//! Tuning of one block.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, Rates, schedule};
use super::dense::{DenseAdam, LearningDense};
use super::layer::{Learning, LearningLayer};
use super::loss::squared_error;
use super::recipe::BlockRecipe;
use super::{drop_placed, in_its_place, place, place_of, restore, rows, set_learning, snapshot};
use crate::Result;
use crate::graph::slices::in_pool;
use crate::graph::{Block, Decoder};
use crate::job::activations::Activations;

/// What a block learns from: what went in on the compressed chain, and what the original block
/// gave on the original chain.
#[derive(Debug)]
pub(crate) struct Lesson<'a> {
    /// Inputs.
    pub inputs: &'a Activations,
    /// Outputs to reach.
    pub targets: &'a Activations,
    /// Sequences to learn from.
    pub learn: &'a [usize],
    /// Sequences to decide with.
    pub decide: &'a [usize],
    /// Tokens of a sequence.
    pub length: usize,
    /// Values of a token.
    pub hidden: usize,
}

impl Lesson<'_> {
    fn loss(
        &self,
        decoder: &Decoder,
        block: &Block,
        sequences: &[usize],
        relative: bool,
    ) -> Result<candle_core::Tensor> {
        let x = sequences.iter().map(|&index| self.inputs.sequence(index));
        let x = rows(x, self.hidden, decoder.device())?;
        let positions = decoder.positions(sequences.len(), self.length, 0);
        let y = block.forward(&x, &positions, None, None)?;
        let target: Vec<f32> =
            sequences.iter().flat_map(|&i| self.targets.sequence(i)).copied().collect();
        squared_error(&y, &target, relative)
    }

    /// Mean loss over the sequences to decide with. The layers must not be learning.
    pub(crate) fn held_out(&self, decoder: &Decoder, block: &Block, relative: bool) -> Result<f64> {
        let mut sum = 0.0;
        for sequence in self.decide {
            let loss = self.loss(decoder, block, std::slice::from_ref(sequence), relative)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
        }
        Ok(sum / self.decide.len().max(1) as f64)
    }
}

/// Held-out loss of a block before and after it was tuned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tuned {
    /// As factorized.
    pub before: f64,
    /// Of the state that was kept.
    pub after: f64,
}

/// Times that a block is looked at while it learns.
const LOOKS: usize = 4;

/// Tunes the layers of block `index` of `student`. The state with the smallest held-out loss stays,
/// which may be the first.
pub(crate) fn tune(
    student: &Decoder,
    index: usize,
    layers: &[LearningLayer],
    lesson: &Lesson<'_>,
    recipe: &BlockRecipe,
    seed: u64,
    mut stop: impl FnMut() -> Result<()>,
) -> Result<Tuned> {
    let block = student.block(index);
    let relative = recipe.relative_loss;
    set_learning(layers, Learning::Nothing);
    place(layers, student)?;
    let before = lesson.held_out(student, block, relative)?;
    let mut best = (before, snapshot(layers));
    set_learning(layers, Learning::All);
    let mut adam = Adam::new(layers.to_vec(), recipe.estimator);
    if let Some(device) = place_of(student) {
        adam.place(device)?;
    }
    let mut order = Vec::new();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9));
    for step in 0..recipe.steps {
        stop()?;
        let batch = draw(&mut order, lesson.learn, recipe.batch, &mut random);
        let share = schedule(step, recipe.steps, recipe.steps / 20);
        let rates = Rates { signs: share * recipe.sign_rate, scales: share * recipe.scale_rate };
        in_its_place(student, || {
            let loss = lesson.loss(student, block, &batch, relative)?;
            adam.descend(&loss, rates)
        })?;
        if (step + 1) % recipe.steps.div_ceil(LOOKS) == 0 || step + 1 == recipe.steps {
            set_learning(layers, Learning::Nothing);
            let loss = lesson.held_out(student, block, relative)?;
            set_learning(layers, Learning::All);
            if loss < best.0 {
                adam.fetch()?;
                best = (loss, snapshot(layers));
            }
        }
    }
    set_learning(layers, Learning::Nothing);
    drop_placed(layers);
    restore(layers, &best.1);
    Ok(Tuned { before, after: best.0 })
}

/// Lets the dense weights of block `index` learn what [`tune`] is about to ask of their signs. The
/// state with the smallest held-out loss stays, which may be the first.
pub(crate) fn absorb(
    student: &Decoder,
    index: usize,
    layers: &[LearningDense],
    lesson: &Lesson<'_>,
    recipe: &BlockRecipe,
    seed: u64,
    mut stop: impl FnMut() -> Result<()>,
) -> Result<Tuned> {
    let block = student.block(index);
    let relative = recipe.relative_loss;
    let weights = || -> Vec<Vec<f32>> { layers.iter().map(|l| l.weight().clone()).collect() };
    let before = lesson.held_out(student, block, relative)?;
    let mut best = (before, weights());
    let mut adam = DenseAdam::new(layers.to_vec());
    let mut order = Vec::new();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x85eb_ca6b));
    let steps = recipe.absorption_steps;
    for step in 0..steps {
        stop()?;
        let batch = draw(&mut order, lesson.learn, recipe.batch, &mut random);
        let rate = recipe.absorption_rate * schedule(step, steps, steps / 20);
        in_pool(|| {
            lesson.loss(student, block, &batch, relative)?.backward()?;
            adam.step(rate);
            Ok::<_, crate::Error>(())
        })?;
        if (step + 1) % steps.div_ceil(LOOKS) == 0 || step + 1 == steps {
            let loss = lesson.held_out(student, block, relative)?;
            if loss < best.0 {
                best = (loss, weights());
            }
        }
    }
    layers.iter().zip(&best.1).for_each(|(layer, weight)| layer.set_weight(weight));
    Ok(Tuned { before, after: best.0 })
}

/// The next `count` of `all` in an order that is drawn again whenever it runs out.
pub(super) fn draw(
    order: &mut Vec<usize>,
    all: &[usize],
    count: usize,
    random: &mut ChaCha8Rng,
) -> Vec<usize> {
    (0..count)
        .filter_map(|_| {
            if order.is_empty() {
                order.extend_from_slice(all);
                order.shuffle(random);
            }
            order.pop()
        })
        .collect()
}
