//! Encoders of the k-quants, byte-identical to ggml's. Layouts: the decoders.
//!
//! Every encoder finds the scales of the groups of a super-block, rounds them to small integers
//! against a common f16 factor, and rounds the values again with the scales that a reader will see.
//! Without an importance matrix the factor comes from the largest scale; with one it is searched.

use half::f16;

use super::k_decode;
use super::lanes::{LANES, Lane, Lanes, spread};
use super::search::{GROUP_EPSILON, fit_positive, fit_symmetric, nearest};
use super::search_lanes::{self, Candidates, WEIGHTED, fit_range, sums_of_squares, weigh};

const SUPER: usize = 256;

/// Rows are taken in pieces of this many super-blocks, whose sums of squares are found together.
const PIECE: usize = LANES;

/// Super-blocks `[.., 256]` and their importance in pieces.
#[inline(always)]
fn pieces<'a>(
    values: &'a [f32],
    importance: Option<&'a [f32]>,
) -> impl Iterator<Item = (&'a [[f32; SUPER]], Option<&'a [[f32; SUPER]]>)> {
    let values = values.as_chunks::<SUPER>().0.chunks(PIECE);
    let importance = importance.map(|weights| weights.as_chunks::<SUPER>().0);
    values.enumerate().map(move |(piece, blocks)| {
        (blocks, importance.map(|weights| &weights[piece * PIECE..][..blocks.len()]))
    })
}

/// `largest` of values that are expected to be positive, and at least 0.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest })
}

/// `top / largest`, or 0.
#[inline(always)]
fn inverse_factor(largest: f32, top: f32) -> f32 {
    if largest > 0.0 { top / largest } else { 0.0 }
}

/// Levels `0..=top` of a group for the scale and minimum that a reader will see.
#[inline(always)]
fn range_levels<const G: usize>(values: &[f32; G], step: f32, minimum: f32, top: i32) -> [u8; G] {
    values.map(|x| nearest((x + minimum) / step).clamp(0, top) as u8)
}

/// Levels `-half..half` of a group, counted from `-half`, for the scale that a reader will see.
#[inline(always)]
fn symmetric_levels<const G: usize>(values: &[f32; G], step: f32, half: i32) -> [u8; G] {
    values.map(|x| (nearest(x / step).clamp(-half, half - 1) + half) as u8)
}

/// Two bits of each of 256 levels, as `bit_pairs` of the decoders reads them.
#[inline(always)]
fn put_bit_pairs(levels: &[u8; SUPER], bytes: &mut [u8]) {
    let halves = levels.as_chunks::<128>().0.iter();
    for (bytes, levels) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            let [a, b, c, d] = [0, 32, 64, 96].map(|slot| levels[slot + i] & 3);
            *byte = a | (b << 2) | (c << 4) | (d << 6);
        }
    }
}

