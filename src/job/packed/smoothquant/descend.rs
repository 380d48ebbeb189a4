//! Factors beyond a strength: descent on the expected error of a layer with 8-bit weights and 8-bit
//! activations.
//!
//! With `s` dividing the inputs and multiplying the weights, every token rounded by its own largest
//! input and every row by its own largest weight, the expected squared error of the outputs is
//! `1/(12 · 127²)` times
//!
//! ```text
//! F(s) = E_t[max_j (x_tj / s_j)²] · Σ_j s_j² Σ_i w_ij²  +  Σ_i max_j (w_ij s_j)² · Σ_j e_j / s_j²
//! ```
//!
//! where `e_j` is what a unit of squared weight error in column `j` costs: `E[x_j²]` for rounding to
//! nearest, the squared pivot of the second moments where GPTQ makes up for errors. With maxima as
//! norms of a high power, `F` is a posynomial: convex in `ln s`, so descent finds the best factors.

use rayon::prelude::*;

/// Power of the norms that stand for maxima.
const POWER: i32 = 12;
/// Steps of the descent.
const STEPS: usize = 60;
/// Rows whose sums one thread makes.
const CHUNK: usize = 64;

/// A layer, or several with a common input, as descent sees it.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    /// Inputs of a sample, `[tokens, channels]`, each token scaled as its error counts.
    pub x: &'a [f32],
    /// Weights, `[out, channels]` each, and what a squared error of their outputs counts.
    pub weights: &'a [(&'a [f32], f64)],
    /// `e_j` for a token of the sample, `[channels]`.
    pub costs: &'a [f64],
    /// Factor of each channel; several channels may share one.
    pub factor_of: &'a [usize],
}

/// The factors that descent reaches from `start`.
#[must_use]
pub(crate) fn descend(layers: &Layers<'_>, start: &[f32]) -> Vec<f32> {
    let mut logs: Vec<f64> = start.iter().map(|&factor| f64::from(factor).ln()).collect();
    let mut best = (f64::INFINITY, logs.clone());
    for _ in 0..STEPS {
        let state = State::of(layers, &logs);
        if state.error < best.0 {
            best = (state.error, logs.clone());
        }
        for ((log, grows), falls) in logs.iter_mut().zip(&state.grows).zip(&state.falls) {
            if *grows > 0.0 && *falls > 0.0 {
                *log += (falls / grows).ln() / f64::from(POWER + 4);
            }
        }
    }
    best.1.into_iter().map(|log| log.exp() as f32).collect()
}

/// `F` and its derivatives at some factors.
struct State {
    error: f64,
    /// Parts of `∂F/∂ln s` that are positive, factor by factor, halved.
    grows: Vec<f64>,
    /// Those that are negative.
    falls: Vec<f64>,
}

impl State {
    fn of(layers: &Layers<'_>, logs: &[f64]) -> Self {
        let scale: Vec<f64> = layers.factor_of.iter().map(|&factor| logs[factor].exp()).collect();
        let inverse: Vec<f32> = scale.iter().map(|scale| (1.0 / scale) as f32).collect();
        let direct: Vec<f32> = scale.iter().map(|&scale| scale as f32).collect();
        let tokens = layers.x.len() / scale.len().max(1);
        let (mut range, mut range_of) = largest(layers.x, &inverse);
        range /= tokens.max(1) as f64;
        range_of.iter_mut().for_each(|share| *share /= tokens.max(1) as f64);
        let (mut rows, mut rows_of) = (0.0, vec![0.0; scale.len()]);
        let mut size_of = vec![0.0; scale.len()];
        for &(weight, counts) in layers.weights {
            let (sum, shares) = largest(weight, &direct);
            rows += counts * sum;
            rows_of.iter_mut().zip(shares).for_each(|(all, share)| *all += counts * share);
            for (all, square) in size_of.iter_mut().zip(column_squares(weight, scale.len())) {
                *all += counts * square;
            }
        }
        size_of.iter_mut().zip(&scale).for_each(|(square, scale)| *square *= scale * scale);
        let cost_of: Vec<f64> =
            layers.costs.iter().zip(&scale).map(|(cost, scale)| cost / (scale * scale)).collect();
        let (size, cost): (f64, f64) = (size_of.iter().sum(), cost_of.iter().sum());
        let mut state = Self {
            error: range * size + rows * cost,
            grows: vec![0.0; logs.len()],
            falls: vec![0.0; logs.len()],
        };
        for (channel, &factor) in layers.factor_of.iter().enumerate() {
            state.grows[factor] += range * size_of[channel] + cost * rows_of[channel];
            state.falls[factor] += size * range_of[channel] + rows * cost_of[channel];
        }
        state
    }
}

