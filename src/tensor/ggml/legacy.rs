//! Block types of 32 values: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! A block is an f16 scale `d` (then, in the `_1` types, an f16 minimum `m`), in the 5-bit types a
//! word with the fifth bits, then the low bits: byte `i` holds value `i` in its low half and value
//! `i + 16` in its high half.

use super::half_at;

#[inline(always)]
pub(super) fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<34>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        for (out, &q) in out.iter_mut().zip(&block[2..]) {
            *out = f32::from(q as i8) * d;
        }
    }
}

#[inline(always)]
pub(super) fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<18>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        let (low, high) = out.split_at_mut(16);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
            *low = (i32::from(q & 15) - 8) as f32 * d;
            *high = (i32::from(q >> 4) - 8) as f32 * d;
        }
    }
}

#[inline(always)]
pub(super) fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<20>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        let (low, high) = out.split_at_mut(16);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[4..]) {
            *low = f32::from(q & 15) * d + m;
            *high = f32::from(q >> 4) * d + m;
        }
    }
}

/// Integers 0..=31 of a 5-bit block from its word of fifth bits and its 16 bytes of low bits.
#[inline(always)]
fn five_bits(block: &[u8], at: usize) -> [i32; 32] {
    let word = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let mut values = [0; 32];
    for (i, &q) in block[at + 4..at + 20].iter().enumerate() {
        values[i] = i32::from(q & 15) | (((word >> i) & 1) << 4) as i32;
        values[i + 16] = i32::from(q >> 4) | (((word >> (i + 16)) & 1) << 4) as i32;
    }
    values
}

#[inline(always)]
pub(super) fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<22>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        for (out, q) in out.iter_mut().zip(five_bits(block, 2)) {
            *out = (q - 16) as f32 * d;
        }
    }
}

#[inline(always)]
pub(super) fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<24>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        for (out, q) in out.iter_mut().zip(five_bits(block, 4)) {
            *out = q as f32 * d + m;
        }
    }
}

/// The scale maps the largest magnitude to 127; quotients are rounded half away from zero with
/// the unrounded scale, and only then is the scale narrowed to f16.
#[inline(always)]
pub(super) fn encode_q8_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<34>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let d = largest / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        block[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        for (q, value) in block[2..].iter_mut().zip(values) {
            let level = (value * inverse).round();
            // The inverse of a scale below 2^-128 is infinite. The scale is zero in f16 then, and
            // the levels are zero as on x86.
            *q = if level.is_finite() { level as i8 as u8 } else { 0 };
        }
    }
}
