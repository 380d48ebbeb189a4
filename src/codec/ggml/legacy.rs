//! Block types of 32 values: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! A block is an f16 scale `d` (then, in the `_1` types, an f16 minimum `m`), in the 5-bit types a
//! word with the fifth bits, then the low bits: byte `i` holds value `i` in its low half and value
//! `i + 16` in its high half.

use half::f16;

use super::half_at;
use super::lanes::{Lanes, Mask};

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
pub(super) fn encode_q8_0<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<34>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let [low, high] = halves::<V>(values).map(V::abs);
        let largest = low.replace(low.less(high), high).largest();
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

/// Both halves of a block.
#[inline(always)]
fn halves<V: Lanes>(values: &[f32; 32]) -> [V; 2] {
    let [low, high] = values.as_chunks::<16>().0 else { return [V::zero(); 2] };
    [V::load(low), V::load(high)]
}

/// The largest magnitude with its sign, the first one of equals.
#[inline(always)]
fn extreme<V: Lanes>(values: &[f32; 32]) -> f32 {
    let [low, high] = halves::<V>(values).map(V::abs);
    let largest = low.replace(low.less(high), high).largest();
    let is_largest = V::splat(largest);
    let at =
        u32::from(low.equal(is_largest).bits()) | (u32::from(high.equal(is_largest).bits()) << 16);
    // A block of zeros has no sign.
    let at = if largest > 0.0 { at.trailing_zeros() as usize } else { 32 };
    values.get(at).copied().unwrap_or(0.0)
}

/// Smallest and largest value, the first one of equals.
#[inline(always)]
fn range<V: Lanes>(values: &[f32; 32]) -> (f32, f32) {
    let [a, b] = halves::<V>(values);
    let smallest = a.replace(b.less(a), b).smallest();
    let largest = a.replace(a.less(b), b).largest();
    if smallest != 0.0 {
        return (smallest, largest);
    }
    // Zeros of both signs are equal: the order decides.
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

/// Low bits of 32 levels, value `i` beside value `i + 16`.
#[inline(always)]
pub(super) fn put_low_bits(levels: &[u8; 32], bytes: &mut [u8]) {
    let (low, high) = levels.split_at(16);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
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

/// Levels `0..2 half` around `half`: the largest magnitude, with its sign, lies at level 0. What an
/// infinite inverse leaves is level 0, as on x86.
#[inline(always)]
fn symmetric_levels<V: Lanes>(values: &[f32; 32], half: u8) -> (f16, [u8; 32]) {
    let d = extreme::<V>(values) / -f32::from(half);
    let (inverse, middle) = (V::splat(inverse(d)), V::splat(f32::from(half) + 0.5));
    let mut levels = [0; 32];
    for (levels, x) in levels.as_chunks_mut::<16>().0.iter_mut().zip(halves::<V>(values)) {
        *levels = (x * inverse + middle).truncate(2 * half - 1);
    }
    (f16::from_f32(d), levels)
}

/// Levels `0..=top` from the smallest value to the largest.
#[inline(always)]
fn range_levels<V: Lanes>(values: &[f32; 32], top: u8) -> (f16, f16, [u8; 32]) {
    let (low, high) = range::<V>(values);
    let d = (high - low) / f32::from(top);
    let (inverse, minimum) = (V::splat(inverse(d)), V::splat(low));
    let mut levels = [0; 32];
    for (levels, x) in levels.as_chunks_mut::<16>().0.iter_mut().zip(halves::<V>(values)) {
        *levels = ((x - minimum) * inverse + V::splat(0.5)).truncate(top);
    }
    (f16::from_f32(d), f16::from_f32(low), levels)
}

#[inline(always)]
pub(super) fn encode_q4_0<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<18>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, levels) = symmetric_levels::<V>(values, 8);
        block[..2].copy_from_slice(&d.to_le_bytes());
        put_low_bits(&levels, &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn encode_q4_1<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<20>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, low, levels) = range_levels::<V>(values, 15);
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&low.to_le_bytes());
        put_low_bits(&levels, &mut block[4..]);
    }
}

#[inline(always)]
pub(super) fn encode_q5_0<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<22>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, levels) = symmetric_levels::<V>(values, 16);
        block[..2].copy_from_slice(&d.to_le_bytes());
        put_five_bits(&levels, &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn encode_q5_1<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<24>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let (d, low, levels) = range_levels::<V>(values, 31);
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&low.to_le_bytes());
        put_five_bits(&levels, &mut block[4..]);
    }
}
