//! Scales that a quantizer moved from one tensor into another (AWQ, `SmoothQuant`): what has to be
//! multiplied back before a tensor can be compared with the original's.
//!
//! Scales move into a norm from the layers that read it, where the ratio of the two norms tells
//! them exactly; and from o into the rows of v, from down into the rows of up, where nothing is
//! left that is not quantized. There each row of the one matrix says what it was multiplied by, and
//! the columns of the other that it feeds say the inverse, both with the noise of their rounding.
//! Where both say the same thing a scale was moved, and it is the mean of both, weighted by how
//! sure each is.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::layers::{counterpart, read_in_parallel, row_step};
use crate::Result;
use crate::model::LocalModel;
use crate::weight::Weight;

/// Norms and rows whose factors are all this close to one have only been rounded: to bfloat16,
/// mostly, which changes a value by up to 0.2 %.
const ROUNDING: f64 = 0.004;

/// A scale has been moved where rows and columns agree that much better than they disagree. What
/// rounding does to either is independent of the other, and gives about 1.
const AGREEMENT: f64 = 4.0;

/// Variance of the logarithm of a factor that is known as well as f32 allows.
const LEAST_VARIANCE: f64 = 1e-13;

/// What a quantized tensor is multiplied by to stand beside the original's.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Factors {
    /// For each row.
    pub(super) rows: Option<Arc<Vec<f32>>>,
    /// For each column.
    pub(super) columns: Option<Arc<Vec<f32>>>,
}

impl Factors {
    /// Whether there is anything to multiply.
    pub(super) fn any(&self) -> bool {
        self.rows.is_some() || self.columns.is_some()
    }

    /// Factor of a value.
    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        let of = |factors: &Option<Arc<Vec<f32>>>, index: usize| {
            factors.as_ref().map_or(1.0, |factors| f64::from(factors[index]))
        };
        of(&self.rows, row) * of(&self.columns, column)
    }
}

/// Two matrices between which nothing but an elementwise product, or the weights of attention, lies:
/// a factor of a row of the first one can be taken back by the columns of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pair {
    ValueOutput,
    UpDown,
}

impl Pair {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ValueOutput => ("self_attn.v_proj", "self_attn.o_proj"),
            Self::UpDown => ("mlp.up_proj", "mlp.down_proj"),
        }
    }
}

/// The scales that were moved in a model.
pub(super) struct Folds<'m> {
    original: &'m LocalModel,
    quantized: &'m LocalModel,
    /// Of each block and pair that was looked at: what rows of the first matrix are multiplied by.
    found: HashMap<(String, Pair), Option<Arc<Vec<f32>>>>,
}

impl<'m> Folds<'m> {
    pub(super) fn new(original: &'m LocalModel, quantized: &'m LocalModel) -> Self {
        Self { original, quantized, found: HashMap::new() }
    }

    /// What a matrix or a bias of the quantized model is multiplied by.
    pub(super) fn of(&mut self, tensor: &str) -> Result<Factors> {
        let Some((module, kind)) = tensor.rsplit_once('.') else { return Ok(Factors::default()) };
        let columns = if kind == "weight" { self.norm_ratio(module)? } else { None };
        let Some((block, part)) = split_block(module) else {
            return Ok(Factors { rows: None, columns });
        };
        for pair in [Pair::ValueOutput, Pair::UpDown] {
            let (first, second) = pair.names();
            if part == first {
                let rows = self.pair(block, pair)?;
                // A bias is one row.
                return Ok(if kind == "weight" {
                    Factors { rows, columns }
                } else {
                    Factors { rows: None, columns: rows }
                });
            }
            if part == second && kind == "weight" {
                let columns = self.pair(block, pair)?.map(|factors| {
                    let fed = self.feeding(pair, factors.len());
                    Arc::new(fed.into_iter().map(|row| 1.0 / factors[row]).collect())
                });
                return Ok(Factors { rows: None, columns });
            }
        }
        Ok(Factors { rows: None, columns })
    }

    /// Row of the first matrix of a pair that feeds each column of the second. Several heads read
    /// one head of values.
    fn feeding(&self, pair: Pair, rows: usize) -> Vec<usize> {
        match pair {
            Pair::ValueOutput => {
                let config = &self.original.config;
                let (heads, dim) = (config.num_heads, config.head_dim);
                let share = (heads / config.num_kv_heads.max(1)).max(1);
                (0..heads * dim).map(|at| at / dim / share * dim + at % dim).collect()
            }
            Pair::UpDown => (0..rows).collect(),
        }
    }

