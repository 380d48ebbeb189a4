//! The layers of a block as these methods see them: in four stages, each with the place that a factor
//! of its inputs is folded into.

use crate::arch::ModelConfig;
use crate::arch::spec::{Mlp, Role, Slot, stages};
use crate::{Error, Result};

/// Stage of the layers behind the norm before attention.
pub(crate) const ATTENTION: usize = 0;
/// Stage of the layer behind attention.
pub(crate) const OUTPUT: usize = 1;
/// Stage of the layers behind the norm before the MLP.
pub(crate) const MLP: usize = 2;
/// Stage of the layer behind the gate.
pub(crate) const DOWN: usize = 3;

/// Rows of one of the matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsOf {
    /// Place of the matrix among the slots.
    pub linear: usize,
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
}

/// The layers of a block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    /// The layers.
    pub slots: Vec<Slot>,
    /// Places of those that share an input: [`ATTENTION`], [`OUTPUT`], [`MLP`], [`DOWN`].
    pub stages: [Vec<usize>; 4],
    /// What makes the values that [`OUTPUT`] multiplies.
    pub values: RowsOf,
    /// What makes the part of the inputs of [`DOWN`] that is not bent.
    pub ups: RowsOf,
    /// Names of the norms on the residual stream, in the order in which they act.
    pub norms: Vec<&'static str>,
    /// Places of the norms before attention and before the MLP among these.
    pub folded_norms: [usize; 2],
    /// Norms multiply by one more than what is stored.
    pub norm_plus_one: bool,
    /// Row of the values that each column of [`OUTPUT`] multiplies.
    pub value_rows: Vec<usize>,
}

impl Layout {
    /// That of all blocks of a model.
    ///
    /// # Errors
    /// [`Error::UnsupportedConversion`] for mixtures of experts and for blocks that differ.
    pub(crate) fn of(config: &ModelConfig) -> Result<Self> {
        let spec = config.block(0);
        let slots = spec.slots(config.hidden_size);
        if matches!(spec.mlp, Mlp::Experts(_)) {
            return Err(Error::UnsupportedConversion(format!(
                "a {} has a mixture of experts, whose layers these methods do not quantize; \
                 `quantize gguf` does",
                config.class_name
            )));
        }
        if (1..config.num_layers).any(|index| config.slots(index) != slots) {
            return Err(Error::UnsupportedConversion(format!(
                "the blocks of a {} have different layers",
                config.class_name
            )));
        }
        let list: Vec<Vec<usize>> = stages(&slots).into_iter().map(|stage| stage.slots).collect();
        let stages = <[Vec<usize>; 4]>::try_from(list)
            .map_err(|_| Error::General("a block that is not attention and MLP".into()))?;
        let attention = &spec.attention;
        let rows = |alone: Role, joined: Role, first: usize, count: usize| {
            let place = |role: Role| slots.iter().position(|slot| slot.role == role);
            let alone = place(alone).map(|linear| RowsOf { linear, first: 0, count });
            alone
                .or_else(|| place(joined).map(|linear| RowsOf { linear, first, count }))
                .ok_or_else(|| Error::General("a block without values or gate".into()))
        };
        let (queries, keys) = (attention.query_width(), attention.key_width());
        let values = rows(Role::Value, Role::QueryKeyValue, queries + keys, keys)?;
        let inner = slots[stages[DOWN][0]].inputs;
        let ups = rows(Role::Up, Role::GateUp, inner, inner)?;
        let group = attention.heads / attention.kv_heads;
        let dim = attention.head_dim;
        let value_rows = (0..queries).map(|at| at / dim / group * dim + at % dim).collect();
        let before_mlp = usize::from(spec.norms.after_attention.is_some()) + 1;
        Ok(Self {
            stages,
            values,
            ups,
            norms: spec.norms.all().map(|norm| norm.name).collect(),
            folded_norms: [0, before_mlp],
            norm_plus_one: config.family.norm_plus_one,
            value_rows,
            slots,
        })
    }

    /// `(out, in)` of a layer.
    #[must_use]
    pub(crate) fn shape(&self, linear: usize) -> (usize, usize) {
        (self.slots[linear].out, self.slots[linear].inputs)
    }

    /// `(out, in)` of every layer.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.slots.iter().map(|slot| (slot.out, slot.inputs))
    }

    /// Inputs of the layers of a stage.
    #[must_use]
    pub(crate) fn width(&self, stage: usize) -> usize {
        self.slots[self.stages[stage][0]].inputs
    }

    /// The last part of a layer's name: `up_proj`.
    #[must_use]
    pub(crate) fn short_name(&self, linear: usize) -> &str {
        let name = &self.slots[linear].name;
        name.rsplit('.').next().unwrap_or(name)
    }

    /// Whether a layer's outputs meet in the scores of attention.
    #[must_use]
    pub(crate) fn makes_scores(&self, linear: usize) -> bool {
        matches!(self.slots[linear].role, Role::Query | Role::Key | Role::QueryKeyValue)
    }
}