/// 16 groups of 16 values of 2 bits with minima.
#[inline(always)]
pub(super) fn encode_q2_k<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    const PLAIN: Candidates = Candidates { first: -0.5, step: 0.1, last: 15, absolute: true };
    let mut out = bytes.as_chunks_mut::<84>().0.iter_mut();
    for (piece, importance) in pieces(values, importance) {
        let squares = if importance.is_some() { sums_of_squares(piece) } else { [0.0; LANES] };
        for (index, (values, block)) in piece.iter().zip(&mut out).enumerate() {
            let (groups, _) = values.as_chunks::<16>();
            let lanes = spread(groups);
            let fit;
            if let Some(importance) = importance {
                let importance = spread(importance[index].as_chunks::<16>().0);
                let variance = [squares[index] / 256.0; LANES];
                let (weights, sums) = weigh::<V, 16>(&lanes, &importance, &variance);
                fit = fit_range::<V, 16>(&lanes, &weights, 3, &WEIGHTED);
                let scales = fit_positive(&fit.scale, &sums, 15);
                let minima = fit_positive(&fit.negated_minimum, &sums, 15);
                let codes = scales.levels.iter().zip(minima.levels);
                for (byte, (scale, minimum)) in block.iter_mut().zip(codes) {
                    *byte = scale | (minimum << 4);
                }
                put_half(block, 80, scales.scale);
                put_half(block, 82, minima.scale);
            } else {
                let mut weights = lanes;
                for weight in weights.as_flattened_mut() {
                    *weight = weight.abs();
                }
                fit = fit_range::<V, 16>(&lanes, &weights, 3, &PLAIN);
                let top = [largest(&fit.scale), largest(&fit.negated_minimum)];
                let [scale, minimum] = top.map(|largest| inverse_factor(largest, 15.0));
                for (g, byte) in block[..16].iter_mut().enumerate() {
                    let high = (nearest(minimum * fit.negated_minimum[g]) << 4) as u8;
                    *byte = nearest(scale * fit.scale[g]) as u8 | high;
                }
                put_half(block, 80, top[0] / 15.0);
                put_half(block, 82, top[1] / 15.0);
            }
            let (d, dmin) = (super::half_at(block, 80), super::half_at(block, 82));
            let mut levels = [[0u8; 16]; 16];
            for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
                let step = d * f32::from(block[g] & 15);
                // With a zero step the levels have no influence; the search's stay.
                *levels = if step == 0.0 {
                    fit.levels(g, group, 3)
                } else {
                    range_levels(group, step, dmin * f32::from(block[g] >> 4), 3)
                };
            }
            put_bit_pairs(flat(&levels), &mut block[16..80]);
        }
    }
}

#[inline(always)]
fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// `[G, N]` levels as one array of 256.
#[inline(always)]
fn flat<const G: usize, const N: usize>(levels: &[[u8; N]; G]) -> &[u8; SUPER] {
    const { assert!(G * N == SUPER) };
    levels.as_flattened().first_chunk().unwrap_or(&[0; SUPER])
}

/// 16 groups of 16 values of 3 bits.
#[inline(always)]
pub(super) fn encode_q3_k<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let mut out = bytes.as_chunks_mut::<110>().0.iter_mut();
    for (piece, importance) in pieces(values, importance) {
        let squares = if importance.is_some() { sums_of_squares(piece) } else { [0.0; LANES] };
        for (index, (values, block)) in piece.iter().zip(&mut out).enumerate() {
            let (groups, _) = values.as_chunks::<16>();
            let lanes = spread(groups);
            // Scales are six bits, counted from -32.
            let mut scales = [0u8; 16];
            let mut levels = [[0u8; 16]; 16];
            if let Some(importance) = importance {
                let importance = spread(importance[index].as_chunks::<16>().0);
                let variance = [2.0 * squares[index] / 256.0; LANES];
                let (weights, sums) = weigh::<V, 16>(&lanes, &importance, &variance);
                let fit = search_lanes::fit_symmetric::<V, 16>(&lanes, &weights, 4);
                for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
                    *levels = fit.levels(g, group, 4);
                }
                let common = fit_symmetric(&fit.scale, &sums, 32);
                scales = common.levels;
                put_half(block, 108, common.scale);
            } else {
                let (found, by_lane) = search_lanes::descend_symmetric::<V, 16>(&lanes, 4);
                for (g, levels) in levels.iter_mut().enumerate() {
                    *levels = std::array::from_fn(|i| by_lane[i][g] as u8);
                }
                let extreme = farthest(&found);
                // Zero if all values are, and then so are the codes.
                let mut d = 0.0;
                if extreme != 0.0 {
                    let inverse = -32.0 / extreme;
                    scales = found.map(|scale| {
                        (i32::from(nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8
                    });
                    d = 1.0 / inverse;
                }
                put_half(block, 108, d);
            }
            let d = super::half_at(block, 108);
            for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
                let step = d * (i32::from(scales[g]) - 32) as f32;
                if step != 0.0 {
                    *levels = symmetric_levels(group, step, 4);
                }
            }
            let packed = &mut block[96..108];
            packed.fill(0);
            for (g, scale) in scales.iter().enumerate() {
                packed[g % 8] |= (scale & 15) << (g / 8 * 4);
                packed[8 + g % 4] |= (scale >> 4) << (g / 4 * 2);
            }
            let levels = flat(&levels);
            put_bit_pairs(levels, &mut block[32..96]);
            for (i, byte) in block[..32].iter_mut().enumerate() {
                *byte = (0..8).fold(0, |byte, bit| byte | ((levels[32 * bit + i] >> 2) << bit));
            }
        }
    }
}

