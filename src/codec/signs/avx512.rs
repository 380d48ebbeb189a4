//! The AVX-512 kernel: one permutation looks up sixteen rows.
//!
//! `vpermps` selects by the low four bits of each 32-bit lane and ignores the others, so the bytes
//! need not be spread first: loaded at offset `j`, lane `k` of a vector has the byte of row
//! `4k + j` in its lowest eight bits. Four overlapping loads and four shifts serve 64 rows of a
//! column group. The four sums hold every fourth row; they are put in order at the end.
//!
//! Rows stream past the tables of a few column groups, which stay in registers, because that reads
//! the bytes of a group consecutively.

#![allow(unsafe_code, reason = "vector loads and stores at computed addresses")]
#![expect(clippy::needless_range_loop, reason = "registers are arrays with constant indices")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_maskz_loadu_epi8, _mm_prefetch, _mm512_add_ps,
    _mm512_cvtepu8_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permutex2var_ps,
    _mm512_permutexvar_ps, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_srli_epi32,
    _mm512_storeu_ps,
};

use super::{Product, SIGNS};

/// Rows that are summed before the next ones, so that the sums stay in the first cache levels.
const BLOCK_ROWS: usize = 8192;

/// Computes the product.
pub(super) fn run<const T: usize>(mut product: Product<'_, T>) {
    // SAFETY: a `Kernel` for AVX-512 exists only where the processor has these instructions.
    unsafe { multiply(&mut product) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
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
            // Tables of eight groups for one vector, or of four for two, fill half the registers.
            // SAFETY: a block of `n` groups is added only when `n` are left, so `tail` reaches to
            // byte `(n - 1) * stride + rows`, `columns` to entry `8 * n`, and `out` to `rows`.
            unsafe {
                match groups - group {
                    8.. if T == 1 => block.add::<8>(),
                    4.. => block.add::<4>(),
                    2.. => block.add::<2>(),
                    _ => block.add::<1>(),
                }
            }
            group += match groups - group {
                8.. if T == 1 => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
        }
        for pointer in sums {
            for first in (0..rows / 64).map(|chunk| 64 * chunk) {
                // SAFETY: `first + 64 <= rows`.
                unsafe { put_in_order(pointer.add(first)) };
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
    /// Adds `G` column groups. In `out`, the first `64 * (rows / 64)` sums are in the order of
    /// [`put_in_order`], before it.
    ///
    /// # Safety
    /// `tail` has at least `(G - 1) * stride + rows` bytes, `columns[k]` points to `8 * G` values
    /// and `out[k]` to `rows` values that nothing else uses.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn add<const G: usize>(&self) {
        let mut tables = [[[_mm512_setzero_ps(); 2]; G]; T];
        for k in 0..T {
            for g in 0..G {
                for half in 0..2 {
                    // SAFETY: `8 * g + 4 * half + 4 <= 8 * G`.
                    tables[k][g][half] = unsafe { table(self.columns[k].add(8 * g + 4 * half)) };
                }
            }
        }
        let mut row = 0;
        while row + 64 <= self.rows {
            // The loads at offsets 1 to 3 reach three bytes further than the rows.
            let overlapping = (G - 1) * self.stride + row + 67 <= self.tail.len();
            // SAFETY: `row + 64 <= rows`, and three more bytes exist if `overlapping`.
            unsafe {
                if overlapping {
                    self.add_64::<G, true>(row, &tables);
                } else {
                    self.add_64::<G, false>(row, &tables);
                }
            }
            row += 64;
        }
        while row < self.rows {
            // SAFETY: `row < rows`.
            unsafe { self.add_16(row, &tables) };
            row += 16;
        }
    }

    /// Adds 64 rows.
    ///
    /// # Safety
    /// As [`add`](Self::add), with `row + 64 <= rows`, and with three readable bytes more if
    /// `OVERLAPPING`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn add_64<const G: usize, const OVERLAPPING: bool>(
        &self,
        row: usize,
        tables: &[[[__m512; 2]; G]; T],
    ) {
        let mut sums = [[_mm512_setzero_ps(); 4]; T];
        for k in 0..T {
            for j in 0..4 {
                // SAFETY: `row + 64 <= rows`, the length of `out[k]`.
                sums[k][j] = unsafe { _mm512_loadu_ps(self.out[k].add(row + 16 * j)) };
            }
        }
        for g in 0..G {
            // SAFETY: inside `tail`, which has `(G - 1) * stride + rows` bytes.
            let address = unsafe { self.tail.as_ptr().add(g * self.stride + row) };
            if T == 1 {
                // The rows of the next block, into the second level: hides the memory's latency
                // without pushing the sums out of the first. A prefetch never faults.
                let next = address.wrapping_add(G * self.stride);
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
            }
            // SAFETY: 64 bytes from `address` belong to these rows; with `OVERLAPPING` three more
            // are readable.
            let indices = unsafe { every_fourth_row::<OVERLAPPING>(address) };
            for j in 0..4 {
                let high = _mm512_srli_epi32::<4>(indices[j]);
                for k in 0..T {
                    let pair = lookup(&tables[k][g], indices[j], high);
                    sums[k][j] = _mm512_add_ps(sums[k][j], pair);
                }
            }
        }
        for k in 0..T {
            for j in 0..4 {
                // SAFETY: as for the loads.
                unsafe { _mm512_storeu_ps(self.out[k].add(row + 16 * j), sums[k][j]) };
            }
        }
    }

    /// Adds the last rows, at most sixteen.
    ///
    /// # Safety
    /// As [`add`](Self::add), with `row < rows`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn add_16<const G: usize>(&self, row: usize, tables: &[[[__m512; 2]; G]; T]) {
        let mask = u16::MAX >> (16 - (self.rows - row).min(16));
        let mut sums = [_mm512_setzero_ps(); T];
        for k in 0..T {
            // SAFETY: the mask leaves out what is beyond `rows`.
            sums[k] = unsafe { _mm512_maskz_loadu_ps(mask, self.out[k].add(row)) };
        }
        for g in 0..G {
            // SAFETY: inside `tail`; the mask leaves out what is beyond the rows of the block.
            let bytes = unsafe {
                let address = self.tail.as_ptr().add(g * self.stride + row);
                _mm_maskz_loadu_epi8(mask, address.cast())
            };
            let low = _mm512_cvtepu8_epi32(bytes);
            let high = _mm512_srli_epi32::<4>(low);
            for k in 0..T {
                sums[k] = _mm512_add_ps(sums[k], lookup(&tables[k][g], low, high));
            }
        }
        for k in 0..T {
            // SAFETY: as for the load.
            unsafe { _mm512_mask_storeu_ps(self.out[k].add(row), mask, sums[k]) };
        }
    }
}

