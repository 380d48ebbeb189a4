//! Which type each tensor gets: the rules of llama-quantize's levels, overrides, and what narrow
//! rows make of them. A pure function of names and shapes, [`plan_types`].
//!
//! Precedence, first that applies: tensors that are never quantized keep their type; the option
//! for embeddings or the output matrix; the first `--tensor-type` whose pattern is found in the
//! name; `--pure`; the mix. A type whose blocks the rows do not fill is replaced last.

mod overrides;
mod rules;

use std::fmt;

use super::level::Level;
use crate::arch::role::{Role, layer, may_be_quantized, role};
use crate::codec::StoredType;
pub use overrides::{Overrides, Pattern, parse_type};
use rules::{BASE, OUTPUT_Q5_K, RULES, When};

/// What the rules ask of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads of the first block.
    pub heads: usize,
    /// Key/value heads of the first block; 0 without attention.
    pub kv_heads: usize,
    /// Experts; 0 or 1 for dense models.
    pub experts: usize,
}

impl ModelFacts {
    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Whether llama.cpp calls the model a "70B", by its depth.
    fn is_70b(&self) -> bool {
        self.layers == 80
            && match self.architecture.as_str() {
                "llama" => self.experts != 8 && self.heads != self.kv_heads,
                "qwen2" => true,
                _ => false,
            }
    }
}

/// A tensor as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct TensorFacts<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
}

/// Why a tensor gets its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is of a kind that is never quantized, or was asked to stay.
    Kept,
    /// The level's base type.
    Level,
    /// A rule of the level's mix.
    Mix,
    /// The output matrix, or embeddings that serve as one.
    Output,
    /// `--token-embedding-type`.
    EmbeddingOption,
    /// `--output-tensor-type`.
    OutputOption,
    /// `--tensor-type` with this pattern.
    Override(String),
    /// Chosen for a size budget.
    Budget,
    /// A profile's assignment with this `layer_name`.
    Profile(String),
    /// It holds super weights.
    Protected,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => out.write_str("kept"),
            Self::Level => out.write_str("level"),
            Self::Mix => out.write_str("mix"),
            Self::Output => out.write_str("output"),
            Self::EmbeddingOption => out.write_str("--token-embedding-type"),
            Self::OutputOption => out.write_str("--output-tensor-type"),
            Self::Override(pattern) => write!(out, "--tensor-type {pattern}"),
            Self::Budget => out.write_str("budget"),
            Self::Profile(rule) => write!(out, "profile {rule}"),
            Self::Protected => out.write_str("protected"),
        }
    }
}

/// The type of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The type to write; `None` keeps the stored one.
    pub kind: Option<StoredType>,
    /// Why.
    pub reason: Reason,
    /// The type that was meant, where its blocks do not fit the rows.
    pub instead_of: Option<StoredType>,
}

impl Decision {
    const KEPT: Self = Self { kind: None, reason: Reason::Kept, instead_of: None };

    /// `meant`, or what takes its place for rows of `columns` values.
    #[must_use]
    pub fn fitting(meant: StoredType, columns: usize, reason: Reason) -> Self {
        let kind = meant.fallback(columns);
        Self { kind: Some(kind), reason, instead_of: (kind != meant).then_some(meant) }
    }
}

/// Whether a tensor of that name, written as `kind` at `level`, is worthless without an importance
/// matrix.
#[must_use]
pub fn needs_importance(name: &str, kind: StoredType, level: Option<Level>) -> bool {
    let exempt = matches!(role(name), Role::Embedding | Role::Output);
    let k_without = kind == StoredType::Q2_K && level == Some(Level::Q2_K_S);
    !exempt && (kind.needs_importance() || k_without)
}

/// The types of all `tensors` at `level`, in their order, which must be that of the file: some
/// rules count tensors.
#[must_use]
pub fn plan_types(
    model: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    level: Level,
    importance: bool,
    overrides: &Overrides,
) -> Vec<Decision> {
    let mut mix = Mix::new(model, tensors, level, importance);
    tensors.iter().map(|tensor| decide(&mut mix, tensor, overrides)).collect()
}

fn decide(mix: &mut Mix<'_>, tensor: &TensorFacts<'_>, overrides: &Overrides) -> Decision {
    let (name, columns) = (tensor.name, tensor.shape.last().copied().unwrap_or(1));
    let role = role(name);
    if !may_be_quantized(name, tensor.shape) || (overrides.leave_output && name == "output.weight")
    {
        return Decision::KEPT;
    }
    let tied_output = role == Role::Embedding && mix.tied;
    let (meant, reason) = match (role, overrides.embedding, overrides.output) {
        (Role::Embedding, Some(kind), _) => (kind, Reason::EmbeddingOption),
        (Role::Output, _, Some(kind)) => (kind, Reason::OutputOption),
        _ => match overrides.matching(name) {
            Some((pattern, kind)) => (kind, Reason::Override(pattern.to_owned())),
            None if overrides.pure || !mix.level.base().is_quantized() => {
                (mix.level.base(), Reason::Level)
            }
            None => match overrides.output {
                Some(kind) if tied_output => (kind, Reason::OutputOption),
                _ => mix.choose(tensor, role),
            },
        },
    };
    Decision::fitting(meant, columns, reason)
}

