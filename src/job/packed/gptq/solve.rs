//! The rounding itself: rows are independent, columns go in blocks so that most of the work is
//! matrix products.

use half::f16;
use rayon::prelude::*;

use super::factor::SecondMoments;
use super::refine;
use crate::codec::affine::Grouped;
use crate::codec::affine::grid::{Grid, Scale};
use crate::linalg::products::{Operand, multiply_f32_here};

/// Columns whose errors are spread together.
const BLOCK: usize = 128;
/// Rows that a thread rounds at a time.
const ROWS: usize = 64;

/// When the scales of groups are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// When the rounding reaches a group, for the weights as they are then. Groups are runs of the
    /// rounding order: in the order of activations, each column must be told its group.
    Running,
    /// Before the rounding, for runs of neighbouring columns, whatever the order.
    Static,
}

/// How a layer is rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// The grid.
    pub grid: Grid,
    /// Columns that share a scale; divides the columns.
    pub group: usize,
    /// When scales are chosen.
    pub groups: Groups,
    /// Passes over the rounded layer that improve levels and scales with all others held.
    pub refinements: usize,
}

/// A rounded layer.
#[derive(Debug)]
pub(crate) struct Solution {
    /// Levels, scales and zero points.
    pub grouped: Grouped,
    /// `tr(E H Eᵀ)`, the squared error of its outputs on the calibration tokens.
    pub error: f64,
    /// `tr(W H Wᵀ)`, their squared size.
    pub signal: f64,
}

/// Rounds `weight`, `[out, in]`.
///
/// # Panics
/// If the moments are of another width, or the group does not divide it.
#[must_use]
pub(crate) fn solve(
    weight: &[f32],
    out: usize,
    moments: &SecondMoments,
    options: &Options,
    hessian: Option<&[f32]>,
) -> Solution {
    let n = moments.channels();
    assert!(weight.len() == out * n && n.is_multiple_of(options.group), "{out} x {n}");
    let groups = n / options.group;
    let mut q = vec![0u8; out * n];
    let mut scales = vec![f16::ONE; out * groups];
    let mut zeros = vec![0u8; out * groups];
    let natural = moments.order.iter().enumerate().all(|(step, &column)| step == column);
    let indirect = !natural && options.groups == Groups::Running;
    let layer = Layer { moments, options, group_of_step: group_of_step(moments, options) };
    let errors: Vec<(f64, f64)> = q
        .par_chunks_mut(ROWS * n)
        .zip(scales.par_chunks_mut(ROWS * groups))
        .zip(zeros.par_chunks_mut(ROWS * groups))
        .zip(weight.par_chunks(ROWS * n))
        .map(|(((q, scales), zeros), weight)| {
            let mut rows = Rows::new(&layer, weight, scales, zeros);
            rows.round();
            if let Some(hessian) = hessian.filter(|_| options.refinements > 0) {
                refine::refine(&mut rows, hessian);
            }
            rows.store(q)
        })
        .collect();
    let group_of = indirect.then(|| {
        let mut group_of = vec![0u32; n];
        for (step, &column) in moments.order.iter().enumerate() {
            group_of[column] = (step / options.group) as u32;
        }
        group_of
    });
    let grouped = Grouped {
        out,
        inputs: n,
        group: options.group,
        bits: options.grid.bits,
        q,
        scales,
        zeros,
        group_of,
    };
    Solution {
        grouped,
        error: errors.iter().map(|(error, _)| error).sum(),
        signal: errors.iter().map(|(_, signal)| signal).sum(),
    }
}

fn group_of_step(moments: &SecondMoments, options: &Options) -> Vec<usize> {
    let column = |step: usize| match options.groups {
        Groups::Running => step,
        Groups::Static => moments.order[step],
    };
    (0..moments.channels()).map(|step| column(step) / options.group).collect()
}

/// What all rows of a layer share.
pub(super) struct Layer<'a> {
    pub(super) moments: &'a SecondMoments,
    pub(super) options: &'a Options,
    pub(super) group_of_step: Vec<usize>,
}

/// Some rows of a layer, columns in rounding order.
pub(super) struct Rows<'a> {
    pub(super) layer: &'a Layer<'a>,
    pub(super) count: usize,
    /// `[rows, n]`
    pub(super) weight: Vec<f32>,
    /// `[rows, n]`: what rounding changed, original minus rounded.
    pub(super) error: Vec<f32>,
    /// `[rows, n]`
    pub(super) levels: Vec<u8>,
    /// `[rows, groups]`
    pub(super) scales: &'a mut [f16],
    /// `[rows, groups]`
    pub(super) zeros: &'a mut [u8],
}

impl<'a> Rows<'a> {
    fn new(
        layer: &'a Layer<'a>,
        weight: &[f32],
        scales: &'a mut [f16],
        zeros: &'a mut [u8],
    ) -> Self {
        let order = &layer.moments.order;
        let n = order.len();
        let weight: Vec<f32> = weight
            .chunks_exact(n)
            .flat_map(|row| order.iter().map(|&column| row[column]))
            .collect();
        Self {
            layer,
            count: weight.len() / n,
            error: vec![0.0; weight.len()],
            levels: vec![0; weight.len()],
            weight,
            scales,
            zeros,
        }
    }

    pub(super) fn n(&self) -> usize {
        self.layer.moments.channels()
    }

    pub(super) fn groups(&self) -> usize {
        self.n() / self.layer.options.group
    }

