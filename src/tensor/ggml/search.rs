//! Searches for the scale (and minimum) that represent a group of values best on a small integer
//! grid. The order of every floating-point operation is part of the result: it decides ties the
//! way ggml's reference encoder does, without fused multiply-add.

/// Below this magnitude a group is zero.
pub(super) const GROUP_EPSILON: f32 = 1e-15;

/// Nearest integer, ties to even, for magnitudes up to 2^22: adding 1.5·2^23 leaves the integer in
/// the low mantissa bits.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    let shifted = (value + 12_582_912.0).to_bits() as i32;
    (shifted & 0x007f_ffff) - 0x0040_0000
}

/// A group on its grid: scale, negated minimum (zero for symmetric grids) and levels, counted from
/// the lower end of the grid.
pub(super) struct Fit<const N: usize> {
    pub(super) scale: f32,
    pub(super) negated_minimum: f32,
    pub(super) levels: [u8; N],
}

/// Symmetric grid `-half..half`: the scale with the smallest error weighted by the squared values,
/// over 19 candidates around the one that maps the largest magnitude to the end of the grid.
///
/// For levels `l` the best scale is `Σ w·x·l / Σ w·l²`, and the error falls as
/// `(Σ w·x·l)² / Σ w·l²` grows. A group of zeros has scale zero and levels zero.
#[inline(always)]
pub(super) fn fit_symmetric<const N: usize>(values: &[f32; N], half: i32) -> Fit<N> {
    let mut extreme = 0.0f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    let mut fit = Fit { scale: 0.0, negated_minimum: 0.0, levels: [0; N] };
    if extreme.abs() < GROUP_EPSILON {
        return fit;
    }
    let mut best = 0.0f32;
    // The unshifted candidate comes first and is kept whatever its error is.
    for step in std::iter::once(0).chain((-9..=9).filter(|&step| step != 0)) {
        let inverse = -(half as f32 + 0.1 * step as f32) / extreme;
        let (mut cross, mut square) = (0.0f32, 0.0f32);
        let mut levels = [0u8; N];
        for (level, &x) in levels.iter_mut().zip(values) {
            let rounded = nearest(inverse * x).clamp(-half, half - 1);
            *level = (rounded + half) as u8;
            let weight = x * x;
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

/// Grid `0..=top` with a minimum, values weighted by `weights`: the least squares fit of scale and
/// minimum for each of 21 candidate scales, the best of which is kept. The minimum is never
/// positive.
#[inline(always)]
pub(super) fn fit_with_minimum<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    top: i32,
) -> Fit<N> {
    const STEPS: i32 = 20;
    let (mut low, mut high) = (values[0], values[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * values[0];
    for (&x, &w) in values.iter().zip(weights).skip(1) {
        if x < low {
            low = x;
        }
        if x > high {
            high = x;
        }
        sum_w += w;
        sum_x += w * x;
    }
    if low > 0.0 {
        low = 0.0;
    }
    if high <= low {
        return Fit { scale: 0.0, negated_minimum: -low, levels: [0; N] };
    }
    // Candidates are laid out from the minimum found so far.
    let quantize = |inverse: f32, minimum: f32| {
        let mut levels = [0u8; N];
        for (level, &x) in levels.iter_mut().zip(values) {
            *level = nearest(inverse * (x - minimum)).clamp(0, top) as u8;
        }
        levels
    };
    let error = |levels: &[u8; N], scale: f32, minimum: f32| {
        let mut error = 0.0f32;
        for ((&level, &x), &w) in levels.iter().zip(values).zip(weights) {
            let difference = scale * f32::from(level) + minimum - x;
            error += w * (difference * difference);
        }
        error
    };

    let inverse = top as f32 / (high - low);
    let (mut scale, mut minimum) = (1.0 / inverse, low);
    let mut kept = quantize(inverse, minimum);
    let mut best = error(&kept, scale, minimum);
    for step in 0..=STEPS {
        let levels = quantize((-1.0 + 0.1 * step as f32 + top as f32) / (high - minimum), minimum);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((&level, &x), &w) in levels.iter().zip(values).zip(weights) {
            let level = f32::from(level);
            sum_l += w * level;
            sum_l2 += w * level * level;
            sum_xl += w * level * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if offset > 0.0 {
                offset = 0.0;
                fitted = sum_xl / sum_l2;
            }
            let candidate = error(&levels, fitted, offset);
            if candidate < best {
                (best, scale, minimum, kept) = (candidate, fitted, offset, levels);
            }
        }
    }
    Fit { scale, negated_minimum: -minimum, levels: kept }
}