/// A level's mix on its way through the tensors.
struct Mix<'a> {
    model: &'a ModelFacts,
    level: Level,
    importance: bool,
    /// Whether the embeddings serve as the output matrix.
    tied: bool,
    /// Tensors of the role of values: the `n` of their rules.
    values: usize,
    /// Tensors met so far, by role.
    values_met: usize,
    down_met: usize,
    gate_met: usize,
    up_met: usize,
}

impl<'a> Mix<'a> {
    fn new(
        model: &'a ModelFacts,
        tensors: &[TensorFacts<'_>],
        level: Level,
        importance: bool,
    ) -> Self {
        let count = |wanted| tensors.iter().filter(|t| role(t.name) == wanted).count();
        Self {
            model,
            level,
            importance,
            tied: count(Role::Output) == 0,
            values: count(Role::AttentionValue),
            values_met: 0,
            down_met: 0,
            gate_met: 0,
            up_met: 0,
        }
    }

    fn choose(&mut self, tensor: &TensorFacts<'_>, role: Role) -> (StoredType, Reason) {
        if role == Role::Output || (role == Role::Embedding && self.tied) {
            return (self.output_type(tensor), Reason::Output);
        }
        if self.level == Level::MXFP4_MOE {
            let stacked = tensor.shape.len() > 2 && tensor.shape[tensor.shape.len() - 3] > 1;
            let kind = if stacked { StoredType::MXFP4 } else { StoredType::Q8_0 };
            return (kind, Reason::Level);
        }
        let (layer, layers) = self.position(tensor.name, role);
        let base = self.level.base();
        let rule = RULES.iter().find(|rule| {
            rule.role == role
                && rule.levels.contains(&self.level)
                && rule.when.iter().all(|when| self.holds(*when, layer, layers))
        });
        let mut kind = match rule {
            Some(rule) if rule.to != BASE => rule.to,
            _ => base,
        };
        if role == Role::AttentionValue
            && self.model.is_70b()
            && !self.is_tiny()
            && matches!(kind, StoredType::Q3_K | StoredType::Q4_K)
        {
            // Eight query heads share these values, so better ones cost next to nothing.
            kind = StoredType::Q5_K;
        }
        (kind, if kind == base { Reason::Level } else { Reason::Mix })
    }

    fn output_type(&self, tensor: &TensorFacts<'_>) -> StoredType {
        let base = self.level.base();
        let fits = tensor.shape.last().is_some_and(|&columns| base.fits(columns));
        let special = self.level == Level::MXFP4_MOE || self.model.architecture == "falcon";
        if special || !fits || base == StoredType::Q8_0 {
            StoredType::Q8_0
        } else if OUTPUT_Q5_K.contains(&self.level) {
            StoredType::Q5_K
        } else {
            StoredType::Q6_K
        }
    }

    fn is_tiny(&self) -> bool {
        self.level != Level::IQ3_XXS && OUTPUT_Q5_K.contains(&self.level)
    }

    /// The layer of a tensor and the number of layers, as the rules for its role count them: by
    /// tensors met, except that in models of experts the name decides for the feed-forward block.
    fn position(&mut self, name: &str, role: Role) -> (usize, usize) {
        let by_name = self.model.experts > 1 && !self.is_tiny();
        let layers = self.model.layers;
        let met = match role {
            Role::AttentionValue => {
                self.values_met += 1;
                return (self.values_met - 1, self.values);
            }
            Role::FeedForwardDown => &mut self.down_met,
            Role::FeedForwardGate => &mut self.gate_met,
            Role::FeedForwardUp => &mut self.up_met,
            _ => return (layer(name).unwrap_or(0), layers),
        };
        *met += 1;
        let counted = *met - 1;
        (if by_name { layer(name).unwrap_or(counted) } else { counted }, layers)
    }

    fn holds(&self, when: When, layer: usize, layers: usize) -> bool {
        let falcon = self.model.architecture == "falcon";
        match when {
            When::Grouped => self.model.group() >= 4,
            When::GroupedOrExperts => self.model.group() >= 4 || self.model.experts >= 4,
            When::EightExperts => self.model.experts == 8,
            When::Before(end) => layer < end,
            When::FirstOf(part) => layer < layers / part,
            When::Middle => layer >= layers / 8 && layer < 7 * layers / 8,
            When::MoreBits => {
                layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
            }
            When::Importance => self.importance,
            When::NoImportance => !self.importance,
            When::Falcon => falcon,
            When::NotFalcon => !falcon,
        }
    }
}

#[cfg(test)]
mod tests;
