//! Lanes in the registers of x86-64. Each operation is the same IEEE operation as that of the
//! portable lanes, so the bits are the same.

#![allow(unsafe_code, reason = "instructions that are called only where they were detected")]
#![allow(clippy::wildcard_imports, reason = "the instructions are what the file is about")]

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Lane, Lanes, Mask, ROUNDED_BITS, ROUNDED_ZERO, ROUNDER};

/// One register of AVX-512. Values of this type exist only inside functions that were compiled
/// for AVX-512 F and entered after detecting it.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(__m512);

/// Two registers of AVX2, under the same condition.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(__m256, __m256);

#[derive(Clone, Copy)]
pub(in super::super) struct Avx2Mask(__m256, __m256);

macro_rules! operator {
    ($trait:ident, $method:ident, $wide:ident, $narrow:ident) => {
        impl $trait for Avx512 {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the processor has AVX-512 F, see the type.
                Self(unsafe { $wide(self.0, other.0) })
            }
        }

        impl $trait for Avx2 {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the processor has AVX2, see the type.
                unsafe { Self($narrow(self.0, other.0), $narrow(self.1, other.1)) }
            }
        }
    };
}

operator!(Add, add, _mm512_add_ps, _mm256_add_ps);
operator!(Sub, sub, _mm512_sub_ps, _mm256_sub_ps);
operator!(Mul, mul, _mm512_mul_ps, _mm256_mul_ps);
operator!(Div, div, _mm512_div_ps, _mm256_div_ps);

impl Lanes for Avx512 {
    type Mask = __mmask16;
    type Codes = __m512i;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(values: &Lane<f32>) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type; the array is 16 floats long.
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn store(self) -> Lane<f32> {
        let mut values = [0.0; 16];
        // SAFETY: the processor has AVX-512 F, see the type; the array is 16 floats long.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) };
        values
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn less_or_equal(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn replace(self, mask: Self::Mask, yes: Self) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type.
        Self(unsafe { _mm512_mask_blend_ps(mask, self.0, yes.0) })
    }

    #[inline(always)]
    fn nearest(self, low: i32, high: i32) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe {
            let shifted = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(ROUNDER)));
            let rounded = _mm512_and_si512(shifted, _mm512_set1_epi32(ROUNDED_BITS));
            let rounded = _mm512_max_epi32(rounded, _mm512_set1_epi32(ROUNDED_ZERO + low));
            let rounded = _mm512_min_epi32(rounded, _mm512_set1_epi32(ROUNDED_ZERO + high));
            let integer = _mm512_sub_epi32(rounded, _mm512_set1_epi32(ROUNDED_ZERO));
            Self(_mm512_cvtepi32_ps(integer))
        }
    }

    #[inline(always)]
    fn codes(codes: &Lane<u16>) -> Self::Codes {
        // SAFETY: the processor has AVX-512 F, see the type; the array is 32 bytes long.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(codes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn pick(codes: Self::Codes, shift: usize, table: &[f32]) -> Self {
        // SAFETY: the processor has AVX-512 F, see the type; `first_chunk` gives arrays of the
        // length that is read.
        unsafe {
            let at = _mm512_srl_epi32(codes, _mm_cvtsi32_si128(shift as i32));
            if let Some(table) = table.first_chunk::<8>() {
                let table = _mm512_castps256_ps512(_mm256_loadu_ps(table.as_ptr()));
                // Only bits that number the lower eight entries can be set.
                Self(_mm512_permutexvar_ps(at, table))
            } else if let Some(table) = table.first_chunk::<4>() {
                let table = _mm512_broadcast_f32x4(_mm_loadu_ps(table.as_ptr()));
                Self(_mm512_permutevar_ps(table, at))
            } else {
                Self::zero()
            }
        }
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe { _mm512_reduce_min_ps(self.0) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the processor has AVX-512 F, see the type.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    fn truncate(self, top: u8) -> Lane<u8> {
        let mut bytes = [0; 16];
        // SAFETY: the processor has AVX-512 F, see the type; the array is 16 bytes long.
        unsafe {
            // What is no i32 becomes the smallest one, whose low byte is 0.
            let low = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(self.0));
            let low = _mm_min_epu8(low, _mm_set1_epi8(top as i8));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), low);
        }
        bytes
    }
}

impl Mask for __mmask16 {
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self & other
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        self | other
    }

    #[inline(always)]
    fn any(self) -> bool {
        self != 0
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self
    }
}

