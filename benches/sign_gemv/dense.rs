//! Dense matrix-vector products that are as fast as the memory: the baseline of the bench.
//!
//! Rows are divided between the threads of the pool. How many rows go side by side, and how many
//! accumulators each has, was chosen by measuring on the machine of docs/performance.md: f16 rows
//! one by one reach the speed of merely reading the weights (17 to 19 GB/s per core) as long as `x`
//! stays in the first cache level; beyond that, four rows share the loads of `x` (15 GB/s instead
//! of 11). Requesting cache lines ahead made all of them slower.

#![allow(unsafe_code, reason = "vector loads at checked offsets")]
#![expect(clippy::needless_range_loop, reason = "registers are arrays with constant indices")]

use std::arch::x86_64::{
    _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps,
    _mm256_add_ps, _mm256_castps256_ps128, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_setzero_ps, _mm512_add_ps, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_setzero_ps,
};

use half::f16;
use rayon::prelude::*;

/// Largest `x` that leaves room for weights in the first cache level of common processors.
const FIRST_LEVEL: usize = 24 << 10;

/// Columns are a multiple of this; all layers of the bench have such widths.
const STEP: usize = 128;

/// `y = W x` for `W`, `[y.len(), x.len()]` row-major.
pub(crate) fn multiply_f32(weights: &[f32], x: &[f32], y: &mut [f32]) {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        rows::<_, 2>(weights, x, y, |rows, x| unsafe { dots_f32_512::<2>(rows, x) });
    } else {
        assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
        // SAFETY: the instructions are there.
        rows::<_, 1>(weights, x, y, |rows, x| unsafe { dot_f32_256(rows, x) });
    }
}

/// As [`multiply_f32`], from f16 weights, in f32 arithmetic.
pub(crate) fn multiply_f16(weights: &[f16], x: &[f32], y: &mut [f32]) {
    if is_x86_feature_detected!("avx512f") {
        if size_of_val(x) <= FIRST_LEVEL {
            // SAFETY: the instructions are there.
            rows::<_, 1>(weights, x, y, |rows, x| unsafe { dots_f16_512::<1, 8>(rows, x) });
        } else {
            // SAFETY: the instructions are there.
            rows::<_, 4>(weights, x, y, |rows, x| unsafe { dots_f16_512::<4, 2>(rows, x) });
        }
    } else {
        assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
        assert!(is_x86_feature_detected!("f16c"));
        // SAFETY: the instructions are there.
        rows::<_, 1>(weights, x, y, |rows, x| unsafe { dot_f16_256(rows, x) });
    }
}

/// Calls `dots` for `R` rows at a time, on all threads of the pool.
fn rows<W: Sync, const R: usize>(
    weights: &[W],
    x: &[f32],
    y: &mut [f32],
    dots: impl Fn(&[W], &[f32]) -> [f32; R] + Sync,
) {
    assert_eq!(weights.len(), x.len() * y.len());
    assert!(
        x.len().is_multiple_of(STEP) && y.len().is_multiple_of(R),
        "the baseline takes whole steps only"
    );
    let part = y.len().div_ceil(rayon::current_num_threads()).next_multiple_of(R);
    y.par_chunks_mut(part).zip(weights.par_chunks(part * x.len())).for_each(|(y, weights)| {
        for (y, rows) in y.chunks_exact_mut(R).zip(weights.chunks_exact(R * x.len())) {
            y.copy_from_slice(&dots(rows, x));
        }
    });
}

/// `R` rows with `A` accumulators each.
#[target_feature(enable = "avx512f")]
fn dots_f16_512<const R: usize, const A: usize>(rows: &[f16], x: &[f32]) -> [f32; R] {
    let mut sums = [[_mm512_setzero_ps(); A]; R];
    for start in (0..x.len()).step_by(16 * A) {
        for a in 0..A {
            let column = start + 16 * a;
            // SAFETY: `x` is a multiple of `STEP` long, which `16 * A` divides, and each of the
            // `R` rows is as long as `x`.
            unsafe {
                let x_values = _mm512_loadu_ps(x.as_ptr().add(column));
                for r in 0..R {
                    let address = rows.as_ptr().add(r * x.len() + column);
                    let weights = _mm512_cvtph_ps(_mm256_loadu_si256(address.cast()));
                    sums[r][a] = _mm512_fmadd_ps(weights, x_values, sums[r][a]);
                }
            }
        }
    }
    let mut dots = [0.0; R];
    for r in 0..R {
        let mut sum = sums[r][0];
        for a in 1..A {
            sum = _mm512_add_ps(sum, sums[r][a]);
        }
        dots[r] = _mm512_reduce_add_ps(sum);
    }
    dots
}

/// `R` rows with four accumulators each.
#[target_feature(enable = "avx512f")]
fn dots_f32_512<const R: usize>(rows: &[f32], x: &[f32]) -> [f32; R] {
    let mut sums = [[_mm512_setzero_ps(); 4]; R];
    for start in (0..x.len()).step_by(64) {
        for a in 0..4 {
            let column = start + 16 * a;
            // SAFETY: as in `dots_f16_512`.
            unsafe {
                let x_values = _mm512_loadu_ps(x.as_ptr().add(column));
                for r in 0..R {
                    let weights = _mm512_loadu_ps(rows.as_ptr().add(r * x.len() + column));
                    sums[r][a] = _mm512_fmadd_ps(weights, x_values, sums[r][a]);
                }
            }
        }
    }
    let mut dots = [0.0; R];
    for r in 0..R {
        let [a, b, c, d] = sums[r];
        dots[r] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    }
    dots
}

#[target_feature(enable = "avx2,fma")]
fn dot_f32_256(row: &[f32], x: &[f32]) -> [f32; 1] {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (row, x) in row.chunks_exact(32).zip(x.chunks_exact(32)) {
        for k in 0..4 {
            // SAFETY: `8 * k + 8 <= 32`.
            unsafe {
                let weights = _mm256_loadu_ps(row.as_ptr().add(8 * k));
                let x = _mm256_loadu_ps(x.as_ptr().add(8 * k));
                sums[k] = _mm256_fmadd_ps(weights, x, sums[k]);
            }
        }
    }
    [add_256(sums)]
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f16_256(row: &[f16], x: &[f32]) -> [f32; 1] {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (row, x) in row.chunks_exact(32).zip(x.chunks_exact(32)) {
        for k in 0..4 {
            // SAFETY: `8 * k + 8 <= 32`.
            unsafe {
                let weights = _mm256_cvtph_ps(_mm_loadu_si128(row.as_ptr().add(8 * k).cast()));
                let x = _mm256_loadu_ps(x.as_ptr().add(8 * k));
                sums[k] = _mm256_fmadd_ps(weights, x, sums[k]);
            }
        }
    }
    [add_256(sums)]
}

#[target_feature(enable = "avx2")]
fn add_256(sums: [std::arch::x86_64::__m256; 4]) -> f32 {
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}
