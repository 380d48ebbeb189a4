//! Decoders of the k-quants: super-blocks of 256 values, cut into groups whose small integer
//! scales share one f16 scale.

use super::half_at;

const SUPER: usize = 256;

/// Pairs of bits of 64 bytes as 256 integers: value `128h + 32s + i` is bits `2s` of byte `32h + i`.
/// Constant shifts over neighbouring bytes are what the compiler turns into vector code.
#[inline(always)]
fn bit_pairs(bytes: &[u8]) -> [u8; SUPER] {
    let mut values = [0; SUPER];
    for (bytes, values) in
        bytes.as_chunks::<32>().0.iter().zip(values.as_chunks_mut::<128>().0.iter_mut())
    {
        for (slot, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = (byte >> (2 * slot)) & 3;
            }
        }
    }
    values
}

/// 16 groups of 16 values of 2 bits. Layout: 16 bytes (scale in the low half, minimum in the high
/// half), 64 bytes of values as in [`bit_pairs`], `d`, `dmin`.
#[inline(always)]
pub(super) fn decode_q2_k(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<84>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        let values = bit_pairs(&block[16..80]);
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0);
        for ((out, values), scale) in groups.zip(&block[..16]) {
            let step = d * f32::from(scale & 15);
            let minimum = dmin * f32::from(scale >> 4);
            for (out, &value) in out.iter_mut().zip(values) {
                *out = step * f32::from(value) - minimum;
            }
        }
    }
}

/// Sixteen signed 6-bit scales in 12 bytes: low four bits in the halves of the first eight, high
/// two bits in the last four.
#[inline(always)]
fn q3_k_scales(packed: &[u8]) -> [i32; 16] {
    let mut scales = [0; 16];
    for (group, scale) in scales.iter_mut().enumerate() {
        let low = (packed[group % 8] >> (group / 8 * 4)) & 15;
        let high = (packed[8 + group % 4] >> (group / 4 * 2)) & 3;
        *scale = i32::from(low | (high << 4)) - 32;
    }
    scales
}

/// 16 groups of 16 values of 3 bits. Layout: 32 bytes with the inverted third bits (byte `i`, bit
/// `4h + s` belongs to value `128h + 32s + i`), 64 bytes of low bits as in [`bit_pairs`], 12 bytes
/// of scales, `d`.
#[inline(always)]
pub(super) fn decode_q3_k(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<110>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 108);
        let scales = q3_k_scales(&block[96..108]);
        let mut values = bit_pairs(&block[32..96]);
        for (bit, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (value, high) in values.iter_mut().zip(&block[..32]) {
                *value |= ((high >> bit) & 1) << 2;
            }
        }
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0);
        for ((out, values), scale) in groups.zip(scales) {
            let step = d * scale as f32;
            for (out, &value) in out.iter_mut().zip(values) {
                *out = step * (i32::from(value) - 4) as f32;
            }
        }
    }
}

/// Scale and minimum, 6 bits each, of group `group` (0..8) of a `Q4_K` or `Q5_K` block from the 12
/// bytes that hold them.
#[inline(always)]
pub(super) fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (scale_top, minimum_top) = (packed[group - 4] >> 6, packed[group] >> 6);
        ((packed[group + 4] & 15) | (scale_top << 4), (packed[group + 4] >> 4) | (minimum_top << 4))
    }
}

/// 8 groups of 32 values of 4 bits. Layout: `d`, `dmin`, 12 bytes of scales and minima, 128 bytes
/// of values: byte `32p + i` holds value `64p + i` low and value `64p + 32 + i` high.
#[inline(always)]
pub(super) fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<144>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, minimum) = scale_and_minimum(&block[4..16], group);
            let (step, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            let shift = group % 2 * 4;
            for (out, &q) in out.iter_mut().zip(&block[16 + group / 2 * 32..][..32]) {
                *out = step * f32::from((q >> shift) & 15) - minimum;
            }
        }
    }
}

/// As `Q4_K` with a fifth bit: bit `g` of byte `i` of the 32 bytes after the scales belongs to value
/// `i` of group `g`.
#[inline(always)]
pub(super) fn decode_q5_k(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<176>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, minimum) = scale_and_minimum(&block[4..16], group);
            let (step, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            let shift = group % 2 * 4;
            let low = &block[48 + group / 2 * 32..][..32];
            for ((out, &low), &high) in out.iter_mut().zip(low).zip(&block[16..48]) {
                let value = ((low >> shift) & 15) | (((high >> group) & 1) << 4);
                *out = step * f32::from(value) - minimum;
            }
        }
    }
}

/// 16 groups of 16 values of 6 bits. Layout: 128 bytes of low halves, 64 bytes of high pairs as in
/// [`bit_pairs`], 16 signed scales, `d`. In each half `h` of the super-block, value `32s + i` (`s`
/// in 0..4) takes its low bits from byte `64h + 32(s % 2) + i`, half `s / 2`.
#[inline(always)]
pub(super) fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<210>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 208);
        let mut values = bit_pairs(&block[128..192]);
        let (low, _) = block.as_chunks::<64>();
        for (low, values) in low.iter().zip(values.as_chunks_mut::<128>().0) {
            let (first, second) = values.split_at_mut(64);
            for ((first, second), low) in first.iter_mut().zip(second).zip(low) {
                *first = (*first << 4) | (low & 15);
                *second = (*second << 4) | (low >> 4);
            }
        }
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0);
        for ((out, values), &scale) in groups.zip(&block[192..208]) {
            let step = d * f32::from(scale as i8);
            for (out, &value) in out.iter_mut().zip(values) {
                *out = step * (i32::from(value) - 32) as f32;
            }
        }
    }
}
