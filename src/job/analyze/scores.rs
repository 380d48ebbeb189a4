//! Which weights matter most: the highest scores of a model, without holding more than a few times
//! as many as are wanted.

use std::cmp::Ordering;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::weights::{gguf_order, stored};
use crate::Result;
use crate::arch::names;
use crate::base::progress::Progress;
use crate::files::imatrix::{ImportanceSums, Method};
use crate::files::super_weights::SuperWeightMask;
use crate::model::LocalModel;

/// Rows whose scores are computed by one thread at a time.
const ROWS: usize = 16;
/// Values that are scored before the list is cut.
const SLAB: usize = 1 << 22;

/// A weight and its score.
#[derive(Debug, Clone, Copy)]
struct Scored {
    score: f32,
    tensor: u32,
    position: u64,
}

impl Scored {
    /// Highest score first, then the order of the file: equal scores are never a matter of chance.
    fn before(a: &Self, b: &Self) -> Ordering {
        b.score.total_cmp(&a.score).then(a.tensor.cmp(&b.tensor)).then(a.position.cmp(&b.position))
    }
}

/// How weights are scored by each method, as masks name it.
#[must_use]
pub(crate) fn score_name(method: Method) -> &'static str {
    match method {
        Method::Activation => "weight-times-root-mean-square-input",
        Method::Gradient => "weight-times-mean-absolute-gradient",
        Method::Fisher => "weight-times-root-mean-square-gradient",
    }
}

/// The mask of `total` weights: those in `first` (by tensor, in GGUF positions), then the highest
/// scores `|w| f` with the factor `f` of the weight's column: `sqrt(E[x²])`, what the weight adds to
/// an output; or `E|g|` or `sqrt(E[g²])`, what its loss would change the loss by, to first order.
///
/// # Errors
/// If weights cannot be read.
pub(super) fn select(
    model: &LocalModel,
    sums: &ImportanceSums,
    coverage: f64,
    first: &IndexMap<String, Vec<u64>>,
    progress: &dyn Progress,
) -> Result<SuperWeightMask> {
    // Rounded down, but never to nothing.
    let total = ((model.parameter_count() as f64 * coverage) as usize).max(1);
    let forced: usize = first.values().map(Vec::len).sum();
    let mut best = Best::new(total.saturating_sub(forced));
    progress.start("Scoring weights", sums.entries.len() as u64, "tensors");
    for (index, (name, entry)) in sums.entries.iter().enumerate() {
        progress.advance(1);
        // Embeddings are looked up, not multiplied: their rows are no columns of an input.
        let Some(weight) = names::to_hugging_face(name).filter(|n| n.contains(".layers.")) else {
            continue;
        };
        let tensor = stored(model, &weight)?;
        let order = gguf_order(model, &weight);
        let means = entry.means();
        let factors: Vec<f32> = match sums.method {
            Method::Activation | Method::Fisher => means.iter().map(|v| v.sqrt() as f32).collect(),
            Method::Gradient => means.iter().map(|v| *v as f32).collect(),
        };
        let taken = first.get(name).map_or(&[][..], Vec::as_slice);
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let slab = (SLAB / cols.max(1)).max(ROWS).next_multiple_of(ROWS);
        for from in (0..rows).step_by(slab) {
            let to = (from + slab).min(rows);
            let least = best.least;
            let starts: Vec<usize> = (from..to).step_by(ROWS).collect();
            let found: Vec<Vec<Scored>> = starts
                .into_par_iter()
                .map(|start| {
                    let end = (start + ROWS).min(to);
                    let mut values = vec![0.0; (end - start) * cols];
                    tensor.read_rows(start..end, &mut values);
                    let mut found = Vec::new();
                    for (row, values) in (start..end).zip(values.chunks_exact(cols)) {
                        let base = (order.file_row(row, rows) * cols) as u64;
                        for (column, (value, factor)) in values.iter().zip(&factors).enumerate() {
                            let score = value.abs() * factor;
                            let position = base + column as u64;
                            if score >= least && taken.binary_search(&position).is_err() {
                                found.push(Scored { score, tensor: index as u32, position });
                            }
                        }
                    }
                    found
                })
                .collect();
            found.into_iter().for_each(|found| best.add(found));
        }
    }
    progress.finish();
    let mut tensors: IndexMap<String, Vec<u64>> = IndexMap::new();
    for (index, name) in sums.entries.keys().enumerate() {
        let mut positions = first.get(name).cloned().unwrap_or_default();
        positions.extend(
            best.finish().iter().filter(|s| s.tensor as usize == index).map(|s| s.position),
        );
        positions.sort_unstable();
        if !positions.is_empty() {
            tensors.insert(name.clone(), positions);
        }
    }
    Ok(SuperWeightMask { coverage, method: score_name(sums.method).to_owned(), tensors })
}

/// The best so many of all that were added.
struct Best {
    count: usize,
    /// Scores below cannot be among them.
    least: f32,
    list: Vec<Scored>,
}

impl Best {
    fn new(count: usize) -> Self {
        Self { count, least: if count == 0 { f32::INFINITY } else { 0.0 }, list: Vec::new() }
    }

    fn add(&mut self, found: Vec<Scored>) {
        self.list.extend(found);
        if self.list.len() > 4 * self.count.max(1 << 14) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.list.len() > self.count && self.count > 0 {
            let at = self.count - 1;
            let (_, last, _) = self.list.select_nth_unstable_by(at, Scored::before);
            self.least = last.score;
        }
        self.list.truncate(self.count);
    }

    fn finish(&mut self) -> &[Scored] {
        self.cut();
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_of_a_sort() {
        let mut all: Vec<Scored> = (0..200_000u64)
            .map(|i| Scored {
                // Few different values: ties at the border.
                score: ((i * 7919) % 5003) as f32,
                tensor: (i % 3) as u32,
                position: i / 3,
            })
            .collect();
        let mut best = Best::new(777);
        for part in all.chunks(10_000) {
            let least = best.least;
            best.add(part.iter().filter(|s| s.score >= least).copied().collect());
        }
        all.sort_unstable_by(Scored::before);
        let mut kept = best.finish().to_vec();
        kept.sort_unstable_by(Scored::before);
        let key = |s: &Scored| (s.score as u64, s.tensor, s.position);
        assert!(kept.iter().map(key).eq(all[..777].iter().map(key)));
        assert!(best.least > 0.0);
        let mut none = Best::new(0);
        none.add(vec![]);
        assert!(none.finish().is_empty());
    }
}
