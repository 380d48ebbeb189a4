//! What a block of a model computes, as data: its norms, how it attends, its MLP, and the linear
//! layers of both as a list of [`Slot`]s in the order in which they are computed.
//!
//! Everything that goes through the layers of a model asks for this list: the catalogue of tensors,
//! names in both worlds, the graph, GPTQ, AWQ, SmoothQuant, littlebit, `analyze` and the reports.
//! Nothing counts the layers of a block itself.

use std::borrow::Cow;

/// A block of a decoder: `x + mix(norm(x))`, then `x + mlp(norm(x))`, with norms behind either where
/// a family has them.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Norms on the residual stream.
    pub norms: BlockNorms,
    /// Attention.
    pub attention: Attention,
    /// What follows it.
    pub mlp: Mlp,
}

/// A norm over a block's residual stream, or over heads: names of its module in both worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormSlot {
    /// After `model.layers.N.`.
    pub name: &'static str,
    /// After `blk.N.`.
    pub gguf: &'static str,
}

/// The four places of norms in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    /// Of what goes into the attention.
    pub before_attention: NormSlot,
    /// Of what the attention gives.
    pub after_attention: Option<NormSlot>,
    /// Of what goes into the MLP.
    pub before_mlp: NormSlot,
    /// Of what the MLP gives.
    pub after_mlp: Option<NormSlot>,
}

impl BlockNorms {
    /// Two norms, as Llama has them.
    pub const PRE: Self = Self {
        before_attention: NormSlot { name: "input_layernorm", gguf: "attn_norm" },
        after_attention: None,
        before_mlp: NormSlot { name: "post_attention_layernorm", gguf: "ffn_norm" },
        after_mlp: None,
    };

    /// Four norms, as Gemma 2 has them.
    pub const AROUND: Self = Self {
        before_attention: NormSlot { name: "input_layernorm", gguf: "attn_norm" },
        after_attention: Some(NormSlot {
            name: "post_attention_layernorm",
            gguf: "post_attention_norm",
        }),
        before_mlp: NormSlot { name: "pre_feedforward_layernorm", gguf: "ffn_norm" },
        after_mlp: Some(NormSlot { name: "post_feedforward_layernorm", gguf: "post_ffw_norm" }),
    };

    /// Those that there are, in the order in which they act.
    pub fn all(&self) -> impl Iterator<Item = NormSlot> {
        [Some(self.before_attention), self.after_attention, Some(self.before_mlp), self.after_mlp]
            .into_iter()
            .flatten()
    }
}

/// Which of a model's rotary embeddings a block uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeOf {
    /// That of layers that see everything.
    Model,
    /// That of layers with a window.
    Window,
}

/// Causal softmax attention with grouped keys.
#[expect(clippy::struct_excessive_bools, reason = "a table of what a block has and has not")]
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Queries, keys and values are the rows of one matrix.
    pub fused: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// o has a bias.
    pub output_bias: bool,
    /// Norms of each head of queries and of keys.
    pub head_norms: bool,
    /// Tokens that a position sees, itself included, if not all.
    pub window: Option<usize>,
    /// Which rotations.
    pub rope: RopeOf,
    /// What scores are multiplied with.
    pub scale: f64,
    /// `c`, where scores become `c tanh(score / c)`.
    pub soft_cap: Option<f64>,
}

/// Names of the norms of heads: queries, keys.
pub const HEAD_NORMS: [NormSlot; 2] = [
    NormSlot { name: "self_attn.q_norm", gguf: "attn_q_norm" },
    NormSlot { name: "self_attn.k_norm", gguf: "attn_k_norm" },
];

/// What a gate is bent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x σ(x)`
    Silu,
    /// `x Φ(x)` with the tanh of Hendrycks and Gimpel (arXiv 1606.08415).
    GeluTanh,
}

/// The part of a block behind its attention.
#[derive(Debug, Clone, PartialEq)]
pub enum Mlp {
    /// `down(act(gate x) · up x)`
    Gated(Gated),
    /// A mixture of such, of which each token uses a few.
    Experts(Experts),
}

/// A gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gated {
    /// Width between the layers.
    pub inner: usize,
    /// Of the gate.
    pub activation: Activation,
    /// Gate and up are the rows of one matrix.
    pub fused: bool,
    /// All its layers have biases.
    pub bias: bool,
}

/// A mixture of gated MLPs: the router's softmax chooses `used` of `count` for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Name of the module after `model.layers.N.`.
    pub module: &'static str,
    /// Gate, up and down of an expert.
    pub names: [&'static str; 3],
    /// Number of experts.
    pub count: usize,
    /// Experts of a token.
    pub used: usize,
    /// Width of an expert.
    pub inner: usize,
    /// Of the gate.
    pub activation: Activation,
    /// Whether the shares of the chosen ones are scaled to a sum of 1.
    pub normalized: bool,
    /// Width of an expert that every token uses as well, weighted by a sigmoid of its own.
    pub shared: Option<usize>,
}

/// What a linear layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// All three.
    QueryKeyValue,
    /// Behind the attention.
    Output,
    /// Gate of an MLP.
    Gate,
    /// Up projection.
    Up,
    /// Both.
    GateUp,
    /// Down projection.
    Down,
    /// Chooses experts.
    Router,
    /// Weighs the shared expert.
    SharedRouter,
}

/// Which MLP a layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// None: it is of the attention.
    Attention,
    /// The block's own, or the choice among experts.
    Mlp,
    /// The expert that every token uses.
    Shared,
    /// One of the experts.
    Expert(usize),
}

