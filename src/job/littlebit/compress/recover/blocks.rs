//! Block by block: statistics on the compressed chain, factorization, tuning.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Job, Tuned, state};
use crate::device::threads;
use crate::files::checkpoint::UnitData;
use crate::graph::linear::product::ProductLinear;
use crate::graph::linear::stored::DevicePrecision;
use crate::graph::{Decoder, LinearLayer, Observer, StoredLinear};
use crate::job::activations::Activations;
use crate::job::littlebit::compress::request::Weighting;
use crate::job::littlebit::compress::work::Run;
use crate::job::littlebit::compress::work::lock;
use crate::job::littlebit::normalise::Importance;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::BlockReport;
use crate::job::littlebit::solve::{Solution, solve};
use crate::job::littlebit::tuning::block::{Lesson, absorb, tune};
use crate::job::littlebit::tuning::dense::LearningDense;
use crate::job::littlebit::tuning::layer::LearningLayer;
use crate::job::littlebit::tuning::recipe::BlockRecipe;
use crate::job::littlebit::tuning::{
    drop_placed, install, learning_layer, place, place_of, rows, with_values,
};
use crate::measure::InputStatistics;
use crate::weight::{StoredTensor, Weight};
use crate::{Error, Result};

/// Sequences that statistics are measured on, at most.
const STATISTICS_SEQUENCES: usize = 64;

