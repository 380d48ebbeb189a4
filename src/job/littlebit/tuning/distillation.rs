//! The whole model learns what the original predicts.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, Rates, schedule};
use super::block::draw;
use super::layer::{Learning, LearningLayer};
use super::loss::{Head, Opinions, squared_error};
use super::packed::{PackedPath, pack, unpack};
use super::recipe::DistillationRecipe;
use super::{drop_placed, in_its_place, place, place_of, set_learning, with_values};
use crate::graph::Decoder;
use crate::graph::rope::Positions;
use crate::{Error, Result};

/// What the model learns from.
#[derive(Debug)]
pub(crate) struct Curriculum<'a> {
    /// Tokens of each sequence.
    pub tokens: Vec<&'a [u32]>,
    /// What the original predicts for each.
    pub opinions: Vec<Arc<Opinions>>,
    /// Sequences to learn from.
    pub learn: &'a [usize],
    /// Sequences to decide with.
    pub decide: &'a [usize],
}

/// Times that the model is looked at while it learns.
const LOOKS: usize = 10;

/// What is distilled, from what, and how.
#[derive(Debug)]
pub(crate) struct Distillation<'a> {
    /// The compressed model, in tracked execution.
    pub student: &'a Decoder,
    /// The original, for the outputs of its blocks.
    pub teacher: &'a Decoder,
    /// Its layers.
    pub layers: &'a [LearningLayer],
    /// Its head.
    pub head: &'a Head,
    /// What it learns from.
    pub curriculum: &'a Curriculum<'a>,
    /// How.
    pub recipe: &'a DistillationRecipe,
    /// Seed of the order of the sequences.
    pub seed: u64,
}

/// The state with the smallest held-out divergence so far.
#[derive(Debug, Clone)]
pub(crate) struct Best {
    /// Held-out divergence, nats per token.
    pub divergence: f64,
    /// Every layer.
    pub layers: Vec<Vec<PackedPath>>,
}

/// What a look at the model shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Look {
    /// Mean loss of the steps since the last look.
    pub learning: f64,
    /// Held-out divergence, nats per token.
    pub held_out: f64,
}

/// A distillation under way.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    task: &'a Distillation<'a>,
    /// The optimiser with its moments.
    pub adam: Adam,
    order: Vec<usize>,
    random: ChaCha8Rng,
    /// Steps done.
    pub step: usize,
    /// Held-out divergence before the first step.
    pub before: f64,
    /// The best state, the first one included.
    pub best: Best,
}

impl Distillation<'_> {
    /// The loss with everything that its gradient needs, or with nothing of it while nothing learns.
    fn loss(&self, sequences: &[usize], with_hidden: bool) -> Result<Tensor> {
        let (mut x, positions) = self.begin_pass(sequences)?;
        let weight = self.hidden_weight();
        let mut original = (with_hidden && weight > 0.0).then(|| x.clone());
        let mut total: Option<Tensor> = None;
        for (block, teacher) in self.student.blocks().iter().zip(self.teacher.blocks()) {
            x = block.forward(&x, &positions, None, None)?;
            if let Some(rows) = &mut original {
                *rows = teacher.forward(rows, &positions, None, None)?;
                let error =
                    (with_values(rows, |target| squared_error(&x, target, true))?? * weight)?;
                total = Some(match total {
                    Some(total) => (total + error)?,
                    None => error,
                });
            }
        }
        let divergence = self.divergence(&x, sequences)?;
        Ok(match total {
            Some(total) => (total + divergence)?,
            None => divergence,
        })
    }

    /// One step that keeps the inputs of the blocks and computes each block again on the way back:
    /// there is never more than one block's graph, nor gradients of more than one block. Gives the
    /// loss.
    fn step_by_blocks(&self, sequences: &[usize], adam: &mut Adam, rates: Rates) -> Result<f64> {
        let (mut x, positions) = self.begin_pass(sequences)?;
        let weight = self.hidden_weight();
        let mut original = (weight > 0.0).then(|| x.clone());
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        set_learning(self.layers, Learning::Nothing);
        for (block, teacher) in self.student.blocks().iter().zip(self.teacher.blocks()) {
            let y = block.forward(&x, &positions, None, None)?;
            inputs.push(std::mem::replace(&mut x, y));
            if let Some(rows) = &mut original {
                *rows = teacher.forward(rows, &positions, None, None)?;
                targets.push(with_values(rows, <[f32]>::to_vec)?);
            }
        }
        let output = Var::from_tensor(&x)?;
        let loss = self.divergence(output.as_tensor(), sequences)?;
        let mut gradient = gradient_of(&loss, &output)?.1;
        let mut total = f64::from(loss.to_scalar::<f32>()?);
        adam.count_step();
        let per_block = self.layers.len() / self.student.blocks().len();
        for (index, block) in self.student.blocks().iter().enumerate().rev() {
            let layers = index * per_block..(index + 1) * per_block;
            set_learning(&self.layers[layers.clone()], self.learning());
            let input = inputs.pop().ok_or_else(|| Error::General("a block too many".into()))?;
            let input = Var::from_tensor(&input)?;
            let y = block.forward(input.as_tensor(), &positions, None, None)?;
            let mut pull = (&y * &gradient)?.sum_all()?;
            if let Some(target) = targets.pop() {
                let error = (squared_error(&y, &target, true)? * weight)?;
                total += f64::from(error.to_scalar::<f32>()?);
                pull = (pull + error)?;
            }
            let (gradients, next) = gradient_of(&pull, &input)?;
            adam.update(layers.clone(), rates, &gradients)?;
            set_learning(&self.layers[layers], Learning::Nothing);
            gradient = next;
        }
        Ok(total)
    }

    fn begin_pass(&self, sequences: &[usize]) -> Result<(Tensor, Positions)> {
        let tokens: Vec<u32> =
            sequences.iter().flat_map(|&i| self.curriculum.tokens[i]).copied().collect();
        let length = tokens.len() / sequences.len();
        let positions = self.student.positions(sequences.len(), length, 0);
        Ok((self.student.embed(&tokens)?, positions))
    }

    /// Weight of one block's error.
    fn hidden_weight(&self) -> f64 {
        f64::from(self.recipe.hidden_weight) / self.student.blocks().len() as f64
    }

    /// The divergence after the last block gave `x`.
    fn divergence(&self, x: &Tensor, sequences: &[usize]) -> Result<Tensor> {
        let x = match place_of(self.student) {
            None => self.student.final_norm_tracked(x)?,
            Some(_) => self.student.final_norm_by_operations(x)?,
        };
        self.head.divergence(&x, &self.opinions(sequences))
    }

    fn opinions(&self, sequences: &[usize]) -> Arc<Opinions> {
        if let [one] = sequences {
            return Arc::clone(&self.curriculum.opinions[*one]);
        }
        let mut joined = Opinions::default();
        for &index in sequences {
            let one = &self.curriculum.opinions[index];
            joined.count = one.count;
            joined.tokens.extend_from_slice(&one.tokens);
            joined.probabilities.extend_from_slice(&one.probabilities);
        }
        Arc::new(joined)
    }

    /// Mean divergence over the held-out sequences.
    fn held_out(&self) -> Result<f64> {
        set_learning(self.layers, Learning::Nothing);
        let mut sum = 0.0;
        for sequence in self.curriculum.decide {
            let loss = self.loss(std::slice::from_ref(sequence), false)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
        }
        Ok(sum / self.curriculum.decide.len().max(1) as f64)
    }

    fn learning(&self) -> Learning {
        if self.recipe.signs { Learning::All } else { Learning::Scales }
    }

    fn packed(&self) -> Vec<Vec<PackedPath>> {
        self.layers.iter().map(pack).collect()
    }

    /// Begins at the layers as they are.
    pub(crate) fn begin(&self) -> Result<Session<'_>> {
        place(self.layers, self.student)?;
        let before = self.held_out()?;
        let best = Best { divergence: before, layers: self.packed() };
        Ok(self.session(before, best))
    }

    /// Goes on after `step` steps with the layers as they were then. The moments of the optimiser
    /// are to be put back as well.
    #[must_use]
    pub(crate) fn resume(&self, step: usize, before: f64, best: Best) -> Session<'_> {
        let mut session = self.session(before, best);
        for _ in 0..step {
            session.draw();
        }
        session.step = step;
        session.adam.set_steps(step);
        session
    }

    fn session(&self, before: f64, best: Best) -> Session<'_> {
        set_learning(self.layers, self.learning());
        Session {
            task: self,
            adam: Adam::new(self.layers.to_vec(), self.recipe.estimator),
            order: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(self.seed ^ 0xd157_111a),
            step: 0,
            before,
            best,
        }
    }
}

