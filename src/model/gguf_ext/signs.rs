//! Sign matrices as rows of `Q1_0` blocks: an f16 scale, here always 1, and 128 signs, lowest bit
//! first, 1 for +1 (`block_q1_0` in `ggml-common.h`).

use rayon::prelude::*;

use crate::Result;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::codec::signs::BitMatrix;

/// Signs of a block, and bytes of it.
const BLOCK: (usize, usize) = StoredType::Q1_0.block();

/// 1 as f16.
const ONE: [u8; 2] = [0x00, 0x3c];

/// Columns with those that fill the last block.
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(BLOCK.0)
}

/// `[rows, columns]` signs as rows of blocks; the columns that fill the last block are −1.
pub(super) fn to_blocks(
    (rows, columns): (usize, usize),
    sign: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<u8> {
    let row_bytes = padded(columns) / BLOCK.0 * BLOCK.1;
    let mut bytes = vec![0; rows * row_bytes];
    bytes.par_chunks_exact_mut(row_bytes).enumerate().for_each(|(row, bytes)| {
        for (index, block) in bytes.chunks_exact_mut(BLOCK.1).enumerate() {
            block[..2].copy_from_slice(&ONE);
            let first = index * BLOCK.0;
            for column in first..(first + BLOCK.0).min(columns) {
                let bit = column - first;
                block[2 + bit / 8] |= u8::from(sign(row, column)) << (bit % 8);
            }
        }
    });
    bytes
}

/// The signs of `[rows, columns]` in rows of blocks, or what is wrong with them. `transposed` gives
/// `[columns, rows]`.
pub(super) fn from_blocks(
    bytes: &[u8],
    (rows, columns): (usize, usize),
    transposed: bool,
) -> Result<BitMatrix, String> {
    let row_bytes = padded(columns) / BLOCK.0 * BLOCK.1;
    if bytes.len() != rows * row_bytes {
        return Err(format!("{} bytes for {rows} × {columns} signs", bytes.len()));
    }
    if bytes.chunks_exact(BLOCK.1).any(|block| block[..2] != ONE) {
        return Err("a block of signs has a scale other than 1".into());
    }
    let sign = |row: usize, column: usize| {
        let block = row * row_bytes + column / BLOCK.0 * BLOCK.1;
        let bit = column % BLOCK.0;
        bytes[block + 2 + bit / 8] >> (bit % 8) & 1
    };
    let (out_rows, out_columns) = if transposed { (columns, rows) } else { (rows, columns) };
    let mut packed = vec![0u8; out_columns.div_ceil(8) * out_rows];
    packed.par_chunks_exact_mut(out_rows).enumerate().for_each(|(group, bytes)| {
        let columns = 8 * group..(8 * group + 8).min(out_columns);
        for (row, byte) in bytes.iter_mut().enumerate() {
            for (bit, column) in columns.clone().enumerate() {
                let sign = if transposed { sign(column, row) } else { sign(row, column) };
                *byte |= sign << bit;
            }
        }
    });
    BitMatrix::new(out_rows, out_columns, SharedBytes::from_vec(packed)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::ggml;

    /// ggml's own reading of the blocks gives the signs.
    #[test]
    fn blocks_decode_to_the_signs() {
        for (rows, columns) in [(1, 128), (3, 200), (5, 130), (2, 7)] {
            let sign = |row: usize, column: usize| (row * 31 + column * column) % 5 < 2;
            let bytes = to_blocks((rows, columns), sign);
            let width = padded(columns);
            let row_bytes = StoredType::Q1_0.row_bytes(width).unwrap();
            let mut values = vec![0.0; width];
            for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                ggml::decode(StoredType::Q1_0, bytes, &mut values);
                for (column, value) in values.iter().enumerate() {
                    let expected = column < columns && sign(row, column);
                    assert!((value - if expected { 1.0 } else { -1.0 }).abs() < f32::EPSILON);
                }
            }
            for transposed in [false, true] {
                let back = from_blocks(&bytes, (rows, columns), transposed).unwrap();
                for row in 0..rows {
                    for column in 0..columns {
                        let (i, j) = if transposed { (column, row) } else { (row, column) };
                        assert_eq!(back.get(i, j), sign(row, column));
                    }
                }
            }
        }
        let mut bytes = to_blocks((1, 128), |_, _| true);
        assert!(from_blocks(&bytes[1..], (1, 128), false).is_err());
        bytes[1] = 0x40;
        assert!(from_blocks(&bytes, (1, 128), false).unwrap_err().contains("scale"));
    }
}