/// The value of largest magnitude, the first one of equals.
#[inline(always)]
fn farthest(values: &[f32; 16]) -> f32 {
    let mut extreme = 0.0f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    extreme
}

/// 8 groups of 32 values of 4 bits with minima.
#[inline(always)]
pub(super) fn encode_q4_k<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    const PLAIN: Candidates = Candidates { first: -1.0, step: 0.1, last: 20, absolute: false };
    let (blocks, _) = bytes.as_chunks_mut::<144>();
    encode_ranges::<V, 144>(values, importance, blocks, 15, &PLAIN, |block, levels| {
        put_four_bits(levels, &mut block[16..]);
    });
}

/// 8 groups of 32 values of 5 bits with minima.
#[inline(always)]
pub(super) fn encode_q5_k<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    const PLAIN: Candidates = Candidates { first: -0.5, step: 0.1, last: 15, absolute: false };
    let (blocks, _) = bytes.as_chunks_mut::<176>();
    encode_ranges::<V, 176>(values, importance, blocks, 31, &PLAIN, |block, levels| {
        for (i, byte) in block[16..48].iter_mut().enumerate() {
            *byte = (0..8).fold(0, |byte, g| byte | ((levels[g][i] >> 4) << g));
        }
        put_four_bits(levels, &mut block[48..]);
    });
}

/// Low halves of the levels: byte `32p + i` holds level `i` of group `2p` low, of `2p + 1` high.
#[inline(always)]
fn put_four_bits(levels: &[[u8; 32]; 8], bytes: &mut [u8]) {
    let pairs = levels.as_chunks::<2>().0.iter();
    for (bytes, [low, high]) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(pairs) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (low[i] & 15) | (high[i] << 4);
        }
    }
}

/// Blocks of eight groups with 6-bit scales and minima, two blocks to a set of lanes. Levels are
/// written by `put_levels`.
#[inline(always)]
fn encode_ranges<V: Lanes, const BYTES: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    blocks: &mut [[u8; BYTES]],
    top: i32,
    plain: &Candidates,
    put_levels: impl Fn(&mut [u8; BYTES], &[[u8; 32]; 8]),
) {
    let mut out = blocks.iter_mut();
    for (piece, importance) in pieces(values, importance) {
        let squares = if importance.is_some() { sums_of_squares(piece) } else { [0.0; LANES] };
        for (pair, values) in piece.chunks(2).enumerate() {
            let lanes = spread(values.as_flattened().as_chunks::<32>().0);
            let (fit, sums);
            if let Some(importance) = importance {
                let importance = importance[2 * pair..][..values.len()].as_flattened();
                let importance = spread(importance.as_chunks::<32>().0);
                let variance = std::array::from_fn(|l| 2.0 * squares[2 * pair + l / 8] / 256.0);
                let weights;
                (weights, sums) = weigh::<V, 32>(&lanes, &importance, &variance);
                fit = fit_range::<V, 32>(&lanes, &weights, top, &WEIGHTED);
            } else {
                let weights = weigh_by_magnitude::<V>(&lanes);
                fit = fit_range::<V, 32>(&lanes, &weights, top, plain);
                sums = [0.0; LANES];
            }
            for (half, (values, block)) in values.iter().zip(&mut out).enumerate() {
                let at = 8 * half;
                let scales = part(&fit.scale, at);
                let minima = part(&fit.negated_minimum, at);
                let (d, dmin, codes);
                if importance.is_some() {
                    let sums = part(&sums, at);
                    let (scales, minima) =
                        (fit_positive(scales, sums, 63), fit_positive(minima, sums, 63));
                    (d, dmin) = (scales.scale, minima.scale);
                    codes = pack_scales(&scales.levels, &minima.levels);
                } else {
                    let (scale, minimum) = (largest(scales), largest(minima));
                    let code = |values: &[f32; 8], largest| {
                        let inverse = inverse_factor(largest, 63.0);
                        values.map(|value| (nearest(inverse * value) as u8).min(63))
                    };
                    codes = pack_scales(&code(scales, scale), &code(minima, minimum));
                    (d, dmin) = (scale / 63.0, minimum / 63.0);
                }
                put_half(block, 0, d);
                put_half(block, 2, dmin);
                block[4..16].copy_from_slice(&codes);

                let (d, dmin) = (super::half_at(block, 0), super::half_at(block, 2));
                let mut levels = [[0u8; 32]; 8];
                let groups = values.as_chunks::<32>().0.iter();
                for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
                    let (scale, minimum) = k_decode::scale_and_minimum(&codes, g);
                    let step = d * f32::from(scale);
                    // With a zero step the levels have no influence; the search's stay.
                    *levels = if step == 0.0 {
                        fit.levels(at + g, group, top)
                    } else {
                        range_levels(group, step, dmin * f32::from(minimum), top)
                    };
                }
                put_levels(block, &levels);
            }
        }
    }
}

