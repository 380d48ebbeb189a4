//! Searches for the scale (and minimum) that represent a group of values best on a small integer
//! grid, sixteen groups at a time: values are `[G, LANES]`.
//!
//! The order of every floating-point operation is part of the result: it decides ties the way
//! ggml's encoders do. The same searches for a single group are in [`super::search`].

use super::lanes::{LANES, Lane, Lanes, Mask};
use super::search::{GROUP_EPSILON, nearest};

/// Candidate scales of [`fit_range`]: the grid is stretched by `first + i * step` levels.
pub(super) struct Candidates {
    pub(super) first: f32,
    pub(super) step: f32,
    /// The last `i`, which starts at 0.
    pub(super) last: i32,
    /// Errors are compared by magnitude instead of square.
    pub(super) absolute: bool,
}

/// Candidates of every range search with an importance matrix.
pub(super) const WEIGHTED: Candidates =
    Candidates { first: -0.9, step: 0.05, last: 36, absolute: false };

/// Groups on grids `0..=top`: `x ≈ scale * level - negated_minimum`.
pub(super) struct RangeFit {
    pub(super) scale: Lane<f32>,
    pub(super) negated_minimum: Lane<f32>,
    /// Levels are `nearest(inverse * (x - offset))`.
    inverse: Lane<f32>,
    offset: Lane<f32>,
}

impl RangeFit {
    /// The levels that the search found for the values of lane `l`.
    #[inline(always)]
    pub(super) fn levels<const G: usize>(&self, l: usize, values: &[f32; G], top: i32) -> [u8; G] {
        values.map(|x| nearest(self.inverse[l] * (x - self.offset[l])).clamp(0, top) as u8)
    }
}

