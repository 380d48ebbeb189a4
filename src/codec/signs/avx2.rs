//! The AVX2 kernel: two permutations and a blend look up eight rows.
//!
//! `vpermps` selects one of eight values by the low three bits of each 32-bit lane; the fourth bit,
//! shifted to the sign, selects between the two halves of a table. As in the AVX-512 kernel, loads
//! at offsets 0 to 3 bring the bytes of every fourth row into position without spreading them.

#![allow(unsafe_code, reason = "vector loads and stores at computed addresses")]
#![expect(clippy::needless_range_loop, reason = "registers are arrays with constant indices")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm256_add_ps, _mm256_blendv_ps, _mm256_castsi256_ps,
    _mm256_cvtepu8_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
    _mm256_permutevar8x32_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_srli_epi32, _mm256_storeu_ps,
};

use super::{Product, SIGNS};

/// Rows that are summed before the next ones, so that the sums stay in the first cache levels.
const BLOCK_ROWS: usize = 8192;

/// The sums of four columns: entries 0 to 7 and 8 to 15.
type Table = [__m256; 2];

/// Computes the product.
pub(super) fn run<const T: usize>(mut product: Product<'_, T>) {
    // SAFETY: a `Kernel` for AVX2 exists only where the processor has these instructions.
    unsafe { multiply(&mut product) }
}

#[target_feature(enable = "avx2")]
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
            // SAFETY: a block of `n` groups is added only when `n` are left, so `tail` reaches to
            // byte `(n - 1) * stride + rows`, `columns` to entry `8 * n`, and `out` to `rows`.
            unsafe {
                if groups - group >= 4 {
                    block.add::<4>();
                    group += 4;
                } else {
                    block.add::<1>();
                    group += 1;
                }
            }
        }
        for k in 0..T {
            for chunk in out[k][start..start + rows].chunks_exact_mut(32) {
                put_in_order(chunk);
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
    /// Adds `G` column groups. In `out`, the first `32 * (rows / 32)` sums are in the order of
    /// [`put_in_order`], before it.
    ///
    /// # Safety
    /// `tail` has at least `(G - 1) * stride + rows` bytes, `columns[k]` points to `8 * G` values
    /// and `out[k]` to `rows` values that nothing else uses.
    #[target_feature(enable = "avx2")]
    unsafe fn add<const G: usize>(&self) {
        let mut tables = [[[[_mm256_setzero_ps(); 2]; 2]; G]; T];
        for k in 0..T {
            for g in 0..G {
                for half in 0..2 {
                    // SAFETY: `8 * g + 4 * half + 4 <= 8 * G`.
                    tables[k][g][half] = unsafe { table(self.columns[k].add(8 * g + 4 * half)) };
                }
            }
        }
        let mut row = 0;
        while row + 32 <= self.rows {
            // The loads at offsets 1 to 3 reach three bytes further than the rows.
            let overlapping = (G - 1) * self.stride + row + 35 <= self.tail.len();
            // SAFETY: `row + 32 <= rows`, and three more bytes exist if `overlapping`.
            unsafe {
                if overlapping {
                    self.add_32::<G, true>(row, &tables);
                } else {
                    self.add_32::<G, false>(row, &tables);
                }
            }
            row += 32;
        }
        while row < self.rows {
            // SAFETY: `row < rows`.
            unsafe { self.add_8(row, &tables) };
            row += 8;
        }
    }

    /// Adds 32 rows.
    ///
    /// # Safety
    /// As [`add`](Self::add), with `row + 32 <= rows`, and with three readable bytes more if
    /// `OVERLAPPING`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_32<const G: usize, const OVERLAPPING: bool>(
        &self,
        row: usize,
        tables: &[[[Table; 2]; G]; T],
    ) {
        let mut sums = [[_mm256_setzero_ps(); 4]; T];
        for k in 0..T {
            for j in 0..4 {
                // SAFETY: `row + 32 <= rows`, the length of `out[k]`.
                sums[k][j] = unsafe { _mm256_loadu_ps(self.out[k].add(row + 8 * j)) };
            }
        }
        for g in 0..G {
            // SAFETY: inside `tail`, which has `(G - 1) * stride + rows` bytes; 32 bytes from
            // there belong to these rows, and with `OVERLAPPING` three more are readable.
            let indices = unsafe {
                every_fourth_row::<OVERLAPPING>(self.tail.as_ptr().add(g * self.stride + row))
            };
            for j in 0..4 {
                for k in 0..T {
                    sums[k][j] = _mm256_add_ps(sums[k][j], lookup(&tables[k][g], indices[j]));
                }
            }
        }
        for k in 0..T {
            for j in 0..4 {
                // SAFETY: as for the loads.
                unsafe { _mm256_storeu_ps(self.out[k].add(row + 8 * j), sums[k][j]) };
            }
        }
    }

    /// Adds the last rows, at most eight.
    ///
    /// # Safety
    /// As [`add`](Self::add), with `row < rows`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_8<const G: usize>(&self, row: usize, tables: &[[[Table; 2]; G]; T]) {
        let count = (self.rows - row).min(8);
        let mut sums = [[0.0_f32; 8]; T];
        for k in 0..T {
            // SAFETY: `row + count <= rows`, the length of `out[k]`.
            let present = unsafe { std::slice::from_raw_parts(self.out[k].add(row), count) };
            sums[k][..count].copy_from_slice(present);
        }
        for g in 0..G {
            let mut bytes = [0_u8; 8];
            bytes[..count].copy_from_slice(&self.tail[g * self.stride + row..][..count]);
            for k in 0..T {
                // SAFETY: both arrays have eight entries.
                unsafe {
                    let indices = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast()));
                    let sum = _mm256_loadu_ps(sums[k].as_ptr());
                    let sum = _mm256_add_ps(sum, lookup(&tables[k][g], indices));
                    _mm256_storeu_ps(sums[k].as_mut_ptr(), sum);
                }
            }
        }
        for k in 0..T {
            // SAFETY: as for the copy in, and nothing else uses these values.
            let present = unsafe { std::slice::from_raw_parts_mut(self.out[k].add(row), count) };
            present.copy_from_slice(&sums[k][..count]);
        }
    }
}

