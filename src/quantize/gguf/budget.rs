//! Types under a budget: the smallest measured error that fits so many bytes.
//!
//! For every matrix that no option fixes, a few rows are written in each type that fits them and
//! read back. The error of a type is `Σ w·(x − y)² / Σ w·x²` over those rows, times the number of
//! weights, where `w` is the importance of the column (1 without an importance matrix): the share of
//! the matrix's output that becomes noise, counted once per weight. The error as a function of the
//! bytes is reduced to its lower convex hull, and the steps of all hulls are taken in the order of
//! the error that they save per byte, as long as they fit: the solution of the relaxed problem,
//! and off from the true one by less than one step of one matrix.

use rayon::prelude::*;

use super::execute::round_trip;
use super::ggml_type::GgmlType;
use super::level::Level;
use super::mix::{self, Decision, ModelFacts, Reason, TensorFacts};
use super::model::GgufModel;
use super::plan::{assemble, importance_of, matrices};
use super::request::{Goal, QuantizeRequest};
use super::tensor::GgufTensor;
use crate::formats::space::describe_bytes;
use crate::progress::Progress;
use crate::tensor::ggml::{self, ImportanceUse};
use crate::{Error, Result};

/// Types that a budget may choose, besides the source's own. Those that are larger and worse than
/// another one drop out by measurement.
const CANDIDATES: [GgmlType; 22] = [
    GgmlType::F16,
    GgmlType::Q8_0,
    GgmlType::Q6_K,
    GgmlType::Q5_K,
    GgmlType::Q5_1,
    GgmlType::Q5_0,
    GgmlType::Q4_K,
    GgmlType::Q4_1,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::Q4_0,
    GgmlType::IQ3_S,
    GgmlType::Q3_K,
    GgmlType::IQ3_XXS,
    GgmlType::Q2_K,
    GgmlType::IQ2_S,
    GgmlType::IQ2_XS,
    GgmlType::IQ2_XXS,
    GgmlType::TQ2_0,
    GgmlType::TQ1_0,
    GgmlType::IQ1_M,
    GgmlType::IQ1_S,
];
/// Rows that are measured in each tensor.
const ROWS: usize = 16;

/// A way to write a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    kind: GgmlType,
    /// Bytes in the file, padding included.
    bytes: u64,
    error: f64,
}

/// The types of all tensors under the budget of `request`.
///
/// # Errors
/// [`Error::InvalidArgument`] when even the smallest types are too large.
pub(super) fn choose(
    model: &GgufModel,
    facts: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<Vec<Decision>> {
    let budget = match request.goal {
        Goal::Bytes(bytes) => bytes,
        Goal::BitsPerWeight(bits) => (bits * model.parameters() as f64 / 8.0).floor() as u64,
        Goal::Level(_) => u64::MAX,
    };
    // A level without a mix leaves only what options decide.
    let fixed = mix::plan_types(
        facts,
        tensors,
        Level::F16,
        request.importance.is_some(),
        &request.overrides,
    );
    let alignment = match model.metadata.get("general.alignment") {
        Some(value) => value.as_u64().unwrap_or(32).max(1),
        None => 32,
    };
    progress.start("Measuring", model.tensors.len() as u64, "tensors");
    let hulls: Vec<Vec<Choice>> = model
        .tensors
        .par_iter()
        .zip(&fixed)
        .map(|(tensor, decision)| {
            let hull = match decision.reason {
                Reason::Level => measure(tensor, request, alignment).map(convex),
                _ => Ok(Vec::new()),
            };
            tensor.release();
            progress.advance(1);
            hull
        })
        .collect::<Result<_>>()?;
    progress.finish();
    let decide = |chosen: &[usize]| -> Vec<Decision> {
        fixed
            .iter()
            .zip(&hulls)
            .zip(chosen)
            .map(|((fixed, hull), &at)| match hull.get(at) {
                Some(choice) => {
                    Decision { kind: Some(choice.kind), reason: Reason::Budget, instead_of: None }
                }
                None => fixed.clone(),
            })
            .collect()
    };
    let total = |chosen: &[usize]| -> Result<u64> {
        Ok(assemble(model, request, decide(chosen), None)?.layout.total_bytes())
    };
    let smallest = vec![0; hulls.len()];
    let least = total(&smallest)?;
    if least > budget {
        return Err(Error::InvalidArgument(format!(
            "the smallest file of this model takes {least} bytes ({}), more than the {budget} \
             asked for{}",
            describe_bytes(least),
            if request.importance.is_some() { "" } else { "; with --imatrix it could be smaller" }
        )));
    }
    // Split files have headers of their own, so the room for data is found by trying.
    let mut room = budget - least;
    loop {
        let chosen = fill(&hulls, room);
        let over = total(&chosen)?.saturating_sub(budget);
        if over == 0 {
            return Ok(decide(&chosen));
        }
        room = room.saturating_sub(over);
    }
}

/// What each type would cost and lose.
fn measure(tensor: &GgufTensor, request: &QuantizeRequest, alignment: u64) -> Result<Vec<Choice>> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let importance = importance_of(request.importance.as_ref(), tensor)?;
    let rows_per_matrix = (rows / matrices(tensor).max(1)).max(1);
    let count = rows.min(ROWS);
    let sampled: Vec<usize> = (0..count).map(|i| (2 * i + 1) * rows / (2 * count)).collect();
    let mut values = vec![0.0f32; count * cols];
    for (row, values) in sampled.iter().zip(values.chunks_exact_mut(cols)) {
        tensor.read_rows(*row..*row + 1, values)?;
    }
    let columns_of = |row: usize| {
        let matrix = row / rows_per_matrix;
        importance.map(|all| &all[matrix * cols..(matrix + 1) * cols])
    };
    let source = GgmlType::of_stored(tensor.source_type);
    let source_bits = source.map_or(32.0, GgmlType::bits_per_weight);
    let mut choices = Vec::new();
    let candidates = CANDIDATES.into_iter().filter(|&kind| Some(kind) != source);
    for kind in candidates {
        let Some(stored) = kind.layout().stored.filter(|&stored| ggml::can_encode(stored)) else {
            continue;
        };
        let required = ggml::importance_use(stored) == ImportanceUse::Required
            || mix::needs_importance(&tensor.name, kind, None);
        let impossible = !kind.fits(cols) || (required && importance.is_none());
        if impossible || kind.bits_per_weight() >= source_bits {
            continue;
        }
        let (mut noise, mut signal) = (0.0f64, 0.0f64);
        for (row, values) in sampled.iter().zip(values.chunks_exact(cols)) {
            let columns = columns_of(*row);
            let decoded = round_trip(values, cols, stored, columns);
            for (column, (x, y)) in values.iter().zip(&decoded).enumerate() {
                let weight = columns.map_or(1.0, |columns| f64::from(columns[column]));
                noise += weight * f64::from(x - y).powi(2);
                signal += weight * f64::from(*x).powi(2);
            }
        }
        let share = if signal > 0.0 { noise / signal } else { 0.0 };
        let bytes = kind.byte_length(&tensor.shape).unwrap_or(u64::MAX);
        let bytes = bytes.next_multiple_of(alignment);
        choices.push(Choice { kind, bytes, error: share * tensor.elements() as f64 });
    }
    if let Some(kind) = source {
        let bytes = tensor.source_bytes().next_multiple_of(alignment);
        choices.push(Choice { kind, bytes, error: 0.0 });
    }
    Ok(choices)
}

