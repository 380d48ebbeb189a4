//! Block types of 32 values: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! A block is an f16 scale `d` (then, in the `_1` types, an f16 minimum `m`), in the 5-bit types a
//! word with the fifth bits, then the low bits: byte `i` holds value `i` in its low half and value
//! `i + 16` in its high half.

use half::f16;

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
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (q, value) in block[2..].iter_mut().zip(values) {
            let level = (value * inverse).round();
            // The inverse of a scale below 2^-128 is infinite. The scale is zero in f16 then, and
            // the levels are zero as on x86.
            *q = if level.is_finite() { level as i8 as u8 } else { 0 };
        }
    }
}

/// `1 / d`, 0 for a block of zeros.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The largest magnitude with its sign, the first one of equals.
#[inline(always)]
fn extreme(values: &[f32; 32]) -> f32 {
    let mut extreme = 0.0f32;
    for &value in values {
        if extreme.abs() < value.abs() {
            extreme = value;
        }
    }
    extreme
}

/// Smallest and largest value.
#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = (f32::MAX, f32::MIN);
    for &value in values {
        if value < low {
            low = value;
        }
        if value > high {
            high = value;
        }
    }
    (low, high)
}

/// Truncates to a level. As in [`encode_q8_0`], what an infinite inverse leaves is level 0.
#[inline(always)]
fn level(value: f32, top: i32) -> u8 {
    if value.is_finite() { (value as i32).clamp(0, top) as u8 } else { 0 }
}

/// Low bits of 32 levels, value `i` beside value `i + 16`.
#[inline(always)]
pub(super) fn put_low_bits(levels: &[u8; 32], bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = levels[i] & 15 | (levels[i + 16] & 15) << 4;
    }
}

/// The word of fifth bits, then the low bits.
#[inline(always)]
pub(super) fn put_five_bits(levels: &[u8; 32], bytes: &mut [u8]) {
    let fifth = |word: u32, (i, level): (usize, &u8)| word | u32::from(level >> 4) << i;
    let word = levels.iter().enumerate().fold(0, fifth);
    bytes[..4].copy_from_slice(&word.to_le_bytes());
    put_low_bits(levels, &mut bytes[4..]);
}

/// Levels `0..2 half` around `half`: the largest magnitude, with its sign, lies at level 0.
#[inline(always)]
fn symmetric_levels(values: &[f32; 32], half: u8) -> (f16, [u8; 32]) {
    let d = extreme(values) / -f32::from(half);
    let inverse = inverse(d);
    let (middle, top) = (f32::from(half) + 0.5, 2 * i32::from(half) - 1);
    (f16::from_f32(d), values.map(|v| level(v * inverse + middle, top)))
}

/// Levels `0..=top` from the smallest value to the largest.
#[inline(always)]
fn range_levels(values: &[f32; 32], top: u8) -> (f16, f16, [u8; 32]) {
    let (low, high) = range(values);
    let d = (high - low) / f32::from(top);
    let inverse = inverse(d);
    let levels = values.map(|v| level((v - low) * inverse + 0.5, i32::from(top)));
    (f16::from_f32(d), f16::from_f32(low), levels)
}

#[inline(always)]
pub(super) fn encode_q4_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<18>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, levels) = symmetric_levels(values, 8);
        block[..2].copy_from_slice(&d.to_le_bytes());
        put_low_bits(&levels, &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn encode_q4_1(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<20>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, low, levels) = range_levels(values, 15);
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&low.to_le_bytes());
        put_low_bits(&levels, &mut block[4..]);
    }
}

#[inline(always)]
pub(super) fn encode_q5_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<22>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, levels) = symmetric_levels(values, 16);
        block[..2].copy_from_slice(&d.to_le_bytes());
        put_five_bits(&levels, &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn encode_q5_1(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<24>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, low, levels) = range_levels(values, 31);
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&low.to_le_bytes());
        put_five_bits(&levels, &mut block[4..]);
    }
}
