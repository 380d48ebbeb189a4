//! The search for NaN and infinity before the work begins.

use rayon::prelude::*;

use super::tensor::GgufTensor;
use crate::Result;
use crate::tensor::StoredType;

/// A value that is no number.
#[derive(Debug, Clone, PartialEq)]
pub struct NonFinite {
    /// The tensor's name.
    pub tensor: String,
    /// Its place in the tensor: one index per dimension, outermost first.
    pub index: Vec<usize>,
    /// NaN or an infinity.
    pub value: f32,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {} at {:?}", self.tensor, self.value, self.index)
    }
}

/// Values that are decoded at once, and rows after which pages are given back.
const STEP: usize = 1 << 16;
const STEPS_PER_PART: usize = 256;

/// The first value of a tensor that is NaN or infinite, in the order of the file. Decodes a few rows
/// at a time, in parallel, and gives the pages back.
///
/// # Errors
/// As [`GgufTensor::read_rows`].
pub fn first_non_finite(tensor: &GgufTensor) -> Result<Option<NonFinite>> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let step = (STEP / cols.max(1)).max(1);
    let steps = rows.div_ceil(step);
    for part in (0..steps).step_by(STEPS_PER_PART) {
        let found = (part..steps.min(part + STEPS_PER_PART))
            .into_par_iter()
            .map_init(Vec::new, |values, number| -> Result<Option<(usize, f32)>> {
                let range = number * step..rows.min((number + 1) * step);
                if raw_is_finite(tensor, range.clone()) {
                    return Ok(None);
                }
                values.resize(range.len() * cols, 0.0f32);
                tensor.read_rows(range.clone(), values)?;
                let at = values.iter().position(|value| !value.is_finite());
                Ok(at.map(|at| (range.start * cols + at, values[at])))
            })
            .filter_map(Result::transpose)
            .find_first(|_| true)
            .transpose()?;
        tensor.release();
        if let Some((at, value)) = found {
            let mut index = Vec::with_capacity(tensor.shape.len());
            let mut rest = at;
            for size in tensor.shape.iter().rev() {
                index.push(rest % size);
                rest /= size;
            }
            index.reverse();
            return Ok(Some(NonFinite { tensor: tensor.name.clone(), index, value }));
        }
    }
    Ok(None)
}

/// Whether the stored bytes of rows show without decoding that all values are finite: of types that
/// hold them one by one, the exponents that stand for NaN and infinity do not occur.
fn raw_is_finite(tensor: &GgufTensor, rows: std::ops::Range<usize>) -> bool {
    let Some(bytes) = tensor.raw_rows(rows) else { return false };
    let halves = |mask: u16| {
        let (values, _) = bytes.as_chunks::<2>();
        // No early end: a loop without one is vectorised.
        !values.iter().fold(false, |bad, v| bad | (u16::from_le_bytes(*v) & mask == mask))
    };
    match tensor.source_type {
        StoredType::F16 => halves(0x7c00),
        StoredType::BF16 => halves(0x7f80),
        StoredType::F32 => {
            let (values, _) = bytes.as_chunks::<4>();
            let mask = 0x7f80_0000;
            !values.iter().fold(false, |bad, v| bad | (u32::from_le_bytes(*v) & mask == mask))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{SharedBytes, StoredTensor};

    fn tensor(values: &[f32], shape: &[usize]) -> GgufTensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = SharedBytes::from_vec(bytes);
        GgufTensor::new("t", StoredTensor::new(shape.to_vec(), StoredType::F32, bytes).unwrap())
    }

    #[test]
    fn the_first_one_is_named() {
        let mut values = vec![1.0f32; 3 * 500 * 700];
        assert_eq!(first_non_finite(&tensor(&values, &[3, 500, 700])).unwrap(), None);
        values[700_000] = f32::NAN;
        values[400_123] = f32::NEG_INFINITY;
        let found = first_non_finite(&tensor(&values, &[3, 500, 700])).unwrap().unwrap();
        assert_eq!(found.index, [1, 71, 423]);
        assert_eq!(found.to_string(), "t is -inf at [1, 71, 423]");
    }

    #[test]
    fn every_plain_type_is_searched() {
        for kind in [StoredType::F32, StoredType::F16, StoredType::BF16] {
            for bad in [None, Some(f32::NAN), Some(f32::INFINITY), Some(f32::NEG_INFINITY)] {
                let mut values = vec![60_000.0f32, -0.0, 1e-7, -60_000.0, 5e-5];
                values.extend(bad);
                values.push(1.0);
                let mut bytes = vec![0; kind.row_bytes(values.len()).unwrap()];
                crate::tensor::ggml::encode(kind, &values, &mut bytes);
                let stored =
                    StoredTensor::new(vec![values.len()], kind, SharedBytes::from_vec(bytes));
                let found = first_non_finite(&GgufTensor::new("t", stored.unwrap())).unwrap();
                assert_eq!(
                    found.map(|found| found.index),
                    bad.map(|_| vec![5]),
                    "{kind:?} {bad:?}"
                );
            }
        }
    }
}
