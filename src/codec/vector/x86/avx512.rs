//! The kernels for AVX-512.

#![allow(unsafe_code, reason = "vector loads through pointers; every block says why it is sound")]
#![allow(clippy::wildcard_imports, reason = "the intrinsics")]

use std::arch::x86_64::*;

use half::f16;

use super::blocks::six_bit_pairs;
use crate::codec::vector::{check_rows, scalar};

const WIDTH: usize = 16;
type Vector = __m512;

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn zero() -> __m512 {
    _mm512_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn splat(value: f32) -> __m512 {
    _mm512_set1_ps(value)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn add(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn reduce(v: __m512) -> f32 {
    _mm512_reduce_add_ps(v)
}

/// # Safety
/// `from` has 16 readable values. No alignment is needed, here and below.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load(from: *const f32) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_loadu_ps(from) }
}

/// # Safety
/// `to` has 16 writable values.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn store(to: *mut f32, v: __m512) {
    // SAFETY: as the caller promises.
    unsafe { _mm512_storeu_ps(to, v) }
}

/// # Safety
/// `from` has 64 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load_f32(from: *const u8) -> __m512 {
    // SAFETY: as the caller promises; the load has no alignment requirement.
    unsafe { _mm512_loadu_ps(from.cast()) }
}

/// # Safety
/// `from` has 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load_f16(from: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}

/// # Safety
/// `from` has 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load_bf16(from: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    let v = unsafe { _mm256_loadu_si256(from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v)))
}

/// # Safety
/// `from` has 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load_i8(from: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    let v = unsafe { _mm_loadu_si128(from.cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v))
}

/// Sixteen 32-bit integers.
type Ints = __m512i;

/// # Safety
/// `from` has 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn load_u8(from: *const u8) -> Ints {
    // SAFETY: as the caller promises.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(from.cast()) })
}

/// The lower bits of each lane that `mask` has.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn bits<const SHIFT: u32>(v: Ints, mask: i32) -> Ints {
    _mm512_and_si512(_mm512_srli_epi32::<SHIFT>(v), _mm512_set1_epi32(mask))
}

/// `low + 16 high - 32`.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn six_bits(low: Ints, high: Ints) -> Vector {
    let v = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
    _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(32)))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn float(v: Ints) -> Vector {
    _mm512_cvtepi32_ps(v)
}

plain_kernels!("avx512f,avx2,fma,f16c");
block_kernels!("avx512f,avx2,fma,f16c");
