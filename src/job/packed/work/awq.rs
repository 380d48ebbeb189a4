//! AWQ of a block: scales from the inputs of all layers of the block as it is, folded; then clipped
//! and rounded.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Inputs, Work, gather};
use crate::codec::affine::PlainType;
use crate::codec::affine::grid::Grid;
use crate::graph::Block;
use crate::job::packed::awq::clip;
use crate::job::packed::awq::scales::{
    Found, Matrix, mean_magnitude, quadratic, round_with, rounded, search,
};
use crate::job::packed::block::{BlockWeights, host};
use crate::job::packed::finished::{Finished, Levels};
use crate::job::packed::gram::Gram;
use crate::job::packed::layout::{ATTENTION, DOWN, MLP, OUTPUT};
use crate::job::packed::smoothquant::migrate::FactorStatistics;
use crate::{Error, Result};

/// The grid of AWQ checkpoints: 4 bits with zero points.
pub(super) const GRID: Grid =
    Grid { bits: 4, symmetric: false, least_zero: 0, search: false, scales: PlainType::F16 };

/// Tokens on which the outputs of attention and MLP are compared, at most.
const SEARCH_TOKENS: usize = 2048;

impl Work<'_> {
    pub(super) fn awq(&mut self, index: usize, mut weights: BlockWeights) -> Result<Finished> {
        let block = self.running(index, &weights)?;
        let inputs = self.block_inputs(&block, true)?;
        let mut grams = Vec::with_capacity(4);
        for inputs in &inputs {
            grams.push(inputs.gram.as_ref().map(Gram::mean).unwrap_or_default());
        }
        let means: Vec<Vec<f32>> =
            inputs.iter().map(|inputs| inputs.channels.mean_absolute()).collect();
        drop(inputs);
        let found = [
            self.search_attention(index, &weights, &block, &means[0])?,
            self.search_output(&weights, &means[1], &grams[1])?,
            self.search_mlp(index, &weights, &block, &means[2])?,
            self.search_down(&weights, &means[3], &grams[3])?,
        ];
        let factors = self.fold(&mut weights, &found);
        let layout = Arc::clone(&self.plan.layout);
        let mut linears: Vec<Option<(Levels, _)>> = layout.slots.iter().map(|_| None).collect();
        for (stage, members) in layout.stages.iter().enumerate() {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let gram = &mut grams[stage];
            let width = self.width(stage);
            for (row, line) in gram.chunks_exact_mut(width).enumerate() {
                for (value, factor) in line.iter_mut().zip(&factors[stage]) {
                    *value /= factor * factors[stage][row];
                }
            }
            for &linear in members {
                let group = self.plan.groups[linear];
                let matrix = (weights.linears[linear].as_slice(), self.plan.layout.shape(linear));
                let grouped = if layout.makes_scores(linear) {
                    // Their outputs meet in the scores: what a clip does there is not a sum.
                    round_with(matrix, GRID, group, |_, values| GRID.fit(values, None))
                } else {
                    let blocks = clip::blocks(gram, width, group);
                    round_with(matrix, GRID, group, |at, v| clip::fit(GRID, v, &blocks[at]))
                };
                let levels = Levels::Groups(grouped);
                let values = levels.values();
                let error = quadratic(matrix.0, Some(&values), gram, width);
                let signal = quadratic(matrix.0, None, gram, width);
                let mut report = self.report(index, linear, "awq");
                self.check_held(&report.name, matrix.0, &levels)?;
                report.relative_error = Some(error / signal.max(1e-300));
                report.ratio = found[stage].ratio;
                report.factors = Some(FactorStatistics::of(&factors[stage]));
                weights.linears[linear] = Arc::new(values);
                linears[linear] = Some((levels, report));
            }
        }
        let (linears, reports) = linears.into_iter().flatten().unzip();
        Ok(Finished::new(&weights, linears, reports))
    }

    /// Statistics of what goes into each stage of a block as it is.
    pub(super) fn block_inputs(&self, block: &Block, gram: bool) -> Result<Vec<Inputs>> {
        let mut inputs: Vec<Inputs> =
            (0..4).map(|stage| Inputs::new(self.width(stage), gram)).collect();
        let hidden = self.model.config.hidden_size;
        let Some(text) = &self.text else { return Ok(inputs) };
        for range in text.batches() {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let positions = self.decoder.positions(range.len(), text.windows.length, 0);
            let x = gather(&text.x, range, hidden, self.backend)?;
            let normed = block.attention_input(&x)?;
            inputs[0].add(&normed, None)?;
            let attended = block.attend(&normed, &positions)?;
            let middle = block.after_attention(&x, &attended)?;
            inputs[1].add(&attended, Some(&middle))?;
            let normed = block.mlp_input(&middle)?;
            inputs[2].add(&normed, None)?;
            let inner = block.gated(&normed)?;
            inputs[3].add(&inner, Some(&block.after_mlp(&middle, &inner)?))?;
        }
        Ok(inputs)
    }

    /// The residual stream of some sequences from everywhere in the text, and their number.
    pub(super) fn sample(&self, tokens: usize) -> Result<(Tensor, usize)> {
        let text = self.text.as_ref().ok_or_else(|| Error::General("nothing to read".into()))?;
        let all = text.windows.count();
        let count = (tokens / text.windows.length).clamp(1, all);
        let mut values = Vec::new();
        for at in 0..count {
            values.extend_from_slice(text.x.sequence(at * all / count));
        }
        let hidden = self.model.config.hidden_size;
        let rows = values.len() / hidden;
        Ok((Tensor::from_vec(values, (rows, hidden), &self.backend.device)?, count))
    }

    fn matrices<'w>(&self, weights: &'w BlockWeights, linears: &[usize]) -> Vec<Matrix<'w>> {
        let one =
            |&linear: &usize| (weights.linears[linear].as_slice(), self.plan.layout.shape(linear));
        linears.iter().map(one).collect()
    }

    /// `weights` with the layers of a stage rounded under `factors`.
    fn with_rounded(
        &self,
        weights: &BlockWeights,
        linears: &[usize],
        factors: &[f32],
    ) -> BlockWeights {
        let mut changed = weights.clone();
        for (&linear, matrix) in linears.iter().zip(self.matrices(weights, linears)) {
            let values = rounded(matrix, factors, GRID, self.plan.groups[linear]);
            changed.linears[linear] = Arc::new(values);
        }
        changed
    }

    /// q, k and v: by what attention gives.
    fn search_attention(
        &self,
        index: usize,
        weights: &BlockWeights,
        block: &Block,
        x_mean: &[f32],
    ) -> Result<Found> {
        let (x, sequences) = self.sample(SEARCH_TOKENS)?;
        let rows = x.dim(0)?;
        let length = rows / sequences;
        let positions = self.decoder.positions(sequences, length, 0);
        let normed = block.attention_input(&x)?;
        let exact = host(&block.after_attention(&x, &block.attend(&normed, &positions)?)?)?;
        let linears = &self.plan.layout.stages[ATTENTION];
        let group = self.plan.groups[linears[0]];
        let w_mean = mean_magnitude(&self.matrices(weights, linears), group);
        search(x_mean, &w_mean, |factors| {
            let changed = self.running(index, &self.with_rounded(weights, linears, factors))?;
            let attended = changed.attend(&normed, &positions)?;
            Ok(difference(&exact, &host(&changed.after_attention(&x, &attended)?)?, rows))
        })
    }

    /// gate and up: by what the MLP gives.
    fn search_mlp(
        &self,
        index: usize,
        weights: &BlockWeights,
        block: &Block,
        x_mean: &[f32],
    ) -> Result<Found> {
        let (x, sequences) = self.sample(SEARCH_TOKENS)?;
        let rows = x.dim(0)?;
        let length = rows / sequences;
        let positions = self.decoder.positions(sequences, length, 0);
        let attended = block.attend(&block.attention_input(&x)?, &positions)?;
        let middle = block.after_attention(&x, &attended)?;
        let normed = block.mlp_input(&middle)?;
        let exact = host(&block.after_mlp(&middle, &block.gated(&normed)?)?)?;
        let linears = &self.plan.layout.stages[MLP];
        let group = self.plan.groups[linears[0]];
        let w_mean = mean_magnitude(&self.matrices(weights, linears), group);
        search(x_mean, &w_mean, |factors| {
            let changed = self.running(index, &self.with_rounded(weights, linears, factors))?;
            let inner = changed.gated(&normed)?;
            Ok(difference(&exact, &host(&changed.after_mlp(&middle, &inner)?)?, rows))
        })
    }

    /// o: by its own outputs. Columns of o that multiply one row of v share a factor.
    fn search_output(&self, weights: &BlockWeights, x_mean: &[f32], gram: &[f32]) -> Result<Found> {
        let layout = &self.plan.layout;
        let output = layout.stages[OUTPUT][0];
        let matrix = self.matrices(weights, &[output])[0];
        let (rows, group) = (&layout.value_rows, self.plan.groups[output]);
        let w_mean = mean_magnitude(&[matrix], group);
        let values = layout.values.count;
        let average = |columns: &[f32]| {
            let mut sums = vec![0.0; values];
            rows.iter().zip(columns).for_each(|(&row, value)| sums[row] += value);
            let share = values as f32 / rows.len() as f32;
            sums.into_iter().map(|sum| sum * share).collect::<Vec<f32>>()
        };
        search(&average(x_mean), &average(&w_mean), |factors| {
            let columns: Vec<f32> = rows.iter().map(|&row| factors[row]).collect();
            let values = rounded(matrix, &columns, GRID, group);
            Ok(quadratic(matrix.0, Some(&values), gram, matrix.1.1))
        })
    }

    /// down: by its own outputs.
    fn search_down(&self, weights: &BlockWeights, x_mean: &[f32], gram: &[f32]) -> Result<Found> {
        let down = self.plan.layout.stages[DOWN][0];
        let matrix = self.matrices(weights, &[down])[0];
        let group = self.plan.groups[down];
        search(x_mean, &mean_magnitude(&[matrix], group), |factors| {
            let values = rounded(matrix, factors, GRID, group);
            Ok(quadratic(matrix.0, Some(&values), gram, matrix.1.1))
        })
    }

    /// Multiplies columns, divides what comes before them; gives the factors of each stage's
    /// columns. The block computes what it did before.
    pub(super) fn fold(&self, weights: &mut BlockWeights, found: &[Found; 4]) -> [Vec<f32>; 4] {
        let plain = self.plan.plain;
        let layout = Arc::clone(&weights.layout);
        let [before_attention, before_mlp] = layout.folded_norms;
        let attention = weights.fold_into_norm(before_attention, &found[0].factors, plain);
        let output: Vec<f32> = layout.value_rows.iter().map(|&row| found[1].factors[row]).collect();
        let mlp = weights.fold_into_norm(before_mlp, &found[2].factors, plain);
        let down = found[3].factors.clone();
        let columns = [attention, output, mlp, down];
        for (stage, columns) in columns.iter().enumerate() {
            match stage {
                OUTPUT => weights.divide_rows(layout.values, &found[OUTPUT].factors),
                DOWN => weights.divide_rows(layout.ups, &found[DOWN].factors),
                _ => {}
            }
            layout.stages[stage].iter().for_each(|&l| weights.scale_columns(l, columns));
        }
        columns
    }
}

/// Sum over the tokens of the squared differences of two residual streams, `[tokens, hidden]`, as a
/// fraction of the token's mean square.
pub(super) fn difference(exact: &[f32], other: &[f32], tokens: usize) -> f64 {
    let hidden = exact.len() / tokens.max(1);
    exact
        .chunks_exact(hidden)
        .zip(other.chunks_exact(hidden))
        .map(|(exact, other)| {
            let size: f64 = exact.iter().map(|&v| f64::from(v).powi(2)).sum();
            let pairs = exact.iter().zip(other);
            let off: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            off / size.max(f64::MIN_POSITIVE)
        })
        .sum()
}
