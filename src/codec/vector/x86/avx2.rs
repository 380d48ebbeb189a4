//! The kernels for AVX2 with fused multiply-add and half conversion.

#![allow(unsafe_code, reason = "vector loads through pointers; every block says why it is sound")]
#![allow(clippy::wildcard_imports, reason = "the intrinsics")]

use std::arch::x86_64::*;

use half::f16;

use super::blocks::six_bit_pairs;
use crate::codec::vector::{check_rows, scalar};

const WIDTH: usize = 8;
type Vector = __m256;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn zero() -> __m256 {
    _mm256_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(value: f32) -> __m256 {
    _mm256_set1_ps(value)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
    _mm256_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add(a: __m256, b: __m256) -> __m256 {
    _mm256_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn reduce(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)))
}

/// # Safety
/// `from` has eight readable values. No alignment is needed, here and below.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(from: *const f32) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_loadu_ps(from) }
}

/// # Safety
/// `to` has eight writable values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store(to: *mut f32, v: __m256) {
    // SAFETY: as the caller promises.
    unsafe { _mm256_storeu_ps(to, v) }
}

/// # Safety
/// `from` has 32 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f32(from: *const u8) -> __m256 {
    // SAFETY: as the caller promises; the load has no alignment requirement.
    unsafe { _mm256_loadu_ps(from.cast()) }
}

/// # Safety
/// `from` has 16 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(from: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
}

/// # Safety
/// `from` has 16 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_bf16(from: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    let v = unsafe { _mm_loadu_si128(from.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16))
}

/// # Safety
/// `from` has eight readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_i8(from: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    let v = unsafe { _mm_loadl_epi64(from.cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v))
}

/// Eight 32-bit integers.
type Ints = __m256i;

/// # Safety
/// `from` has eight readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_u8(from: *const u8) -> Ints {
    // SAFETY: as the caller promises.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(from.cast()) })
}

/// The lower bits of each lane that `mask` has.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits<const SHIFT: i32>(v: Ints, mask: i32) -> Ints {
    _mm256_and_si256(_mm256_srli_epi32::<SHIFT>(v), _mm256_set1_epi32(mask))
}

/// `low + 16 high - 32`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn six_bits(low: Ints, high: Ints) -> Vector {
    let v = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
    _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(32)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn float(v: Ints) -> Vector {
    _mm256_cvtepi32_ps(v)
}

plain_kernels!("avx2,fma,f16c");
block_kernels!("avx2,fma,f16c");