/// Grid `0..=top` with a minimum, values weighted by `weights`: the least squares fit of scale and
/// minimum for each candidate, the best of which is kept (`make_qkx2_quants`, `make_qkx3_quants`).
/// The minimum is never positive.
#[inline(always)]
pub(super) fn fit_range<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    weights: &[Lane<f32>; G],
    top: i32,
    candidates: &Candidates,
) -> RangeFit {
    let zero = V::zero();
    let mut low = V::load(&values[0]);
    let mut high = low;
    let mut sum_w = V::load(&weights[0]);
    let mut sum_x = sum_w * low;
    for i in 1..G {
        let (x, w) = (V::load(&values[i]), V::load(&weights[i]));
        low = low.replace(x.less(low), x);
        high = high.replace(x.greater(high), x);
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    low = low.replace(low.greater(zero), zero);
    let has_range = low.less(high);

    let mut levels = [zero; G];
    let mut inverse = V::splat(top as f32) / (high - low);
    for i in 0..G {
        levels[i] = (inverse * (V::load(&values[i]) - low)).nearest(0, top);
    }
    let (mut scale, mut minimum, mut offset) = (V::splat(1.0) / inverse, low, low);
    let absolute = candidates.absolute;
    let mut best = range_error(values, weights, &levels, scale, minimum, absolute);
    for i in 0..=candidates.last {
        let stretched = candidates.first + candidates.step * i as f32 + top as f32;
        // Candidates are laid out from the minimum found so far.
        let tried = V::splat(stretched) / (high - minimum);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..G {
            let (x, w) = (V::load(&values[i]), V::load(&weights[i]));
            let level = (tried * (x - minimum)).nearest(0, top);
            let weighted = w * level;
            sum_l = sum_l + weighted;
            sum_l2 = sum_l2 + weighted * level;
            sum_xl = sum_xl + weighted * x;
            levels[i] = level;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let possible = determinant.greater(zero).and(has_range);
        if !possible.any() {
            continue;
        }
        let fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let shifted = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let positive = shifted.greater(zero);
        let fitted = fitted.replace(positive, sum_xl / sum_l2);
        let shifted = shifted.replace(positive, zero);
        let candidate = range_error(values, weights, &levels, fitted, shifted, absolute);
        let better = candidate.less(best).and(possible);
        best = best.replace(better, candidate);
        scale = scale.replace(better, fitted);
        inverse = inverse.replace(better, tried);
        offset = offset.replace(better, minimum);
        minimum = minimum.replace(better, shifted);
    }
    RangeFit {
        scale: zero.replace(has_range, scale).store(),
        negated_minimum: (low.replace(has_range, minimum)).store().map(|minimum| -minimum),
        inverse: zero.replace(has_range, inverse).store(),
        offset: zero.replace(has_range, offset).store(),
    }
}

/// Weighted error of levels with a scale and a minimum.
#[inline(always)]
fn range_error<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    weights: &[Lane<f32>; G],
    levels: &[V; G],
    scale: V,
    minimum: V,
    absolute: bool,
) -> V {
    let mut error = V::zero();
    for i in 0..G {
        let difference = scale * levels[i] + minimum - V::load(&values[i]);
        let size = if absolute { difference.abs() } else { difference * difference };
        error = error + V::load(&weights[i]) * size;
    }
    error
}

/// Groups on grids `-half..half`.
pub(super) struct SymmetricFit {
    pub(super) scale: Lane<f32>,
    /// Levels are `nearest(inverse * x)`; zero where all values are.
    inverse: Lane<f32>,
}

impl SymmetricFit {
    /// The levels that the search found for the values of lane `l`, counted from `-half`. A group
    /// of zeros has levels 0.
    #[inline(always)]
    pub(super) fn levels<const G: usize>(&self, l: usize, values: &[f32; G], half: i32) -> [u8; G] {
        if self.inverse[l] == 0.0 {
            return [0; G];
        }
        values.map(|x| (nearest(self.inverse[l] * x).clamp(-half, half - 1) + half) as u8)
    }
}

/// The value of largest magnitude, the first one of equals, and its magnitude.
#[inline(always)]
fn extreme<V: Lanes, const G: usize>(values: &[Lane<f32>; G]) -> (V, V) {
    let (mut extreme, mut largest) = (V::zero(), V::zero());
    for x in values {
        let x = V::load(x);
        let larger = x.abs().greater(largest);
        largest = largest.replace(larger, x.abs());
        extreme = extreme.replace(larger, x);
    }
    (extreme, largest)
}

/// Symmetric grid `-half..half`: the scale with the smallest weighted error over 19 candidates
/// around the one that maps the largest magnitude to the end of the grid (`make_qx_quants`).
///
/// For levels `l` the best scale is `Σ w·x·l / Σ w·l²`, and the error falls as
/// `(Σ w·x·l)² / Σ w·l²` grows.
#[inline(always)]
pub(super) fn fit_symmetric<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    weights: &[Lane<f32>; G],
    half: i32,
) -> SymmetricFit {
    let zero = V::zero();
    let (extreme, largest) = extreme::<V, G>(values);
    // The unshifted candidate comes first and is kept whatever its error is.
    let mut inverse = V::splat(-(half as f32)) / extreme;
    let (cross, square) = symmetric_sums(values, weights, inverse, half);
    let mut scale = cross / square;
    scale = scale.replace(square.equal(zero), zero);
    let mut best = scale * cross;
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = V::splat(-(half as f32 + 0.1 * step as f32)) / extreme;
        let (cross, square) = symmetric_sums(values, weights, tried, half);
        let better = square.greater(zero).and((cross * cross).greater(best * square));
        let fitted = cross / square;
        scale = scale.replace(better, fitted);
        best = best.replace(better, fitted * cross);
        inverse = inverse.replace(better, tried);
    }
    let empty = largest.less(V::splat(GROUP_EPSILON));
    SymmetricFit {
        scale: scale.replace(empty, zero).store(),
        inverse: inverse.replace(empty, zero).store(),
    }
}

/// `Σ w·x·l` and `Σ w·l²` for the levels that `inverse` gives.
#[inline(always)]
fn symmetric_sums<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    weights: &[Lane<f32>; G],
    inverse: V,
    half: i32,
) -> (V, V) {
    let (mut cross, mut square) = (V::zero(), V::zero());
    for i in 0..G {
        let (x, w) = (V::load(&values[i]), V::load(&weights[i]));
        let level = (inverse * x).nearest(-half, half - 1);
        cross = cross + w * x * level;
        square = square + w * level * level;
    }
    (cross, square)
}