    pub(super) fn scale(&self, row: usize, group: usize) -> Scale {
        let at = row * self.groups() + group;
        Scale { scale: self.scales[at], zero: self.zeros[at] }
    }

    pub(super) fn set_scale(&mut self, row: usize, group: usize, scale: Scale) {
        let at = row * self.groups() + group;
        self.scales[at] = scale.scale;
        self.zeros[at] = scale.zero;
    }

    fn round(&mut self) {
        let (n, options) = (self.n(), self.layer.options);
        let mut from = 0;
        if options.groups == Groups::Static {
            self.fit_static();
        }
        // Whole groups in a block, or parts of one group.
        let block = if options.groups == Groups::Static || options.group > BLOCK {
            BLOCK
        } else {
            BLOCK / options.group * options.group
        };
        while from < n {
            let mut to = (from + block).min(n);
            if options.groups == Groups::Running && options.group > BLOCK {
                if from.is_multiple_of(options.group) {
                    let ahead = self.corrected(from, from + options.group);
                    for row in 0..self.count {
                        let values = &ahead[row * options.group..(row + 1) * options.group];
                        self.fit(row, from, values);
                    }
                }
                to = to.min((from / options.group + 1) * options.group);
            }
            self.round_block(from, to);
            from = to;
        }
    }

    /// Columns `from..to` after the errors of all before `from`: `[rows, to − from]`.
    fn corrected(&self, from: usize, to: usize) -> Vec<f32> {
        let (n, width) = (self.n(), to - from);
        let mut out = Vec::with_capacity(self.count * width);
        self.weight.chunks_exact(n).for_each(|row| out.extend_from_slice(&row[from..to]));
        if from > 0 {
            let errors = Operand::part(&self.error, n, self.count, from);
            let upper = Operand::part(&self.layer.moments.upper[from..], n, from, width);
            multiply_f32_here(&mut out, errors, upper, true);
        }
        out
    }

    fn fit(&mut self, row: usize, first: usize, values: &[f32]) {
        let options = self.layer.options;
        let costs = &self.layer.moments.costs[first..first + values.len()];
        let scale = options.grid.fit(values, Some(costs));
        self.set_scale(row, first / options.group, scale);
    }

    fn fit_static(&mut self) {
        let (n, options) = (self.n(), self.layer.options);
        let moments = self.layer.moments;
        // Costs and weights of neighbouring columns.
        let mut costs = vec![0.0; n];
        let mut values = vec![0.0; n];
        moments.order.iter().zip(&moments.costs).for_each(|(&column, &cost)| costs[column] = cost);
        for row in 0..self.count {
            let weight = &self.weight[row * n..(row + 1) * n];
            moments.order.iter().zip(weight).for_each(|(&column, &value)| values[column] = value);
            for group in 0..n / options.group {
                let range = group * options.group..(group + 1) * options.group;
                let scale = options.grid.fit(&values[range.clone()], Some(&costs[range]));
                self.set_scale(row, group, scale);
            }
        }
    }

    fn round_block(&mut self, from: usize, to: usize) {
        let (n, options, width) = (self.n(), self.layer.options, to - from);
        let most = f32::from(options.grid.most());
        let mut current = self.corrected(from, to);
        let mut upper = Vec::with_capacity(width * width);
        for k in from..to {
            upper.extend_from_slice(&self.layer.moments.upper[k * n + from..k * n + to]);
        }
        let fits = options.groups == Groups::Running && options.group <= BLOCK;
        for row in 0..self.count {
            let values = &mut current[row * width..(row + 1) * width];
            for at in 0..width {
                let step = from + at;
                if fits && step.is_multiple_of(options.group) {
                    self.fit(row, step, &values[at..at + options.group]);
                }
                let scale = self.scale(row, self.layer.group_of_step[step]);
                let level = scale.round(values[at], most);
                let error = self.weight[row * n + step] - scale.value(level);
                self.levels[row * n + step] = level;
                self.error[row * n + step] = error;
                let spread = &upper[at * width + at + 1..(at + 1) * width];
                values[at + 1..].iter_mut().zip(spread).for_each(|(v, u)| *v += error * u);
            }
        }
    }

    /// Puts the levels into the layer's order and gives `tr(E H Eᵀ)` and `tr(W H Wᵀ)` of these
    /// rows.
    fn store(&self, q: &mut [u8]) -> (f64, f64) {
        let (n, moments) = (self.n(), self.layer.moments);
        for (q, levels) in q.chunks_exact_mut(n).zip(self.levels.chunks_exact(n)) {
            moments.order.iter().zip(levels).for_each(|(&column, &level)| q[column] = level);
        }
        (self.cost(&self.error), self.cost(&self.weight))
    }

    /// `tr(A H Aᵀ)` of `values`, `[rows, n]`: the squares of `A U` cost `D`, less what the ridge
    /// added.
    fn cost(&self, values: &[f32]) -> f64 {
        let (n, moments) = (self.n(), self.layer.moments);
        let mut product = vec![0.0; values.len()];
        let upper = Operand::new(&moments.upper, n, n);
        multiply_f32_here(&mut product, Operand::new(values, self.count, n), upper, false);
        let damped: f64 = product
            .chunks_exact(n)
            .map(|row| {
                let squares = row.iter().zip(&moments.costs);
                squares
                    .map(|(&v, &cost)| f64::from(v) * f64::from(v) * f64::from(cost))
                    .sum::<f64>()
            })
            .sum();
        let plain: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        (damped - moments.ridge * plain).max(0.0)
    }
}
