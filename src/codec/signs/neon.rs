//! The NEON kernel: byte lookups of the four bytes of a float.
//!
//! A table of sixteen floats is split into four tables of sixteen bytes, one per byte of the
//! float. `tbl` looks up sixteen rows in each of them, and interleaving the four results gives the
//! floats back, unchanged.

#![allow(unsafe_code, reason = "vector loads and stores at computed addresses")]
#![expect(clippy::needless_range_loop, reason = "registers are arrays with constant indices")]

use std::arch::aarch64::{
    float32x4_t, uint8x16_t, vaddq_f32, vandq_u8, vdupq_n_f32, vdupq_n_u8, vld1q_f32, vld1q_u8,
    vld4q_u8, vmulq_n_f32, vqtbl1q_u8, vreinterpretq_f32_u16, vreinterpretq_u16_u8, vshrq_n_u8,
    vst1q_f32, vzip1q_u8, vzip1q_u16, vzip2q_u8, vzip2q_u16,
};

use super::{Product, SIGNS};

/// Rows that are summed before the next ones, so that the sums stay in the first cache levels.
const BLOCK_ROWS: usize = 8192;

/// The sums of four columns, byte by byte: `[b][e]` is byte `b` of entry `e`.
type Table = [uint8x16_t; 4];

/// Computes the product.
pub(super) fn run<const T: usize>(mut product: Product<'_, T>) {
    // SAFETY: a `Kernel` for NEON exists only where the processor has these instructions.
    unsafe { multiply(&mut product) }
}

#[target_feature(enable = "neon")]
fn multiply<const T: usize>(product: &mut Product<'_, T>) {
    let Product { bytes, stride, groups, first_row, count, x, ref mut out } = *product;
    for start in (0..count).step_by(BLOCK_ROWS / T) {
        let rows = (count - start).min(BLOCK_ROWS / T);
        let mut sums = [std::ptr::null_mut::<f32>(); T];
        for k in 0..T {
            sums[k] = out[k][start..start + rows].as_mut_ptr();
        }
        let mut group = 0;
        while group < groups {
            let mut columns = [std::ptr::null::<f32>(); T];
            for k in 0..T {
                columns[k] = x[k][8 * group..].as_ptr();
            }
            let tail = &bytes[group * stride + first_row + start..];
            let block = Block { tail, stride, rows, columns, out: sums };
            // Tables of two groups for one vector, or of one for two, take half the registers.
            // SAFETY: a block of `n` groups is added only when `n` are left, so `tail` reaches to
            // byte `(n - 1) * stride + rows`, `columns` to entry `8 * n`, and `out` to `rows`.
            unsafe {
                if T == 1 && groups - group >= 2 {
                    block.add::<2>();
                    group += 2;
                } else {
                    block.add::<1>();
                    group += 1;
                }
            }
        }
    }
}

/// Some rows of the column groups that start at `tail`.
struct Block<'a, const T: usize> {
    /// From the first row in the first group to the end of the matrix.
    tail: &'a [u8],
    stride: usize,
    rows: usize,
    columns: [*const f32; T],
    out: [*mut f32; T],
}