/// Vectors whose lane `k` has the byte of row `4k + j` in its low eight bits, for `j` in 0 to 3.
///
/// # Safety
/// 64 bytes are readable at `address`, 67 if `OVERLAPPING`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn every_fourth_row<const OVERLAPPING: bool>(address: *const u8) -> [__m512i; 4] {
    // SAFETY: the offsets are at most 3, and only if `OVERLAPPING`.
    unsafe {
        let first = _mm512_loadu_si512(address.cast());
        if OVERLAPPING {
            [
                first,
                _mm512_loadu_si512(address.add(1).cast()),
                _mm512_loadu_si512(address.add(2).cast()),
                _mm512_loadu_si512(address.add(3).cast()),
            ]
        } else {
            [
                first,
                _mm512_srli_epi32::<8>(first),
                _mm512_srli_epi32::<16>(first),
                _mm512_srli_epi32::<24>(first),
            ]
        }
    }
}

/// The sum over eight columns of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn lookup(tables: &[__m512; 2], low: __m512i, high: __m512i) -> __m512 {
    _mm512_add_ps(_mm512_permutexvar_ps(low, tables[0]), _mm512_permutexvar_ps(high, tables[1]))
}

/// The sixteen signed sums of four values. Products with ±1 are exact, so a fused multiply-add
/// rounds like an addition.
///
/// # Safety
/// Four values are readable at `x`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn table(x: *const f32) -> __m512 {
    // SAFETY: every row of `SIGNS` has sixteen values, and `x` has four.
    unsafe {
        let sign = |column: usize| _mm512_loadu_ps(SIGNS[column].as_ptr());
        let value = |column: usize| _mm512_set1_ps(*x.add(column));
        let sum = _mm512_mul_ps(sign(0), value(0));
        let sum = _mm512_fmadd_ps(sign(1), value(1), sum);
        let sum = _mm512_fmadd_ps(sign(2), value(2), sum);
        _mm512_fmadd_ps(sign(3), value(3), sum)
    }
}

/// Sorts 64 sums: what is at `16 * j + k` belongs to row `4 * k + j`.
///
/// # Safety
/// 64 values at `sums` belong to the caller.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put_in_order(sums: *mut f32) {
    // Indices from 16 on select from the second operand.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let low_pairs = _mm512_setr_epi32(0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
    let high_pairs =
        _mm512_setr_epi32(8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
    // SAFETY: four vectors of sixteen values.
    unsafe {
        let (a, b) = (_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(16)));
        let (c, d) = (_mm512_loadu_ps(sums.add(32)), _mm512_loadu_ps(sums.add(48)));
        let halves = [
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(c, low, d)),
            (_mm512_permutex2var_ps(a, high, b), _mm512_permutex2var_ps(c, high, d)),
        ];
        for (half, (even, odd)) in halves.into_iter().enumerate() {
            let first = _mm512_permutex2var_ps(even, low_pairs, odd);
            let second = _mm512_permutex2var_ps(even, high_pairs, odd);
            _mm512_storeu_ps(sums.add(32 * half), first);
            _mm512_storeu_ps(sums.add(32 * half + 16), second);
        }
    }
}
