//! Decoders of the types with code books: super-blocks of 256 values in groups of 8 (or 4) that are
//! points of a book, with signs or a shift, and small scales that share `d`.

use half::f16;

use super::{code_books, half_at};

const SUPER: usize = 256;

/// Magnitudes of the levels of `IQ2_*`, in eighths.
const PAIR_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Magnitudes of the levels of `IQ3_XXS`.
const XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Magnitudes of the levels of `IQ3_S`.
const S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// What the levels of `IQ1_*` are moved by.
pub(super) const SHIFT: f32 = 0.125;

/// Eight signs from seven: the number of minus signs is even.
#[inline(always)]
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// `scale` times the magnitudes of an 8-value point, with signs.
#[inline(always)]
fn put_pairs(point: u16, scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let magnitude = scale * PAIR_VALUES[usize::from(point >> (2 * i)) & 3];
        *out = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// `scale` times the magnitudes of a 4-value point, with the signs in the low bits.
#[inline(always)]
fn put_quads(point: u16, values: &[f32; 8], scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let magnitude = scale * values[usize::from(point >> (4 * i)) & 7];
        *out = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// `scale` times the levels -1, 0 and 1 of a point, moved by `shift`.
#[inline(always)]
fn put_shifted(index: usize, scale: f32, shift: f32, out: &mut [f32]) {
    let point = code_books::IQ1_S[index];
    for (i, out) in out.iter_mut().enumerate() {
        *out = scale * ((i32::from(point >> (2 * i) & 3) - 1) as f32 + shift);
    }
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
fn short(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Layout: `d`, then for each 32 values four indices of a byte and a word with four times seven
/// signs and a scale of four bits.
#[inline(always)]
pub(super) fn decode_iq2_xxs(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<66>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (part, out) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let signs = word(part, 4);
            let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
            for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let point = code_books::IQ2_XXS[usize::from(part[k])];
                put_pairs(point, scale, even_signs(signs >> (7 * k)), out);
            }
        }
    }
}

/// Scale of group `g` of 16 values from bytes that hold two each.
#[inline(always)]
fn two_scales(d: f32, packed: &[u8], g: usize) -> f32 {
    d * (0.5 + f32::from((packed[g / 2] >> (g % 2 * 4)) & 15)) * 0.25
}

/// Layout: `d`, 32 shorts with an index of nine bits and seven signs, eight bytes with two scales
/// each, one for 16 values.
#[inline(always)]
pub(super) fn decode_iq2_xs(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<74>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let code = short(block, 2 + 2 * k);
            let point = code_books::IQ2_XS[usize::from(code & 511)];
            let scale = two_scales(d, &block[66..], k / 2);
            put_pairs(point, scale, even_signs(u32::from(code >> 9)), out);
        }
    }
}

/// Layout: `d`, 32 low bytes of indices, 32 bytes of signs, eight bytes with the high two bits of
/// four indices each, eight bytes with two scales each.
#[inline(always)]
pub(super) fn decode_iq2_s(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<82>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = usize::from(block[66 + k / 4] >> (k % 4 * 2)) & 3;
            let point = code_books::IQ2_S[usize::from(block[2 + k]) | (high << 8)];
            put_pairs(point, two_scales(d, &block[74..], k / 2), block[34 + k], out);
        }
    }
}

/// Layout: `d`, 64 indices of a byte, then for each 32 values a word as in `IQ2_XXS`.
#[inline(always)]
pub(super) fn decode_iq3_xxs(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<98>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let word = word(block, 66 + 4 * g);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let point = code_books::IQ3_XXS[usize::from(block[2 + 8 * g + k])];
                let signs = even_signs(word >> (7 * (k / 2))) >> (k % 2 * 4);
                put_quads(point, &XXS_VALUES, scale, signs, out);
            }
        }
    }
}

/// Layout: `d`, 64 low bytes of indices, eight bytes with the ninth bits, 32 bytes of signs, four
/// bytes with two scales each, one for 32 values.
#[inline(always)]
pub(super) fn decode_iq3_s(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<110>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = i32::from((block[106 + k / 16] >> (k / 8 % 2 * 4)) & 15);
            let high = usize::from(block[66 + k / 8] >> (k % 8)) & 1;
            let point = code_books::IQ3_S[usize::from(block[2 + k]) | (high << 8)];
            let signs = block[74 + k / 2] >> (k % 2 * 4);
            put_quads(point, &S_VALUES, d * (1 + 2 * scale) as f32, signs, out);
        }
    }
}

/// Layout: `d`, 32 low bytes of indices, then for each 32 values a short with four times three high
/// bits, a scale of three bits and the sign of the shift.
#[inline(always)]
pub(super) fn decode_iq1_s(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<50>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let high = short(block, 34 + 2 * g);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            let shift = if high >> 15 == 1 { -SHIFT } else { SHIFT };
            for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let index =
                    usize::from(block[2 + 4 * g + k]) | usize::from(high >> (3 * k) & 7) << 8;
                put_shifted(index, scale, shift, out);
            }
        }
    }
}

/// Layout: 32 low bytes of indices, 16 bytes that hold for two groups of 8 values three high bits
/// and the sign of the shift, four shorts with four scales of three bits, one for 16 values, and in
/// their top four bits the f16 `d`, lowest bits first.
#[inline(always)]
pub(super) fn decode_iq1_m(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<56>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let scales: [u16; 4] = std::array::from_fn(|i| short(block, 48 + 2 * i));
        let top = |i: usize| (scales[i] >> 12) << (4 * i);
        let d = f16::from_bits(top(0) | top(1) | top(2) | top(3)).to_f32();
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = scales[k / 8] >> (k / 2 % 4 * 3) & 7;
            let high = block[32 + k / 2] >> (k % 2 * 4);
            let index = usize::from(block[k]) | usize::from(high & 7) << 8;
            let shift = if high & 8 == 0 { SHIFT } else { -SHIFT };
            put_shifted(index, d * f32::from(2 * scale + 1), shift, out);
        }
    }
}
