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

mod importance;
mod k_decode;
mod k_encode;
mod legacy;
mod plain;
mod search;

use rayon::prelude::*;

use super::StoredType;
pub use importance::{ImportanceUse, importance_use};

/// Whether [`decode`] reads this type.
#[must_use]
pub const fn can_decode(dtype: StoredType) -> bool {
    matches!(
        dtype,
        StoredType::F32
            | StoredType::F16
            | StoredType::BF16
            | StoredType::Q4_0
            | StoredType::Q4_1
            | StoredType::Q5_0
            | StoredType::Q5_1
            | StoredType::Q8_0
            | StoredType::Q2_K
            | StoredType::Q3_K
            | StoredType::Q4_K
            | StoredType::Q5_K
            | StoredType::Q6_K
    )
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
        _ => unreachable!("checked by the caller"),
    }
}

/// Whether [`encode`] writes this type.
#[must_use]
pub const fn can_encode(dtype: StoredType) -> bool {
    matches!(
        dtype,
        StoredType::F32
            | StoredType::F16
            | StoredType::BF16
            | StoredType::Q4_0
            | StoredType::Q4_1
            | StoredType::Q5_0
            | StoredType::Q5_1
            | StoredType::Q8_0
            | StoredType::Q4_K
            | StoredType::Q6_K
    )
}

/// Encodes a row of whole blocks. `values` must be finite for the result to mean anything; a NaN
/// or infinity gives some bytes, never a panic.
///
/// # Panics
/// If `bytes` is not exactly as long as `values` needs, or the type has no encoder
/// ([`can_encode`]).
pub fn encode(dtype: StoredType, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(dtype.row_bytes(values.len()), Some(bytes.len()), "row of another length");
    assert!(can_encode(dtype), "no encoder for {}", dtype.name());
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the only thing the function asks for.
        unsafe { encode_avx2(dtype, values, bytes) };
        return;
    }
    encode_portable(dtype, values, bytes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(dtype: StoredType, values: &[f32], bytes: &mut [u8]) {
    encode_portable(dtype, values, bytes);
}

#[inline(always)]
fn encode_portable(dtype: StoredType, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        StoredType::F32 => plain::encode_f32(values, bytes),
        StoredType::F16 => plain::encode_f16(values, bytes),
        StoredType::BF16 => plain::encode_bf16(values, bytes),
        StoredType::Q4_0 => legacy::encode_q4_0(values, bytes),
        StoredType::Q4_1 => legacy::encode_q4_1(values, bytes),
        StoredType::Q5_0 => legacy::encode_q5_0(values, bytes),
        StoredType::Q5_1 => legacy::encode_q5_1(values, bytes),
        StoredType::Q8_0 => legacy::encode_q8_0(values, bytes),
        StoredType::Q4_K => k_encode::encode_q4_k(values, bytes),
        StoredType::Q6_K => k_encode::encode_q6_k(values, bytes),
        _ => unreachable!("checked by the caller"),
    }
}

/// Encodes a row of whole blocks with errors weighted by `importance`, one weight per column, as
/// `ggml_quantize_chunk` does with an importance matrix; without one, as [`encode`]. Types that
/// ignore it ([`importance_use`]) give the same bytes either way.
///
/// # Panics
/// As [`encode`]; if `importance` has another length than `values`; if the type requires an
/// importance matrix and there is none.
pub fn encode_row(dtype: StoredType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    if let Some(importance) = importance {
        assert_eq!(importance.len(), values.len(), "importance of another length");
    }
    encode(dtype, values, bytes);
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
