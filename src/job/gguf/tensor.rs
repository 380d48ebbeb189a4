//! [`GgufTensor`]: a tensor in the order of a GGUF file over the bytes of the source.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::arch::role;
use crate::codec::{StoredType, ggml};
use crate::weight::{FactorizedLinear, PackedTensor, StoredTensor};
use crate::{Error, Result};

/// How the rows of the source become those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Rows {
    /// As they are.
    #[default]
    Plain,
    /// As llama.cpp wants q and k of its `llama` architecture: the two halves of each of `heads`
    /// heads interleaved, so that the two values that rotate together are neighbours.
    RopePairs {
        /// Number of heads that the rows belong to.
        heads: usize,
    },
}

impl Rows {
    /// The row of the source that is row `row` of `rows` in the file.
    fn source_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::RopePairs { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                head * dim + (within % 2) * (dim / 2) + within / 2
            }
        }
    }
}

/// A tensor as the file will hold it, read from the source row by row: reordered, stacked and
/// changed on the way.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// Dimensions, outermost first; none of 1 in front, as ggml counts them.
    pub shape: Vec<usize>,
    /// The type that a file at full precision holds it in: that of the source, but F32 for the small
    /// tensors that llama.cpp takes in no other type.
    pub source_type: StoredType,
    /// What it is made of: one tensor, or the slices of a stack in order. All of one type, all of
    /// the same number of rows and columns.
    parts: Vec<StoredTensor>,
    rows: Rows,
    /// Added to every value.
    plus: f32,
    /// What every value is multiplied with after that.
    times: f32,
    /// Binary factors in place of the one part, of which only the shape counts then.
    factors: Option<Arc<FactorizedLinear>>,
    /// Packed integers in place of the one part, of which only the shape counts then.
    packed: Option<PackedTensor>,
}

impl GgufTensor {
    /// A tensor as it is in the source.
    pub(super) fn new(name: impl Into<String>, tensor: StoredTensor) -> Self {
        let ones = tensor.shape.iter().take_while(|&&size| size == 1).count();
        let shape = tensor.shape[ones.min(tensor.shape.len().saturating_sub(1))..].to_vec();
        Self {
            name: name.into(),
            shape,
            source_type: tensor.dtype,
            parts: vec![tensor],
            rows: Rows::Plain,
            plus: 0.0,
            times: 1.0,
            factors: None,
            packed: None,
        }
    }

    /// Takes the values from binary factors of the tensor's shape.
    pub(super) fn set_factors(&mut self, linear: FactorizedLinear) {
        self.factors = Some(Arc::new(linear));
    }

    /// Takes the values from packed integers of the tensor's shape.
    pub(super) fn set_packed(&mut self, packed: PackedTensor) {
        self.packed = Some(packed);
    }

    /// The packed integers that the values come from, if they do.
    #[must_use]
    pub fn packed(&self) -> Option<&PackedTensor> {
        self.packed.as_ref()
    }

    /// The row of the source that becomes row `row` of the file.
    pub(super) fn source_row(&self, row: usize) -> usize {
        self.place(row).1
    }

    /// A stack of matrices `[rows, cols]`, which becomes one tensor `[parts, rows, cols]`.
    ///
    /// # Errors
    /// [`Error::General`] if they are not of one shape and type.
    pub(super) fn stack(name: impl Into<String>, parts: Vec<StoredTensor>) -> Result<Self> {
        let name = name.into();
        let Some(first) = parts.first() else {
            return Err(Error::General(format!("{name} is a stack of nothing")));
        };
        if parts.iter().any(|part| part.shape != first.shape || part.dtype != first.dtype) {
            return Err(Error::General(format!(
                "the slices of {name} are not all of one shape and type"
            )));
        }
        let mut shape = vec![parts.len()];
        shape.extend(&first.shape);
        Ok(Self {
            name,
            shape,
            source_type: first.dtype,
            parts,
            rows: Rows::Plain,
            plus: 0.0,
            times: 1.0,
            factors: None,
            packed: None,
        })
    }

