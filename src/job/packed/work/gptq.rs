//! GPTQ of a block, stage by stage: q, k and v; o; gate and up; down. Each stage sees what the
//! rounded layers before it give.

use std::sync::Arc;

use super::{Work, as_norms_see_it, gather, scatter};
use crate::codec::affine::grid::Grid;
use crate::codec::affine::{Grouped, PlainType};
use crate::graph::Block;
use crate::job::packed::awq::scales::round_with;
use crate::job::packed::block::{BlockWeights, host};
use crate::job::packed::finished::{Finished, LayerReport, Levels};
use crate::job::packed::gptq::{Groups, Options, Order, SecondMoments, solve};
use crate::job::packed::gram::Gram;
use crate::job::packed::layout::{ATTENTION, MLP, OUTPUT};
use crate::job::packed::request::Gptq;
use crate::{Error, Result};

/// The grid of GPTQ checkpoints.
pub(super) fn grid(settings: Gptq) -> Grid {
    Grid {
        bits: settings.bits,
        symmetric: settings.symmetric,
        // Files of version 1 hold `z − 1`.
        least_zero: u8::from(!settings.symmetric),
        search: settings.extras.search,
        scales: PlainType::F16,
    }
}

impl Work<'_> {
    /// Rounds a matrix to nearest on GPTQ's grid.
    pub(super) fn round(&self, linear: usize, weight: &[f32], settings: Gptq) -> Grouped {
        let grid = Grid { search: false, ..grid(settings) };
        let matrix = (weight, self.plan.layout.shape(linear));
        let fit = |_: usize, values: &[f32]| grid.fit(values, None);
        round_with(matrix, grid, self.plan.groups[linear], fit)
    }

    pub(super) fn gptq(
        &mut self,
        index: usize,
        mut weights: BlockWeights,
        settings: Gptq,
    ) -> Result<Finished> {
        // What runs is what will be written.
        for values in weights.biases.iter_mut().flatten() {
            values.iter_mut().for_each(|value| *value = self.plan.plain.rounded(*value));
        }
        for norm in &mut weights.norms {
            norm.iter_mut().for_each(|value| *value = self.plan.plain.rounded(*value));
        }
        let layout = Arc::clone(&self.plan.layout);
        let mut done: Vec<Option<(Levels, LayerReport)>> = vec![None; layout.slots.len()];
        for (stage, linears) in layout.stages.iter().enumerate() {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let block = self.running(index, &weights)?;
            let gram = self.stage_inputs(stage, &block).map_err(|error| {
                let first = &layout.slots[linears[0]].name;
                Error::General(format!("block {index}, {first}: {error}"))
            })?;
            let order = if settings.desc_act || settings.extras.static_groups {
                Order::Activations
            } else {
                Order::Natural
            };
            let moments = SecondMoments::new(&gram, settings.damping, order);
            let hessian = match &moments {
                Ok(moments) if settings.extras.refinements > 0 => Some(moments.hessian(&gram)),
                _ => None,
            };
            for &linear in linears {
                let weight = &weights.linears[linear];
                let mut report = self.report(index, linear, "gptq");
                let grouped = if let Ok(moments) = &moments {
                    let options = Options {
                        grid: grid(settings),
                        group: self.plan.groups[linear],
                        groups: if settings.desc_act || !settings.extras.static_groups {
                            Groups::Running
                        } else {
                            Groups::Static
                        },
                        refinements: settings.extras.refinements,
                    };
                    let out = layout.shape(linear).0;
                    let solution = solve(weight, out, moments, &options, hessian.as_deref());
                    report.relative_error = Some(solution.error / solution.signal.max(1e-300));
                    report.damping = Some(moments.damping);
                    report.dead_columns = Some(moments.dead);
                    solution.grouped
                } else {
                    report.method = "rtn".into();
                    let reason = "its Hessian cannot be factorized";
                    report.fallback = Some(reason.into());
                    self.progress.warn(&format!("{} is rounded to nearest: {reason}", report.name));
                    self.round(linear, weight, settings)
                };
                let levels = Levels::Groups(grouped);
                self.check_held(&report.name, weight, &levels)?;
                weights.linears[linear] = Arc::new(levels.values());
                done[linear] = Some((levels, report));
            }
        }
        let (linears, reports) = done.into_iter().flatten().unzip();
        Ok(Finished::new(&weights, linears, reports))
    }

    /// Second moments of what goes into a stage, and the text moved up to there: attention is kept
    /// behind stage 1. `block` has the layers of the earlier stages rounded and the others exact.
    fn stage_inputs(&mut self, stage: usize, block: &Block) -> Result<Gram> {
        let mut gram = Gram::new(self.width(stage));
        let hidden = self.model.config.hidden_size;
        let attended_width = self.width(OUTPUT);
        let Some(text) = &mut self.text else { return Ok(gram) };
        let missing = || Error::General("no room for attention was made".into());
        for range in text.batches() {
            let x = gather(&text.x, range.clone(), hidden, self.backend)?;
            let rows = x.dim(0)?;
            if stage == ATTENTION {
                gram.add(&host(&block.attention_input(&x)?)?)?;
                continue;
            }
            if stage == OUTPUT {
                let positions = self.decoder.positions(range.len(), text.windows.length, 0);
                let attended = block.attend(&block.attention_input(&x)?, &positions)?;
                let kept = text.attended.as_mut().ok_or_else(missing)?;
                scatter(kept, range.clone(), &attended)?;
                let mut input = host(&attended)?;
                let stream = host(&block.after_attention(&x, &attended)?)?;
                as_norms_see_it(&mut input, &stream, rows);
                gram.add(&input)?;
                continue;
            }
            let kept = text.attended.as_ref().ok_or_else(missing)?;
            let attended = gather(kept, range.clone(), attended_width, self.backend)?;
            let middle = block.after_attention(&x, &attended)?;
            let normed = block.mlp_input(&middle)?;
            if stage == MLP {
                gram.add(&host(&normed)?)?;
                continue;
            }
            let inner = block.gated(&normed)?;
            let mut input = host(&inner)?;
            as_norms_see_it(&mut input, &host(&block.after_mlp(&middle, &inner)?)?, rows);
            gram.add(&input)?;
        }
        Ok(gram)
    }
}
