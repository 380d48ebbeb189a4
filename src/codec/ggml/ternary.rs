//! Types without a search: one scale per block and levels of one or two bits or a trit. `Q1_0` has
//! blocks of 128 values, `Q2_0` of 64, `TQ1_0` and `TQ2_0` of 256. No importance matrix is used.

use half::f16;

use super::half_at;

/// Layout: `d`, then a bit per value, lowest first: set for `d`, clear for `-d`.
#[inline(always)]
pub(super) fn decode_q1_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<18>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<128>().0) {
        let d = half_at(block, 0).to_bits();
        for (out, byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(&block[2..]) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = f32::from_bits(d ^ (u32::from(!byte >> i & 1) << 31));
            }
        }
    }
}

/// Layout: `d`, then two bits per value, lowest first: level 0 stands for `-d`, 3 for `2d`.
#[inline(always)]
pub(super) fn decode_q2_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<18>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<64>().0) {
        let d = half_at(block, 0);
        for (out, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(&block[2..]) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = (i32::from(byte >> (2 * i) & 3) - 1) as f32 * d;
            }
        }
    }
}

/// Trit `n` of a byte that holds `⌈256 · (trits as a fraction in base 3)⌉`.
#[inline(always)]
fn trit(byte: u8, n: usize) -> i32 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let rest = byte.wrapping_mul(POWERS[n]);
    (i32::from(rest) * 3) >> 8
}

/// Layout: 32 bytes with five trits each (value `32n + i` is trit `n` of byte `i`), 16 bytes with
/// five (value `160 + 16n + i`), 4 bytes with four (value `240 + 4n + i`), `d`.
#[inline(always)]
pub(super) fn decode_tq1_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<54>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = half_at(block, 52);
        for (at, width, from) in [(0, 32, 0), (160, 16, 32), (240, 4, 48)] {
            let packed = &block[from..from + width];
            let end = [256, at + 5 * width][usize::from(at < 240)];
            for (n, out) in out[at..end].chunks_exact_mut(width).enumerate() {
                for (out, byte) in out.iter_mut().zip(packed) {
                    *out = (trit(*byte, n) - 1) as f32 * d;
                }
            }
        }
    }
}

/// Layout: 64 bytes with two bits per value (value `128h + 32s + i` is bits `2s` of byte `32h + i`),
/// `d`. Level 1 stands for zero.
#[inline(always)]
pub(super) fn decode_tq2_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<66>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = half_at(block, 64);
        for (out, packed) in
            out.as_chunks_mut::<128>().0.iter_mut().zip(block[..64].as_chunks::<32>().0)
        {
            for (slot, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (out, byte) in out.iter_mut().zip(packed) {
                    *out = (i32::from((byte >> (2 * slot)) & 3) - 1) as f32 * d;
                }
            }
        }
    }
}

/// The scale is the mean magnitude, added up from left to right. Zero counts as positive.
#[inline(always)]
pub(super) fn encode_q1_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<18>();
    let (values, _) = values.as_chunks::<128>();
    // The sums of several blocks are independent and take as long as one.
    for (blocks, values) in blocks.chunks_mut(8).zip(values.chunks(8)) {
        let mut sums = [0.0f32; 8];
        if let Ok(values) = <&[[f32; 128]; 8]>::try_from(values) {
            for i in 0..128 {
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum += values[i].abs();
                }
            }
        } else {
            for (sum, values) in sums.iter_mut().zip(values) {
                for x in values {
                    *sum += x.abs();
                }
            }
        }
        for ((block, values), sum) in blocks.iter_mut().zip(values).zip(sums) {
            block[..2].copy_from_slice(&f16::from_f32(sum / 128.0).to_le_bytes());
            for (byte, values) in block[2..].iter_mut().zip(values.as_chunks::<8>().0) {
                *byte = values
                    .iter()
                    .enumerate()
                    .fold(0, |byte, (i, &x)| byte | (u8::from(x >= 0.0) << i));
            }
        }
    }
}

/// Largest magnitude.
#[inline(always)]
fn largest<const N: usize>(values: &[f32; N]) -> f32 {
    // In lanes that the compiler can vectorise: the order does not matter for a maximum.
    let mut lanes = [0.0f32; 16];
    for values in values.as_chunks::<16>().0 {
        for (lane, value) in lanes.iter_mut().zip(values) {
            let size = value.abs();
            *lane = if *lane < size { size } else { *lane };
        }
    }
    lanes.iter().fold(0.0, |largest, &lane| if largest < lane { lane } else { largest })
}

/// The integer nearest to `value`, ties away from zero.
#[inline(always)]
fn round(value: f32) -> i32 {
    value.round() as i32
}

/// The largest magnitude becomes 1.
#[inline(always)]
pub(super) fn encode_q2_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<18>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<64>().0) {
        let d = largest(values);
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        // What is not finite, after an infinite inverse, is the smallest integer on x86.
        let levels = values.map(|x| {
            let scaled = x * inverse;
            if scaled.is_finite() { (round(scaled) + 1).clamp(0, 3) as u8 } else { 0 }
        });
        for (byte, levels) in block[2..].iter_mut().zip(levels.as_chunks::<4>().0) {
            *byte = levels[0] | (levels[1] << 2) | (levels[2] << 4) | (levels[3] << 6);
        }
    }
}

/// Trits of 256 values whose largest magnitude becomes 1, as 0, 1 and 2.
#[inline(always)]
fn trits(values: &[f32; 256]) -> (f16, [u8; 256]) {
    let d = largest(values);
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    (f16::from_f32(d), values.map(|x| unit_level(x * inverse) as u8))
}

/// `round(value) + 1`. What is not finite, after an infinite inverse, counts as zero: the low half of
/// what `lroundf` gives on x86.
#[inline(always)]
fn unit_level(value: f32) -> i32 {
    let rounded = if value.is_finite() { round(value) } else { 0 };
    rounded + 1
}

/// Base-3 digits, the first the most significant of five, as a fraction of 256, rounded up.
#[inline(always)]
fn put_trits(levels: &[u8], digits: usize, bytes: &mut [u8]) {
    let width = bytes.len();
    for (i, byte) in bytes.iter_mut().enumerate() {
        let mut number = 0u8;
        for n in 0..5 {
            let digit = if n < digits { levels[n * width + i] } else { 0 };
            number = number.wrapping_mul(3).wrapping_add(digit);
        }
        *byte = (u16::from(number) * 256).div_ceil(243) as u8;
    }
}

#[inline(always)]
pub(super) fn encode_tq1_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<54>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<256>().0) {
        let (d, levels) = trits(values);
        put_trits(&levels[..160], 5, &mut block[..32]);
        put_trits(&levels[160..240], 5, &mut block[32..48]);
        put_trits(&levels[240..], 4, &mut block[48..52]);
        block[52..].copy_from_slice(&d.to_le_bytes());
    }
}

#[inline(always)]
pub(super) fn encode_tq2_0(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<66>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<256>().0) {
        let (d, levels) = trits(values);
        let halves = levels.as_chunks::<128>().0.iter();
        for (bytes, levels) in block[..64].as_chunks_mut::<32>().0.iter_mut().zip(halves) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                let [a, b, c, d] = [0, 32, 64, 96].map(|slot| levels[slot + i] & 3);
                *byte = a | (b << 2) | (c << 4) | (d << 6);
            }
        }
        block[64..].copy_from_slice(&d.to_le_bytes());
    }
}
