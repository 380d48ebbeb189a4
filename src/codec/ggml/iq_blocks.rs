//! Where the bits of IQ2 and IQ3 blocks lie, around the search that finds them
//! ([`encode`](super::iq_encode::encode)). Layouts: `ggml-common.h`.

use half::f16;

use super::code_book;
use super::iq_encode::{IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Part, encode};
use super::lanes::Lanes;

#[inline(always)]
fn put_half(block: &mut [u8], value: f32) {
    block[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Four times seven signs and a scale.
#[inline(always)]
fn signs_and_scale(part: &Part, scale: u8) -> [u8; 4] {
    let signs = part.signs.iter().enumerate();
    let word = signs.fold(0, |word, (k, signs)| word | u32::from(signs & 127) << (7 * k));
    (word | u32::from(scale) << 28).to_le_bytes()
}

/// Two scales to a byte.
#[inline(always)]
fn put_scales(scales: &[u8], bytes: &mut [u8]) {
    for (byte, pair) in bytes.iter_mut().zip(scales.as_chunks::<2>().0) {
        *byte = pair[0] | (pair[1] << 4);
    }
}

#[inline(always)]
pub(super) fn encode_iq2_xxs<V: Lanes>(v: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let book = code_book::iq2_xxs();
    encode::<V, 32, 8, 4, 66>(
        book,
        &IQ2_XXS,
        v,
        importance,
        bytes,
        |block, parts, scales, largest| {
            if largest == 0.0 {
                return;
            }
            put_half(block, largest / 31.0);
            let out = block[2..].as_chunks_mut::<8>().0.iter_mut();
            for ((out, part), &scale) in out.zip(parts).zip(scales) {
                for (out, index) in out.iter_mut().zip(&part.indices[..4]) {
                    *out = *index as u8;
                }
                out[4..].copy_from_slice(&signs_and_scale(part, scale));
            }
        },
    );
}

#[inline(always)]
pub(super) fn encode_iq2_xs<V: Lanes>(v: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let book = code_book::iq2_xs();
    encode::<V, 16, 8, 4, 74>(
        book,
        &IQ2_XS,
        v,
        importance,
        bytes,
        |block, parts, scales, largest| {
            if largest == 0.0 {
                return;
            }
            put_half(block, largest / 31.0);
            for (p, part) in parts.iter().enumerate() {
                for k in 0..2 {
                    let code = part.indices[k] | u16::from(part.signs[k] & 127) << 9;
                    block[2 + 4 * p + 2 * k..][..2].copy_from_slice(&code.to_le_bytes());
                }
            }
            put_scales(scales, &mut block[66..]);
        },
    );
}

#[inline(always)]
pub(super) fn encode_iq2_s<V: Lanes>(v: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let book = code_book::iq2_s();
    encode::<V, 16, 8, 4, 82>(
        book,
        &IQ2_S,
        v,
        importance,
        bytes,
        |block, parts, scales, largest| {
            put_half(block, largest / 31.0 * 0.9875);
            for (p, part) in parts.iter().enumerate() {
                for k in 0..2 {
                    let at = 2 * p + k;
                    block[2 + at] = part.indices[k] as u8;
                    block[34 + at] = part.signs[k];
                    block[66 + at / 4] |= ((part.indices[k] >> 8) as u8) << (at % 4 * 2);
                }
            }
            put_scales(scales, &mut block[74..]);
        },
    );
}

#[inline(always)]
pub(super) fn encode_iq3_xxs<V: Lanes>(v: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let book = code_book::iq3_xxs();
    encode::<V, 32, 4, 8, 98>(
        book,
        &IQ3_XXS,
        v,
        importance,
        bytes,
        |block, parts, scales, largest| {
            if largest == 0.0 {
                return;
            }
            put_half(block, largest / 31.0 * 1.0125);
            for (p, (part, &scale)) in parts.iter().zip(scales).enumerate() {
                for k in 0..8 {
                    block[2 + 8 * p + k] = part.indices[k] as u8;
                }
                block[66 + 4 * p..][..4].copy_from_slice(&signs_and_scale(part, scale));
            }
        },
    );
}

/// ggml writes the points and signs of a part one place too early for every part of 32 zeros before
/// it in the super-block, where no reader looks for them. Here they are where they belong: such
/// super-blocks are the one case in which the bytes differ from ggml's.
#[inline(always)]
pub(super) fn encode_iq3_s<V: Lanes>(v: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let book = code_book::iq3_s();
    encode::<V, 32, 4, 8, 110>(
        book,
        &IQ3_S,
        v,
        importance,
        bytes,
        |block, parts, scales, largest| {
            put_half(block, largest / 31.0 * 1.033);
            for (p, part) in parts.iter().enumerate() {
                for k in 0..8 {
                    block[2 + 8 * p + k] = part.indices[k] as u8;
                    block[66 + p] |= ((part.indices[k] >> 8) as u8) << k;
                }
                block[74 + 4 * p..][..4].copy_from_slice(&part.signs);
            }
            put_scales(&scales[..8], &mut block[106..]);
        },
    );
}
