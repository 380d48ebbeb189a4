//! The products on AVX-512 BF16.
//!
//! Both operands are packed into panels: pairs of bfloat16 of neighbouring inner indices, so that
//! one instruction multiplies and adds two steps of sixteen columns. The kernel keeps a tile of
//! 12 × 32 sums in registers; a panel of `b` stays in the first cache while panels of `a` pass.

#![allow(unsafe_code, reason = "intrinsics and packed buffers; every block says why it is sound")]
#![allow(clippy::wildcard_imports, reason = "the intrinsics")]

use std::arch::x86_64::*;
use std::cell::Cell;

use rayon::prelude::*;

use super::Operand;

/// Rows and columns of a tile of the result.
const TILE: (usize, usize) = (12, 32);

/// Inner indices that a kernel runs over at a time, even.
const DEPTH: usize = 512;

/// Multiply-adds below which one thread does everything.
const PARALLEL_WORK: usize = 1 << 20;

thread_local! {
    /// Packed panels, taken and put back.
    static LEFT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    static RIGHT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Whether this processor has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

pub(super) fn multiply(
    out: &mut [f32],
    a: Operand<'_>,
    b: Operand<'_>,
    accumulate: bool,
    parallel: bool,
) {
    assert!(available(), "AVX-512 BF16");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let parallel = parallel && m * n * k > PARALLEL_WORK && rayon::current_num_threads() > 1;
    let depths = k.div_ceil(DEPTH);
    let panels = n.div_ceil(TILE.1);
    // Panel `p` of depth `d` begins at `p · TILE.1 · pairs_before(k) + TILE.1 · d · DEPTH / 2`.
    let pairs = k.div_ceil(2);
    let mut right = RIGHT.take();
    right.resize(panels * TILE.1 * pairs, 0);
    let pack_right = |(panel, into): (usize, &mut [u32])| {
        let lanes = TILE.1.min(n - panel * TILE.1);
        pack::<{ TILE.1 }>(b.t(), panel * TILE.1, lanes, 0, k, into);
    };
    if parallel {
        right.par_chunks_exact_mut(TILE.1 * pairs).enumerate().for_each(pack_right);
    } else {
        right.chunks_exact_mut(TILE.1 * pairs).enumerate().for_each(pack_right);
    }
    // Whole tiles for each thread, a few chunks each so that none waits long.
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let tiles = m.div_ceil(TILE.0);
    let chunk = tiles.div_ceil(threads * 2).max(1) * TILE.0;
    let right_panels = &right;
    let job = |(index, out): (usize, &mut [f32])| {
        let first = index * chunk;
        let rows = out.len() / n;
        let mut left = LEFT.take();
        for depth in 0..depths {
            let from = depth * DEPTH;
            let deep = DEPTH.min(k - from);
            let deep_pairs = deep.div_ceil(2);
            let tiles = rows.div_ceil(TILE.0);
            left.resize(tiles * TILE.0 * deep_pairs, 0);
            for (tile, into) in left.chunks_exact_mut(TILE.0 * deep_pairs).enumerate() {
                let lanes = TILE.0.min(rows - tile * TILE.0);
                pack::<{ TILE.0 }>(a, first + tile * TILE.0, lanes, from, deep, into);
            }
            let add = accumulate || depth > 0;
            for panel in 0..panels {
                let start = panel * TILE.1 * pairs + TILE.1 * (from / 2);
                let right = &right_panels[start..start + TILE.1 * deep_pairs];
                let width = TILE.1.min(n - panel * TILE.1);
                for (tile, left) in left.chunks_exact(TILE.0 * deep_pairs).enumerate() {
                    let height = TILE.0.min(rows - tile * TILE.0);
                    let at = tile * TILE.0 * n + panel * TILE.1;
                    let out = &mut out[at..];
                    assert!((height - 1) * n + width <= out.len());
                    // SAFETY: the processor has the features (asserted above); both panels hold
                    // `deep_pairs` steps; the last row of the tile ends within `out`.
                    unsafe {
                        kernel(left, right, deep_pairs, out.as_mut_ptr(), n, height, width, add);
                    }
                }
            }
        }
        LEFT.set(left);
    };
    if parallel {
        out.par_chunks_mut(chunk * n).enumerate().for_each(job);
    } else {
        out.chunks_mut(chunk * n).enumerate().for_each(job);
    }
    RIGHT.set(right);
}

/// Rows `first..first + lanes` and columns `from..from + deep` of `source` as `LANES` lanes of
/// pairs: `into[p · LANES + l]` holds the columns `from + 2 p` (lower half) and `from + 2 p + 1` of
/// row `first + l`. Lanes and columns beyond the end are zero.
fn pack<const LANES: usize>(
    source: Operand<'_>,
    first: usize,
    lanes: usize,
    from: usize,
    deep: usize,
    into: &mut [u32],
) {
    assert!(first + lanes <= source.rows && from + deep <= source.cols && lanes <= LANES);
    assert_eq!(into.len(), LANES * deep.div_ceil(2));
    if lanes < LANES {
        into.fill(0);
    }
    let (row, col) = source.strides;
    let start = first * row + from * col;
    let values = &source.values[start..];
    let end = (lanes - 1) * row + (deep - 1) * col;
    assert!(end < values.len());
    // SAFETY: the features were asserted by `multiply`; the last value that is read is at `end`;
    // `into` holds LANES · ceil(deep / 2) pairs.
    unsafe {
        if col == 1 {
            pack_rows::<LANES>(values.as_ptr(), row, lanes, deep, source.signs, into.as_mut_ptr());
        } else {
            pack_columns::<LANES>(
                values.as_ptr(),
                col,
                lanes,
                deep,
                source.signs,
                into.as_mut_ptr(),
            );
        }
    }
}

/// `x >= 0 ? 1 : -1` in the lanes of `mask`, 0 elsewhere; or `x` itself.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn prepared(x: __m512, mask: __mmask16, signs: bool) -> __m512 {
    if !signs {
        return x;
    }
    let positive = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_setzero_ps());
    let signs = _mm512_mask_blend_ps(positive, _mm512_set1_ps(-1.0), _mm512_set1_ps(1.0));
    _mm512_maskz_mov_ps(mask, signs)
}

