//! The search for NaN and infinity before the work begins, and for what would be lost by it: values
//! beyond the range of their type, and blocks that would become zero.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::integers;
use super::plan::matrices;
use super::tensor::GgufTensor;
use crate::Result;
use crate::codec::{StoredType, ggml};
use crate::weight::range;

/// A value that is no number.
#[derive(Debug, Clone, PartialEq)]
pub struct NonFinite {
    /// The tensor's name.
    pub tensor: String,
    /// Its place in the tensor: one index per dimension, outermost first.
    pub index: Vec<usize>,
    /// NaN or an infinity; a number where only the type to be written cannot hold it.
    pub value: f32,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {:?} at {:?}", self.tensor, self.value, self.index)
    }
}

/// What a tensor is to become, for the search of what that would lose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// The type in the file.
    pub kind: StoredType,
    /// Weights of the columns of every matrix of the stack.
    pub importance: Option<&'a [f32]>,
}

/// What is wrong with a tensor, or with what it would become.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    /// A value of the source is no number.
    NonFinite(NonFinite),
    /// A value is beyond the range of the type.
    Beyond(NonFinite),
}

/// Rows of a tensor in which values would become zero by the block.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Zeroed {
    /// How many.
    pub rows: usize,
    /// Values in them that are not zero now and will be.
    pub values: usize,
    /// The largest of them: its place in the order of the file, and itself.
    pub largest: Option<(usize, f32)>,
}

impl Zeroed {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.values += other.values;
        if let Some((_, value)) = other.largest
            && self.largest.is_none_or(|(_, most)| most.abs() < value.abs())
        {
            self.largest = other.largest;
        }
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
    let (fault, _) = search(tensor, None)?;
    Ok(fault.map(|fault| match fault {
        Fault::NonFinite(found) | Fault::Beyond(found) => found,
    }))
}

/// The first value of a tensor that is no number or, as `target`, would be none any more, and what
/// would become zero. Only rows with very large or very small values are encoded for that.
///
/// # Errors
/// As [`GgufTensor::read_rows`].
pub(super) fn search(
    tensor: &GgufTensor,
    target: Option<Target<'_>>,
) -> Result<(Option<Fault>, Zeroed)> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    // What is copied loses nothing.
    let copied = |target: &Target| {
        target.kind == StoredType::F32
            || (target.kind == tensor.source_type && tensor.raw_rows(0..rows.min(1)).is_some())
    };
    let target = target.filter(|target| !copied(target)).map(|target| Careful::new(tensor, target));
    let mut zeroed = Zeroed::default();
    let step = (STEP / cols.max(1)).max(1);
    let steps = rows.div_ceil(step);
    for part in (0..steps).step_by(STEPS_PER_PART) {
        let found = (part..steps.min(part + STEPS_PER_PART))
            .into_par_iter()
            .map_init(Buffers::default, |buffers, number| {
                let range = number * step..rows.min((number + 1) * step);
                search_rows(tensor, range, target.as_ref(), buffers)
            })
            .collect::<Result<Vec<_>>>()?;
        tensor.release();
        for (fault, of_step) in found {
            zeroed.add(&of_step);
            if fault.is_some() {
                return Ok((fault, zeroed));
            }
        }
    }
    Ok((None, zeroed))
}

/// A target with what decides which rows are looked at.
struct Careful<'a> {
    target: Target<'a>,
    rows_per_matrix: usize,
    /// Of each matrix, whether its importance is such that every row has to be looked at.
    extreme: Vec<bool>,
}

impl<'a> Careful<'a> {
    fn new(tensor: &GgufTensor, target: Target<'a>) -> Self {
        let cols = tensor.cols().max(1);
        let of_matrices = target.importance.map(|all| all.chunks_exact(cols));
        let uses = ggml::importance_use(target.kind) != ggml::ImportanceUse::Ignored;
        let extreme = of_matrices
            .filter(|_| uses)
            .map_or_else(Vec::new, |all| all.map(range::is_extreme).collect());
        let rows_per_matrix = (tensor.rows() / matrices(tensor).max(1)).max(1);
        Self { target, rows_per_matrix, extreme }
    }

    fn is_extreme(&self, row: usize) -> bool {
        self.extreme.get(row / self.rows_per_matrix) == Some(&true)
    }
}

