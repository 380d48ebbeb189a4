//! Figures that describe an importance matrix, tensor by tensor: those of `llama-imatrix
//! --show-statistics`, by its definitions, over the means of columns.

use indexmap::IndexMap;
use serde::Serialize;

use crate::files::imatrix::{ColumnSums, ImportanceSums};

/// A column is active above this value, as in `llama-imatrix`.
pub(crate) const ACTIVE: f64 = 1e-5;

/// Figures of one tensor over the importance of its columns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// GGUF name.
    pub tensor: String,
    /// Columns, of all matrices.
    pub columns: usize,
    /// Matrices: the number of experts, else 1.
    pub matrices: usize,
    /// Sum.
    pub sum: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation (of the whole population).
    pub std: f64,
    /// Share of columns above [`ACTIVE`], 0 to 1.
    pub active: f64,
    /// Entropy of the shares of the sum, bits.
    pub entropy: f64,
    /// The same over that of equal shares, 0 to 1.
    pub normalized_entropy: f64,
    /// Share of columns more than a standard deviation from the mean, 0 to 1.
    pub outliers: f64,
    /// Cosine of the angle to the same tensor of the block before; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_to_previous: Option<f64>,
}

/// Figures over all columns of all tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GlobalStatistics {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation (of the whole population).
    pub std: f64,
}

/// Figures of every tensor in file order.
#[must_use]
pub(crate) fn tensors(sums: &ImportanceSums) -> Vec<TensorStatistics> {
    let means: IndexMap<&str, Vec<f64>> =
        sums.entries.iter().map(|(name, entry)| (name.as_str(), entry.means())).collect();
    let of = |(name, values): (&&str, &Vec<f64>)| {
        let Moments { sum, min, max, mean, std } = moments(values);
        let count = values.len() as f64;
        let share = |of: &dyn Fn(f64) -> bool| {
            values.iter().filter(|value| of(**value)).count() as f64 / count
        };
        let entropy: f64 = values
            .iter()
            .map(|value| value / sum)
            .filter(|share| *share > 0.0)
            .map(|share| -share * share.log2())
            .sum();
        let previous = previous(name).and_then(|name| means.get(name.as_str()));
        TensorStatistics {
            tensor: (*name).to_owned(),
            columns: values.len(),
            matrices: sums.entries[*name].counts.len(),
            sum,
            min,
            max,
            mean,
            std,
            active: share(&|value| value > ACTIVE),
            entropy,
            normalized_entropy: if values.len() > 1 { entropy / count.log2() } else { 0.0 },
            outliers: share(&|value| std > 0.0 && ((value - mean) / std).abs() > 1.0),
            cosine_to_previous: previous.and_then(|previous| cosine(previous, values)),
        }
    };
    means.iter().map(of).collect()
}

/// Figures over all tensors.
#[must_use]
pub(crate) fn global(sums: &ImportanceSums) -> GlobalStatistics {
    let all: Vec<f64> = sums.entries.values().flat_map(ColumnSums::means).collect();
    let Moments { min, max, mean, std, .. } = moments(&all);
    GlobalStatistics { min, max, mean, std }
}

/// Blocks that the matrix has entries of.
#[must_use]
pub(crate) fn blocks(sums: &ImportanceSums) -> usize {
    sums.entries.keys().filter_map(|name| Some(block_of(name)?.0 + 1)).max().unwrap_or(0)
}

/// Number of the block and name within it: `blk.3.attn_q.weight` → 3, `attn_q.weight`.
pub(super) fn block_of(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, rest))
}

/// The name of the same tensor of the block before.
fn previous(name: &str) -> Option<String> {
    let (block, rest) = block_of(name)?;
    Some(format!("blk.{}.{rest}", block.checked_sub(1)?))
}

struct Moments {
    sum: f64,
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
}

fn moments(values: &[f64]) -> Moments {
    let count = values.len().max(1) as f64;
    let sum: f64 = values.iter().sum();
    let mean = sum / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (min, max) = if values.is_empty() { (0.0, 0.0) } else { (least, most) };
    Moments { sum, min, max, mean, std: variance.sqrt() }
}

fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    (norms > 0.0).then(|| dot(a, b) / norms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    /// Worked out by hand for the means 1, 1, 2, 0 and 2, 2, 4, 0.
    #[test]
    fn figures_are_those_of_the_definitions() {
        let mut sums = ImportanceSums::default();
        let entry = |sums: &[f64], count| ColumnSums { sums: sums.to_vec(), counts: vec![count] };
        sums.entries.insert("blk.0.ffn_up.weight".into(), entry(&[4.0, 4.0, 8.0, 0.0], 4.0));
        sums.entries.insert("blk.1.ffn_up.weight".into(), entry(&[2.0, 2.0, 4.0, 0.0], 1.0));
        let [first, second] = &tensors(&sums)[..] else { panic!("two tensors") };
        close(first.sum, 4.0);
        close(first.mean, 1.0);
        close(first.std, 0.5f64.sqrt());
        close(first.active, 0.75);
        // Shares 1/4, 1/4, 1/2: 1.5 bits of 2.
        close(first.entropy, 1.5);
        close(first.normalized_entropy, 0.75);
        close(first.outliers, 0.5);
        assert_eq!((first.min, first.max, first.columns, first.matrices), (0.0, 2.0, 4, 1));
        assert_eq!(first.cosine_to_previous, None);
        close(second.cosine_to_previous.unwrap(), 1.0);
        close(second.entropy, 1.5);
        assert_eq!(blocks(&sums), 2);
        let all = global(&sums);
        close(all.mean, 1.5);
        assert_eq!((all.min, all.max), (0.0, 4.0));
        // Squared distances from 1.5: five times 0.25, twice 2.25, once 6.25.
        close(all.std, (12.0f64 / 8.0).sqrt());
    }
}