    /// The same with rows in another order. A vector's values are its rows.
    pub(super) fn with_rows(mut self, rows: Rows) -> Self {
        self.rows = rows;
        self
    }

    /// The same as F32, whatever the source stores.
    pub(super) fn in_f32(mut self) -> Self {
        self.source_type = StoredType::F32;
        self
    }

    /// The same with a number added to every value.
    pub(super) fn plus(mut self, number: f32) -> Self {
        self.plus = number;
        self
    }

    /// The same with every value multiplied. Not for packed integers, which would no longer be those
    /// of the source.
    pub(super) fn times(mut self, number: f32) -> Self {
        self.times = number;
        self
    }

    /// Whether values are multiplied on the way.
    pub(super) fn is_scaled(&self) -> bool {
        self.times.to_bits() != 1.0f32.to_bits()
    }

    /// Whether another tensor has the values of this one, one by one. Those of what is packed or in
    /// factors are not looked at: they are other ones.
    pub(super) fn has_values_of(&self, other: &StoredTensor) -> bool {
        const ROWS: usize = 64;
        let cols = self.cols();
        let whole = |tensor: &StoredTensor| {
            tensor.dtype.byte_length(&tensor.shape) == Some(tensor.bytes.len())
        };
        if !self.parts.iter().all(whole) || !whole(other) || other.elements() != self.elements() {
            return false;
        }
        if let [part] = self.parts.as_slice()
            && part.dtype == other.dtype
            && part.bytes[..] == other.bytes[..]
        {
            return true;
        }
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        (0..self.rows()).step_by(ROWS).all(|from| {
            let rows = from..self.rows().min(from + ROWS);
            own.resize(rows.len() * cols, 0.0f32);
            theirs.resize(rows.len() * cols, 0.0f32);
            if self.read_rows(rows.clone(), &mut own).is_err() {
                return false;
            }
            other.read_rows(rows, &mut theirs);
            // Equal numbers, and the same bits where they are none.
            #[expect(clippy::float_cmp, reason = "the same numbers are asked for")]
            let same = |(a, b): (&f32, &f32)| a == b || a.to_bits() == b.to_bits();
            own.iter().zip(&theirs).all(same)
        })
    }

