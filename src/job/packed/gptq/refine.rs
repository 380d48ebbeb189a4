//! Second looks at a rounded layer.
//!
//! GPTQ decides each column once, before it knows what the later ones will do. Afterwards all
//! levels are known, and each can be chosen again for the whole: with everything else held, the
//! error `e H eᵀ` of a row is least where `e_j = −Σ_{k≠j} e_k H_kj / H_jj` (coordinate descent, as
//! arXiv 2309.01885 does from scratch). And with the levels held, the scale of a group is a
//! quotient. Both only ever lower the error on the calibration text.

use half::f16;

use super::solve::{Groups, Rows};
use crate::codec::affine::grid::Scale;

/// Improves levels and scales of some rows; `hessian` is `H` with the ridge, row-major, in the order
/// of rounding.
pub(super) fn refine(rows: &mut Rows<'_>, hessian: &[f32]) {
    let n = rows.n();
    for _ in 0..rows.layer.options.refinements {
        for row in 0..rows.count {
            let errors = &rows.error[row * n..(row + 1) * n];
            // g = e H; H is symmetric.
            let mut gradient = vec![0.0f32; n];
            for (&error, line) in errors.iter().zip(hessian.chunks_exact(n)) {
                if error != 0.0 {
                    gradient.iter_mut().zip(line).for_each(|(g, h)| *g += error * h);
                }
            }
            scales(rows, row, &mut gradient, hessian);
            levels(rows, row, &mut gradient, hessian);
        }
    }
}

/// One pass over the levels of a row.
fn levels(rows: &mut Rows<'_>, row: usize, gradient: &mut [f32], hessian: &[f32]) {
    let n = rows.n();
    let most = f32::from(rows.layer.options.grid.most());
    for step in 0..n {
        let scale = rows.scale(row, rows.layer.group_of_step[step]);
        let at = row * n + step;
        let curvature = hessian[step * n + step];
        // The error that would be best here, and the level that comes closest to it.
        let wanted = rows.error[at] - gradient[step] / curvature;
        let level = scale.round(rows.weight[at] - wanted, most);
        if level == rows.levels[at] {
            continue;
        }
        let error = rows.weight[at] - scale.value(level);
        let change = error - rows.error[at];
        // Rounding in f16 steps can make the nearest level no better.
        let gain = change * (2.0 * gradient[step] + change * curvature);
        if gain < 0.0 {
            rows.levels[at] = level;
            rows.error[at] = error;
            let line = &hessian[step * n..(step + 1) * n];
            gradient.iter_mut().zip(line).for_each(|(g, h)| *g += change * h);
        }
    }
}

/// The best scale of each group of a row, one after the other.
fn scales(rows: &mut Rows<'_>, row: usize, gradient: &mut [f32], hessian: &[f32]) {
    let (n, group) = (rows.n(), rows.layer.options.group);
    for index in 0..rows.groups() {
        let steps: Vec<usize> = match rows.layer.options.groups {
            Groups::Running => (index * group..(index + 1) * group).collect(),
            Groups::Static => {
                (0..n).filter(|&step| rows.layer.group_of_step[step] == index).collect()
            }
        };
        let scale = rows.scale(row, index);
        let zero = f32::from(scale.zero);
        // Along `z`, the levels less the zero point, the error changes by `−t z`.
        let z: Vec<f32> =
            steps.iter().map(|&step| f32::from(rows.levels[row * n + step]) - zero).collect();
        let mut product = vec![0.0f32; n];
        for (&step, &z) in steps.iter().zip(&z) {
            if z != 0.0 {
                let line = &hessian[step * n..(step + 1) * n];
                product.iter_mut().zip(line).for_each(|(p, h)| *p += z * h);
            }
        }
        let slope: f32 = steps.iter().zip(&z).map(|(&step, z)| gradient[step] * z).sum();
        let curvature: f32 = steps.iter().zip(&z).map(|(&step, z)| product[step] * z).sum();
        let wanted = scale.scale.to_f32() + slope / curvature;
        let new = f16::from_f32(wanted);
        if !(new.is_finite() && new > f16::ZERO) || new == scale.scale {
            continue;
        }
        let change = new.to_f32() - scale.scale.to_f32();
        if change * (change * curvature - 2.0 * slope) >= 0.0 {
            continue;
        }
        rows.set_scale(row, index, Scale { scale: new, ..scale });
        for (&step, &z) in steps.iter().zip(&z) {
            rows.error[row * n + step] -= change * z;
        }
        gradient.iter_mut().zip(&product).for_each(|(g, p)| *g -= change * p);
    }
}
