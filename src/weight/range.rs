//! What a row of an encoded type does not keep of finite values: those beyond the reach of its scales,
//! and blocks that become zero.
//!
//! ggml writes such rows and lets `ggml_validate_row_data` find the scales that became infinite; where
//! sums of a search overflow instead, it writes a block of zeros and accepts it. Both are found here
//! by decoding what was encoded, for the few rows whose values are so large or so small that it can
//! happen ([`may_lose`]).

use rayon::prelude::*;

use super::stored::StoredTensor;
use crate::codec::StoredType;
use crate::codec::ggml::{decode, encode};
use crate::{Error, Result};

/// Magnitudes between which no row loses anything: the scales of f16 reach further at both ends.
const LEAST: f32 = 1.0 / 4096.0;
const MOST: f32 = 32768.0;
/// Importance between which no sum of a search overflows or vanishes.
const LEAST_IMPORTANCE: f32 = 1e-20;
const MOST_IMPORTANCE: f32 = 1e15;
/// A part of a block that is this much smaller than the block's largest value may round to zero.
const NEGLIGIBLE: f32 = 1.0 / 16.0;

/// What [`losses`] finds in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Losses {
    /// The column of a value that is not finite in the encoded row, or far from what it was because
    /// it is beyond the type's range.
    pub beyond: Option<usize>,
    /// Values of parts of blocks that became zero as a whole though they are neither zero nor small
    /// beside the rest of their block.
    pub zeroed: usize,
    /// The column of the largest of those values.
    pub first_zeroed: Option<usize>,
}

/// Whether a row with this largest magnitude has to be looked at with [`losses`].
#[must_use]
pub(crate) fn may_lose(largest: f32) -> bool {
    largest != 0.0 && !(LEAST..=MOST).contains(&largest)
}

/// Whether rows weighted with these importances have to be looked at with [`losses`].
#[must_use]
pub(crate) fn is_extreme(importance: &[f32]) -> bool {
    importance.iter().any(|v| !(LEAST_IMPORTANCE..=MOST_IMPORTANCE).contains(v))
}

/// Largest magnitude of finite values.
#[must_use]
pub(crate) fn largest(values: &[f32]) -> f32 {
    // Magnitudes are ordered as their bits are.
    f32::from_bits(values.iter().fold(0, |most, v| most.max(v.to_bits() & 0x7fff_ffff)))
}

/// Gives blocks of MXFP4 whose values lie an octave below the smallest scale that scale: their levels
/// are zero, and ggml's encoder writes the code of NaN for them, which its own check refuses.
pub(crate) fn settle(kind: StoredType, bytes: &mut [u8]) {
    if kind == StoredType::MXFP4 {
        let (blocks, _) = bytes.as_chunks_mut::<17>();
        blocks.iter_mut().filter(|block| block[0] == u8::MAX).for_each(|block| block[0] = 0);
    }
}

/// Compares a row with what was made of it; `decoded` is a buffer.
///
/// # Panics
/// If `bytes` is no row of that many values.
#[must_use]
pub(crate) fn losses(
    kind: StoredType,
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &[u8],
    decoded: &mut Vec<f32>,
) -> Losses {
    decoded.resize(values.len(), 0.0);
    decode(kind, bytes, decoded);
    let (block_values, _) = kind.block();
    let (part, reach) = (kind.part(), kind.reach());
    // Values that are stored one by one vanish one by one; the row is what counts.
    let plain = block_values == 1;
    let block_values = if plain { values.len().max(1) } else { block_values };
    let mut found = Losses { beyond: None, zeroed: 0, first_zeroed: None };
    let mut zeroed = |start: usize, values: &[f32]| {
        found.zeroed += values.iter().filter(|v| **v != 0.0).count();
        found.first_zeroed.get_or_insert(start + argmax(values));
    };
    let row = values;
    let blocks = values.chunks(block_values).zip(decoded.chunks(block_values));
    for (number, (values, decoded)) in blocks.enumerate() {
        let start = number * block_values;
        let most = largest(values);
        if let Some(at) = decoded.iter().position(|v| !v.is_finite()) {
            let at = start + if plain { at } else { argmax(values) };
            // Weights of errors hold the size of the whole row: a value can break other blocks.
            found.beyond = Some(if row[at].abs() > MOST { at } else { argmax(row) });
            return found;
        }
        if most > reach {
            found.beyond = Some(start + argmax(values));
            return found;
        }
        if plain {
            if most > 0.0 && decoded.iter().all(|v| *v == 0.0) {
                zeroed(start, values);
            }
            continue;
        }
        let parts = values.chunks(part).zip(decoded.chunks(part)).enumerate();
        for (number, (values, decoded)) in parts {
            let here = largest(values);
            let start = start + number * part;
            if here == 0.0 || here < most * NEGLIGIBLE || decoded.iter().any(|v| *v != 0.0) {
                continue;
            }
            let weighted = importance
                .is_none_or(|all| all[start..start + values.len()].iter().any(|w| *w > 0.0));
            if here > MOST && weighted {
                found.beyond = Some(start + argmax(values));
                return found;
            }
            zeroed(start, values);
        }
    }
    found
}

/// Refuses a tensor that `kind` cannot hold, before it is encoded without an importance matrix; gives
/// a warning where rows or parts of them would become zero. Values must be finite.
///
/// # Errors
/// [`Error::OutOfRange`] with the first place.
pub(crate) fn check(name: &str, tensor: &StoredTensor, kind: StoredType) -> Result<Option<String>> {
    const ROWS: usize = 16;
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let row_bytes = kind.row_bytes(cols).filter(|_| kind != tensor.dtype && cols > 0);
    let Some(row_bytes) = row_bytes else { return Ok(None) };
    let zeroed = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map_init(
            || (vec![0.0; cols], vec![0; row_bytes], Vec::new()),
            |(values, bytes, decoded), part| {
                let mut zeroed = (0usize, 0.0f32);
                for row in part * ROWS..rows.min((part + 1) * ROWS) {
                    tensor.read_rows(row..row + 1, values);
                    if !may_lose(largest(values)) {
                        continue;
                    }
                    encode(kind, values, bytes);
                    let losses = losses(kind, values, None, bytes, decoded);
                    if let Some(at) = losses.beyond {
                        return Err((row, at, values[at]));
                    }
                    if let Some(at) = losses.first_zeroed {
                        zeroed = (zeroed.0 + 1, zeroed.1.max(values[at].abs()));
                    }
                }
                Ok(zeroed)
            },
        )
        // The first place, whichever thread is the first.
        .reduce(
            || Ok((0, 0.0)),
            |a, b| match (a, b) {
                (Ok(a), Ok(b)) => Ok((a.0 + b.0, a.1.max(b.1))),
                (Err(a), Err(b)) => Err(if (b.0, b.1) < (a.0, a.1) { b } else { a }),
                (Err(a), Ok(_)) | (Ok(_), Err(a)) => Err(a),
            },
        );
    match zeroed {
        Err((row, column, value)) => {
            let index = if tensor.shape.len() == 1 { vec![column] } else { vec![row, column] };
            Err(Error::out_of_range(name, &index, value, kind.name()))
        }
        Ok((0, _)) => Ok(None),
        Ok((count, largest)) => Ok(Some(format!(
            "{name}: values in {count} of {rows} rows become zero as {}, the largest of them \
             {largest:e}",
            kind.name()
        ))),
    }
}

/// Where the largest magnitude is.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if value.abs() > values[best].abs() {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests;
