//! Encoders of `Q4_K` and `Q6_K`, byte-identical to ggml's reference encoders. Layouts: the decoders.

use half::f16;

use super::k_decode;
use super::search::{GROUP_EPSILON, fit_symmetric, fit_with_minimum, nearest};

const SUPER: usize = 256;

/// Scales and minima of the eight groups are found first, rounded to 6 bits against the largest
/// of each, and the values are then rounded with the scales that a reader will see.
#[inline(always)]
pub(super) fn encode_q4_k(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<144>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<SUPER>().0) {
        let (groups, _) = values.as_chunks::<32>();
        let (mut scales, mut minima) = ([0.0f32; 8], [0.0f32; 8]);
        let (mut largest_scale, mut largest_minimum) = (0.0f32, 0.0f32);
        let mut levels = [[0u8; 32]; 8];
        for (g, group) in groups.iter().enumerate() {
            let mut square = 0.0f32;
            for x in group {
                square += x * x;
            }
            let typical = (square / 32.0).sqrt();
            let weights = group.map(|x| typical + x.abs());
            let fit = fit_with_minimum(group, &weights, 15);
            (scales[g], minima[g], levels[g]) = (fit.scale, fit.negated_minimum, fit.levels);
            if scales[g] > largest_scale {
                largest_scale = scales[g];
            }
            if minima[g] > largest_minimum {
                largest_minimum = minima[g];
            }
        }
        let inverse = |largest: f32| if largest > 0.0 { 63.0 / largest } else { 0.0 };
        let (scale_factor, minimum_factor) = (inverse(largest_scale), inverse(largest_minimum));
        let packed = &mut block[4..16];
        packed.fill(0);
        for g in 0..8 {
            let scale = nearest(scale_factor * scales[g]).min(63) as u8;
            let minimum = nearest(minimum_factor * minima[g]).min(63) as u8;
            if g < 4 {
                packed[g] = scale;
                packed[g + 4] = minimum;
            } else {
                packed[g + 4] = (scale & 15) | ((minimum & 15) << 4);
                packed[g - 4] |= (scale >> 4) << 6;
                packed[g] |= (minimum >> 4) << 6;
            }
        }
        let d = f16::from_f32(largest_scale / 63.0);
        let dmin = f16::from_f32(largest_minimum / 63.0);
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&dmin.to_le_bytes());

        for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
            let (scale, minimum) = k_decode::scale_and_minimum(&block[4..16], g);
            let step = d.to_f32() * f32::from(scale);
            // With a zero step the levels have no influence; the search's stay.
            if step != 0.0 {
                let minimum = dmin.to_f32() * f32::from(minimum);
                for (level, x) in levels.iter_mut().zip(group) {
                    *level = nearest((x + minimum) / step).clamp(0, 15) as u8;
                }
            }
        }
        for (pair, levels) in levels.as_chunks::<2>().0.iter().enumerate() {
            for i in 0..32 {
                block[16 + 32 * pair + i] = levels[0][i] | (levels[1][i] << 4);
            }
        }
    }
}

/// Scales of the sixteen groups are found first and rounded to 8 bits, the one of largest
/// magnitude to -128; the values are then rounded with the scales that a reader will see.
#[inline(always)]
pub(super) fn encode_q6_k(values: &[f32], bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<210>();
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<SUPER>().0) {
        let (groups, _) = values.as_chunks::<16>();
        let mut scales = [0.0f32; 16];
        let mut levels = [[0u8; 16]; 16];
        let mut extreme = 0.0f32;
        for (g, group) in groups.iter().enumerate() {
            let fit = fit_symmetric(group, 32);
            (scales[g], levels[g]) = (fit.scale, fit.levels);
            if fit.scale.abs() > extreme.abs() {
                extreme = fit.scale;
            }
        }
        block.fill(0);
        if extreme.abs() < GROUP_EPSILON {
            continue;
        }
        let inverse = -128.0 / extreme;
        let d = f16::from_f32(1.0 / inverse);
        block[208..].copy_from_slice(&d.to_le_bytes());

        for (g, (levels, group)) in levels.iter_mut().zip(groups).enumerate() {
            let scale = nearest(inverse * scales[g]).min(127) as i8;
            block[192 + g] = scale as u8;
            let step = d.to_f32() * f32::from(scale);
            // With a zero step the levels have no influence; the search's stay.
            if step != 0.0 {
                for (level, &x) in levels.iter_mut().zip(group) {
                    *level = (nearest(x / step).clamp(-32, 31) + 32) as u8;
                }
            }
        }
        for (half, levels) in levels.as_flattened().as_chunks::<128>().0.iter().enumerate() {
            for i in 0..32 {
                let [a, b, c, d] = [0, 32, 64, 96].map(|slot| levels[slot + i]);
                block[64 * half + i] = (a & 15) | (c << 4);
                block[64 * half + 32 + i] = (b & 15) | (d << 4);
                block[128 + 32 * half + i] =
                    (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6);
            }
        }
    }
}