/// Memory of a thread.
#[derive(Default)]
struct Buffers {
    values: Vec<f32>,
    bytes: Vec<u8>,
    decoded: Vec<f32>,
}

fn search_rows(
    tensor: &GgufTensor,
    rows: Range<usize>,
    target: Option<&Careful<'_>>,
    buffers: &mut Buffers,
) -> Result<(Option<Fault>, Zeroed)> {
    let cols = tensor.cols();
    let extreme = target.is_some_and(|target| rows.clone().any(|row| target.is_extreme(row)));
    let ordinary =
        |largest: f32| largest.is_finite() && (target.is_none() || !range::may_lose(largest));
    let mut zeroed = Zeroed::default();
    if !extreme && raw_largest(tensor, rows.clone(), ordinary) {
        return Ok((None, zeroed));
    }
    buffers.values.resize(rows.len() * cols, 0.0f32);
    tensor.read_rows(rows.clone(), &mut buffers.values)?;
    for (row, values) in rows.zip(buffers.values.chunks_exact(cols.max(1))) {
        let largest = range::largest(values);
        if !largest.is_finite() {
            let at = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            let place = place_of(tensor, row * cols + at, values[at]);
            return Ok((Some(Fault::NonFinite(place)), zeroed));
        }
        let Some(target) = target.filter(|t| !ordinary(largest) || t.is_extreme(row)) else {
            continue;
        };
        let kind = target.target.kind;
        buffers.bytes.resize(kind.row_bytes(cols).unwrap_or_default(), 0);
        if let Some(packed) = tensor.packed()
            && integers::encode(packed, tensor, row..row + 1, kind, &mut buffers.bytes)
        {
            continue;
        }
        let matrix = row / target.rows_per_matrix;
        let columns = target.target.importance.map(|all| &all[matrix * cols..(matrix + 1) * cols]);
        ggml::encode_row(kind, values, columns, &mut buffers.bytes);
        let losses = range::losses(kind, values, columns, &buffers.bytes, &mut buffers.decoded);
        if let Some(at) = losses.beyond {
            let place = place_of(tensor, row * cols + at, values[at]);
            return Ok((Some(Fault::Beyond(place)), zeroed));
        }
        if let Some(at) = losses.first_zeroed {
            let largest = Some((row * cols + at, values[at]));
            zeroed.add(&Zeroed { rows: 1, values: losses.zeroed, largest });
        }
    }
    Ok((None, zeroed))
}

/// A value and its place in a tensor.
pub(super) fn place_of(tensor: &GgufTensor, at: usize, value: f32) -> NonFinite {
    let mut index = Vec::with_capacity(tensor.shape.len());
    let mut rest = at;
    for size in tensor.shape.iter().rev() {
        index.push(rest % size);
        rest /= size;
    }
    index.reverse();
    NonFinite { tensor: tensor.name.clone(), index, value }
}

/// Whether the stored bytes of rows show without decoding that the largest magnitude of every row is
/// `ordinary`: of types that hold values one by one, magnitudes are ordered as their bits.
fn raw_largest(tensor: &GgufTensor, rows: Range<usize>, ordinary: impl Fn(f32) -> bool) -> bool {
    let Some(bytes) = tensor.raw_rows(rows.clone()) else { return false };
    let Some(row_bytes) = tensor.source_type.row_bytes(tensor.cols()).filter(|&bytes| bytes > 0)
    else {
        return true;
    };
    // No early end within a row: a loop without one is vectorised.
    let halves = |row: &[u8]| {
        let (values, _) = row.as_chunks::<2>();
        values.iter().fold(0, |most, v| most.max(u16::from_le_bytes(*v) & 0x7fff))
    };
    bytes.chunks_exact(row_bytes).all(|row| {
        let largest = match tensor.source_type {
            StoredType::F16 => f16::from_bits(halves(row)).to_f32(),
            StoredType::BF16 => f32::from_bits(u32::from(halves(row)) << 16),
            StoredType::F32 => {
                let (values, _) = row.as_chunks::<4>();
                let most =
                    values.iter().fold(0, |most, v| most.max(u32::from_le_bytes(*v) & 0x7fff_ffff));
                f32::from_bits(most)
            }
            _ => return false,
        };
        ordinary(largest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SharedBytes;
    use crate::weight::StoredTensor;

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
                crate::codec::ggml::encode(kind, &values, &mut bytes);
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
