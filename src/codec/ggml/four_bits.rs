//! Four-bit types with uneven levels: `IQ4_NL`, `IQ4_XS` and `MXFP4`. In blocks of 32, byte `i`
//! holds value `i` in its low half and value `i + 16` in its high half.

use half::f16;

use super::half_at;
use super::lanes::{LANES, Lane, Lanes, Mask, spread};
use super::search::{GROUP_EPSILON, nearest};
use super::search_lanes::{squares, sums_of_squares, weigh};

const SUPER: usize = 256;

/// Levels of `IQ4_NL` and `IQ4_XS` (`kvalues_iq4nl`).
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Levels of `MXFP4`, twice the values of E2M1 (`kvalues_mxfp4`).
const HALVES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 values from 16 bytes: `scale` times their levels.
#[inline(always)]
fn look_up(table: &[i8; 16], scale: f32, packed: &[u8], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = scale * f32::from(table[usize::from(byte & 15)]);
        *high = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// Layout: `d`, 16 bytes of values.
#[inline(always)]
pub(super) fn decode_iq4_nl(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<18>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        look_up(&LEVELS, half_at(block, 0), &block[2..], out);
    }
}

/// Layout: `d`, a word with the high two bits of eight scales, four bytes with their low four,
/// then eight groups of 16 bytes of values. Scales count from -32.
#[inline(always)]
pub(super) fn decode_iq4_xs(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<136>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = half_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        let groups = out.as_chunks_mut::<32>().0.iter_mut().zip(block[8..].as_chunks::<16>().0);
        for (g, (out, packed)) in groups.enumerate() {
            let low = (block[4 + g / 2] >> (4 * (g % 2))) & 15;
            let scale = i32::from(low) | (i32::from((high >> (2 * g)) & 3) << 4);
            look_up(&LEVELS, d * (scale - 32) as f32, packed, out);
        }
    }
}

/// Half of a power of two by its biased exponent (`GGML_E8M0_TO_FP32_HALF`).
#[inline(always)]
fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

/// Layout: the exponent of the scale, 16 bytes of values.
#[inline(always)]
pub(super) fn decode_mxfp4(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<17>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        look_up(&HALVES, half_power(block[0]), &block[1..], out);
    }
}

/// Half way between neighbouring levels. Next to one of these, the distances to both levels are
/// exact in f32, so comparing distances as ggml does and comparing with the middle are the same.
#[inline(always)]
fn middle(below: usize) -> f32 {
    f32::midpoint(f32::from(LEVELS[below]), f32::from(LEVELS[below + 1]))
}

/// Indices of the levels nearest to `inverse * x`, the upper one of two that are as near.
#[inline(always)]
fn nearest_levels(values: &[f32; 32], inverse: f32) -> [u8; 32] {
    let mut indices = [0u8; 32];
    for below in 0..15 {
        for (index, &x) in indices.iter_mut().zip(values) {
            *index += u8::from(inverse * x >= middle(below));
        }
    }
    indices
}

/// The scale that represents each group best on [`LEVELS`], over 16 candidates around the one that
/// maps the largest magnitude to the lowest level.
#[inline(always)]
fn fit_levels<V: Lanes>(values: &[Lane<f32>; 32], weights: &[Lane<f32>; 32]) -> Lane<f32> {
    const TRIES: i32 = 7;
    let zero = V::zero();
    let lowest = f32::from(LEVELS[0]);
    let (mut extreme, mut largest) = (zero, zero);
    for x in values {
        let x = V::load(x);
        let larger = x.abs().greater(largest);
        largest = largest.replace(larger, x.abs());
        extreme = extreme.replace(larger, x);
    }
    let first = V::splat(1.0) / ((zero - extreme) / V::splat(lowest));
    let (cross, square) = sums(values, weights, first);
    let mut scale = zero.replace(square.greater(zero), cross / square);
    let mut best = scale * cross;
    for shift in -TRIES..=TRIES {
        let (cross, square) = sums(values, weights, V::splat(shift as f32 + lowest) / extreme);
        let better = square.greater(zero).and((cross * cross).greater(best * square));
        let fitted = cross / square;
        scale = scale.replace(better, fitted);
        best = best.replace(better, fitted * cross);
    }
    scale.replace(largest.less(V::splat(GROUP_EPSILON)), zero).store()
}

/// `Σ w·x·l` and `Σ w·l²` for the levels nearest to `inverse * x`.
#[inline(always)]
fn sums<V: Lanes>(values: &[Lane<f32>; 32], weights: &[Lane<f32>; 32], inverse: V) -> (V, V) {
    let (mut cross, mut square) = (V::zero(), V::zero());
    for i in 0..32 {
        let (x, w) = (V::load(&values[i]), V::load(&weights[i]));
        let scaled = inverse * x;
        let mut level = V::splat(f32::from(LEVELS[0]));
        for below in 0..15 {
            let above = V::splat(middle(below)).less_or_equal(scaled);
            level = level.replace(above, V::splat(f32::from(LEVELS[below + 1])));
        }
        let weighted = w * level;
        cross = cross + weighted * x;
        square = square + weighted * level;
    }
    (cross, square)
}

/// Squares of the values, or what [`weigh`] makes of an importance matrix.
#[inline(always)]
fn weights<V: Lanes>(
    lanes: &[Lane<f32>; 32],
    importance: Option<&[[f32; 32]]>,
    variance: &Lane<f32>,
) -> [Lane<f32>; 32] {
    match importance {
        Some(importance) => weigh::<V, 32>(lanes, &spread(importance), variance).0,
        None => squares::<V, 32>(lanes),
    }
}

