//! SmoothQuant of a block: how much moves, the folding, the rounding, and what was lost.

use std::sync::Arc;

use candle_core::Tensor;

use super::super::block::{
    BlockWeights, GATE, KEY, QUERY, STAGES, UP, VALUE, fold_into_norm, host,
};
use super::super::finished::{Finished, Levels};
use super::super::request::Alpha;
use super::super::smoothquant::int8::{Noise, RoundedInputs};
use super::super::smoothquant::migrate::{
    FactorStatistics, STRENGTHS, factors, largest_of_columns,
};
use super::Work;
use super::awq::difference;
use crate::formats::packed::nearest::round_rows;
use crate::inference::linear::Projection;
use crate::inference::{Block, LinearLayer};
use crate::{Error, Result};

/// Tokens on which strengths are compared and noise is measured, at most.
const SEARCH_TOKENS: usize = 2048;

/// The layers that receive a norm: `(stage, layers)`.
const SMOOTHED: [(usize, &[usize]); 2] = [(0, &[QUERY, KEY, VALUE]), (2, &[GATE, UP])];

/// Layers below this are of no use, decibels: more noise than signal.
const USELESS: f64 = 0.0;

impl Work<'_> {
    pub(super) fn smoothquant(
        &mut self,
        index: usize,
        mut weights: BlockWeights,
        alpha: Alpha,
    ) -> Result<Finished> {
        let block = self.running(index, &weights)?;
        let inputs = self.block_inputs(&block, false)?;
        for (stage, inputs) in inputs.iter().enumerate() {
            if inputs.channels.largest().iter().any(|largest| !largest.is_finite()) {
                return Err(Error::SmoothQuant(format!(
                    "SmoothQuant transformation failed: stage {stage} of block {index} receives \
                     values that are not finite"
                )));
            }
        }
        let exact = weights.clone();
        let mut strengths = [None; 4];
        let mut spreads: [Option<FactorStatistics>; 4] = Default::default();
        for (stage, linears) in SMOOTHED {
            let x = inputs[stage].channels.largest();
            let columns: Vec<&[f32]> =
                linears.iter().map(|&linear| exact.linears[linear].as_slice()).collect();
            let w = largest_of_columns(&columns, self.width(stage));
            let strength = match alpha {
                Alpha::Fixed(alpha) => alpha,
                Alpha::Search => {
                    self.search_strength(index, &exact, &block, (stage, linears), &x, &w)?
                }
            };
            let moved = self.move_range(&mut weights, stage, linears, &factors(&x, &w, strength));
            strengths[stage] = Some(strength);
            spreads[stage] = Some(FactorStatistics::of(&moved));
        }
        let mut linears = Vec::with_capacity(7);
        for (linear, (_, inputs)) in self.plan.shapes.into_iter().enumerate() {
            let rows = round_rows(&weights.linears[linear], inputs, self.plan.plain_dtype())?;
            linears.push(Levels::Rows(rows));
        }
        let noise = self.noise(index, &weights, &linears)?;
        let mut reports = Vec::with_capacity(7);
        for (stage, members) in STAGES.iter().enumerate() {
            for &linear in *members {
                let mut report = self.report(index, linear, "smoothquant");
                report.alpha = strengths[stage];
                report.factors.clone_from(&spreads[stage]);
                report.activations = Some(inputs[stage].channels.statistics());
                report.sqnr_db = Some(noise[linear].decibels());
                report.relative_error =
                    Some(noise[linear].noise / noise[linear].signal.max(1e-300));
                if noise[linear].signal > 0.0 && noise[linear].decibels() < USELESS {
                    return Err(Error::SmoothQuant(format!(
                        "SmoothQuant transformation failed: the outputs of {} are {:.1} dB above \
                         their quantization noise",
                        report.name,
                        noise[linear].decibels()
                    )));
                }
                reports.push(report);
            }
        }
        Ok(Finished::new(&weights, linears, reports))
    }

    /// Multiplies the columns of `linears` and divides the norm before them; gives the factors that
    /// the stored norm allows.
    fn move_range(
        &self,
        weights: &mut BlockWeights,
        stage: usize,
        linears: &[usize],
        factors: &[f32],
    ) -> Vec<f32> {
        let norm = if stage == 0 { &mut weights.input_norm } else { &mut weights.post_norm };
        let exact = fold_into_norm(norm, factors, self.plan.plain);
        linears.iter().for_each(|&linear| weights.scale_columns(linear, &exact));
        exact
    }

    /// The strength with the least error of what attention, or the MLP, adds to the residual stream.
    fn search_strength(
        &self,
        index: usize,
        weights: &BlockWeights,
        block: &Block,
        (stage, linears): (usize, &[usize]),
        x: &[f32],
        w: &[f32],
    ) -> Result<f64> {
        let (sample, sequences) = self.sample(SEARCH_TOKENS)?;
        let rows = sample.dim(0)?;
        let positions = self.decoder.positions(sequences, rows / sequences, 0);
        let start = if stage == 0 {
            sample
        } else {
            let attended = block.attend(&block.attention_input(&sample)?, &positions)?;
            block.after_attention(&sample, &attended)?
        };
        let run = |block: &Block| -> Result<Vec<f32>> {
            host(&if stage == 0 {
                let attended = block.attend(&block.attention_input(&start)?, &positions)?;
                block.after_attention(&start, &attended)?
            } else {
                block.after_mlp(&start, &block.gated(&block.mlp_input(&start)?)?)?
            })
        };
        let exact = run(block)?;
        let mut best = (f64::INFINITY, STRENGTHS[0]);
        for strength in STRENGTHS {
            let mut changed = weights.clone();
            self.move_range(&mut changed, stage, linears, &factors(x, w, strength));
            let mut running = self.running(index, &changed)?;
            for &linear in linears {
                let dims = self.plan.shapes[linear];
                let values = &changed.linears[linear];
                let rows = round_rows(values, dims.1, self.plan.plain_dtype())?;
                let values = Arc::new(Levels::Rows(rows).values());
                let layer = RoundedInputs::new(values, dims, &self.backend.device)?;
                running.projections_mut()[linear].layer = Box::new(layer);
            }
            let error = difference(&exact, &run(&running)?, rows);
            if error < best.0 {
                best = (error, strength);
            }
        }
        Ok(best.1)
    }

    /// Signal and noise of each layer on a sample: exact inputs, rounded as they come in.
    fn noise(
        &self,
        index: usize,
        weights: &BlockWeights,
        linears: &[Levels],
    ) -> Result<Vec<Noise>> {
        let (x, sequences) = self.sample(SEARCH_TOKENS)?;
        let positions = self.decoder.positions(sequences, x.dim(0)? / sequences, 0);
        let block = self.running(index, weights)?;
        let normed = block.attention_input(&x)?;
        let attended = block.attend(&normed, &positions)?;
        let mlp = block.mlp_input(&block.after_attention(&x, &attended)?)?;
        let inner = block.gated(&mlp)?;
        let inputs: [&Tensor; 4] = [&normed, &attended, &mlp, &inner];
        let mut noise = vec![Noise::default(); 7];
        for (stage, members) in STAGES.iter().enumerate() {
            for &linear in *members {
                let projection: &Projection = block.projections()[linear];
                let exact = host(&projection.layer.forward(inputs[stage])?)?;
                let values = Arc::new(linears[linear].values());
                let dims = self.plan.shapes[linear];
                let layer = RoundedInputs::new(values, dims, &self.backend.device)?;
                noise[linear].add(&exact, &host(&layer.forward(inputs[stage])?)?);
            }
        }
        Ok(noise)
    }
}