/// Lower 16 bits of each lane from `low`, upper ones from `high`, rounded to bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs(low: __m512, high: __m512) -> __m512i {
    let low = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(low)));
    let high = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(high)));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn bits(v: __m256bh) -> __m256i {
    // SAFETY: both are 256 plain bits.
    unsafe { std::mem::transmute(v) }
}

/// Neighbouring values are neighbouring lanes.
///
/// # Safety
/// `source` can be read up to `(deep - 1) · stride + lanes - 1`; `into` has room for
/// `LANES · ceil(deep / 2)`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_columns<const LANES: usize>(
    source: *const f32,
    stride: usize,
    lanes: usize,
    deep: usize,
    signs: bool,
    into: *mut u32,
) {
    for lane in (0..lanes).step_by(16) {
        let count = (lanes - lane).min(16);
        let mask = (u32::MAX >> (32 - count)) as __mmask16;
        for pair in 0..deep.div_ceil(2) {
            // SAFETY: masked loads read lanes below `lanes` of columns below `deep` only, and the
            // masked store writes lanes below `LANES`.
            unsafe {
                let from = source.add(2 * pair * stride + lane);
                let low = prepared(_mm512_maskz_loadu_ps(mask, from), mask, signs);
                let high = if 2 * pair + 1 < deep {
                    prepared(_mm512_maskz_loadu_ps(mask, from.add(stride)), mask, signs)
                } else {
                    _mm512_setzero_ps()
                };
                let to = into.add(pair * LANES + lane).cast();
                _mm512_mask_storeu_epi32(to, mask, pairs(low, high));
            }
        }
    }
}

/// Neighbouring values are neighbouring inner indices.
///
/// # Safety
/// `source` can be read up to `(lanes - 1) · stride + deep - 1`; `into` has room for
/// `LANES · ceil(deep / 2)`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_rows<const LANES: usize>(
    source: *const f32,
    stride: usize,
    lanes: usize,
    deep: usize,
    signs: bool,
    into: *mut u32,
) {
    for lane in (0..lanes).step_by(16) {
        let count = (lanes - lane).min(16);
        let stored = (LANES - lane).min(16);
        let mask = (u32::MAX >> (32 - stored)) as __mmask16;
        for start in (0..deep).step_by(32) {
            let remaining = (deep - start).min(32);
            let first = (u32::MAX >> (32 - remaining.min(16))) as __mmask16;
            let second =
                if remaining > 16 { (u32::MAX >> (48 - remaining)) as __mmask16 } else { 0 };
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate().take(count) {
                // SAFETY: masked loads of row `lane + i`, below `lanes`, columns below `deep`.
                unsafe {
                    let from = source.add((lane + i) * stride + start);
                    let low = prepared(_mm512_maskz_loadu_ps(first, from), first, signs);
                    let high = if second == 0 {
                        _mm512_setzero_ps()
                    } else {
                        prepared(_mm512_maskz_loadu_ps(second, from.add(16)), second, signs)
                    };
                    // 32 halves in order are 16 pairs in order.
                    *row = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                }
            }
            let columns = transpose(&rows);
            for (i, column) in columns.into_iter().enumerate().take(remaining.div_ceil(2)) {
                // SAFETY: pair `start / 2 + i` is below ceil(deep / 2), lanes below `LANES`.
                unsafe {
                    let to = into.add((start / 2 + i) * LANES + lane).cast();
                    _mm512_mask_storeu_epi32(to, mask, column);
                }
            }
        }
    }
}

