//! Stored types and f32: decoders of every [`StoredType`], encoders of those that this tool writes.
//!
//! The code is portable and is compiled twice on x86-64: once for the baseline and once with AVX2
//! enabled, which lets the compiler use 8-wide vectors. Floating-point operations are the same in
//! the same order in both, so the results are the same bits everywhere.
//!
//! Decoded values are ggml's to the bit; encoders write the bytes that ggml's reference encoders
//! write (`quantize_row_*_ref`, without an importance matrix). Layouts: `ggml-common.h`.

#![expect(
    clippy::inline_always,
    reason = "a function is vectorised only where it is inlined into the AVX2 build"
)]
#![allow(unsafe_code, reason = "calls the AVX2 build of the safe code below after detecting it")]

mod code_book;
mod code_books;
mod four_bits;
mod importance;
mod iq1_encode;
mod iq_blocks;
mod iq_decode;
mod iq_encode;
mod k_decode;
mod k_encode;
mod lanes;
mod legacy;
mod legacy_weighted;
mod plain;
mod search;
mod search_lanes;
mod ternary;

use rayon::prelude::*;

use super::stored_type::StoredType;
pub use importance::{ImportanceUse, importance_use};
use lanes::Lanes;

/// Whether [`decode`] reads this type: so far every one.
#[must_use]
pub const fn can_decode(_dtype: StoredType) -> bool {
    true
}

/// Decodes `bytes`, whole blocks of `dtype`, into `out`.
///
/// # Panics
/// If `bytes` is not exactly as long as `out` needs, or the type has no decoder ([`can_decode`]).
#[inline]
pub fn decode(dtype: StoredType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "row of another length");
    assert!(can_decode(dtype), "no decoder for {}", dtype.name());
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the only thing the function asks for.
        unsafe { decode_avx2(dtype, bytes, out) };
        return;
    }
    decode_portable(dtype, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn decode_avx2(dtype: StoredType, bytes: &[u8], out: &mut [f32]) {
    decode_portable(dtype, bytes, out);
}

#[inline(always)]
fn decode_portable(dtype: StoredType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        StoredType::F32 => plain::decode_f32(bytes, out),
        StoredType::F16 => plain::decode_f16(bytes, out),
        StoredType::BF16 => plain::decode_bf16(bytes, out),
        StoredType::Q4_0 => legacy::decode_q4_0(bytes, out),
        StoredType::Q4_1 => legacy::decode_q4_1(bytes, out),
        StoredType::Q5_0 => legacy::decode_q5_0(bytes, out),
        StoredType::Q5_1 => legacy::decode_q5_1(bytes, out),
        StoredType::Q8_0 => legacy::decode_q8_0(bytes, out),
        StoredType::Q2_K => k_decode::decode_q2_k(bytes, out),
        StoredType::Q3_K => k_decode::decode_q3_k(bytes, out),
        StoredType::Q4_K => k_decode::decode_q4_k(bytes, out),
        StoredType::Q5_K => k_decode::decode_q5_k(bytes, out),
        StoredType::Q6_K => k_decode::decode_q6_k(bytes, out),
        StoredType::IQ4_NL => four_bits::decode_iq4_nl(bytes, out),
        StoredType::IQ4_XS => four_bits::decode_iq4_xs(bytes, out),
        StoredType::MXFP4 => four_bits::decode_mxfp4(bytes, out),
        StoredType::TQ1_0 => ternary::decode_tq1_0(bytes, out),
        StoredType::TQ2_0 => ternary::decode_tq2_0(bytes, out),
        StoredType::Q1_0 => ternary::decode_q1_0(bytes, out),
        StoredType::Q2_0 => ternary::decode_q2_0(bytes, out),
        StoredType::IQ1_S => iq_decode::decode_iq1_s(bytes, out),
        StoredType::IQ1_M => iq_decode::decode_iq1_m(bytes, out),
        StoredType::IQ2_XXS => iq_decode::decode_iq2_xxs(bytes, out),
        StoredType::IQ2_XS => iq_decode::decode_iq2_xs(bytes, out),
        StoredType::IQ2_S => iq_decode::decode_iq2_s(bytes, out),
        StoredType::IQ3_XXS => iq_decode::decode_iq3_xxs(bytes, out),
        StoredType::IQ3_S => iq_decode::decode_iq3_s(bytes, out),
        StoredType::NVFP4 => four_bits::decode_nvfp4(bytes, out),
        StoredType::I8 => plain::decode_i8(bytes, out),
        StoredType::I16 => plain::decode_i16(bytes, out),
        StoredType::I32 => plain::decode_i32(bytes, out),
        StoredType::I64 => plain::decode_i64(bytes, out),
        StoredType::F64 => plain::decode_f64(bytes, out),
    }
}

/// Whether [`encode_row`] writes this type: every one but those that are only copied.
#[must_use]
pub const fn can_encode(dtype: StoredType) -> bool {
    !dtype.is_copied()
}

/// Encodes a row of whole blocks without an importance matrix: [`encode_row`] with `None`.
///
/// # Panics
/// As [`encode_row`].
pub fn encode(dtype: StoredType, values: &[f32], bytes: &mut [u8]) {
    encode_row(dtype, values, None, bytes);
}