/// Symmetric grid `-half..half` with values weighted by their squares: starting from the largest
/// magnitude at the end of the grid, each level in turn moves to where the error is smallest, five
/// times over (`make_q3_quants`). Gives scales and levels `[G, LANES]`, counted from `-half`; a
/// group of zeros has levels 0.
#[inline(always)]
pub(super) fn descend_symmetric<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    half: i32,
) -> (Lane<f32>, [Lane<f32>; G]) {
    let zero = V::zero();
    let (extreme, largest) = extreme::<V, G>(values);
    let inverse = V::splat(-(half as f32)) / extreme;
    let mut levels = [zero; G];
    let (mut cross, mut square) = (zero, zero);
    for i in 0..G {
        let x = V::load(&values[i]);
        levels[i] = (inverse * x).nearest(-half, half - 1);
        let w = x * x;
        cross = cross + w * x * levels[i];
        square = square + w * levels[i] * levels[i];
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..G {
            let x = V::load(&values[i]);
            let w = x * x;
            let others_cross = cross - w * x * levels[i];
            let others_square = square - w * levels[i] * levels[i];
            let level = (x * others_square / others_cross).nearest(-half, half - 1);
            let new_cross = others_cross + w * x * level;
            let new_square = others_square + w * level * level;
            let error_falls = (cross * cross * new_square).less(new_cross * new_cross * square);
            // An unchanged level gives the sums that were there, up to rounding: it is left alone.
            let moves = levels[i].less(level).or(level.less(levels[i]));
            let better = others_cross
                .greater(zero)
                .and(moves)
                .and(new_square.greater(zero))
                .and(error_falls);
            changed |= better.any();
            levels[i] = levels[i].replace(better, level);
            cross = cross.replace(better, new_cross);
            square = square.replace(better, new_square);
        }
        // A lane without a change would find none again.
        if !changed {
            break;
        }
    }
    let empty = largest.less(V::splat(GROUP_EPSILON));
    let scale = zero.replace(square.greater(zero), cross / square).replace(empty, zero);
    let mut from_half = [[0.0; LANES]; G];
    for i in 0..G {
        from_half[i] = (levels[i] + V::splat(half as f32)).replace(empty, zero).store();
    }
    (scale.store(), from_half)
}

/// Sums of the squares of up to [`LANES`] blocks of `N` values, each in order.
#[inline(always)]
pub(super) fn sums_of_squares<const N: usize>(blocks: &[[f32; N]]) -> Lane<f32> {
    let mut sums = [0.0f32; LANES];
    let (eights, rest) = blocks.as_chunks::<8>();
    for (sums, eight) in sums.as_chunks_mut::<8>().0.iter_mut().zip(eights) {
        for i in 0..N {
            for (sum, block) in sums.iter_mut().zip(eight) {
                *sum += block[i] * block[i];
            }
        }
    }
    for (sum, block) in sums[8 * eights.len()..].iter_mut().zip(rest) {
        for x in block {
            *sum += x * x;
        }
    }
    sums
}

/// Importance of each value for the error of its group: that of its column, more for large values.
/// `variance[l]` belongs to lane `l`. Also the sum of each group.
#[inline(always)]
pub(super) fn weigh<V: Lanes, const G: usize>(
    values: &[Lane<f32>; G],
    importance: &[Lane<f32>; G],
    variance: &Lane<f32>,
) -> ([Lane<f32>; G], Lane<f32>) {
    let mut weights = [[0.0; LANES]; G];
    let (variance, mut sum) = (V::load(variance), V::zero());
    for i in 0..G {
        let x = V::load(&values[i]);
        let weight = V::load(&importance[i]) * (variance + x * x).sqrt();
        sum = sum + weight;
        weights[i] = weight.store();
    }
    (weights, sum.store())
}

/// Weights of values without an importance matrix: their squares.
#[inline(always)]
pub(super) fn squares<V: Lanes, const G: usize>(values: &[Lane<f32>; G]) -> [Lane<f32>; G] {
    let mut weights = [[0.0; LANES]; G];
    for i in 0..G {
        weights[i] = (V::load(&values[i]) * V::load(&values[i])).store();
    }
    weights
}