/// Transposes 16 × 16 lanes of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn transpose(rows: &[__m512i; 16]) -> [__m512i; 16] {
    let mut a = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // b[4 q + c]: in each quarter, column c of that quarter's four, for rows 4 q to 4 q + 3.
    let mut b = [_mm512_setzero_si512(); 16];
    for q in 0..4 {
        b[4 * q] = _mm512_unpacklo_epi64(a[4 * q], a[4 * q + 2]);
        b[4 * q + 1] = _mm512_unpackhi_epi64(a[4 * q], a[4 * q + 2]);
        b[4 * q + 2] = _mm512_unpacklo_epi64(a[4 * q + 1], a[4 * q + 3]);
        b[4 * q + 3] = _mm512_unpackhi_epi64(a[4 * q + 1], a[4 * q + 3]);
    }
    let mut out = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let low_01 = _mm512_shuffle_i32x4::<0x44>(b[c], b[4 + c]);
        let high_01 = _mm512_shuffle_i32x4::<0xee>(b[c], b[4 + c]);
        let low_23 = _mm512_shuffle_i32x4::<0x44>(b[8 + c], b[12 + c]);
        let high_23 = _mm512_shuffle_i32x4::<0xee>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low_01, low_23);
        out[4 + c] = _mm512_shuffle_i32x4::<0xdd>(low_01, low_23);
        out[8 + c] = _mm512_shuffle_i32x4::<0x88>(high_01, high_23);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high_01, high_23);
    }
    out
}

/// One tile of the result.
///
/// # Safety
/// The processor has the features; `left` and `right` hold `pairs` steps of 12 and 32 lanes;
/// `height ≤ 12` rows of `width ≤ 32` values, `stride` apart, can be written from `out` on.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(clippy::too_many_arguments, reason = "a kernel: everything it touches")]
unsafe fn kernel(
    left: &[u32],
    right: &[u32],
    pairs: usize,
    out: *mut f32,
    stride: usize,
    height: usize,
    width: usize,
    add: bool,
) {
    debug_assert!(left.len() >= pairs * TILE.0 && right.len() >= pairs * TILE.1);
    let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
    let mut sums = [[_mm512_setzero_ps(); 2]; TILE.0];
    for _ in 0..pairs {
        // SAFETY: step `i` of both panels lies within them.
        unsafe {
            let right = [load(b), load(b.add(16))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = broadcast(a.add(i));
                sums[0] = _mm512_dpbf16_ps(sums[0], left, right[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], left, right[1]);
            }
            a = a.add(TILE.0);
            b = b.add(TILE.1);
        }
    }
    let masks = [
        (u32::MAX >> (32 - width.min(16))) as __mmask16,
        if width > 16 { (u32::MAX >> (48 - width)) as __mmask16 } else { 0 },
    ];
    for (i, sums) in sums.iter().enumerate().take(height) {
        for (half, (&sum, &mask)) in sums.iter().zip(&masks).enumerate() {
            if mask == 0 {
                continue;
            }
            // SAFETY: row `i` below `height`, columns below `width` through the mask.
            unsafe {
                let to = out.add(i * stride + 16 * half);
                let sum =
                    if add { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to)) } else { sum };
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}

/// # Safety
/// 64 bytes can be read from `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load(from: *const u32) -> __m512bh {
    // SAFETY: as the caller promises; both types are 512 plain bits.
    unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
}

/// # Safety
/// 4 bytes can be read from `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn broadcast(from: *const u32) -> __m512bh {
    // SAFETY: as the caller promises; both types are 512 plain bits.
    unsafe { std::mem::transmute(_mm512_set1_epi32(from.read().cast_signed())) }
}
