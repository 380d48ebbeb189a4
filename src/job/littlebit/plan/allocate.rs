//! Ranks for a bit budget.

use super::losses::{Loss, Losses};
use super::{LayerPlan, PlanRequest};
use crate::job::littlebit::budget::{FactorShape, RANK_STEP};
use crate::{Error, Result};

/// Relative distance from the target that counts as missing it where more bits could not be spent.
const TOLERANCE: f64 = 0.01;

/// Fewest and most bits per weight of a layer where bits go by its loss, relative to the target.
const SHARES: (f64, f64) = (0.5, 1.6);

/// Sets rank and paths of all layers so that their bits approach the target from below, with the
/// same bits per weight in all layers.
pub(super) fn evenly(layers: &mut [LayerPlan], request: &PlanRequest) -> Result<()> {
    let budget = budget(layers, request)?;
    let spent = |level: f64| bits_at_level(layers, level);
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
    spend_rest(layers, budget, request)
}

/// Sets rank and paths of all layers so that their bits approach the target from below and the sum
/// of what they are expected to lose is as small as it can be made: each step goes to the layer
/// where a bit saves most. Losses are convex in the bits, so no exchange of two steps of equal cost
/// saves more. Every layer stays between the two [`SHARES`] of the target as far as its form and
/// the budget allow.
pub(super) fn by_loss(
    layers: &mut [LayerPlan],
    request: &PlanRequest,
    losses: &Losses,
) -> Result<()> {
    let budget = budget(layers, request)?;
    let (least, most) = (SHARES.0 * request.target_bpw, SHARES.1 * request.target_bpw);
    // Where the cheapest form of some layer is dear, the others may have to start lower.
    let start = if bits_at_level(layers, least) <= budget { least } else { 0.0 };
    for layer in layers.iter_mut() {
        layer.shape = at_level(layer.shape, start);
    }
    let mut total: u64 = layers.iter().map(|layer| layer.shape.bits()).sum();
    let mut steps = layers
        .iter()
        .map(|layer| {
            let loss = losses.get(&layer.name).copied().ok_or_else(|| {
                Error::General(format!("the sensitivity of {} was not measured", layer.name))
            })?;
            Ok((loss, Step::of(layer.shape, loss, most)))
        })
        .collect::<Result<Vec<_>>>()?;
    loop {
        let best = layers
            .iter_mut()
            .zip(&mut steps)
            .filter_map(|(layer, (loss, step))| {
                let saved = step.as_ref().filter(|step| step.bits <= budget - total)?.saved;
                Some((saved, layer, *loss, step))
            })
            // The first one of equals.
            .reduce(|best, other| if other.0 > best.0 { other } else { best });
        let Some((_, layer, loss, step)) = best else { break };
        if let Some(step) = step.take() {
            total += step.bits;
            layer.shape = step.shape;
        }
        *step = Step::of(layer.shape, loss, most);
    }
    spend_rest(layers, budget, request)
}

/// A layer's next dearer form.
struct Step {
    shape: FactorShape,
    /// What it costs more.
    bits: u64,
    /// What each bit of that saves, nats per token.
    saved: f64,
}

impl Step {
    /// The step from `shape`, if it takes no more than `most` bits per weight.
    fn of(shape: FactorShape, loss: Loss, most: f64) -> Option<Self> {
        let next = step_up(shape).filter(|next| next.bits_per_weight() <= most)?;
        let bits = next.bits() - shape.bits();
        let saved = loss.at(shape.bits_per_weight()) - loss.at(next.bits_per_weight());
        Some(Self { shape: next, bits, saved: saved / bits as f64 })
    }
}

/// All bits that may be spent.
fn budget(layers: &[LayerPlan], request: &PlanRequest) -> Result<u64> {
    let weights = weights(layers);
    // A whole number of bits for any target with few decimals.
    let budget = (request.target_bpw * weights as f64 + 1e-6).floor() as u64;
    let least = bits_at_level(layers, 0.0);
    if least > budget {
        return Err(unreachable(request, least as f64 / weights as f64, true));
    }
    Ok(budget)
}

fn weights(layers: &[LayerPlan]) -> u64 {
    layers.iter().map(|layer| layer.shape.weights()).sum()
}

fn bits_at_level(layers: &[LayerPlan], level: f64) -> u64 {
    layers.iter().map(|layer| at_level(layer.shape, level).bits()).sum()
}

/// Spends what remains: raises ranks step by step, always of the layer with the lowest rate that
/// still fits (the first one of equals). Refuses a target that is beyond the largest forms.
fn spend_rest(layers: &mut [LayerPlan], budget: u64, request: &PlanRequest) -> Result<()> {
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
        let Some((_, next, layer)) = poorest else { break };
        total += next.bits() - layer.shape.bits();
        layer.shape = next;
    }
    let reached = total as f64 / weights(layers) as f64;
    let most = layers.iter().all(|layer| step_up(layer.shape).is_none());
    if most && reached < request.target_bpw * (1.0 - TOLERANCE) {
        return Err(unreachable(request, reached, false));
    }
    Ok(())
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
