//! Packed signs: the one layout in which they are stored, mapped and multiplied.

use std::ops::Range;

use crate::base::SharedBytes;
use crate::{Error, Result};

/// Rows that [`BitMatrix::from_signs`] packs together, so that the strided writes of neighbouring
/// rows fall into the same cache lines.
const PACK_ROWS: usize = 64;

/// A matrix of signs, one bit each.
///
/// Eight columns of a row make a byte (bit `j`, least significant first, is column `8c + j`; set
/// means +1). Bytes are stored column group by column group: byte `c * rows + i` belongs to row
/// `i`. Neighbouring rows are neighbouring bytes, which is what the kernels read. Columns beyond
/// `cols` in the last group are zero bits.
#[derive(Debug, Clone)]
pub struct BitMatrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `ceil(cols / 8) * rows` bytes.
    pub bytes: SharedBytes,
}

impl BitMatrix {
    /// Bytes that a matrix `[rows, cols]` takes, or `None` when the number does not fit.
    #[must_use]
    pub fn byte_length(rows: usize, cols: usize) -> Option<usize> {
        cols.div_ceil(8).checked_mul(rows)
    }

    /// Takes over packed bytes, for instance a section of a mapped file.
    ///
    /// # Errors
    /// [`Error::Reconstruction`] when a dimension is zero, the length is not
    /// [`byte_length`](Self::byte_length), or a bit beyond the last column is set. Reads the last
    /// column group at most.
    pub fn new(rows: usize, cols: usize, bytes: SharedBytes) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::Reconstruction(format!(
                "a sign matrix of {rows} × {cols} is empty"
            )));
        }
        if Self::byte_length(rows, cols) != Some(bytes.len()) {
            return Err(Error::Reconstruction(format!(
                "a sign matrix of {rows} × {cols} has {} bytes instead of ceil({cols} / 8) × {rows}",
                bytes.len()
            )));
        }
        let used = cols % 8;
        if used != 0 {
            let last_group = &bytes[bytes.len() - rows..];
            if let Some(row) = last_group.iter().position(|byte| byte >> used != 0) {
                return Err(Error::Reconstruction(format!(
                    "row {row} of a sign matrix of {rows} × {cols} has bits beyond its last column"
                )));
            }
        }
        Ok(Self { rows, cols, bytes })
    }

    /// Packs the signs of `values`, `[rows, cols]` row-major. Zero of either sign counts as +1, so
    /// that every entry has a sign; NaN counts as -1.
    ///
    /// # Panics
    /// When a dimension is zero or `values` is not `rows * cols` long.
    #[must_use]
    pub fn from_signs(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert!(rows > 0 && cols > 0, "a sign matrix of {rows} × {cols} is empty");
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "values are not [rows, cols]");
        let mut bytes = vec![0_u8; cols.div_ceil(8) * rows];
        for first in (0..rows).step_by(PACK_ROWS) {
            let last = (first + PACK_ROWS).min(rows);
            for (group, column) in bytes.chunks_exact_mut(rows).enumerate() {
                for (row, byte) in (first..last).zip(&mut column[first..last]) {
                    let from = row * cols + 8 * group;
                    let to = (from + 8).min((row + 1) * cols);
                    *byte = pack(&values[from..to]);
                }
            }
        }
        Self { rows, cols, bytes: SharedBytes::from_vec(bytes) }
    }

    /// Column groups of eight, the last one possibly incomplete.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(8)
    }

    /// Whether the entry is +1.
    ///
    /// # Panics
    /// When `row` or `column` is outside the matrix.
    #[must_use]
    pub fn get(&self, row: usize, column: usize) -> bool {
        assert!(row < self.rows && column < self.cols, "entry ({row}, {column}) does not exist");
        self.bytes[(column / 8) * self.rows + row] >> (column % 8) & 1 == 1
    }

    /// Writes the given rows as ±1.0, `[rows.len(), cols]` row-major.
    ///
    /// # Panics
    /// When `rows` is outside the matrix or `out` has another size.
    pub fn unpack_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows, "rows {rows:?} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), rows.len() * self.cols, "out is not [rows, cols]");
        let bytes: &[u8] = &self.bytes;
        for (row, line) in rows.zip(out.chunks_exact_mut(self.cols)) {
            for (group, eight) in line.chunks_mut(8).enumerate() {
                unpack(bytes[group * self.rows + row], eight);
            }
        }
    }

    /// Writes the columns of the given groups as ±1.0, `[rows, w]` row-major, where `w` counts the
    /// columns of these groups (fewer than eight in the last group of the matrix).
    ///
    /// # Panics
    /// When `groups` is outside the matrix or `out` has another size.
    pub fn unpack_groups(&self, groups: Range<usize>, out: &mut [f32]) {
        assert!(groups.end <= self.groups(), "groups {groups:?} of {} groups", self.groups());
        let width = (8 * groups.end).min(self.cols) - (8 * groups.start).min(self.cols);
        assert_eq!(out.len(), self.rows * width, "out is not [rows, columns of the groups]");
        if width == 0 {
            return;
        }
        let bytes: &[u8] = &self.bytes;
        for (row, line) in out.chunks_exact_mut(width).enumerate() {
            for (group, eight) in groups.clone().zip(line.chunks_mut(8)) {
                unpack(bytes[group * self.rows + row], eight);
            }
        }
    }
}

/// At most eight values to one byte.
fn pack(values: &[f32]) -> u8 {
    values.iter().enumerate().fold(0, |byte, (j, value)| byte | u8::from(*value >= 0.0) << j)
}

/// One byte to at most eight values.
fn unpack(byte: u8, out: &mut [f32]) {
    for (j, value) in out.iter_mut().enumerate() {
        *value = if byte >> j & 1 == 1 { 1.0 } else { -1.0 };
    }
}
