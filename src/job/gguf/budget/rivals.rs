//! The last word where the model can be run: the plan that the sum of the losses likes best is
//! measured as a whole, beside the plan by estimates and the best mix of llama-quantize's levels that
//! fits, and the best of them is taken. Losses of single tensors do not say how they add up; this
//! does.

use super::Priced;
use crate::Result;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::job::gguf::level::Level;
use crate::job::gguf::mix::{self, Decision, ModelFacts, TensorFacts};
use crate::job::gguf::model::GgufModel;
use crate::job::gguf::request::QuantizeRequest;
use crate::job::profile::sensitivity::Probe;

/// A plan that fits.
pub(super) struct Rival {
    /// What it is, for people.
    pub(super) name: String,
    pub(super) decisions: Vec<Decision>,
    /// Sum of the losses of single tensors, nats per token.
    pub(super) loss: f64,
}

/// The mix of the level that is expected to lose least of those that fit, if any does.
pub(super) fn best_level(
    facts: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    priced: &[Priced],
    request: &QuantizeRequest,
    fits: &dyn Fn(&[Decision]) -> Result<bool>,
) -> Result<Option<Rival>> {
    let mut best: Option<Rival> = None;
    for level in Level::all() {
        let with_importance = request.importance.is_some();
        let mut decisions =
            mix::plan_types(facts, tensors, level, with_importance, &request.overrides);
        for decision in &mut decisions {
            // What the level meant does not matter to a budget.
            decision.instead_of = None;
        }
        let Some(loss) = expected(&decisions, priced) else { continue };
        if best.as_ref().is_none_or(|best| loss < best.loss) && fits(&decisions)? {
            let name = format!("the mix of {}", level.name());
            best = Some(Rival { name, decisions, loss });
        }
    }
    Ok(best)
}

/// Sum of the losses of a plan, if each of its types is one that a budget may choose.
pub(super) fn expected(decisions: &[Decision], priced: &[Priced]) -> Option<f64> {
    let lost = |(decision, priced): (&Decision, &Priced)| match decision.kind {
        // What options fix is the same in every plan.
        _ if priced.choices.is_empty() => Some(0.0),
        Some(kind) => priced.choices.iter().find(|c| c.kind == kind).map(|choice| choice.loss),
        None => None,
    };
    decisions.iter().zip(priced).map(lost).sum()
}

/// Measures the rivals and returns the best one; the first of equals.
pub(super) fn best(
    rivals: Vec<Rival>,
    model: &GgufModel,
    probe: &mut Probe<'_>,
    progress: &dyn Progress,
) -> Result<Option<Rival>> {
    let mut found: Vec<(f64, Rival)> = Vec::new();
    for rival in rivals {
        let same =
            |a: &[Decision], b: &[Decision]| a.iter().map(|d| d.kind).eq(b.iter().map(|d| d.kind));
        if found.iter().any(|(_, other)| same(&other.decisions, &rival.decisions)) {
            continue;
        }
        let kind_of = |name: &str| -> Option<StoredType> {
            let at = model.tensors.iter().position(|tensor| tensor.name == name)?;
            rival.decisions[at].kind.map(|kind: StoredType| kind)
        };
        found.push((probe.together(&kind_of, progress)?, rival));
    }
    let all: Vec<String> =
        found.iter().map(|(loss, rival)| format!("{} {loss:.5}", rival.name)).collect();
    let best = found.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, rival)| rival);
    if let Some(best) = best.as_ref().filter(|_| all.len() > 1) {
        progress.note(&format!(
            "Divergence of the whole on {} tokens, nats per token: {}; {} is taken",
            probe.tokens(),
            all.join(", "),
            best.name
        ));
    }
    Ok(best)
}