impl Lanes for Avx2 {
    type Mask = Avx2Mask;
    type Codes = (__m256i, __m256i);

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(values: &Lane<f32>) -> Self {
        let (low, high) = values.split_at(8);
        // SAFETY: the processor has AVX2, see the type; both halves are 8 floats long.
        unsafe { Self(_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())) }
    }

    #[inline(always)]
    fn store(self) -> Lane<f32> {
        let mut values = [0.0; 16];
        let (low, high) = values.split_at_mut(8);
        // SAFETY: the processor has AVX2, see the type; both halves are 8 floats long.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), self.0);
            _mm256_storeu_ps(high.as_mut_ptr(), self.1);
        }
        values
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { Self(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)) }
    }

    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            Avx2Mask(
                _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0),
                _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    fn less_or_equal(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            Avx2Mask(
                _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0),
                _mm256_cmp_ps::<_CMP_LE_OQ>(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            Avx2Mask(
                _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0),
                _mm256_cmp_ps::<_CMP_EQ_OQ>(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    fn replace(self, mask: Self::Mask, yes: Self) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            Self(_mm256_blendv_ps(self.0, yes.0, mask.0), _mm256_blendv_ps(self.1, yes.1, mask.1))
        }
    }

    #[inline(always)]
    fn nearest(self, low: i32, high: i32) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { Self(nearest_of_eight(self.0, low, high), nearest_of_eight(self.1, low, high)) }
    }

    #[inline(always)]
    fn codes(codes: &Lane<u16>) -> Self::Codes {
        let (low, high) = codes.split_at(8);
        // SAFETY: the processor has AVX2, see the type; both halves are 16 bytes long.
        unsafe {
            (
                _mm256_cvtepu16_epi32(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(high.as_ptr().cast())),
            )
        }
    }

    #[inline(always)]
    fn pick(codes: Self::Codes, shift: usize, table: &[f32]) -> Self {
        // SAFETY: the processor has AVX2, see the type; `first_chunk` gives arrays of the length
        // that is read.
        unsafe {
            let shift = _mm_cvtsi32_si128(shift as i32);
            let (low, high) = (_mm256_srl_epi32(codes.0, shift), _mm256_srl_epi32(codes.1, shift));
            if let Some(table) = table.first_chunk::<8>() {
                let table = _mm256_loadu_ps(table.as_ptr());
                Self(_mm256_permutevar8x32_ps(table, low), _mm256_permutevar8x32_ps(table, high))
            } else if let Some(table) = table.first_chunk::<4>() {
                let table = _mm_loadu_ps(table.as_ptr());
                let table = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(table), table);
                Self(_mm256_permutevar_ps(table, low), _mm256_permutevar_ps(table, high))
            } else {
                Self::zero()
            }
        }
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            let eight = _mm256_min_ps(self.0, self.1);
            let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the processor has AVX2, see the type.
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn truncate(self, top: u8) -> Lane<u8> {
        let mut bytes = [0; 16];
        // SAFETY: the processor has AVX2, see the type; the array is 16 bytes long.
        unsafe {
            // What is no i32 becomes the smallest one, whose low byte is 0.
            let mask = _mm256_set1_epi32(255);
            let low = _mm256_and_si256(_mm256_cvttps_epi32(self.0), mask);
            let high = _mm256_and_si256(_mm256_cvttps_epi32(self.1), mask);
            // Packing works on halves of registers: [low a, high a, low b, high b].
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let all = _mm_packus_epi16(
                _mm256_castsi256_si128(pairs),
                _mm256_extracti128_si256::<1>(pairs),
            );
            let all = _mm_min_epu8(all, _mm_set1_epi8(top as i8));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), all);
        }
        bytes
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn nearest_of_eight(values: __m256, low: i32, high: i32) -> __m256 {
    let shifted = _mm256_castps_si256(_mm256_add_ps(values, _mm256_set1_ps(ROUNDER)));
    let rounded = _mm256_and_si256(shifted, _mm256_set1_epi32(ROUNDED_BITS));
    let rounded = _mm256_max_epi32(rounded, _mm256_set1_epi32(ROUNDED_ZERO + low));
    let rounded = _mm256_min_epi32(rounded, _mm256_set1_epi32(ROUNDED_ZERO + high));
    _mm256_cvtepi32_ps(_mm256_sub_epi32(rounded, _mm256_set1_epi32(ROUNDED_ZERO)))
}

impl Mask for Avx2Mask {
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { Self(_mm256_and_ps(self.0, other.0), _mm256_and_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { Self(_mm256_or_ps(self.0, other.0), _mm256_or_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn any(self) -> bool {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { _mm256_movemask_ps(_mm256_or_ps(self.0, self.1)) != 0 }
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        // SAFETY: the processor has AVX2, see the type.
        unsafe { (_mm256_movemask_ps(self.0) | (_mm256_movemask_ps(self.1) << 8)) as u16 }
    }
}
