//! What each type would cost and lose, tensor by tensor.

use super::hull::Choice;
use crate::Result;
use crate::arch::role;
use crate::codec::StoredType;
use crate::codec::ggml::{self, ImportanceUse};
use crate::job::gguf::execute::round_trip;
use crate::job::gguf::mix;
use crate::job::gguf::plan::{importance_of, matrices};
use crate::job::gguf::protect::Protected;
use crate::job::gguf::request::QuantizeRequest;
use crate::job::gguf::tensor::GgufTensor;
use crate::job::profile::sensitivity::squares;

/// Types that a budget may choose, besides the source's own: every one that can be written and
/// loaded. Those that are larger and worse than another one drop out by measurement.
pub(super) const CANDIDATES: [StoredType; 25] = [
    StoredType::F16,
    StoredType::Q8_0,
    StoredType::Q6_K,
    StoredType::Q5_K,
    StoredType::Q5_1,
    StoredType::Q5_0,
    StoredType::Q4_K,
    StoredType::Q4_1,
    StoredType::IQ4_NL,
    StoredType::IQ4_XS,
    StoredType::Q4_0,
    StoredType::MXFP4,
    StoredType::IQ3_S,
    StoredType::Q3_K,
    StoredType::IQ3_XXS,
    StoredType::Q2_K,
    StoredType::IQ2_S,
    StoredType::IQ2_XS,
    StoredType::Q2_0,
    StoredType::IQ2_XXS,
    StoredType::TQ2_0,
    StoredType::TQ1_0,
    StoredType::IQ1_M,
    StoredType::IQ1_S,
    StoredType::Q1_0,
];

/// Rows that are measured in each tensor, and in tables of tokens, whose rows differ most.
const ROWS: usize = 16;
const ROWS_OF_TABLES: usize = 128;

/// Bytes and errors of `kinds` for `tensor`, those that its rows do not fill, that the missing
/// importance matrix makes worthless or that save nothing left out; with the source's own type, which
/// loses nothing, where `kinds` has it. Losses are still 0. Errors are weighted by `inputs`, the mean
/// squares of what the matrix receives, where they are known better than by the importance matrix.
pub(super) fn measure(
    tensor: &GgufTensor,
    kinds: &[StoredType],
    request: &QuantizeRequest,
    alignment: u64,
    protected: Option<&Protected>,
    inputs: Option<&[f32]>,
) -> Result<Vec<Choice>> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let importance = importance_of(request.importance.as_ref(), tensor)?;
    let rows_per_matrix = (rows / matrices(tensor).max(1)).max(1);
    let table = matches!(role::role(&tensor.name), role::Role::Embedding | role::Role::Output);
    let count = rows.min(if table { ROWS_OF_TABLES } else { ROWS });
    let sampled: Vec<usize> = (0..count).map(|i| (2 * i + 1) * rows / (2 * count)).collect();
    let mut values = vec![0.0f32; count * cols];
    for (row, values) in sampled.iter().zip(values.chunks_exact_mut(cols)) {
        tensor.read_rows(*row..*row + 1, values)?;
    }
    let columns_of = |row: usize| {
        let matrix = row / rows_per_matrix;
        importance.map(|all| &all[matrix * cols..(matrix + 1) * cols])
    };
    let source = tensor.source_type.for_weights();
    let source_bits = source.map_or(32.0, StoredType::bits_per_weight);
    let mut choices = Vec::new();
    for &kind in kinds.iter().filter(|&&kind| Some(kind) != source) {
        let stored = kind;
        let required = ggml::importance_use(stored) == ImportanceUse::Required
            || mix::needs_importance(&tensor.name, kind, None);
        let impossible =
            !kind.fits(cols) || !ggml::can_encode(stored) || (required && importance.is_none());
        if impossible || kind.bits_per_weight() >= source_bits {
            continue;
        }
        if let Some(protected) = protected
            && !protected.keeps(tensor, stored, importance)?
        {
            continue;
        }
        let (mut noise, mut signal) = (0.0f64, 0.0f64);
        for (row, values) in sampled.iter().zip(values.chunks_exact(cols)) {
            let columns = columns_of(*row);
            let decoded = round_trip(values, cols, stored, columns);
            let (more_noise, more_signal) = squares(values, &decoded, inputs.or(columns));
            noise += more_noise;
            signal += more_signal;
        }
        let error = if signal > 0.0 { noise / signal } else { 0.0 };
        let bytes = kind.byte_length(&tensor.shape).map_or(u64::MAX, |bytes| bytes as u64);
        let bytes = bytes.next_multiple_of(alignment);
        let disturbance = noise / count.max(1) as f64;
        choices.push(Choice { kind, bytes, error, disturbance, loss: 0.0 });
    }
    if let Some(kind) = source.filter(|kind| kinds.contains(kind) || choices.is_empty()) {
        let bytes = tensor.source_bytes().next_multiple_of(alignment);
        choices.push(Choice { kind, bytes, error: 0.0, disturbance: 0.0, loss: 0.0 });
    }
    Ok(choices)
}
