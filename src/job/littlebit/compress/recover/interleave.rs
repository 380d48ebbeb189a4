//! NanoQuant's order (arXiv 2602.06694): one matrix of a block after the other is factorized and
//! tuned, while those that are still dense learn to make up for the error so far.

use super::blocks::{inputs_of, tensor};
use super::{Job, Tuned};
use crate::Result;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::BlockReport;
use crate::job::littlebit::tuning::block::{absorb, tune};
use crate::job::littlebit::tuning::dense::LearningDense;
use crate::job::littlebit::tuning::learning_layer;
use crate::job::littlebit::tuning::recipe::BlockRecipe;
use crate::measure::InputStatistics;

/// Places in the order of a block's matrices: query, value, output, key, gate, up, down.
const ORDER: [usize; 7] = [0, 2, 3, 1, 4, 5, 6];

impl Job<'_> {
    /// Factorizes and tunes the matrices of a block in turn; each gets its share of the steps. The
    /// reported error before is that with all of them factorized and all but the last one tuned.
    pub(super) fn interleave(
        &mut self,
        index: usize,
        plans: &[&LayerPlan],
        statistics: &InputStatistics,
    ) -> Result<(Vec<Tuned>, BlockReport)> {
        let seed = self.run.request.solver.seed;
        let share = |steps: usize| steps.div_ceil(ORDER.len());
        let recipe = BlockRecipe {
            steps: share(self.recipe.blocks.steps),
            absorption_steps: share(self.recipe.blocks.absorption_steps),
            ..self.tuning_recipe()
        };
        let mut dense = Vec::new();
        for plan in plans {
            let weight = tensor(self.run, &plan.name)?.to_f32();
            dense.push(LearningDense::new(weight, (plan.shape.rows, plan.shape.cols))?);
        }
        for (projection, layer) in
            self.student.block_mut(index).projections_mut().into_iter().zip(&dense)
        {
            projection.layer = Box::new(layer.clone());
        }
        let mut tuned: Vec<Option<Tuned>> = plans.iter().map(|_| None).collect();
        let mut report = BlockReport { error_before: 0.0, error_after: 0.0 };
        for (turn, &at) in ORDER.iter().enumerate() {
            let seed = seed.wrapping_add(turn as u64 + 1);
            let still: Vec<LearningDense> =
                ORDER[turn..].iter().map(|&at| dense[at].clone()).collect();
            if recipe.absorption_steps > 0 {
                let stop = || self.run.check_stop();
                absorb(&self.student, index, &still, &self.lesson(), &recipe, seed, stop)?;
            }
            let (plan, weight) = (plans[at], dense[at].weight().clone());
            let solution = self.solve_one(plan, &weight, statistics)?;
            let dims = (plan.shape.rows, plan.shape.cols);
            let layer = learning_layer(dims, plan.shape.rank, solution)?;
            self.student.block_mut(index).projections_mut()[at].layer = Box::new(layer.clone());
            let stop = || self.run.check_stop();
            let lesson = self.lesson();
            let one = std::slice::from_ref(&layer);
            let outcome = tune(&self.student, index, one, &lesson, &recipe, seed, stop)?;
            report = BlockReport { error_before: outcome.before, error_after: outcome.after };
            let inputs = inputs_of(statistics, plan);
            tuned[at] = Some(Tuned { name: plan.name.clone(), layer, inputs });
        }
        Ok((tuned.into_iter().flatten().collect(), report))
    }
}
