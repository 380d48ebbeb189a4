//! The search for ranges: values beyond a limit are cut off where the rest gains more. The error is
//! that of the group's part of the outputs over all calibration tokens, `δᵀ G_gg δ`.

use crate::codec::affine::grid::{Grid, Scale};
use crate::codec::vector;

/// Limits that are tried, from the largest absolute value down.
const STEPS: usize = 10;
/// Step between two limits, as a fraction of the largest absolute value.
const STEP: f32 = 0.05;

/// Diagonal blocks `G_gg` of a matrix `[inputs, inputs]`, one after the other.
#[must_use]
pub(crate) fn blocks(gram: &[f32], inputs: usize, group: usize) -> Vec<Vec<f32>> {
    (0..inputs / group)
        .map(|index| {
            let first = index * group;
            (first..first + group)
                .flat_map(|row| &gram[row * inputs + first..row * inputs + first + group])
                .copied()
                .collect()
        })
        .collect()
}

/// The scale of a group whose rounding errors cost `δᵀ G δ`, `gram` `[group, group]`.
#[must_use]
pub(crate) fn fit(grid: Grid, values: &[f32], gram: &[f32]) -> Scale {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    // What the whole range gives, should every error be beyond what f32 holds.
    let mut best = (f64::INFINITY, grid.fit(values, None));
    let mut delta = vec![0.0; values.len()];
    let mut clipped = vec![0.0; values.len()];
    for step in 0..STEPS {
        let limit = largest * (1.0 - STEP * step as f32);
        clipped.iter_mut().zip(values).for_each(|(out, v)| *out = v.clamp(-limit, limit));
        let scale = grid.fit(&clipped, None);
        let most = f32::from(grid.most());
        for (delta, &value) in delta.iter_mut().zip(values) {
            *delta = value - scale.value(scale.round(value, most));
        }
        let error = form(&delta, gram);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

fn form(delta: &[f32], gram: &[f32]) -> f64 {
    let dot = vector::kernels().dot_f32;
    delta
        .iter()
        .zip(gram.chunks_exact(delta.len()))
        .map(|(d, line)| f64::from(*d) * f64::from(dot(line, delta)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::affine::PlainType;

    #[test]
    fn a_lone_outlier_of_a_quiet_channel_is_cut() {
        let grid = Grid {
            bits: 4,
            symmetric: false,
            least_zero: 0,
            search: false,
            scales: PlainType::F16,
        };
        let mut values: Vec<f32> = (0..32).map(|i| ((i * 29) % 31) as f32 / 31.0 - 0.5).collect();
        values[5] = 3.0;
        let mut gram = vec![0.0; 32 * 32];
        (0..32).for_each(|i| gram[i * 33] = if i == 5 { 1e-4 } else { 1.0 });
        let (plain, cut) = (grid.fit(&values, None), fit(grid, &values, &gram));
        assert!(cut.scale < plain.scale, "{cut:?} {plain:?}");
        gram[5 * 33] = 100.0;
        assert_eq!(fit(grid, &values, &gram), plain, "a loud channel is not");
    }

    #[test]
    fn blocks_lie_on_the_diagonal() {
        let gram: Vec<f32> = (0..16).map(|i| i as f32).collect();
        assert_eq!(blocks(&gram, 4, 2), [vec![0.0, 1.0, 4.0, 5.0], vec![10.0, 11.0, 14.0, 15.0]]);
    }
}