/// `Σ_rows m²` with `m` the norm of the row's `|value| · factor`, and each column's part of it.
fn largest(values: &[f32], factors: &[f32]) -> (f64, Vec<f64>) {
    let columns = factors.len();
    let parts: Vec<(f64, Vec<f64>)> = values
        .par_chunks(CHUNK * columns)
        .map(|rows| {
            let (mut sum, mut shares) = (0.0, vec![0.0; columns]);
            let mut powers = vec![0.0f32; columns];
            for row in rows.chunks_exact(columns) {
                let most = row.iter().zip(factors).fold(0.0f32, |m, (v, f)| m.max((v * f).abs()));
                if most <= 0.0 {
                    continue;
                }
                let inverse = 1.0 / most;
                for ((power, value), factor) in powers.iter_mut().zip(row).zip(factors) {
                    *power = (value * factor * inverse).powi(POWER);
                }
                let total: f64 = powers.iter().map(|&power| f64::from(power)).sum();
                let square = f64::from(most).powi(2) * total.powf(2.0 / f64::from(POWER));
                sum += square;
                let part = square / total;
                shares.iter_mut().zip(&powers).for_each(|(all, &p)| *all += part * f64::from(p));
            }
            (sum, shares)
        })
        .collect();
    let mut all = (0.0, vec![0.0; columns]);
    for (sum, shares) in parts {
        all.0 += sum;
        all.1.iter_mut().zip(shares).for_each(|(all, share)| *all += share);
    }
    all
}

fn column_squares(weight: &[f32], columns: usize) -> Vec<f64> {
    let mut squares = vec![0.0; columns];
    for row in weight.chunks_exact(columns) {
        squares.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i * 7919 + seed) as f32 * 0.618_034).fract() - 0.5) * 2.0).collect()
    }

    /// Squared error of the outputs with everything rounded, by plain loops.
    fn true_error(x: &[f32], w: &[f32], s: &[f32]) -> f64 {
        let n = s.len();
        let round = |row: &[f32], factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let scaled: Vec<f32> = row.iter().enumerate().map(|(j, v)| v * factor(j)).collect();
            let step = scaled.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            scaled.iter().map(|v| (v / step).round() * step).collect()
        };
        let mut sum = 0.0;
        for token in x.chunks_exact(n) {
            let rounded = round(token, &|j| 1.0 / s[j]);
            for row in w.chunks_exact(n) {
                let weight = round(row, &|j| s[j]);
                let exact: f64 =
                    token.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let got: f64 =
                    rounded.iter().zip(&weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                sum += (exact - got).powi(2);
            }
        }
        sum
    }

    #[test]
    fn the_true_error_falls() {
        let (tokens, out, n) = (96, 24, 48);
        let loud = |j: usize| if j.is_multiple_of(11) { 30.0 } else { 1.0 };
        let mut x = noise(tokens * n, 3);
        x.iter_mut().enumerate().for_each(|(at, v)| *v *= loud(at % n));
        let w = noise(out * n, 17);
        let costs: Vec<f64> = column_squares(&x, n).iter().map(|v| v / tokens as f64).collect();
        let factor_of: Vec<usize> = (0..n).collect();
        let weights = [(w.as_slice(), 1.0)];
        let layers = Layers { x: &x, weights: &weights, costs: &costs, factor_of: &factor_of };
        let ones = vec![1.0; n];
        let found = descend(&layers, &ones);
        let (before, after) = (true_error(&x, &w, &ones), true_error(&x, &w, &found));
        assert!(after < 0.3 * before, "{before} -> {after}");
        // No strength of the paper does better here.
        for step in 0..=10 {
            let alpha = f64::from(step) / 10.0;
            let most = |values: &[f32]| {
                crate::job::packed::smoothquant::migrate::largest_of_columns(&[values], n)
            };
            let s = crate::job::packed::smoothquant::migrate::factors(&most(&x), &most(&w), alpha);
            assert!(after < 1.02 * true_error(&x, &w, &s), "{alpha}");
        }
    }

    #[test]
    fn derivatives_are_those_of_the_formula() {
        let (tokens, out, n) = (5, 4, 6);
        let (x, w) = (noise(tokens * n, 1), noise(out * n, 2));
        let costs = vec![0.3, 0.1, 0.5, 0.2, 0.9, 0.4];
        let factor_of = [0, 1, 2, 0, 1, 3];
        let weights = [(w.as_slice(), 0.7)];
        let layers = Layers { x: &x, weights: &weights, costs: &costs, factor_of: &factor_of };
        let logs = [0.1, -0.2, 0.3, 0.0];
        let state = State::of(&layers, &logs);
        for factor in 0..4 {
            let at = |change: f64| {
                let mut logs = logs;
                logs[factor] += change;
                State::of(&layers, &logs).error
            };
            let numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
            let exact = 2.0 * (state.grows[factor] - state.falls[factor]);
            assert!((numeric - exact).abs() < 1e-3 * state.error, "{factor}: {numeric} {exact}");
        }
    }
}
