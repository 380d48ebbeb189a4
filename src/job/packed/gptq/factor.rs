//! The Hessian of a layer, factorized in the order in which columns are rounded.

use faer::Mat;
use rayon::prelude::*;

use crate::job::packed::gram::Gram;
use crate::linalg::cholesky::{Cholesky, NotPositiveDefinite};

/// In which order columns are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// First to last.
    Natural,
    /// Those with the largest activations first.
    Activations,
}

/// `H + λI = U diag(D) Uᵀ` for columns in [`order`](Self::order); `U` is unit upper triangular.
#[derive(Debug)]
pub(crate) struct SecondMoments {
    /// Column of the layer that is rounded at each step.
    pub order: Vec<usize>,
    /// Row-major `[channels, channels]`, in rounding order; the diagonal is 1, zeros below.
    pub upper: Vec<f32>,
    /// What a squared error of each step costs, in rounding order.
    pub costs: Vec<f32>,
    /// λ: what was added to the diagonal.
    pub ridge: f64,
    /// λ as a fraction of the diagonal's mean.
    pub damping: f64,
    /// Columns that no calibration token reaches.
    pub dead: usize,
}

impl SecondMoments {
    /// Factorizes `XᵀX` with `damping · mean(diagonal)` added to the diagonal; ten times as much
    /// until it succeeds.
    ///
    /// # Errors
    /// If it never does.
    pub(crate) fn new(
        gram: &Gram,
        damping: f64,
        order: Order,
    ) -> Result<Self, NotPositiveDefinite> {
        let n = gram.channels();
        let diagonal = gram.diagonal();
        let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
        if !mean.is_finite() {
            return Err(NotPositiveDefinite);
        }
        let mut steps: Vec<usize> = (0..n).collect();
        if order == Order::Activations {
            // Stable: equal channels stay in their order.
            steps.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        // With rows and columns from last to first, `L Lᵀ` is `M Mᵀ`.
        let flipped = Mat::from_fn(n, n, |i, j| {
            if i < j { 0.0 } else { gram.get(steps[n - 1 - i], steps[n - 1 - j]) }
        });
        let mut cholesky = Cholesky::<f64>::new(n);
        let ridge = cholesky.factorize(flipped.as_ref(), damping * mean)?;
        drop(flipped);
        let factor = cholesky.factor();
        let pivot = |j: usize| factor[(n - 1 - j, n - 1 - j)];
        let mut upper = vec![0.0; n * n];
        upper.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(k, row)| {
            for (j, out) in row.iter_mut().enumerate().skip(k) {
                *out = (factor[(n - 1 - k, n - 1 - j)] / pivot(j)) as f32;
            }
        });
        Ok(Self {
            costs: (0..n).map(|j| (pivot(j) * pivot(j)) as f32).collect(),
            order: steps,
            upper,
            ridge,
            damping: if mean > 0.0 { ridge / mean } else { 0.0 },
            dead: diagonal.iter().filter(|&&square| square == 0.0).count(),
        })
    }

    /// `H + λI` itself in rounding order, row-major `[channels, channels]`.
    #[must_use]
    pub(crate) fn hessian(&self, gram: &Gram) -> Vec<f32> {
        let n = self.channels();
        let mut out = vec![0.0; n * n];
        out.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            for (j, out) in row.iter_mut().enumerate() {
                let value = gram.get(self.order[i], self.order[j]);
                *out = (value + if i == j { self.ridge } else { 0.0 }) as f32;
            }
        });
        out
    }

    /// Channels.
    #[must_use]
    pub(crate) fn channels(&self) -> usize {
        self.order.len()
    }
}
