//! Where the linear layers of a block lie among its slots.

use crate::arch::spec::{Part, Role, Slot};
use crate::{Error, Result};

/// Places of a block's layers in the order of its slots.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Queries, keys and values, or the one matrix of all three.
    pub(super) qkv: Vec<usize>,
    /// Behind the attention.
    pub(super) output: usize,
    pub(super) mlp: MlpPlaces,
}

/// Places of what follows the attention.
#[derive(Debug, Clone)]
pub(super) enum MlpPlaces {
    Gated(GatedPlaces),
    Experts(ExpertPlaces),
}

/// Places of a gated MLP.
#[derive(Debug, Clone, Copy)]
pub(super) struct GatedPlaces {
    /// The gate, or gate and up in one.
    pub(super) gate: usize,
    pub(super) up: Option<usize>,
    pub(super) down: usize,
}

/// Places of a mixture.
#[derive(Debug, Clone)]
pub(super) struct ExpertPlaces {
    pub(super) router: usize,
    /// The expert of all tokens, and what weighs it.
    pub(super) shared: Option<(GatedPlaces, usize)>,
    pub(super) experts: Vec<GatedPlaces>,
}

impl Places {
    /// Finds the layers by their roles.
    pub(super) fn of(slots: &[Slot]) -> Result<Self> {
        let find = |role: Role, part: Part| {
            slots.iter().position(|slot| (slot.role, slot.part) == (role, part))
        };
        let get = |role: Role, part: Part| {
            find(role, part)
                .ok_or_else(|| Error::General(format!("a block without {role:?} of {part:?}")))
        };
        let gated = |part: Part| -> Result<GatedPlaces> {
            let (gate, up) = match find(Role::GateUp, part) {
                Some(both) => (both, None),
                None => (get(Role::Gate, part)?, Some(get(Role::Up, part)?)),
            };
            Ok(GatedPlaces { gate, up, down: get(Role::Down, part)? })
        };
        let qkv = match find(Role::QueryKeyValue, Part::Attention) {
            Some(all) => vec![all],
            None => [Role::Query, Role::Key, Role::Value]
                .into_iter()
                .map(|role| get(role, Part::Attention))
                .collect::<Result<_>>()?,
        };
        let mlp = match find(Role::Router, Part::Mlp) {
            None => MlpPlaces::Gated(gated(Part::Mlp)?),
            Some(router) => {
                let shared = match find(Role::SharedRouter, Part::Shared) {
                    Some(gate) => Some((gated(Part::Shared)?, gate)),
                    None => None,
                };
                let count = slots
                    .iter()
                    .filter(|slot| matches!((slot.role, slot.part), (Role::Down, Part::Expert(_))))
                    .count();
                let experts = (0..count).map(|e| gated(Part::Expert(e))).collect::<Result<_>>()?;
                MlpPlaces::Experts(ExpertPlaces { router, shared, experts })
            }
        };
        Ok(Self { qkv, output: get(Role::Output, Part::Attention)?, mlp })
    }
}
