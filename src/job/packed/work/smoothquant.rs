//! SmoothQuant of a block: how much moves, the folding, the rounding, and what was lost.

use std::sync::Arc;

use candle_core::Tensor;

use super::awq::difference;
use super::{Inputs, Work, as_norms_see_it};
use crate::codec::affine::Int8Rows;
use crate::codec::affine::grid::Grid;
use crate::codec::affine::int8::as_scale;
use crate::codec::affine::nearest::round_rows;
use crate::graph::{Block, LinearLayer};
use crate::job::packed::block::{BlockWeights, host};
use crate::job::packed::finished::{Finished, LayerReport, Levels, running};
use crate::job::packed::gptq::{Groups, Options, Order, SecondMoments, solve};
use crate::job::packed::gram::Gram;
use crate::job::packed::layout::{ATTENTION, DOWN, MLP, OUTPUT};
use crate::job::packed::request::{Alpha, DAMPING};
use crate::job::packed::smoothquant::descend::{Layers, descend};
use crate::job::packed::smoothquant::migrate::{
    FactorStatistics, STRENGTHS, factors, largest_of_columns,
};
use crate::job::packed::smoothquant::noise::Noise;
use crate::{Error, Result};

/// Tokens on which strengths are compared and noise is measured, at most.
const SEARCH_TOKENS: usize = 2048;

/// Layers below this are of no use, decibels: more noise than signal.
const USELESS: f64 = 0.0;

/// What runs before a search for strengths, on a sample of the text.
struct Sample {
    /// What goes into each stage, `[tokens, channels]`.
    inputs: [Tensor; 4],
    /// Residual stream before attention and behind it.
    streams: [Tensor; 2],
    /// Residual stream behind the block.
    end: Tensor,
    /// Sequences that the tokens are of.
    sequences: usize,
}