/// A linear layer of a block, `[out, in]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name of the module after `model.layers.N.`: `mlp.experts.3.up_proj`.
    pub name: Cow<'static, str>,
    /// Its name after `blk.N.`. Experts of a kind share one tensor there.
    pub gguf: &'static str,
    /// What it is for.
    pub role: Role,
    /// Whose it is.
    pub part: Part,
    /// Outputs.
    pub out: usize,
    /// Inputs.
    pub inputs: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

impl Slot {
    /// Whether it holds the weights that quantization is about. Routers are small and decide much:
    /// they stay as they are.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        !matches!(self.role, Role::Router | Role::SharedRouter)
    }
}

/// Where the input of a stage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageInput {
    /// The norm before the attention.
    AttentionNorm,
    /// The attention.
    Attended,
    /// The norm before the MLP.
    MlpNorm,
    /// Gate and up of the same part.
    Inner,
}

/// Layers of a block that share an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Places in [`BlockSpec::slots`].
    pub slots: Vec<usize>,
    /// What they multiply.
    pub input: StageInput,
    /// Whose they are.
    pub part: Part,
}

impl Attention {
    /// Values of a token's queries.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of a token's keys.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn slots(&self, hidden: usize, list: &mut Vec<Slot>) {
        let (queries, keys) = (self.query_width(), self.key_width());
        let mut add = |name: &'static str, gguf, role, (out, inputs), bias| {
            let part = Part::Attention;
            list.push(Slot { name: Cow::Borrowed(name), gguf, role, part, out, inputs, bias });
        };
        let bias = self.qkv_bias;
        if self.fused {
            let rows = queries + 2 * keys;
            add("self_attn.qkv_proj", "attn_qkv", Role::QueryKeyValue, (rows, hidden), bias);
        } else {
            add("self_attn.q_proj", "attn_q", Role::Query, (queries, hidden), bias);
            add("self_attn.k_proj", "attn_k", Role::Key, (keys, hidden), bias);
            add("self_attn.v_proj", "attn_v", Role::Value, (keys, hidden), bias);
        }
        let bias = self.output_bias;
        add("self_attn.o_proj", "attn_output", Role::Output, (hidden, queries), bias);
    }
}

impl Gated {
    fn slots(self, hidden: usize, list: &mut Vec<Slot>) {
        let Self { inner, bias, .. } = self;
        let mut add = |name: &'static str, gguf, role, (out, inputs)| {
            let part = Part::Mlp;
            list.push(Slot { name: Cow::Borrowed(name), gguf, role, part, out, inputs, bias });
        };
        if self.fused {
            // llama.cpp calls the two "up".
            add("mlp.gate_up_proj", "ffn_up", Role::GateUp, (2 * inner, hidden));
        } else {
            add("mlp.gate_proj", "ffn_gate", Role::Gate, (inner, hidden));
            add("mlp.up_proj", "ffn_up", Role::Up, (inner, hidden));
        }
        add("mlp.down_proj", "ffn_down", Role::Down, (hidden, inner));
    }
}

impl Experts {
    fn slots(&self, hidden: usize, list: &mut Vec<Slot>) {
        const STACKED: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
        const SHARED: [&str; 3] = ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];
        const ROLES: [Role; 3] = [Role::Gate, Role::Up, Role::Down];
        let module = self.module;
        let mut add = |name: String, gguf, role, part, (out, inputs)| {
            let name = Cow::Owned(name);
            list.push(Slot { name, gguf, role, part, out, inputs, bias: false });
        };
        let shape =
            |role, inner| if role == Role::Down { (hidden, inner) } else { (inner, hidden) };
        let router = (self.count, hidden);
        add(format!("{module}.gate"), "ffn_gate_inp", Role::Router, Part::Mlp, router);
        if let Some(inner) = self.shared {
            let name = format!("{module}.shared_expert_gate");
            add(name, "ffn_gate_inp_shexp", Role::SharedRouter, Part::Shared, (1, hidden));
            for ((role, name), gguf) in ROLES.into_iter().zip(self.names).zip(SHARED) {
                let name = format!("{module}.shared_expert.{name}");
                add(name, gguf, role, Part::Shared, shape(role, inner));
            }
        }
        for expert in 0..self.count {
            for ((role, name), gguf) in ROLES.into_iter().zip(self.names).zip(STACKED) {
                let name = format!("{module}.experts.{expert}.{name}");
                add(name, gguf, role, Part::Expert(expert), shape(role, self.inner));
            }
        }
    }
}

impl BlockSpec {
    /// The linear layers in the order in which they are computed, for a residual stream of `hidden`
    /// values.
    #[must_use]
    pub fn slots(&self, hidden: usize) -> Vec<Slot> {
        let mut list = Vec::new();
        self.attention.slots(hidden, &mut list);
        match &self.mlp {
            Mlp::Gated(gated) => gated.slots(hidden, &mut list),
            Mlp::Experts(experts) => experts.slots(hidden, &mut list),
        }
        list
    }
}

/// Groups layers by what they multiply, in the order in which they are computed.
#[must_use]
pub fn stages(slots: &[Slot]) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        let input = match slot.role {
            Role::Query | Role::Key | Role::Value | Role::QueryKeyValue => {
                StageInput::AttentionNorm
            }
            Role::Output => StageInput::Attended,
            Role::Down => StageInput::Inner,
            Role::Gate | Role::Up | Role::GateUp | Role::Router | Role::SharedRouter => {
                StageInput::MlpNorm
            }
        };
        let same = stages.iter_mut().find(|stage| (stage.input, stage.part) == (input, slot.part));
        match same {
            Some(stage) => stage.slots.push(at),
            None => stages.push(Stage { slots: vec![at], input, part: slot.part }),
        }
    }
    stages
}