impl Job<'_> {
    /// Compresses every block. Gives the matrices in the order of the blocks.
    pub(super) fn blocks(&mut self) -> Result<(Vec<Tuned>, Vec<BlockReport>)> {
        let progress = self.run.progress;
        let (mut tuned, mut reports) = (Vec::new(), Vec::new());
        progress.start("Tuning", self.config().num_layers as u64, "layers");
        for index in 0..self.config().num_layers {
            let (matrices, report, restored) = self.block(index)?;
            progress.detail(&format!(
                "Layer {index}: held-out error {:.4} as factorized, {:.4} tuned",
                report.error_before, report.error_after
            ));
            tuned.extend(matrices);
            reports.push(report);
            if restored {
                progress.resumed(1);
            } else {
                progress.advance(1);
            }
        }
        progress.finish();
        Ok((tuned, reports))
    }

    /// Its matrices, its figures, and whether they were there.
    fn block(&mut self, index: usize) -> Result<(Vec<Tuned>, BlockReport, bool)> {
        self.run.check_stop()?;
        let plans = self.plans_of(index)?;
        let so_far = (0..=index).map(|block| self.plans_of(block)).collect::<Result<Vec<_>>>()?;
        let id = state::block_id(index, &so_far.concat());
        let began = Instant::now();
        let stored = self.decode_block(index)?;
        let saved = self.run.store.load(&id)?;
        // What the matrices receive on the chain of the compressed blocks, or on the original's as
        // it passes.
        let weighted = saved.is_none() && self.run.request.weighting == Weighting::Activation;
        let mut statistics = InputStatistics::new();
        let mut watch = None;
        if weighted && self.recipe.blocks.refresh_statistics {
            statistics = self.refreshed(index)?;
        } else if weighted {
            watch = Some((&mut statistics, STATISTICS_SEQUENCES.min(self.learn.len())));
        }
        pass(&self.teacher, index, &mut self.original, self.reading.windows.length, watch)?;
        let passed = began.elapsed().as_secs_f64();
        let mut interleaved = None;
        let matrices = if let Some(unit) = &saved {
            plans.iter().map(|plan| state::load(unit, plan)).collect::<Result<Vec<_>>>()?
        } else if self.recipe.blocks.interleaved {
            let (matrices, report) = self.interleave(index, &plans, &statistics)?;
            interleaved = Some(report);
            matrices
        } else {
            let weights = self.absorb(index, &plans)?;
            self.factorize_block(&plans, &weights, &statistics)?
        };
        self.put_back(index, stored);
        let layers: Vec<LearningLayer> = matrices.iter().map(|tuned| tuned.layer.clone()).collect();
        install(self.student.block_mut(index), &layers);
        let solved = began.elapsed().as_secs_f64();
        let report = if let Some(unit) = &saved {
            state::report(unit)?
        } else {
            let report = match interleaved {
                Some(report) => report,
                None => self.tune_block(index, &layers)?,
            };
            let mut unit = UnitData::new(serde_json::to_value(report).unwrap_or_default());
            for (plan, tuned) in plans.iter().zip(&matrices) {
                state::round_scales(&tuned.layer, plan.shape.scales);
                state::round_latents(&tuned.layer);
                if !self.recipe.distillation.needs_latents() {
                    tuned.layer.freeze();
                }
                unit = state::save(unit, tuned);
            }
            self.run.store.save(&id, unit)?;
            report
        };
        let learned = began.elapsed().as_secs_f64();
        place(&layers, &self.student)?;
        pass(&self.student, index, &mut self.compressed, self.reading.windows.length, None)?;
        drop_placed(&layers);
        self.run.progress.debug(&format!(
            "layer {index}: original {passed:.1} s, solver {:.1} s, tuning {:.1} s, chain {:.1} s",
            solved - passed,
            learned - solved,
            began.elapsed().as_secs_f64() - learned
        ));
        Ok((matrices, report, saved.is_some()))
    }

    fn tune_block(&self, index: usize, layers: &[LearningLayer]) -> Result<BlockReport> {
        let lesson = self.lesson();
        let seed = self.run.request.solver.seed;
        let stop = || self.run.check_stop();
        let recipe = self.tuning_recipe();
        let tuned = tune(&self.student, index, layers, &lesson, &recipe, seed, stop)?;
        Ok(BlockReport { error_before: tuned.before, error_after: tuned.after })
    }

    /// The recipe of the blocks with the rate of signs for the plan's bits per weight: the more there
    /// are, the fewer signs are wrong, and the more of the right ones a high rate would turn.
    pub(super) fn tuning_recipe(&self) -> BlockRecipe {
        let bits = self.plan.achieved_bpw().max(1.0) as f32;
        let recipe = self.recipe.blocks.clone();
        BlockRecipe { sign_rate: recipe.sign_rate / bits.powi(2), ..recipe }
    }

    /// Decodes the weights of a block of the original; gives the layers that were there.
    pub(super) fn decode_block(&mut self, index: usize) -> Result<Vec<Box<dyn LinearLayer>>> {
        let device = place_of(&self.teacher).cloned();
        let mut stored = Vec::new();
        for projection in self.teacher.block_mut(index).projections_mut() {
            let tensor = tensor(self.run, &projection.name)?;
            let layer: Box<dyn LinearLayer> = match &device {
                None => Box::new(ProductLinear::new(tensor)),
                Some(device) => {
                    let exact = DevicePrecision::F32;
                    Box::new(StoredLinear::on_device(tensor.clone(), device, exact)?)
                }
            };
            tensor.bytes.release();
            stored.push(std::mem::replace(&mut projection.layer, layer));
        }
        Ok(stored)
    }

    /// Undoes [`Self::decode_block`].
    pub(super) fn put_back(&mut self, index: usize, stored: Vec<Box<dyn LinearLayer>>) {
        let projections = self.teacher.block_mut(index).projections_mut();
        projections.into_iter().zip(stored).for_each(|(p, stored)| p.layer = stored);
    }

    /// What the matrices of a block receive after the compressed blocks before it.
    fn refreshed(&self, index: usize) -> Result<InputStatistics> {
        let mut statistics = InputStatistics::new();
        let positions = self.teacher.positions(1, self.reading.windows.length, 0);
        for &sequence in self.learn.iter().take(STATISTICS_SEQUENCES) {
            let x = [self.compressed.sequence(sequence)];
            let x = rows(x, self.config().hidden_size, self.teacher.device())?;
            self.teacher.block(index).forward(&x, &positions, None, Some(&mut statistics))?;
        }
        Ok(statistics)
    }

    /// The weights that are factorized: those of the original, or what they become when they learn
    /// to make up for the blocks before them.
    fn absorb(&mut self, index: usize, plans: &[&LayerPlan]) -> Result<Vec<Vec<f32>>> {
        let mut weights = Vec::new();
        for plan in plans {
            weights.push(tensor(self.run, &plan.name)?.to_f32());
        }
        // Nothing is wrong before the first block.
        if self.recipe.blocks.absorption_steps == 0 || index == 0 {
            return Ok(weights);
        }
        let layers = plans
            .iter()
            .zip(weights)
            .map(|(plan, weight)| LearningDense::new(weight, (plan.shape.rows, plan.shape.cols)))
            .collect::<Result<Vec<_>>>()?;
        let projections = self.student.block_mut(index).projections_mut();
        for (projection, layer) in projections.into_iter().zip(&layers) {
            projection.layer = Box::new(layer.clone());
        }
        let lesson = self.lesson();
        let seed = self.run.request.solver.seed;
        let recipe = &self.recipe.blocks;
        let stop = || self.run.check_stop();
        let absorbed = absorb(&self.student, index, &layers, &lesson, recipe, seed, stop)?;
        self.run.progress.verbose(&format!(
            "layer {index}: dense error {:.4}, {:.4} after absorption",
            absorbed.before, absorbed.after
        ));
        Ok(layers.iter().map(|layer| layer.weight().clone()).collect())
    }

    pub(super) fn lesson(&self) -> Lesson<'_> {
        Lesson {
            inputs: &self.compressed,
            targets: &self.original,
            learn: &self.learn,
            decide: &self.decide,
            length: self.reading.windows.length,
            hidden: self.config().hidden_size,
        }
    }

    fn factorize_block(
        &self,
        plans: &[&LayerPlan],
        weights: &[Vec<f32>],
        statistics: &InputStatistics,
    ) -> Result<Vec<Tuned>> {
        let solutions = self.solve_all(plans, weights, statistics)?;
        plans
            .iter()
            .zip(solutions)
            .map(|(plan, solution)| {
                let dims = (plan.shape.rows, plan.shape.cols);
                Ok(Tuned {
                    name: plan.name.clone(),
                    layer: learning_layer(dims, plan.shape.rank, solution)?,
                    inputs: inputs_of(statistics, plan),
                })
            })
            .collect()
    }

    /// Solves matrices, several at a time.
    fn solve_all(
        &self,
        plans: &[&LayerPlan],
        weights: &[Vec<f32>],
        statistics: &InputStatistics,
    ) -> Result<Vec<Solution>> {
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<Result<Solution>>>> =
            plans.iter().map(|_| Mutex::new(None)).collect();
        threads::on_several(self.run.workers(plans), || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&plan) = plans.get(at) else { break };
                *lock(&slots[at]) = Some(self.solve_one(plan, &weights[at], statistics));
            }
        });
        slots
            .into_iter()
            .map(|slot| {
                slot.into_inner()
                    .unwrap_or_else(PoisonError::into_inner)
                    .unwrap_or_else(|| Err(Error::General("a matrix was left unsolved".into())))
            })
            .collect()
    }

    pub(super) fn solve_one(
        &self,
        plan: &LayerPlan,
        weight: &[f32],
        statistics: &InputStatistics,
    ) -> Result<Solution> {
        let columns = inputs_of(statistics, plan);
        let importance = Importance { rows: None, columns: columns.as_deref() };
        let config = &self.run.request.solver;
        let engine = self.run.engine();
        solve(&plan.name, weight, &plan.shape, config, importance, engine.as_ref())
    }
}