impl Session<'_> {
    fn draw(&mut self) -> Vec<usize> {
        let task = self.task;
        draw(&mut self.order, task.curriculum.learn, task.recipe.batch, &mut self.random)
    }

    /// Whether all steps are done.
    #[must_use]
    pub(crate) fn is_done(&self) -> bool {
        self.step >= self.task.recipe.steps
    }

    /// Learns until the model is looked at next.
    pub(crate) fn advance(&mut self, mut after_step: impl FnMut() -> Result<()>) -> Result<Look> {
        let recipe = self.task.recipe;
        let (mut losses, first) = (0.0, self.step);
        if let Some(device) = place_of(self.task.student) {
            self.adam.place(device)?;
        }
        set_learning(self.task.layers, self.task.learning());
        loop {
            let batch = self.draw();
            let share = schedule(self.step, recipe.steps, recipe.steps / 20);
            let rates =
                Rates { signs: share * recipe.sign_rate, scales: share * recipe.scale_rate };
            let (task, adam) = (self.task, &mut self.adam);
            losses += in_its_place(task.student, || {
                if recipe.recompute {
                    return task.step_by_blocks(&batch, adam, rates);
                }
                let loss = task.loss(&batch, true)?;
                adam.descend(&loss, rates)?;
                Ok::<_, Error>(f64::from(loss.to_scalar::<f32>()?))
            })?;
            self.step += 1;
            after_step()?;
            if self.step.is_multiple_of(recipe.steps.div_ceil(LOOKS)) || self.is_done() {
                break;
            }
        }
        self.adam.fetch()?;
        let divergence = self.task.held_out()?;
        if divergence < self.best.divergence {
            self.best = Best { divergence, layers: self.task.packed() };
        }
        Ok(Look { learning: losses / (self.step - first) as f64, held_out: divergence })
    }

    /// Ends with the best state in the layers.
    pub(crate) fn finish(self) -> Best {
        set_learning(self.task.layers, Learning::Nothing);
        drop_placed(self.task.layers);
        for (layer, packed) in self.task.layers.iter().zip(&self.best.layers) {
            unpack(layer, packed);
        }
        self.best
    }
}

/// All gradients of `loss`, and that of `leaf`.
fn gradient_of(loss: &Tensor, leaf: &Var) -> Result<(GradStore, Tensor)> {
    let mut gradients = loss.backward()?;
    let gradient = gradients.remove(leaf.as_tensor());
    let gradient =
        gradient.ok_or_else(|| Error::General("an input of a block has no gradient".into()))?;
    Ok((gradients, gradient))
}
