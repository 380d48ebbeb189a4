//! Ranks for a bit budget.

use super::{LayerPlan, PlanRequest};
use crate::littlebit::budget::{FactorShape, RANK_STEP};
use crate::{Error, Result};

/// Relative distance from the target that counts as missing it where more bits could not be spent.
const TOLERANCE: f64 = 0.01;

/// Sets rank and paths of all layers so that their bits approach the target from below.
pub(super) fn allocate(layers: &mut [LayerPlan], request: &PlanRequest) -> Result<()> {
    let weights: u64 = layers.iter().map(|layer| layer.shape.weights()).sum();
    // A budget that is a whole number of bits for any target with few decimals.
    let budget = (request.target_bpw * weights as f64 + 1e-6).floor() as u64;
    let spent = |level: f64| -> u64 {
        layers.iter().map(|layer| at_level(layer.shape, level).bits()).sum()
    };
    let least = spent(0.0);
    if least > budget {
        return Err(unreachable(request, least as f64 / weights as f64, true));
    }
    // The highest level, in bits per weight for every layer, that the budget allows.
    let (mut low, mut high) = (0.0, 2.0 * request.target_bpw.max(1.0));
    while spent(high) <= budget && high < 64.0 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if spent(middle) <= budget { low = middle } else { high = middle }
    }
    for layer in layers.iter_mut() {
        layer.shape = at_level(layer.shape, low);
    }
    let total = spend_rest(layers, budget);
    let reached = total as f64 / weights as f64;
    let most = layers.iter().all(|layer| step_up(layer.shape).is_none());
    if most && reached < request.target_bpw * (1.0 - TOLERANCE) {
        return Err(unreachable(request, reached, false));
    }
    Ok(())
}

/// Raises ranks step by step, always of the layer with the lowest rate that still fits (the first
/// one of equals). Returns the bits spent in the end.
fn spend_rest(layers: &mut [LayerPlan], budget: u64) -> u64 {
    let mut total: u64 = layers.iter().map(|layer| layer.shape.bits()).sum();
    loop {
        let poorest = layers
            .iter_mut()
            .filter_map(|layer| {
                let next = step_up(layer.shape)?;
                let fits = next.bits() - layer.shape.bits() <= budget - total;
                fits.then_some((layer.shape.bits_per_weight(), next, layer))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, next, layer)) = poorest else { return total };
        total += next.bits() - layer.shape.bits();
        layer.shape = next;
    }
}

/// The form of a layer that costs at most `level` bits per weight, or its cheapest form.
fn at_level(shape: FactorShape, level: f64) -> FactorShape {
    let single = shape.with_rank(shape.rank_for(level));
    if single.rank < shape.rank_range().1 {
        return single;
    }
    match doubled(single) {
        Some(double) if double.bits_per_weight() <= level => {
            double.with_rank(double.rank_for(level))
        }
        _ => single,
    }
}

/// The next dearer form.
fn step_up(shape: FactorShape) -> Option<FactorShape> {
    if shape.rank < shape.rank_range().1 {
        return Some(shape.with_rank(shape.rank + RANK_STEP));
    }
    doubled(shape)
}

/// The cheapest form with two paths that costs more than this one with one.
fn doubled(shape: FactorShape) -> Option<FactorShape> {
    if shape.paths != 1 {
        return None;
    }
    let double = FactorShape { paths: 2, ..shape };
    let most = shape.rank_range().1;
    let half = (shape.rank / 2 / RANK_STEP * RANK_STEP).max(shape.rank_range().0);
    (half..=most)
        .step_by(RANK_STEP)
        .map(|rank| double.with_rank(rank))
        .find(|double| double.bits() > shape.bits())
}

fn unreachable(request: &PlanRequest, reachable: f64, smallest: bool) -> Error {
    let target = request.target_bpw;
    // Rounded away from the limit, so that the figure itself is accepted.
    let (word, figure, direction) = if smallest {
        ("smallest", (reachable * 1e4).ceil() / 1e4, "more")
    } else {
        ("largest", (reachable * 1e4).floor() / 1e4, "less")
    };
    Error::RankSelection {
        message: format!(
            "target BPW {target} cannot be met: the {word} factorization of this model takes \
             {figure} BPW"
        ),
        suggestion: format!("Use --target-bpw {figure} or {direction}"),
    }
}
