//! New profiles: from a plan, with the exact type of every tensor; or from an importance matrix alone,
//! where there is no model to measure.

use crate::arch::role::{self, Role};
use crate::files::imatrix::ImportanceMatrix;
use crate::job::gguf::model::GgufModel;
use crate::job::gguf::plan::QuantizePlan;
use crate::job::profile::{Assignment, Profile, Strategy, store, weight, widths};
use crate::{Error, Result};

/// A profile with the types of a plan.
#[must_use]
pub(crate) fn from_plan(model: &GgufModel, plan: &QuantizePlan, name: &str) -> Profile {
    let assignments = model.tensors.iter().zip(&plan.tensors).filter_map(|(tensor, work)| {
        let kind = work.decision.kind.and(work.kind.for_weights())?;
        let held = plan.protection.as_ref().is_some_and(|p| p.of(&tensor.name).is_some());
        Some(Assignment {
            layer_name: fancy_regex::escape(&tensor.name).into_owned(),
            bit_width: widths::of_type(kind),
            is_protected: held,
            kind: Some(kind.name().to_owned()),
        })
    });
    Profile {
        profile_id: store::slug(name),
        profile_name: name.to_owned(),
        strategy: Strategy::Custom,
        description: Some(format!("types chosen for {}", model.name)),
        layer_assignments: assignments.collect(),
        target_bpw: None,
        target_compression: None,
        target_loss: None,
    }
}

/// Widths without a look at the weights, for a mean of `bits` per weight.
///
/// With an error of `c·2^(−2b)` at `b` bits, the least `Σ sᵢ c 2^(−2bᵢ)` at a given `Σ nᵢ bᵢ` has
/// `bᵢ = λ + ½ log₂(sᵢ/nᵢ)` (Shannon's reverse water-filling), with `sᵢ` the estimated loss by an
/// error of tensor `i` ([`weight::estimated`]) and `nᵢ` its number of weights. An importance matrix
/// names the tensors and their columns; rows follow from the shape of a transformer block, those of
/// keys and values are taken for a quarter of the queries'. λ is found by bisection over the widths
/// that there are.
///
/// # Errors
/// [`Error::Imatrix`] if the matrix names no tensor of a transformer block, [`Error::InvalidArgument`]
/// for a mean out of reach.
pub(crate) fn from_importance(matrix: &ImportanceMatrix, name: &str, bits: f64) -> Result<Profile> {
    let columns = |role: Role| {
        let mut entries = matrix.entries.iter();
        entries.find(|(name, _)| role::role(name) == role).map(|(_, entry)| entry.values.len())
    };
    let layers = matrix.entries.keys().filter_map(|name| role::layer(name)).max();
    let Some((layers, hidden)) = layers.zip(columns(Role::AttentionQuery)) else {
        return Err(Error::imatrix(&matrix.path, "it names no queries of a transformer block"));
    };
    let inner = columns(Role::FeedForwardDown).unwrap_or(hidden);
    let layers = layers + 1;
    let tensors: Vec<(&String, f64, f64)> = matrix
        .entries
        .iter()
        .map(|(name, entry)| {
            let rows = match role::role(name) {
                Role::AttentionKey | Role::AttentionValue => hidden.div_ceil(4),
                Role::FeedForwardGate | Role::FeedForwardUp => inner,
                _ => hidden,
            };
            let weights = (rows * entry.values.len()) as f64;
            let loss = weight::estimated(name, layers, true)
                * weight::concentration(name, &entry.values, 1);
            (name, weights, 0.5 * (loss / weights).log2())
        })
        .collect();
    let all: f64 = tensors.iter().map(|(_, weights, _)| weights).sum();
    let mean = |level: f64| {
        let widths = tensors.iter().map(|(_, n, offset)| n * widths::nearest(level + offset));
        widths.sum::<f64>() / all
    };
    let (mut low, mut high) = (-40.0, 60.0);
    if mean(low) > bits {
        return Err(Error::InvalidArgument(format!(
            "{bits} bits per weight are fewer than the smallest width, {}",
            widths::WIDTHS[0]
        )));
    }
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if mean(middle) <= bits { low = middle } else { high = middle }
    }
    let assignments = tensors.iter().map(|(name, _, offset)| {
        Assignment::width(&fancy_regex::escape(name), widths::nearest(low + offset))
    });
    Ok(Profile {
        profile_id: store::slug(name),
        profile_name: name.to_owned(),
        strategy: Strategy::Custom,
        description: Some("widths by the roles of the tensors of an importance matrix".to_owned()),
        layer_assignments: assignments.collect(),
        target_bpw: None,
        target_compression: None,
        target_loss: None,
    })
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::files::imatrix::Importance;

    /// The mean is kept, and values, which are small and matter, get more than queries.
    #[test]
    fn widths_follow_importance_and_keep_the_mean() {
        let mut entries = IndexMap::new();
        for block in 0..6 {
            for (part, columns) in [
                ("attn_q", 256),
                ("attn_k", 256),
                ("attn_v", 256),
                ("attn_output", 256),
                ("ffn_gate", 256),
                ("ffn_up", 256),
                ("ffn_down", 768),
            ] {
                let name = format!("blk.{block}.{part}.weight");
                entries.insert(name, Importance { values: vec![1.0; columns] });
            }
        }
        let matrix = ImportanceMatrix {
            path: "m".into(),
            entries,
            datasets: vec![],
            chunks: 1,
            sha256: String::new(),
        };
        for bits in [2.2, 3.0, 4.4] {
            let profile = from_importance(&matrix, "My Profile", bits).unwrap();
            profile.check().unwrap();
            assert_eq!(profile.profile_id, "my-profile");
            let width = |name: &str| {
                let mut rules = profile.layer_assignments.iter();
                rules.find(|rule| rule.layer_name.replace('\\', "") == name).unwrap().bit_width
            };
            assert!(width("blk.3.attn_v.weight") > width("blk.3.attn_q.weight"));
            let size = |rule: &Assignment| {
                let name = rule.layer_name.replace('\\', "");
                let rows = if name.contains("gate") || name.contains("up") {
                    768
                } else if name.contains("attn_k") || name.contains("attn_v") {
                    64
                } else {
                    256
                };
                (rows * matrix.entries[&name].values.len()) as f64
            };
            let all: f64 = profile.layer_assignments.iter().map(size).sum();
            let used: f64 =
                profile.layer_assignments.iter().map(|rule| size(rule) * rule.bit_width).sum();
            assert!(used / all <= bits && used / all > bits - 0.7, "{} for {bits}", used / all);
        }
        assert!(from_importance(&matrix, "x", 1.2).is_err());
    }
}