/// Mean squares of what a matrix receives, where they were measured.
pub(super) fn inputs_of(statistics: &InputStatistics, plan: &LayerPlan) -> Option<Vec<f32>> {
    let layer = statistics.layers.get(&plan.name)?;
    Some(layer.mean_squares().into_iter().map(|v| v as f32).collect())
}

/// The stored weight of the linear layer `name`.
pub(super) fn tensor<'m>(run: &Run<'m>, name: &str) -> Result<&'m StoredTensor> {
    let name = format!("{name}.weight");
    match run.model.weights.get(&name) {
        Some(Weight::Stored(tensor)) => Ok(tensor),
        _ => Err(Error::model_not_found(format!("the model has no tensor {name}"))),
    }
}

/// Replaces each sequence by what block `index` makes of it. What its matrices receive of the first
/// sequences is added to the statistics, as far as there are any to `watch`.
fn pass(
    decoder: &Decoder,
    index: usize,
    chain: &mut Activations,
    length: usize,
    mut watch: Option<(&mut InputStatistics, usize)>,
) -> Result<()> {
    let positions = decoder.positions(1, length, 0);
    for sequence in 0..chain.count() {
        let observer: Option<&mut dyn Observer> = match &mut watch {
            Some((statistics, first)) if sequence < *first => Some(&mut **statistics),
            _ => None,
        };
        let x = [chain.sequence(sequence)];
        let x = rows(x, decoder.config().hidden_size, decoder.device())?;
        let y = decoder.block(index).forward(&x, &positions, None, observer)?;
        with_values(&y, |y| chain.set(sequence, y))??;
    }
    Ok(())
}