/// Vectors whose lane `k` has the byte of row `4k + j` in its low eight bits, for `j` in 0 to 3.
///
/// # Safety
/// 32 bytes are readable at `address`, 35 if `OVERLAPPING`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn every_fourth_row<const OVERLAPPING: bool>(address: *const u8) -> [__m256i; 4] {
    // SAFETY: the offsets are at most 3, and only if `OVERLAPPING`.
    unsafe {
        let first = _mm256_loadu_si256(address.cast());
        if OVERLAPPING {
            [
                first,
                _mm256_loadu_si256(address.add(1).cast()),
                _mm256_loadu_si256(address.add(2).cast()),
                _mm256_loadu_si256(address.add(3).cast()),
            ]
        } else {
            [
                first,
                _mm256_srli_epi32::<8>(first),
                _mm256_srli_epi32::<16>(first),
                _mm256_srli_epi32::<24>(first),
            ]
        }
    }
}

/// The sum over eight columns of eight rows, whose bytes are the lowest of each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup(tables: &[Table; 2], byte: __m256i) -> __m256 {
    let low = select(&tables[0], byte, _mm256_slli_epi32::<28>(byte));
    let high = select(&tables[1], _mm256_srli_epi32::<4>(byte), _mm256_slli_epi32::<24>(byte));
    _mm256_add_ps(low, high)
}

/// The entry by the low three bits of `index`, from the second half where `upper` is negative.
#[inline]
#[target_feature(enable = "avx2")]
fn select(table: &Table, index: __m256i, upper: __m256i) -> __m256 {
    _mm256_blendv_ps(
        _mm256_permutevar8x32_ps(table[0], index),
        _mm256_permutevar8x32_ps(table[1], index),
        _mm256_castsi256_ps(upper),
    )
}

/// The sixteen signed sums of four values; products with ±1 are exact.
///
/// # Safety
/// Four values are readable at `x`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn table(x: *const f32) -> Table {
    let mut halves = [_mm256_setzero_ps(); 2];
    for (half, entries) in halves.iter_mut().enumerate() {
        // SAFETY: every row of `SIGNS` has sixteen values, and `x` has four.
        let term = |column: usize| unsafe {
            let signs = _mm256_loadu_ps(SIGNS[column].as_ptr().add(8 * half));
            _mm256_mul_ps(signs, _mm256_set1_ps(*x.add(column)))
        };
        let sum = _mm256_add_ps(term(0), term(1));
        *entries = _mm256_add_ps(_mm256_add_ps(sum, term(2)), term(3));
    }
    halves
}

/// Sorts 32 sums: what is at `8 * j + k` belongs to row `4 * k + j`.
fn put_in_order(sums: &mut [f32]) {
    let mut sorted = [0.0; 32];
    for (row, sum) in sorted.iter_mut().enumerate() {
        *sum = sums[8 * (row % 4) + row / 4];
    }
    sums.copy_from_slice(&sorted);
}