impl Work<'_> {
    pub(super) fn smoothquant(
        &mut self,
        index: usize,
        mut weights: BlockWeights,
        alpha: Alpha,
    ) -> Result<Finished> {
        let block = self.running(index, &weights)?;
        let mut inputs = self.block_inputs(&block, true)?;
        for (stage, inputs) in inputs.iter().enumerate() {
            if inputs.channels.largest().iter().any(|largest| !largest.is_finite()) {
                return Err(Error::SmoothQuant(format!(
                    "SmoothQuant transformation failed: stage {stage} of block {index} receives \
                     values that are not finite"
                )));
            }
        }
        let sample = self.run_sample(&block)?;
        let exact = weights.clone();
        let mut moved = Vec::with_capacity(4);
        for (stage, inputs) in inputs.iter_mut().enumerate() {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let ranges = self.ranges(&exact, stage, inputs);
            let (strength, found) = match alpha {
                Alpha::Fixed(alpha) => (Some(alpha), factors(&ranges.0, &ranges.1, alpha)),
                Alpha::Search => {
                    let gram = inputs.gram.as_ref();
                    self.search_factors(index, &exact, stage, &sample, &ranges, gram)?
                }
            };
            let columns = self.move_range(&mut weights, stage, &found);
            if let Some(gram) = &mut inputs.gram {
                gram.divide(&columns);
            }
            moved.push((strength, FactorStatistics::of(&columns)));
        }
        let layout = Arc::clone(&self.plan.layout);
        let mut done: Vec<Option<(Levels, LayerReport)>> = vec![None; layout.slots.len()];
        for (stage, members) in layout.stages.iter().enumerate() {
            let gram = inputs[stage].gram.take();
            let moments =
                gram.and_then(|gram| SecondMoments::new(&gram, DAMPING, Order::Activations).ok());
            for &linear in members {
                let mut report = self.report(index, linear, "smoothquant");
                let rows = if let Some(moments) = &moments {
                    self.solve_rows(&weights, linear, moments)?
                } else {
                    let reason = "weights rounded to nearest: the Hessian of the inputs cannot be \
                                  factorized";
                    self.progress.warn(&format!("{}: {reason}", report.name));
                    report.fallback = Some(reason.into());
                    let inputs = layout.shape(linear).1;
                    round_rows(&weights.linears[linear], inputs, self.plan.plain_dtype())?
                };
                report.damping = moments.as_ref().map(|moments| moments.damping);
                report.alpha = moved[stage].0;
                report.factors = Some(moved[stage].1.clone());
                report.activations = Some(inputs[stage].channels.statistics());
                let levels = Levels::Rows(rows);
                self.check_held(&report.name, &weights.linears[linear], &levels)?;
                done[linear] = Some((levels, report));
            }
        }
        let (linears, mut reports): (Vec<_>, Vec<_>) = done.into_iter().flatten().unzip();
        for (report, noise) in reports.iter_mut().zip(self.noise(index, &weights, &linears)?) {
            report.sqnr_db = Some(noise.decibels());
            report.relative_error = Some(noise.noise / noise.signal.max(1e-300));
            if noise.signal > 0.0 && noise.decibels() < USELESS {
                return Err(Error::SmoothQuant(format!(
                    "SmoothQuant transformation failed: the outputs of {} are {:.1} dB above \
                     their quantization noise",
                    report.name,
                    noise.decibels()
                )));
            }
        }
        Ok(Finished::new(&weights, linears, reports))
    }

    /// Largest absolute input and weight of each factor of a stage. Where a row of v feeds several
    /// columns of o, they share one.
    fn ranges(
        &self,
        weights: &BlockWeights,
        stage: usize,
        inputs: &Inputs,
    ) -> (Vec<f32>, Vec<f32>) {
        let columns: Vec<&[f32]> = self.plan.layout.stages[stage]
            .iter()
            .map(|&linear| weights.linears[linear].as_slice())
            .collect();
        let (x, w) = (inputs.channels.largest(), largest_of_columns(&columns, self.width(stage)));
        if stage != OUTPUT {
            return (x, w);
        }
        let rows = &self.plan.layout.value_rows;
        let shared = |columns: &[f32]| {
            let mut largest = vec![0.0f32; self.plan.layout.values.count];
            rows.iter().zip(columns).for_each(|(&row, v)| largest[row] = largest[row].max(*v));
            largest
        };
        (shared(&x), shared(&w))
    }

    /// Multiplies the columns of a stage's layers and divides what comes before them: a norm, the
    /// rows of v or those of up. Gives the factor of each column, which is what a stored norm allows.
    fn move_range(&self, weights: &mut BlockWeights, stage: usize, factors: &[f32]) -> Vec<f32> {
        let layout = Arc::clone(&weights.layout);
        let [before_attention, before_mlp] = layout.folded_norms;
        let columns = match stage {
            ATTENTION => weights.fold_into_norm(before_attention, factors, self.plan.plain),
            OUTPUT => {
                weights.divide_rows(layout.values, factors);
                layout.value_rows.iter().map(|&row| factors[row]).collect()
            }
            MLP => weights.fold_into_norm(before_mlp, factors, self.plan.plain),
            _ => {
                weights.divide_rows(layout.ups, factors);
                factors.to_vec()
            }
        };
        layout.stages[stage].iter().for_each(|&linear| weights.scale_columns(linear, &columns));
        columns
    }

    /// GPTQ with a scale for each row.
    fn solve_rows(
        &self,
        weights: &BlockWeights,
        linear: usize,
        moments: &SecondMoments,
    ) -> Result<Int8Rows> {
        let (out, inputs) = self.plan.layout.shape(linear);
        let options = Options {
            grid: Grid {
                bits: 8,
                symmetric: true,
                least_zero: 0,
                search: true,
                scales: self.plan.plain,
            },
            group: inputs,
            groups: Groups::Static,
            refinements: 0,
        };
        let grouped = solve(&weights.linears[linear], out, moments, &options, None).grouped;
        // Level 128 is 0.
        let q = grouped.q.iter().map(|&level| (level ^ 0x80).cast_signed()).collect();
        let scales = grouped.scales.iter().map(|scale| scale.to_f32());
        let scales: Result<_> = scales.map(|s| as_scale(s, self.plan.plain_dtype())).collect();
        Ok(Int8Rows { out, inputs, q, scales: scales? })
    }

    fn run_sample(&self, block: &Block) -> Result<Sample> {
        let (x, sequences) = self.sample(SEARCH_TOKENS)?;
        let positions = self.decoder.positions(sequences, x.dim(0)? / sequences, 0);
        let normed = block.attention_input(&x)?;
        let attended = block.attend(&normed, &positions)?;
        let middle = block.after_attention(&x, &attended)?;
        let mlp = block.mlp_input(&middle)?;
        let inner = block.gated(&mlp)?;
        let end = block.after_mlp(&middle, &inner)?;
        let inputs = [normed, attended, mlp, inner];
        Ok(Sample { inputs, streams: [x, middle], end, sequences })
    }

    /// The factors with the least error of the residual stream behind the layers of a stage: those of
    /// a strength, which is given too, or those that descent reaches from there.
    fn search_factors(
        &self,
        index: usize,
        weights: &BlockWeights,
        stage: usize,
        sample: &Sample,
        (x, w): &(Vec<f32>, Vec<f32>),
        gram: Option<&Gram>,
    ) -> Result<(Option<f64>, Vec<f32>)> {
        let exact = host(if stage < MLP { &sample.streams[1] } else { &sample.end })?;
        let error = |factors: &[f32]| {
            self.rounded_stream(index, weights, stage, sample, factors).map(|stream| {
                difference(&exact, &stream, exact.len() / self.model.config.hidden_size)
            })
        };
        let mut best = (f64::INFINITY, None, Vec::new());
        for strength in STRENGTHS {
            let factors = factors(x, w, strength);
            let error = error(&factors)?;
            if error < best.0 {
                best = (error, Some(strength), factors);
            }
        }
        if let Some(gram) = gram {
            let descended = self.descended(weights, stage, sample, gram, &best.2)?;
            if error(&descended)? < best.0 {
                return Ok((None, descended));
            }
        }
        Ok((best.1, best.2))
    }

    /// Factors that descent on the expected error reaches.
    fn descended(
        &self,
        weights: &BlockWeights,
        stage: usize,
        sample: &Sample,
        gram: &Gram,
        start: &[f32],
    ) -> Result<Vec<f32>> {
        let tokens = sample.end.dim(0)?;
        let mut x = host(&sample.inputs[stage])?;
        match stage {
            OUTPUT => as_norms_see_it(&mut x, &host(&sample.streams[1])?, tokens),
            DOWN => as_norms_see_it(&mut x, &host(&sample.end)?, tokens),
            _ => {}
        }
        let diagonal = gram.diagonal();
        let count = gram.tokens().max(1) as f64;
        let mut costs: Vec<f64> = diagonal.iter().map(|square| square / count).collect();
        if let Ok(moments) = SecondMoments::new(gram, DAMPING, Order::Activations) {
            for (&column, &cost) in moments.order.iter().zip(&moments.costs) {
                costs[column] = f64::from(cost) / count;
            }
        }
        let counted: Vec<(&[f32], f64)> = self.plan.layout.stages[stage]
            .iter()
            .map(|&linear| {
                let weight = weights.linears[linear].as_slice();
                let size: f64 = weight
                    .chunks_exact(diagonal.len())
                    .map(|row| {
                        let parts = row.iter().zip(&diagonal);
                        parts.map(|(&v, square)| f64::from(v) * f64::from(v) * square).sum::<f64>()
                    })
                    .sum();
                (weight, 1.0 / size.max(f64::MIN_POSITIVE))
            })
            .collect();
        let factor_of = match stage {
            OUTPUT => self.plan.layout.value_rows.clone(),
            _ => (0..diagonal.len()).collect(),
        };
        let layers = Layers { x: &x, weights: &counted, costs: &costs, factor_of: &factor_of };
        Ok(descend(&layers, start))
    }

    /// The residual stream behind a stage whose layers have 8 bits under `factors`, everything else
    /// exact.
    fn rounded_stream(
        &self,
        index: usize,
        weights: &BlockWeights,
        stage: usize,
        sample: &Sample,
        factors: &[f32],
    ) -> Result<Vec<f32>> {
        let tokens = sample.end.dim(0)?;
        let positions = self.decoder.positions(sample.sequences, tokens / sample.sequences, 0);
        let [start, middle] = &sample.streams;
        let mut changed = weights.clone();
        let columns = self.move_range(&mut changed, stage, factors);
        let mut block = self.running(index, &changed)?;
        for &linear in &self.plan.layout.stages[stage] {
            let dims = self.plan.layout.shape(linear);
            let values = &changed.linears[linear];
            let rows = round_rows(values, dims.1, self.plan.plain_dtype())?;
            block.projections_mut()[linear].layer = Box::new(running(&rows, &self.backend.device)?);
        }
        let divided = || -> Result<Tensor> {
            let columns = Tensor::new(columns.as_slice(), &self.backend.device)?;
            Ok(sample.inputs[stage].broadcast_div(&columns)?)
        };
        host(&match stage {
            ATTENTION => {
                let attended = block.attend(&block.attention_input(start)?, &positions)?;
                block.after_attention(start, &attended)?
            }
            OUTPUT => block.after_attention(start, &divided()?)?,
            MLP => block.after_mlp(middle, &block.gated(&block.mlp_input(middle)?)?)?,
            _ => block.after_mlp(middle, &divided()?)?,
        })
    }

    /// Signal and noise of each layer on a sample: exact inputs, rounded as they come in.
    fn noise(
        &self,
        index: usize,
        weights: &BlockWeights,
        linears: &[Levels],
    ) -> Result<Vec<Noise>> {
        let block = self.running(index, weights)?;
        let inputs = self.run_sample(&block)?.inputs;
        let layout = &self.plan.layout;
        let mut noise = vec![Noise::default(); layout.slots.len()];
        for (stage, members) in layout.stages.iter().enumerate() {
            for &linear in members {
                let exact = host(&block.projections()[linear].layer.forward(&inputs[stage])?)?;
                let Levels::Rows(rows) = &linears[linear] else { continue };
                let layer = running(rows, &self.backend.device)?;
                noise[linear].add(&exact, &host(&layer.forward(&inputs[stage])?)?);
            }
        }
        Ok(noise)
    }
}