    fn pair(&mut self, block: &str, pair: Pair) -> Result<Option<Arc<Vec<f32>>>> {
        let key = (block.to_owned(), pair);
        if let Some(found) = self.found.get(&key) {
            return Ok(found.clone());
        }
        let found = self.measure(block, pair)?.map(Arc::new);
        self.found.insert(key, found.clone());
        Ok(found)
    }

    /// Factors of a pair, if there are any.
    fn measure(&self, block: &str, pair: Pair) -> Result<Option<Vec<f32>>> {
        let (first, second) = pair.names();
        let name = |part: &str| format!("{block}.{part}.weight");
        let (first, second) = (name(first), name(second));
        let (Some(before), Some(before_second)) =
            (self.original.weights.get(&first), self.original.weights.get(&second))
        else {
            return Ok(None);
        };
        let after = counterpart(self.quantized, &first, before)?;
        let after_second = counterpart(self.quantized, &second, before_second)?;
        // Factors are found anew, not moved, and cost a product to read.
        if [after, after_second].iter().any(|weight| matches!(weight, Weight::Factorized(_))) {
            return Ok(None);
        }
        let feeding = self.feeding(pair, before.rows());
        if feeding.len() != before_second.cols() || feeding.iter().any(|row| *row >= before.rows())
        {
            return Ok(None);
        }
        let norm = self.norm_ratio(first.trim_end_matches(".weight"))?;
        let rows = row_products(before, after, norm.as_ref().map(|ratio| ratio.as_slice()));
        let mut columns = vec![Products::default(); rows.len()];
        for (&row, products) in feeding.iter().zip(column_products(before_second, after_second)) {
            columns[row].add(&products);
        }
        Ok(agreed(&rows, &columns))
    }

    /// Norm of the quantized model over that of the original, per column of a layer that reads it;
    /// none where they are the same or the layer reads no norm.
    fn norm_ratio(&self, module: &str) -> Result<Option<Arc<Vec<f32>>>> {
        let norm = match module.rsplit_once('.') {
            Some((block, "q_proj" | "k_proj" | "v_proj")) => {
                let block = block.strip_suffix(".self_attn").unwrap_or(block);
                format!("{block}.input_layernorm.weight")
            }
            Some((block, "gate_proj" | "up_proj")) => {
                let block = block.strip_suffix(".mlp").unwrap_or(block);
                format!("{block}.post_attention_layernorm.weight")
            }
            None if module == "lm_head" => "model.norm.weight".to_owned(),
            _ => return Ok(None),
        };
        let Some(before) = self.original.weights.get(&norm) else { return Ok(None) };
        let after = counterpart(self.quantized, &norm, before)?;
        let read = |weight: &Weight| {
            let mut values = vec![0.0; weight.elements()];
            weight.read_rows(0..1, &mut values);
            values
        };
        let (before, after) = (read(before), read(after));
        let same = |(x, y): (&f32, &f32)| f64::from((x - y).abs()) <= ROUNDING * f64::from(x.abs());
        if before.iter().zip(&after).all(same) {
            return Ok(None);
        }
        let ratio = |(x, y): (&f32, &f32)| if *x == 0.0 { 1.0 } else { y / x };
        Ok(Some(Arc::new(before.iter().zip(&after).map(ratio).collect())))
    }
}

/// `model.layers.0` and `mlp.up_proj`.
fn split_block(module: &str) -> Option<(&str, &str)> {
    let rest = module.strip_prefix("model.layers.")?;
    let number = rest.find('.')?;
    let end = module.len() - rest.len() + number;
    Some((&module[..end], &module[end + 1..]))
}

/// Inner products of a row or a column of the original (x) and of the quantized model (y).
#[derive(Debug, Clone, Copy, Default)]
struct Products {
    xx: f64,
    xy: f64,
    yy: f64,
    values: f64,
}

