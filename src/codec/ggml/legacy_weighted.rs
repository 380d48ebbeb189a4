//! Encoders of `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1` with an importance matrix, byte-identical to ggml's;
//! without one they are those of [`legacy`].
//! Sixteen blocks are searched side by side.

use half::f16;

use super::lanes::{LANES, Lanes, spread};
use super::legacy::{self, put_five_bits, put_low_bits};
use super::search_lanes::{WEIGHTED, fit_range, fit_symmetric, weigh};

/// Mean square of a row, added up from left to right.
#[inline(always)]
fn mean_square(values: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for x in values {
        sum += x * x;
    }
    sum / values.len() as f32
}

/// Calls `put` with each block, its scale and its levels on the grid `-half..half`.
#[inline(always)]
fn symmetric<V: Lanes, const BYTES: usize>(
    values: &[f32],
    importance: &[f32],
    bytes: &mut [u8],
    half: i32,
    put: impl Fn(&mut [u8], &[u8; 32]),
) {
    let variance = [mean_square(values); LANES];
    let mut out = bytes.as_chunks_mut::<BYTES>().0.iter_mut();
    let importance = importance.as_chunks::<32>().0.chunks(LANES);
    for (values, importance) in values.as_chunks::<32>().0.chunks(LANES).zip(importance) {
        let lanes = spread(values);
        let (weights, _) = weigh::<V, 32>(&lanes, &spread(importance), &variance);
        let fit = fit_symmetric::<V, 32>(&lanes, &weights, half);
        for (l, (values, block)) in values.iter().zip(&mut out).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(fit.scale[l]).to_le_bytes());
            put(&mut block[2..], &fit.levels(l, values, half));
        }
    }
}

/// Calls `put` with each block, its scale and minimum and its levels on the grid `0..=top`.
#[inline(always)]
fn range<V: Lanes, const BYTES: usize>(
    values: &[f32],
    importance: &[f32],
    bytes: &mut [u8],
    top: i32,
    put: impl Fn(&mut [u8], &[u8; 32]),
) {
    let variance = [mean_square(values); LANES];
    let mut out = bytes.as_chunks_mut::<BYTES>().0.iter_mut();
    let importance = importance.as_chunks::<32>().0.chunks(LANES);
    for (values, importance) in values.as_chunks::<32>().0.chunks(LANES).zip(importance) {
        let lanes = spread(values);
        let (weights, _) = weigh::<V, 32>(&lanes, &spread(importance), &variance);
        let fit = fit_range::<V, 32>(&lanes, &weights, top, &WEIGHTED);
        for (l, (values, block)) in values.iter().zip(&mut out).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(fit.scale[l]).to_le_bytes());
            let minimum = f16::from_f32(-fit.negated_minimum[l]);
            block[2..4].copy_from_slice(&minimum.to_le_bytes());
            put(&mut block[4..], &fit.levels(l, values, top));
        }
    }
}

#[inline(always)]
pub(super) fn encode_q4_0<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let Some(importance) = importance else { return legacy::encode_q4_0::<V>(values, bytes) };
    symmetric::<V, 18>(values, importance, bytes, 8, |out, levels| put_low_bits(levels, out));
}

#[inline(always)]
pub(super) fn encode_q4_1<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let Some(importance) = importance else { return legacy::encode_q4_1::<V>(values, bytes) };
    range::<V, 20>(values, importance, bytes, 15, |out, levels| put_low_bits(levels, out));
}

#[inline(always)]
pub(super) fn encode_q5_0<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let Some(importance) = importance else { return legacy::encode_q5_0::<V>(values, bytes) };
    symmetric::<V, 22>(values, importance, bytes, 16, |out, levels| put_five_bits(levels, out));
}

#[inline(always)]
pub(super) fn encode_q5_1<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let Some(importance) = importance else { return legacy::encode_q5_1::<V>(values, bytes) };
    range::<V, 24>(values, importance, bytes, 31, |out, levels| put_five_bits(levels, out));
}
