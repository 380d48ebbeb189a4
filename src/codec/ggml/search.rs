//! Searches for the scale of a single group of values. The order of every floating-point operation
//! is part of the result: it decides ties the way ggml's reference encoders do, without fused
//! multiply-add.

/// Below this magnitude a group is zero.
pub(super) const GROUP_EPSILON: f32 = 1e-15;

/// Nearest integer, ties to even, for magnitudes up to 2^22: adding 1.5·2^23 leaves the integer in
/// the low mantissa bits.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    let shifted = (value + 12_582_912.0).to_bits() as i32;
    (shifted & 0x007f_ffff) - 0x0040_0000
}

/// A group on its grid.
pub(super) struct Fit<const N: usize> {
    pub(super) scale: f32,
    /// Counted from the lower end of the grid.
    pub(super) levels: [u8; N],
}

/// Symmetric grid `-half..half`: the scale with the smallest weighted error over 19 candidates
/// around the one that maps the largest magnitude to the end of the grid (`make_qx_quants`).
///
/// For levels `l` the best scale is `Σ w·x·l / Σ w·l²`, and the error falls as
/// `(Σ w·x·l)² / Σ w·l²` grows. A group of zeros has scale zero and levels zero.
#[inline(always)]
pub(super) fn fit_symmetric<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    half: i32,
) -> Fit<N> {
    let mut extreme = 0.0f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    let mut fit = Fit { scale: 0.0, levels: [0; N] };
    if extreme.abs() < GROUP_EPSILON {
        return fit;
    }
    let mut best = 0.0f32;
    // The unshifted candidate comes first and is kept whatever its error is.
    for step in std::iter::once(0).chain((-9..=9).filter(|&step| step != 0)) {
        let inverse = -(half as f32 + 0.1 * step as f32) / extreme;
        let (mut cross, mut square) = (0.0f32, 0.0f32);
        let mut levels = [0u8; N];
        for ((level, &x), &weight) in levels.iter_mut().zip(values).zip(weights) {
            let rounded = nearest(inverse * x).clamp(-half, half - 1);
            *level = (rounded + half) as u8;
            cross += weight * x * rounded as f32;
            square += weight * rounded as f32 * rounded as f32;
        }
        if step == 0 {
            fit.scale = if square == 0.0 { 0.0 } else { cross / square };
        } else if square > 0.0 && cross * cross > best * square {
            fit.scale = cross / square;
        } else {
            continue;
        }
        fit.levels = levels;
        best = fit.scale * cross;
    }
    fit
}

/// Grid `0..=top` without a minimum, for values that are not negative: the scale with the smallest
/// weighted error over nine candidates, then each level in turn moved to where the error is
/// smallest, five times over (`make_qp_quants`). Negative levels, which only negative values have,
/// wrap as in ggml.
#[inline(always)]
pub(super) fn fit_positive<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    top: i32,
) -> Fit<N> {
    let mut fit = Fit { scale: 0.0, levels: [0; N] };
    let largest = values.iter().fold(0.0f32, |largest, &x| if largest > x { largest } else { x });
    if largest < GROUP_EPSILON {
        return fit;
    }
    let error = |inverse: f32, limit: Option<i32>| {
        let scale = 1.0 / inverse;
        let mut error = 0.0f32;
        for (&x, &w) in values.iter().zip(weights) {
            let level = nearest(inverse * x);
            let level = limit.map_or(i32::from(level as u8), |top| level.min(top));
            let difference = x - scale * level as f32;
            error += w * difference * difference;
        }
        error
    };
    let mut inverse = top as f32 / largest;
    let mut best = error(inverse, None);
    for step in (-4..=4).filter(|&step| step != 0) {
        let tried = (0.1 * step as f32 + top as f32) / largest;
        let candidate = error(tried, Some(top));
        if candidate < best {
            best = candidate;
            inverse = tried;
        }
    }
    let levels = &mut fit.levels;
    let (mut cross, mut square) = (0.0f32, 0.0f32);
    for ((kept, &x), &w) in levels.iter_mut().zip(values).zip(weights) {
        let level = nearest(inverse * x).min(top);
        *kept = level as u8;
        cross += w * x * level as f32;
        square += w * level as f32 * level as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((kept, &x), &w) in levels.iter_mut().zip(values).zip(weights) {
            let old = f32::from(*kept);
            let (mut new_cross, mut new_square) = (cross - w * x * old, square - w * old * old);
            if new_cross > 0.0 && new_square > 0.0 {
                let level = nearest(x * new_square / new_cross).min(top);
                if level != i32::from(*kept) {
                    new_cross += w * x * level as f32;
                    new_square += w * level as f32 * level as f32;
                    if new_cross * new_cross * square > cross * cross * new_square {
                        *kept = level as u8;
                        (cross, square) = (new_cross, new_square);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    fit.scale = if square > 0.0 { cross / square } else { 0.0 };
    fit
}