impl Products {
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut sums = Self::default();
        pairs.for_each(|(x, y)| sums.push(x, y));
        sums
    }

    fn push(&mut self, x: f64, y: f64) {
        self.xx += x * x;
        self.xy += x * y;
        self.yy += y * y;
        self.values += 1.0;
    }

    fn add(&mut self, other: &Self) {
        self.xx += other.xx;
        self.xy += other.xy;
        self.yy += other.yy;
        self.values += other.values;
    }

    /// Logarithm of what y is to be multiplied by to be x, and its variance; none where that cannot
    /// be told. What rounding adds to y hardly depends on x, so y is explained by x and not the other
    /// way round, which would find every noisy row too large.
    fn logarithm(&self) -> Option<(f64, f64)> {
        let factor = self.xx / self.xy;
        let logarithm = factor.ln();
        if factor <= 0.0 || !logarithm.is_finite() {
            return None;
        }
        let kept = (self.xy * self.xy / (self.xx * self.yy)).min(1.0);
        let variance = (1.0 - kept) / (kept * (self.values - 1.0).max(1.0));
        Some((logarithm, variance.max(LEAST_VARIANCE)))
    }
}

/// What rows are multiplied by, from the rows and from the columns that they feed, if both agree
/// that something moved.
fn agreed(rows: &[Products], columns: &[Products]) -> Option<Vec<f32>> {
    let (mut alike, mut apart) = (0.0, 0.0);
    let mut largest = 0.0f64;
    let factors = rows.iter().zip(columns).map(|(row, column)| {
        let logarithm = match (row.logarithm(), column.logarithm()) {
            (Some((a, variance_a)), Some((b, variance_b))) => {
                let weight = 1.0 / (variance_a + variance_b);
                alike += weight * (a - b).powi(2);
                apart += weight * (a + b).powi(2);
                (a * variance_b - b * variance_a) / (variance_a + variance_b)
            }
            (Some((a, _)), None) => a,
            (None, Some((b, _))) => -b,
            (None, None) => 0.0,
        };
        largest = largest.max(logarithm.abs());
        logarithm.exp() as f32
    });
    let factors: Vec<f32> = factors.collect();
    (largest > ROUNDING && alike > AGREEMENT * apart).then_some(factors)
}

/// Products of each row, `x` in terms of the quantized model's norm: what was rounded is as exact in
/// each column as in the others.
fn row_products(before: &Weight, after: &Weight, norm: Option<&[f32]>) -> Vec<Products> {
    let columns = before.cols();
    let mut all = Vec::with_capacity(before.rows());
    in_chunks(before, after, |_, x, y| {
        let rows = x.par_chunks(columns).zip(y.par_chunks(columns)).map(|(x, y)| {
            Products::of(x.iter().zip(y).enumerate().map(|(column, (&x, &y))| {
                match norm.map_or(1.0, |norm| f64::from(norm[column])) {
                    0.0 => (0.0, 0.0),
                    ratio => (f64::from(x) / ratio, f64::from(y)),
                }
            }))
        });
        all.par_extend(rows);
    });
    all
}

/// Products of each column.
fn column_products(before: &Weight, after: &Weight) -> Vec<Products> {
    /// Columns that are summed up together.
    const PART: usize = 64;
    let columns = before.cols();
    let mut all = vec![Products::default(); columns];
    in_chunks(before, after, |rows, x, y| {
        all.par_chunks_mut(PART).enumerate().for_each(|(part, sums)| {
            for row in 0..rows {
                let at = row * columns + part * PART;
                let pairs = x[at..].iter().zip(&y[at..]);
                for (sums, (&x, &y)) in sums.iter_mut().zip(pairs) {
                    sums.push(f64::from(x), f64::from(y));
                }
            }
        });
    });
    all
}

/// Decodes two matrices of one shape, some rows at a time.
fn in_chunks(before: &Weight, after: &Weight, mut take: impl FnMut(usize, &[f32], &[f32])) {
    let (rows, columns) = (before.rows(), before.cols());
    let step = row_step(columns);
    for first in (0..rows).step_by(step) {
        let range = first..rows.min(first + step);
        let mut x = vec![0.0; range.len() * columns];
        let mut y = x.clone();
        read_in_parallel(before, range.clone(), columns, &mut x);
        read_in_parallel(after, range.clone(), columns, &mut y);
        take(range.len(), &x, &y);
    }
}

#[cfg(test)]
#[path = "folds_tests.rs"]
mod tests;