#[inline(always)]
fn put_levels(levels: &[u8; 32], bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = levels[i] | (levels[i + 16] << 4);
    }
}

#[inline(always)]
pub(super) fn encode_iq4_nl<V: Lanes>(
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) {
    let mut blocks = bytes.as_chunks_mut::<18>().0.iter_mut();
    let importance = importance.map(|weights| weights.as_chunks::<32>().0);
    for (piece, values) in values.as_chunks::<32>().0.chunks(LANES).enumerate() {
        let lanes = spread(values);
        let importance = importance.map(|all| &all[piece * LANES..][..values.len()]);
        let variance = sums_of_squares(values).map(|sum| sum * (2.0 / 32.0));
        let scales = fit_levels::<V>(&lanes, &weights::<V>(&lanes, importance, &variance));
        for ((values, scale), block) in values.iter().zip(scales).zip(&mut blocks) {
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            put_levels(&nearest_levels(values, inverse), &mut block[2..]);
        }
    }
}

/// Two super-blocks to a set of lanes. Values are rounded with the scales before `d` is rounded
/// to f16.
#[inline(always)]
pub(super) fn encode_iq4_xs<V: Lanes>(
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) {
    let mut blocks = bytes.as_chunks_mut::<136>().0.iter_mut();
    let importance = importance.map(|weights| weights.as_chunks::<32>().0);
    for (piece, pair) in values.as_chunks::<SUPER>().0.chunks(2).enumerate() {
        let (groups, _) = pair.as_flattened().as_chunks::<32>();
        let lanes = spread(groups);
        let importance = importance.map(|all| &all[piece * LANES..][..groups.len()]);
        let squares = sums_of_squares(pair);
        let variance = std::array::from_fn(|l| squares[l / 8] * (2.0 / 256.0));
        let scales = fit_levels::<V>(&lanes, &weights::<V>(&lanes, importance, &variance));
        let (scales, _) = scales.as_chunks::<8>();
        for ((values, scales), block) in pair.iter().zip(scales).zip(&mut blocks) {
            let mut extreme = 0.0f32;
            for &scale in scales {
                if scale.abs() > extreme.abs() {
                    extreme = scale;
                }
            }
            let d = -extreme / 32.0;
            block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let (mut high, mut low) = (0u16, [0u8; 4]);
            let groups = block[8..].as_chunks_mut::<16>().0.iter_mut();
            for (g, (packed, values)) in groups.zip(values.as_chunks::<32>().0).enumerate() {
                let scale = nearest(inverse * scales[g]).clamp(-32, 31);
                let step = d * scale as f32;
                let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
                put_levels(&nearest_levels(values, inverse), packed);
                let code = (scale + 32) as u8;
                low[g / 2] |= (code & 15) << (4 * (g % 2));
                high |= u16::from(code >> 4) << (2 * g);
            }
            block[2..4].copy_from_slice(&high.to_le_bytes());
            block[4..8].copy_from_slice(&low);
        }
    }
}

/// An unsigned number of four bits of exponent and three of mantissa, halved, since the levels are
/// doubled; the code of NaN counts as zero, as in ggml.
#[inline(always)]
fn half_ue4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (code, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits(((exponent - 8 + 127) as u32) << 23),
    }
}

/// Layout: a scale for each 16 of 64 values, then two levels a byte within each 16, as in the others.
#[inline(always)]
pub(super) fn decode_nvfp4(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<36>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<64>().0) {
        let parts = block[4..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0);
        for (scale, (packed, out)) in block[..4].iter().zip(parts) {
            let scale = half_ue4m3(*scale);
            for (at, byte) in packed.iter().enumerate() {
                out[at] = f32::from(HALVES[usize::from(byte & 15)]) * scale;
                out[at + 8] = f32::from(HALVES[usize::from(byte >> 4)]) * scale;
            }
        }
    }
}

/// The scale is the power of two that puts the largest magnitude between 4 and 8 of E2M1, by the
/// logarithm as the C library rounds it. Of two levels that are as near, the one of smaller
/// magnitude is taken; minus zero is not used.
#[inline(always)]
pub(super) fn encode_mxfp4<V: Lanes>(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<17>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<32>().0) {
        let [low, high] = values.as_chunks::<LANES>().0 else { continue };
        let halves = [V::load(low), V::load(high)];
        let [a, b] = halves.map(V::abs);
        let largest = a.replace(a.less(b), b).largest();
        let exponent =
            if largest > 0.0 { (largest.log2().floor() - 2.0 + 127.0) as i32 as u8 } else { 0 };
        let scale = half_power(exponent);
        let mut levels = [0u8; 32];
        for (levels, x) in levels.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
            let size = x.abs();
            let (mut level, mut error) = (V::zero(), size);
            for (index, &magnitude) in HALVES[..8].iter().enumerate().skip(1) {
                let candidate = (V::splat(f32::from(magnitude) * scale) - size).abs();
                let better = candidate.less(error);
                level = level.replace(better, V::splat(index as f32));
                error = error.replace(better, candidate);
            }
            let minus = x.less(V::zero()).and(V::zero().less(level));
            *levels = level.replace(minus, level + V::splat(8.0)).bytes();
        }
        block[0] = exponent;
        put_levels(&levels, &mut block[1..]);
    }
}