/// The choices on the lower convex hull of error over bytes, smallest first.
fn convex(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error)));
    let mut hull: Vec<Choice> = Vec::new();
    for choice in choices {
        if hull.last().is_some_and(|last| choice.error >= last.error) {
            continue;
        }
        while let [.., before, last] = hull.as_slice() {
            if gain(*before, *last) >= gain(*last, choice) {
                break;
            }
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

/// Error saved per byte by going from one choice to the next.
fn gain(from: Choice, to: Choice) -> f64 {
    (from.error - to.error) / (to.bytes - from.bytes).max(1) as f64
}

/// Takes the steps that save most per byte while they fit into `room` bytes beyond the smallest
/// choices; the number of the choice for each tensor.
fn fill(hulls: &[Vec<Choice>], mut room: u64) -> Vec<usize> {
    let mut steps: Vec<(f64, usize, usize)> = hulls
        .iter()
        .enumerate()
        .flat_map(|(tensor, hull)| {
            hull.windows(2)
                .enumerate()
                .map(move |(step, pair)| (gain(pair[0], pair[1]), tensor, step))
        })
        .collect();
    // Steps of one tensor save less and less, so their order is kept.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut chosen = vec![0; hulls.len()];
    for (_, tensor, step) in steps {
        let cost = hulls[tensor][step + 1].bytes - hulls[tensor][step].bytes;
        if chosen[tensor] == step && cost <= room {
            room -= cost;
            chosen[tensor] = step + 1;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, error: f64) -> Choice {
        Choice { kind: GgmlType::Q8_0, bytes, error }
    }

    #[test]
    fn choices_above_a_line_between_others_drop_out() {
        let all = [(100, 10.0), (200, 9.5), (300, 2.0), (300, 3.0), (350, 2.5), (500, 0.0)];
        let hull = convex(all.map(|(bytes, error)| choice(bytes, error)).to_vec());
        let points: Vec<_> = hull.iter().map(|c| (c.bytes, c.error)).collect();
        assert_eq!(points, [(100, 10.0), (300, 2.0), (500, 0.0)]);
    }

    /// Against every combination: no fitting one with the hull's points is better by more than the
    /// largest step, and what is chosen fits.
    #[test]
    fn the_budget_is_kept_and_used() {
        let hulls: Vec<Vec<Choice>> = (0..4u64)
            .map(|i| {
                let points =
                    [(0, 8.0), (10 + i, 3.0 + i as f64 * 0.3), (30 + 2 * i, 0.5), (70, 0.0)];
                convex(points.map(|(bytes, error)| choice(100 + bytes, error)).to_vec())
            })
            .collect();
        let cost = |chosen: &[usize]| -> (u64, f64) {
            chosen.iter().zip(&hulls).fold((0, 0.0), |(bytes, error), (&at, hull)| {
                (bytes + hull[at].bytes - hull[0].bytes, error + hull[at].error)
            })
        };
        for room in 0..300 {
            let chosen = fill(&hulls, room);
            let (bytes, error) = cost(&chosen);
            assert!(bytes <= room);
            let mut best = f64::INFINITY;
            for code in 0..hulls.iter().map(Vec::len).product::<usize>() {
                let mut rest = code;
                let other: Vec<usize> = hulls
                    .iter()
                    .map(|hull| {
                        let at = rest % hull.len();
                        rest /= hull.len();
                        at
                    })
                    .collect();
                let (bytes, error) = cost(&other);
                if bytes <= room {
                    best = best.min(error);
                }
            }
            assert!(error <= best + 5.0, "{room}: {error} instead of {best}");
        }
        assert_eq!(fill(&hulls, 0), [0; 4]);
        assert_eq!(fill(&hulls, 280), [3; 4]);
    }
}