impl<const T: usize> Block<'_, T> {
    /// Adds `G` column groups.
    ///
    /// # Safety
    /// `tail` has at least `(G - 1) * stride + rows` bytes, `columns[k]` points to `8 * G` values
    /// and `out[k]` to `rows` values that nothing else uses.
    #[target_feature(enable = "neon")]
    unsafe fn add<const G: usize>(&self) {
        let mut tables = [[[[vdupq_n_u8(0); 4]; 2]; G]; T];
        for k in 0..T {
            for g in 0..G {
                for half in 0..2 {
                    // SAFETY: `8 * g + 4 * half + 4 <= 8 * G`.
                    tables[k][g][half] = unsafe { table(self.columns[k].add(8 * g + 4 * half)) };
                }
            }
        }
        let mut row = 0;
        while row + 16 <= self.rows {
            let mut sums = [[vdupq_n_f32(0.0); 4]; T];
            for k in 0..T {
                for j in 0..4 {
                    // SAFETY: `row + 16 <= rows`, the length of `out[k]`.
                    sums[k][j] = unsafe { vld1q_f32(self.out[k].add(row + 4 * j)) };
                }
            }
            for g in 0..G {
                // SAFETY: sixteen rows of a group inside `tail`.
                let bytes = unsafe { vld1q_u8(self.tail.as_ptr().add(g * self.stride + row)) };
                for k in 0..T {
                    accumulate(&mut sums[k], &tables[k][g], bytes);
                }
            }
            for k in 0..T {
                for j in 0..4 {
                    // SAFETY: as for the loads.
                    unsafe { vst1q_f32(self.out[k].add(row + 4 * j), sums[k][j]) };
                }
            }
            row += 16;
        }
        if row < self.rows {
            // SAFETY: fewer than sixteen rows are left.
            unsafe { self.add_last(row, &tables) };
        }
    }

    /// Adds the last rows, fewer than sixteen.
    ///
    /// # Safety
    /// As [`add`](Self::add), with `row < rows < row + 16`.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_last<const G: usize>(&self, row: usize, tables: &[[[Table; 2]; G]; T]) {
        let count = self.rows - row;
        for k in 0..T {
            // SAFETY: `row + count <= rows`, the length of `out[k]`, and nothing else uses it.
            let present = unsafe { std::slice::from_raw_parts_mut(self.out[k].add(row), count) };
            let mut values = [0.0_f32; 16];
            values[..count].copy_from_slice(present);
            let mut sums = [vdupq_n_f32(0.0); 4];
            for j in 0..4 {
                // SAFETY: `values` has sixteen entries.
                sums[j] = unsafe { vld1q_f32(values.as_ptr().add(4 * j)) };
            }
            for g in 0..G {
                let mut bytes = [0_u8; 16];
                bytes[..count].copy_from_slice(&self.tail[g * self.stride + row..][..count]);
                // SAFETY: `bytes` has sixteen entries.
                accumulate(&mut sums, &tables[k][g], unsafe { vld1q_u8(bytes.as_ptr()) });
            }
            for j in 0..4 {
                // SAFETY: as for the load.
                unsafe { vst1q_f32(values.as_mut_ptr().add(4 * j), sums[j]) };
            }
            present.copy_from_slice(&values[..count]);
        }
    }
}

/// Adds the sum over eight columns to sixteen rows.
#[inline]
#[target_feature(enable = "neon")]
fn accumulate(sums: &mut [float32x4_t; 4], tables: &[Table; 2], bytes: uint8x16_t) {
    let low = lookup(&tables[0], vandq_u8(bytes, vdupq_n_u8(15)));
    let high = lookup(&tables[1], vshrq_n_u8::<4>(bytes));
    for j in 0..4 {
        sums[j] = vaddq_f32(sums[j], vaddq_f32(low[j], high[j]));
    }
}

/// The entries of sixteen indices below sixteen.
#[inline]
#[target_feature(enable = "neon")]
fn lookup(table: &Table, index: uint8x16_t) -> [float32x4_t; 4] {
    let byte = table.map(|plane| vqtbl1q_u8(plane, index));
    // Bytes 0 and 1 make the lower half of a float, bytes 2 and 3 the upper one.
    let lower = [vzip1q_u8(byte[0], byte[1]), vzip2q_u8(byte[0], byte[1])];
    let upper = [vzip1q_u8(byte[2], byte[3]), vzip2q_u8(byte[2], byte[3])];
    let lower = lower.map(|half| vreinterpretq_u16_u8(half));
    let upper = upper.map(|half| vreinterpretq_u16_u8(half));
    [
        vreinterpretq_f32_u16(vzip1q_u16(lower[0], upper[0])),
        vreinterpretq_f32_u16(vzip2q_u16(lower[0], upper[0])),
        vreinterpretq_f32_u16(vzip1q_u16(lower[1], upper[1])),
        vreinterpretq_f32_u16(vzip2q_u16(lower[1], upper[1])),
    ]
}

/// The sixteen signed sums of four values; products with ±1 are exact.
///
/// # Safety
/// Four values are readable at `x`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn table(x: *const f32) -> Table {
    let mut entries = [0.0_f32; 16];
    for quarter in 0..4 {
        // SAFETY: every row of `SIGNS` has sixteen values, `x` has four, `entries` sixteen.
        unsafe {
            let term = |column: usize| {
                let signs = vld1q_f32(SIGNS[column].as_ptr().add(4 * quarter));
                vmulq_n_f32(signs, *x.add(column))
            };
            let sum = vaddq_f32(term(0), term(1));
            let sum = vaddq_f32(vaddq_f32(sum, term(2)), term(3));
            vst1q_f32(entries.as_mut_ptr().add(4 * quarter), sum);
        }
    }
    // SAFETY: 64 bytes, de-interleaved by four.
    let planes = unsafe { vld4q_u8(entries.as_ptr().cast()) };
    [planes.0, planes.1, planes.2, planes.3]
}