/// Eight lanes from `at` on.
#[inline(always)]
fn part(lanes: &Lane<f32>, at: usize) -> &[f32; 8] {
    lanes[at..].first_chunk().unwrap_or(&[0.0; 8])
}

/// Weights of 32 values without an importance matrix: magnitude over root mean square.
#[inline(always)]
fn weigh_by_magnitude<V: Lanes>(values: &[Lane<f32>; 32]) -> [Lane<f32>; 32] {
    let mut square = V::zero();
    for x in values {
        let x = V::load(x);
        square = square + x * x;
    }
    let typical = (square / V::splat(32.0)).sqrt();
    let mut weights = [[0.0; LANES]; 32];
    for i in 0..32 {
        weights[i] = (typical + V::load(&values[i]).abs()).store();
    }
    weights
}

/// Scales and minima of 6 bits in 12 bytes, as `scale_and_minimum` of the decoders reads them.
#[inline(always)]
fn pack_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0u8; 12];
    for g in 0..4 {
        packed[g] = scales[g] | ((scales[g + 4] >> 4) << 6);
        packed[g + 4] = minima[g] | ((minima[g + 4] >> 4) << 6);
        packed[g + 8] = (scales[g + 4] & 15) | (minima[g + 4] << 4);
    }
    packed
}

/// 16 groups of 16 values of 6 bits. The scale of largest magnitude becomes -128.
#[inline(always)]
pub(super) fn encode_q6_k<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<210>();
    let (values, _) = values.as_chunks::<SUPER>();
    for (index, (block, values)) in blocks.iter_mut().zip(values).enumerate() {
        let (groups, _) = values.as_chunks::<16>();
        let lanes = spread(groups);
        let weights = match importance {
            Some(importance) => spread(importance[index * SUPER..][..SUPER].as_chunks::<16>().0),
            None => search_lanes::squares::<V, 16>(&lanes),
        };
        let fit = search_lanes::fit_symmetric::<V, 16>(&lanes, &weights, 32);
        let extreme = farthest(&fit.scale);
        block.fill(0);
        if extreme.abs() < GROUP_EPSILON {
            continue;
        }
        let inverse = -128.0 / extreme;
        put_half(block, 208, 1.0 / inverse);
        let d = super::half_at(block, 208);
        let mut levels = [[0u8; 16]; 16];
        for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
            let scale = nearest(inverse * fit.scale[g]).min(127) as i8;
            block[192 + g] = scale as u8;
            let step = d * f32::from(scale);
            // With a zero step the levels have no influence; the search's stay.
            *levels = if step == 0.0 {
                fit.levels(g, group, 32)
            } else {
                symmetric_levels(group, step, 32)
            };
        }
        let levels = flat(&levels);
        put_bit_pairs(&levels.map(|level| level >> 4), &mut block[128..192]);
        let halves = levels.as_chunks::<128>().0.iter();
        for (low, levels) in block[..128].as_chunks_mut::<64>().0.iter_mut().zip(halves) {
            for (i, byte) in low.iter_mut().enumerate() {
                *byte = (levels[i] & 15) | (levels[i + 64] << 4);
            }
        }
    }
}