/// Encodes a row of whole blocks, with errors weighted by `importance`, one weight per column, as
/// `ggml_quantize_chunk` does with an importance matrix. Types that ignore it ([`importance_use`])
/// give the same bytes either way. `values` must be finite for the result to mean anything; a NaN
/// or infinity gives some bytes, never a panic.
///
/// # Panics
/// If `bytes` is not exactly as long as `values` needs, or `importance` has another length than
/// `values`; if the type has no encoder ([`can_encode`]), or requires an importance matrix and
/// there is none.
pub fn encode_row(dtype: StoredType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    assert_eq!(dtype.row_bytes(values.len()), Some(bytes.len()), "row of another length");
    assert!(can_encode(dtype), "no encoder for {}", dtype.name());
    if let Some(importance) = importance {
        assert_eq!(importance.len(), values.len(), "importance of another length");
    }
    assert!(
        importance.is_some() || importance_use(dtype) != ImportanceUse::Required,
        "{} requires an importance matrix",
        dtype.name()
    );
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the processor has all that the function asks for.
            unsafe { encode_avx512(dtype, values, importance, bytes) };
            return;
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, the only thing the function asks for.
            unsafe { encode_avx2(dtype, values, importance, bytes) };
            return;
        }
    }
    encode_with::<lanes::Portable>(dtype, values, importance, bytes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn encode_avx512(dtype: StoredType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_with::<lanes::Avx512>(dtype, values, importance, bytes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(dtype: StoredType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_with::<lanes::Avx2>(dtype, values, importance, bytes);
}

#[inline(always)]
fn encode_with<V: Lanes>(
    dtype: StoredType,
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) {
    use super::stored_type::StoredType as T;
    match (dtype, importance) {
        (T::F32, _) => plain::encode_f32(values, bytes),
        (T::F16, _) => plain::encode_f16(values, bytes),
        (T::BF16, _) => plain::encode_bf16(values, bytes),
        (T::Q4_0, None) => legacy::encode_q4_0::<V>(values, bytes),
        (T::Q4_1, None) => legacy::encode_q4_1::<V>(values, bytes),
        (T::Q5_0, None) => legacy::encode_q5_0::<V>(values, bytes),
        (T::Q5_1, None) => legacy::encode_q5_1::<V>(values, bytes),
        (T::Q4_0, Some(weights)) => legacy_weighted::encode_q4_0::<V>(values, weights, bytes),
        (T::Q4_1, Some(weights)) => legacy_weighted::encode_q4_1::<V>(values, weights, bytes),
        (T::Q5_0, Some(weights)) => legacy_weighted::encode_q5_0::<V>(values, weights, bytes),
        (T::Q5_1, Some(weights)) => legacy_weighted::encode_q5_1::<V>(values, weights, bytes),
        (T::Q8_0, _) => legacy::encode_q8_0::<V>(values, bytes),
        (T::Q2_K, _) => k_encode::encode_q2_k::<V>(values, importance, bytes),
        (T::Q3_K, _) => k_encode::encode_q3_k::<V>(values, importance, bytes),
        (T::Q4_K, _) => k_encode::encode_q4_k::<V>(values, importance, bytes),
        (T::Q5_K, _) => k_encode::encode_q5_k::<V>(values, importance, bytes),
        (T::Q6_K, _) => k_encode::encode_q6_k::<V>(values, importance, bytes),
        (T::IQ4_NL, _) => four_bits::encode_iq4_nl::<V>(values, importance, bytes),
        (T::IQ4_XS, _) => four_bits::encode_iq4_xs::<V>(values, importance, bytes),
        (T::MXFP4, _) => four_bits::encode_mxfp4::<V>(values, bytes),
        (T::TQ1_0, _) => ternary::encode_tq1_0(values, bytes),
        (T::TQ2_0, _) => ternary::encode_tq2_0(values, bytes),
        (T::Q1_0, _) => ternary::encode_q1_0(values, bytes),
        (T::Q2_0, _) => ternary::encode_q2_0(values, bytes),
        (T::IQ1_S, _) => iq1_encode::encode_iq1_s::<V>(values, importance, bytes),
        (T::IQ1_M, _) => iq1_encode::encode_iq1_m::<V>(values, importance, bytes),
        (T::IQ2_XXS, _) => iq_blocks::encode_iq2_xxs::<V>(values, importance, bytes),
        (T::IQ2_XS, _) => iq_blocks::encode_iq2_xs::<V>(values, importance, bytes),
        (T::IQ2_S, _) => iq_blocks::encode_iq2_s::<V>(values, importance, bytes),
        (T::IQ3_XXS, _) => iq_blocks::encode_iq3_xxs::<V>(values, importance, bytes),
        (T::IQ3_S, _) => iq_blocks::encode_iq3_s::<V>(values, importance, bytes),
        // Refused above.
        (T::NVFP4 | T::I8 | T::I16 | T::I32 | T::I64 | T::F64, _) => {}
    }
}

/// Encodes a matrix `[rows, cols]` with [`encode_row`], rows in parallel. The bytes do not depend
/// on the number of threads.
///
/// # Panics
/// As [`encode_row`]; if `values` is not whole rows.
pub fn encode_rows(
    dtype: StoredType,
    values: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) {
    assert!(values.len().is_multiple_of(cols.max(1)), "part of a row");
    let row_bytes = dtype.row_bytes(cols).unwrap_or_default();
    assert_eq!(values.len() / cols.max(1) * row_bytes, bytes.len(), "rows of another length");
    if bytes.is_empty() {
        return;
    }
    values
        .par_chunks_exact(cols)
        .zip(bytes.par_chunks_exact_mut(row_bytes))
        .for_each(|(values, bytes)| encode_row(dtype, values, importance, bytes));
}

/// The f16 at `at` of a block.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests;