    /// Number of values.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the source takes for it.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        match (&self.factors, &self.packed) {
            (Some(factors), _) => factors.bits() / 8,
            (None, Some(packed)) => packed.stored_bytes() as u64,
            (None, None) => self.parts.iter().map(|part| part.bytes.len() as u64).sum(),
        }
    }

    /// Rows: the product of all dimensions but the last. A vector is one row.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Columns: the last dimension.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Whether a level may choose another type for it.
    #[must_use]
    pub fn may_be_quantized(&self) -> bool {
        role::may_be_quantized(&self.name, &self.shape) && !self.stored_type().is_copied()
    }

    /// The type that the source stores it in.
    pub(super) fn stored_type(&self) -> StoredType {
        self.parts.first().map_or(self.source_type, |part| part.dtype)
    }

    /// A vector whose values are reordered.
    fn is_reordered_vector(&self) -> bool {
        self.shape.len() == 1 && self.rows != Rows::Plain
    }

    /// The part and the row in it that hold a row of the file.
    fn place(&self, row: usize) -> (&StoredTensor, usize) {
        let per_part = self.rows() / self.parts.len();
        let part = &self.parts[row / per_part];
        let row = if self.shape.len() == 1 { 0 } else { row % per_part };
        (part, if self.is_reordered_vector() { 0 } else { self.rows.source_row(row, per_part) })
    }

    /// Decodes `rows` into `out`, which is `[rows.len(), cols]`, with everything applied. Takes no
    /// memory beyond `out` but for vectors, and for the unpacked signs of factors.
    ///
    /// # Errors
    /// [`Error::General`] if `out` has another length or the range is outside of the tensor,
    /// [`Error::Unsupported`] if values of this type cannot be decoded.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        if rows.end > self.rows() || rows.start > rows.end || out.len() != rows.len() * cols {
            return Err(Error::General(format!(
                "rows {rows:?} of {} do not fit into {} values",
                self.name,
                out.len()
            )));
        }
        let stored = self.stored_type();
        if !ggml::can_decode(stored) {
            return Err(Error::Unsupported {
                message: format!("{} has type {}", self.name, stored.name()),
                suggestion: "Its values cannot be read, only copied: use a model of another type"
                    .to_owned(),
            });
        }
        if let Some(factors) = &self.factors {
            match self.rows {
                Rows::Plain => factors.reconstruct_rows(rows, out),
                Rows::RopePairs { .. } => {
                    // Together: each call unpacks the whole right factor. Places of neighbours lie
                    // within a head.
                    let places: Vec<usize> = rows.map(|row| self.place(row).1).collect();
                    let first = places.iter().copied().min().unwrap_or(0);
                    let end = places.iter().map(|place| place + 1).max().unwrap_or(first);
                    let mut span = vec![0.0; (end - first) * cols];
                    factors.reconstruct_rows(first..end, &mut span);
                    for (place, out) in places.iter().zip(out.chunks_exact_mut(cols)) {
                        let from = (place - first) * cols;
                        out.copy_from_slice(&span[from..from + cols]);
                    }
                }
            }
            return Ok(());
        }
        if let Some(packed) = &self.packed {
            if self.rows == Rows::Plain {
                packed.read_rows(rows, out);
                return Ok(());
            }
            for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                let (_, row) = self.place(row);
                packed.read_rows(row..row + 1, out);
            }
            return Ok(());
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let (part, row) = self.place(row);
            ggml::decode(part.dtype, part.row_bytes(row), out);
            if self.is_reordered_vector() {
                let values = out.to_vec();
                for (at, value) in out.iter_mut().enumerate() {
                    *value = values[self.rows.source_row(at, cols)];
                }
            }
            if self.plus != 0.0 {
                out.iter_mut().for_each(|value| *value += self.plus);
            }
            if self.is_scaled() {
                out.iter_mut().for_each(|value| *value *= self.times);
            }
        }
        Ok(())
    }

    /// The bytes of `rows` in [`Self::source_type`], exact: the stored ones where they need no
    /// change, borrowed where they lie in one piece. `None` if they would have to be encoded.
    #[must_use]
    pub fn raw_rows(&self, rows: Range<usize>) -> Option<Cow<'_, [u8]>> {
        if rows.end > self.rows() || rows.start > rows.end {
            return None;
        }
        if rows.is_empty() {
            return Some(Cow::Borrowed(&[]));
        }
        let elsewhere = self.factors.is_some() || self.packed.is_some();
        let changed =
            self.plus != 0.0 || self.is_scaled() || elsewhere || self.is_reordered_vector();
        if changed || self.stored_type() != self.source_type {
            if self.source_type != StoredType::F32 {
                return None;
            }
            let mut values = vec![0.0; rows.len() * self.cols()];
            self.read_rows(rows, &mut values).ok()?;
            return Some(Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        }
        let length = self.source_type.row_bytes(self.cols())?;
        let per_part = self.rows() / self.parts.len();
        let one_part = rows.start / per_part == (rows.end - 1) / per_part;
        if self.rows == Rows::Plain && one_part {
            let (part, first) = self.place(rows.start);
            let at = first * length;
            return part.bytes.get(at..at + rows.len() * length).map(Cow::Borrowed);
        }
        let mut bytes = Vec::with_capacity(rows.len() * length);
        for row in rows {
            let (part, row) = self.place(row);
            bytes.extend_from_slice(part.row_bytes(row));
        }
        Some(Cow::Owned(bytes))
    }

    /// Gives the mapped pages of the source back to the system; they are read again when needed.
    pub fn release(&self) {
        self.parts.iter().for_each(|part| part.bytes.release());
        if let Some(packed) = &self.packed {
            packed.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SharedBytes;

    fn stored(shape: &[usize], values: impl IntoIterator<Item = f32>) -> StoredTensor {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        StoredTensor::new(shape.to_vec(), StoredType::F32, SharedBytes::from_vec(bytes)).unwrap()
    }

    fn counting(shape: &[usize], from: usize) -> StoredTensor {
        let count: usize = shape.iter().product();
        stored(shape, (from..from + count).map(|i| i as f32))
    }

    fn all(tensor: &GgufTensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.elements()];
        tensor.read_rows(0..tensor.rows(), &mut out).unwrap();
        out
    }

    /// The converter's own words for it: reshape to [heads, 2, d/2], swap the last two, flatten.
    #[test]
    fn rows_of_q_and_k_are_interleaved_within_heads() {
        let source = counting(&[12, 1], 0);
        let tensor = GgufTensor::new("q", source).with_rows(Rows::RopePairs { heads: 2 });
        let mut expected = Vec::new();
        for head in 0..2 {
            for pair in 0..3 {
                for half in 0..2 {
                    expected.push((head * 6 + half * 3 + pair) as f32);
                }
            }
        }
        assert_eq!(all(&tensor), expected);
        let raw = tensor.raw_rows(0..12).unwrap();
        let bytes: Vec<u8> = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(*raw, *bytes);

        let bias = GgufTensor::new("b", counting(&[12], 0)).with_rows(Rows::RopePairs { heads: 2 });
        assert_eq!(all(&bias), expected);
        assert_eq!(*bias.raw_rows(0..1).unwrap(), *bytes);
    }

    #[test]
    fn experts_are_stacked_without_being_copied() {
        let parts = vec![counting(&[2, 3], 0), counting(&[2, 3], 6), counting(&[2, 3], 12)];
        let tensor = GgufTensor::stack("e", parts).unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.rows()), (&[3, 2, 3][..], 6));
        assert_eq!(all(&tensor), (0..18).map(|i| i as f32).collect::<Vec<_>>());
        let mut one = [0.0; 3];
        tensor.read_rows(3..4, &mut one).unwrap();
        assert_eq!(one.to_vec(), [9.0, 10.0, 11.0]);
        assert!(matches!(tensor.raw_rows(2..4), Some(Cow::Borrowed(bytes)) if bytes.len() == 24));
        assert!(matches!(tensor.raw_rows(1..3), Some(Cow::Owned(bytes)) if bytes.len() == 24));
        assert!(GgufTensor::stack("e", vec![counting(&[2, 3], 0), counting(&[3, 2], 0)]).is_err());
    }

    #[test]
    fn values_that_change_are_raw_only_as_f32() {
        let tensor = GgufTensor::new("n", stored(&[1, 2], [0.5, -1.0])).plus(1.0);
        assert_eq!(tensor.shape, [2]);
        assert_eq!(all(&tensor), [1.5, 0.0]);
        let bytes = [1.5f32, 0.0].map(f32::to_le_bytes).concat();
        assert_eq!(*tensor.raw_rows(0..1).unwrap(), *bytes);

        let halves = SharedBytes::from_vec(vec![0x00, 0x3c, 0x00, 0xb8]);
        let halves = StoredTensor::new(vec![2], StoredType::F16, halves).unwrap();
        let tensor = GgufTensor::new("h", halves.clone());
        assert_eq!(*tensor.raw_rows(0..1).unwrap(), *halves.bytes);
        assert!(tensor.clone().plus(1.0).raw_rows(0..1).is_none());
        let tensor = tensor.in_f32();
        assert_eq!((tensor.source_type, tensor.source_bytes()), (StoredType::F32, 4));
        let bytes = [1.0f32, -0.5].map(f32::to_le_bytes).concat();
        assert_eq!(*tensor.raw_rows(0..1).unwrap(), *bytes);
        assert!(tensor.read_rows(0..2, &mut [0.0; 4]).is_err());
    }
}
