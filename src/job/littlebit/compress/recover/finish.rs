//! From learned layers to finished matrices.

use std::borrow::Cow;
use std::time::Duration;

use super::blocks::tensor;
use super::{Job, Tuned, state};
use crate::job::littlebit::compress::pack;
use crate::job::littlebit::compress::work::unit_id;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::LayerReport;
use crate::job::littlebit::scales::ErrorSums;
use crate::job::littlebit::solve::{PathSolution, Solution};
use crate::{Error, Result};

/// Rows of a matrix that are rebuilt together.
const ROWS_AT_ONCE: usize = 512;

impl Job<'_> {
    /// Rounds, measures and saves every matrix, in the order of the plan.
    pub(super) fn finish(&self, tuned: &[Tuned]) -> Result<Vec<LayerReport>> {
        let mut reports = Vec::new();
        for plan in &self.layers {
            let Some(tuned) = tuned.iter().find(|tuned| tuned.name == plan.name) else {
                return Err(Error::General(format!("{} was not tuned", plan.name)));
            };
            state::round_scales(&tuned.layer, plan.shape.scales);
            let solution = self.measured(plan, tuned)?;
            let unit = pack::to_unit(plan, &solution, tuned.inputs.is_some());
            reports.push(pack::report_of(plan, Some(&unit)));
            self.run.store.save(&unit_id(plan), unit)?;
        }
        Ok(reports)
    }

    /// The layer as a solution, with its error measured against the original weight.
    fn measured(&self, plan: &LayerPlan, tuned: &Tuned) -> Result<Solution> {
        let paths: Vec<PathSolution> = tuned
            .layer
            .paths()
            .iter()
            .map(|path| {
                let [left, right] = path.factors().map(Cow::into_owned);
                PathSolution {
                    left,
                    right,
                    row_scale: path.row.clone(),
                    latent_scale: path.latent.clone(),
                    column_scale: path.column.clone(),
                }
            })
            .collect();
        let mut solution = Solution {
            paths,
            error: 0.0,
            weighted_error: 0.0,
            factorization_time: Duration::ZERO,
            binarization_time: Duration::ZERO,
        };
        let unit = pack::to_unit(plan, &solution, false);
        let factors = pack::factors_of(&unit, plan)?;
        let weight = tensor(self.run, &plan.name)?.to_f32();
        let cols = plan.shape.cols;
        let (mut sums, mut fitted) = (ErrorSums::default(), vec![0.0f64; cols]);
        // The right factor is unpacked anew for each call.
        let mut rows = vec![0.0f32; ROWS_AT_ONCE.min(plan.shape.rows) * cols];
        for (chunk, weights) in weight.chunks(ROWS_AT_ONCE * cols).enumerate() {
            let (first, rows) = (chunk * ROWS_AT_ONCE, &mut rows[..weights.len()]);
            factors.reconstruct_rows(first..first + weights.len() / cols, rows);
            for (weight, row) in weights.chunks_exact(cols).zip(rows.chunks_exact(cols)) {
                fitted.iter_mut().zip(row).for_each(|(to, from)| *to = f64::from(*from));
                sums.add_row(weight, &fitted, 1.0, tuned.inputs.as_deref());
            }
        }
        (solution.error, solution.weighted_error) = (sums.relative(), sums.weighted());
        Ok(solution)
    }
}
