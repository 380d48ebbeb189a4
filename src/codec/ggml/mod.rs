//! Stored types and f32: decoders of every [`StoredType`], encoders of those that this tool writes.
//!
//! The types themselves stand in `table`. The code is portable and is compiled several times on
//! x86-64: for the baseline, and with AVX2 and (encoders) AVX-512 enabled, which lets the compiler use
//! wide vectors. Floating-point operations are the same in
//! the same order in all, so the results are the same bits everywhere.
//!
//! Decoded values are ggml's to the bit; encoders write the bytes that ggml's reference encoders
//! write (`quantize_row_*_ref`, without an importance matrix). Layouts: `ggml-common.h`.

#![expect(
    clippy::inline_always,
    reason = "a function is vectorised only where it is inlined into the AVX2 build"
)]
#![allow(
    unsafe_code,
    reason = "calls builds of the safe code for sets of instructions after detecting them"
)]

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
pub(super) mod table;
mod ternary;

use rayon::prelude::*;

pub use importance::{ImportanceUse, importance_use};
pub use table::StoredType;

/// Whether [`decode`] reads this type.
#[must_use]
pub const fn can_decode(dtype: StoredType) -> bool {
    dtype.row().decode.is_some()
}

/// Decodes `bytes`, whole blocks of `dtype`, into `out`.
///
/// # Panics
/// If `bytes` is not exactly as long as `out` needs, or the type has no decoder ([`can_decode`]).
#[inline]
pub fn decode(dtype: StoredType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "row of another length");
    let Some(builds) = &dtype.row().decode else { panic!("no decoder for {}", dtype.name()) };
    // SAFETY: the build is one that this processor runs.
    unsafe { builds.best()(bytes, out) };
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
    let Some(builds) = &dtype.row().encode else { panic!("no encoder for {}", dtype.name()) };
    if let Some(importance) = importance {
        assert_eq!(importance.len(), values.len(), "importance of another length");
    }
    assert!(
        importance.is_some() || importance_use(dtype) != ImportanceUse::Required,
        "{} requires an importance matrix",
        dtype.name()
    );
    // SAFETY: the build is one that this processor runs.
    unsafe { builds.best()(values, importance, bytes) };
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
