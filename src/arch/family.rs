//! What all families have in common, and the form in which each says what it has of its own.

use serde_json::Value;

use super::spec::{Activation, Attention, BlockNorms, BlockSpec, Experts, Gated, Mlp, RopeOf};
use crate::Result;
use crate::arch::config::ModelConfig;
use crate::arch::config_json::Fields;

/// A family of models that compute the same.
#[expect(clippy::struct_excessive_bools, reason = "a table of what families have and have not")]
pub struct Family {
    /// The name in reports: `llama`.
    pub name: &'static str,
    /// Classes of transformers and their `model_type`. What is written has the name of the first
    /// unless the model has another.
    pub classes: &'static [(&'static str, &'static str)],
    /// `general.architecture` of GGUF files.
    pub gguf: &'static str,
    /// Keys of `config.json` that are read besides [`COMMON_KEYS`].
    pub keys: &'static [&'static str],
    /// What the configuration class assumes for missing keys.
    pub defaults: Defaults,
    /// Which layers see a window only.
    pub windows: Windows,
    /// Which linear layers have biases.
    pub biases: Biases,
    /// Norms on the residual stream.
    pub norms: BlockNorms,
    /// Norms multiply by one more than what is stored.
    pub norm_plus_one: bool,
    /// Each head of queries and keys has a norm.
    pub head_norms: bool,
    /// Queries, keys and values are one matrix, and so are gate and up.
    pub fused: bool,
    /// Of gates.
    pub activation: Activation,
    /// Embeddings are multiplied with the root of the width.
    pub scaled_embedding: bool,
    /// A part of each head may rotate alone.
    pub partial_rope: bool,
    /// Layers with a window have rotations of their own.
    pub window_rope: bool,
    /// Experts instead of an MLP: the module and the names of gate, up and down.
    pub experts: Option<ExpertNames>,
    /// What only this family has in its `config.json`, read into the configuration, or refused.
    pub(crate) read: fn(&Fields, &mut ModelConfig) -> Result<()>,
    /// The same, written.
    pub(crate) write: fn(&ModelConfig, &mut Value),
}

/// How the experts of a family are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// After `model.layers.N.`.
    pub module: &'static str,
    /// Gate, up and down.
    pub names: [&'static str; 3],
    /// A tensor of all gates and ups, and one of all downs, in newer checkpoints.
    pub packed: Option<[&'static str; 2]>,
}

/// What a configuration class assumes for missing keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// `num_attention_heads`, if it may be missing.
    pub heads: Option<usize>,
    /// `num_key_value_heads`; as many as query heads if there is none.
    pub kv_heads: Option<usize>,
    /// `head_dim`; the share of the width if there is none.
    pub head_dim: Option<usize>,
    /// `intermediate_size`, if it may be missing.
    pub intermediate: Option<usize>,
    /// `max_position_embeddings`
    pub max_positions: usize,
    /// `original_max_position_embeddings` beside the rotary scaling, where the class has it: then it
    /// counts more than the one within.
    pub original_positions: Option<usize>,
    /// `rms_norm_eps`
    pub epsilon: f64,
    /// `rope_theta`
    pub theta: f64,
    /// `tie_word_embeddings`
    pub tied: bool,
}

impl Defaults {
    /// Those of `LlamaConfig`.
    pub const LLAMA: Self = Self {
        heads: None,
        kv_heads: None,
        head_dim: None,
        intermediate: None,
        max_positions: 2048,
        original_positions: None,
        epsilon: 1e-6,
        theta: 10_000.0,
        tied: false,
    };
}

/// Which layers see a window only, when there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None has one.
    Never,
    /// All have the one that the configuration states, or those that `layer_types` names.
    Stated {
        /// Tokens if the key is missing.
        default: Option<usize>,
        /// Whether `layer_types` is read; otherwise one that names windows is refused.
        typed: bool,
    },
    /// Only with `use_sliding_window`: those that `layer_types` names, those from
    /// `max_window_layers` on, or all.
    Switched {
        /// Whether the two keys are read.
        typed: bool,
    },
    /// Those that `layer_types` names, else all but each `period`th.
    Periodic {
        /// How many layers until one sees everything.
        period: usize,
        /// The key that may say another number, if there is one.
        keys: &'static [&'static str],
    },
}

/// Which linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Biases {
    /// None.
    Never,
    /// q, k and v, always.
    Qkv,
    /// Those of the attention with `attention_bias`.
    Attention,
    /// The same, and those of the MLP with `mlp_bias`.
    AttentionAndMlp,
}

/// The keys that are read for every family.
pub const COMMON_KEYS: [&str; 31] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "quantization_config",
    // Read where a family has windows; a warning names it elsewhere.
    "sliding_window",
    "layer_types",
    "max_window_layers",
];

impl Family {
    /// What Llama is; the other families state their differences.
    pub const LLAMA: Self = Self {
        name: "llama",
        classes: &[("LlamaForCausalLM", "llama"), ("LLaMAForCausalLM", "llama")],
        gguf: "llama",
        keys: &[],
        defaults: Defaults::LLAMA,
        windows: Windows::Never,
        biases: Biases::AttentionAndMlp,
        norms: BlockNorms::PRE,
        norm_plus_one: false,
        head_norms: false,
        fused: false,
        activation: Activation::Silu,
        scaled_embedding: false,
        partial_rope: false,
        window_rope: false,
        experts: None,
        read: |_, _| Ok(()),
        write: |_, _| {},
    };

    /// Block `index` of a model of this family.
    #[must_use]
    pub fn block(&self, config: &ModelConfig, index: usize) -> BlockSpec {
        let window = config.sliding_window.as_ref().and_then(|window| window.of(index));
        let local = self.window_rope && config.has_window(index);
        let attention = Attention {
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            fused: self.fused,
            qkv_bias: config.biases.qkv,
            output_bias: config.biases.output,
            head_norms: self.head_norms,
            window,
            rope: if local { RopeOf::Window } else { RopeOf::Model },
            scale: config.query_scale(),
            soft_cap: config.attention_soft_cap,
        };
        let mlp = match (self.experts, config.experts) {
            (Some(names), Some(experts)) => Mlp::Experts(Experts {
                module: names.module,
                names: names.names,
                count: experts.count,
                used: experts.used,
                inner: experts.inner,
                activation: self.activation,
                normalized: experts.normalized,
                shared: experts.shared,
            }),
            _ => Mlp::Gated(Gated {
                inner: config.intermediate_size,
                activation: self.activation,
                fused: self.fused,
                bias: config.biases.mlp,
            }),
        };
        BlockSpec { norms: self.norms, attention, mlp }
    }

    /// Whether GGUF files hold the rows of q and k in rotary pairs.
    #[must_use]
    pub fn has_rope_pairs(&self) -> bool {
        self.gguf == "llama"
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
