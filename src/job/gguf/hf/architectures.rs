//! The Hugging Face classes that can become GGUF files, and the tensors that each has.
//!
//! Names and edits are those of llama.cpp's converter (`conversion/*.py`) and what its loader asks
//! for (`src/models/*.cpp`).

use serde_json::{Map, Value};

use crate::{Error, Result};

/// What a model is for this crate: one entry per set of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen2Moe,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
}

/// Class, `model_type`, kind, llama.cpp's architecture.
const CLASSES: [(&str, &str, Kind, &str); 13] = [
    ("LlamaForCausalLM", "llama", Kind::Llama, "llama"),
    ("LLaMAForCausalLM", "llama", Kind::Llama, "llama"),
    ("MistralForCausalLM", "mistral", Kind::Mistral, "llama"),
    ("MixtralForCausalLM", "mixtral", Kind::Mixtral, "llama"),
    ("Qwen2ForCausalLM", "qwen2", Kind::Qwen2, "qwen2"),
    ("Qwen3ForCausalLM", "qwen3", Kind::Qwen3, "qwen3"),
    ("Qwen2MoeForCausalLM", "qwen2_moe", Kind::Qwen2Moe, "qwen2moe"),
    ("Qwen3MoeForCausalLM", "qwen3_moe", Kind::Qwen3Moe, "qwen3moe"),
    ("Gemma2ForCausalLM", "gemma2", Kind::Gemma2, "gemma2"),
    ("Gemma3ForCausalLM", "gemma3_text", Kind::Gemma3, "gemma3"),
    ("Gemma3ForConditionalGeneration", "gemma3", Kind::Gemma3, "gemma3"),
    ("Phi3ForCausalLM", "phi3", Kind::Phi3, "phi3"),
    ("Phi4ForCausalLM", "phi3", Kind::Phi3, "phi3"),
];

/// A model's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    /// `LlamaForCausalLM`
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// `general.architecture`
    pub(super) gguf: &'static str,
}

/// The class of a `config.json`. Both of its names count: transformers goes by `model_type`, and a
/// model that is called by the class of a relative computes something else.
pub(super) fn class(root: &Map<String, Value>) -> Result<Class> {
    let class = root.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = root.get("model_type").and_then(Value::as_str);
    let found = CLASSES.iter().find(|(name, kind_of_model, ..)| match class {
        Some(class) => *name == class,
        None => Some(*kind_of_model) == model_type,
    });
    match found {
        Some(&(name, expected, ..)) if model_type.is_some_and(|given| given != expected) => {
            Err(unsupported(format!(
                "a {name} whose `model_type` is \"{}\" instead of \"{expected}\" cannot be \
                 converted to GGUF",
                model_type.unwrap_or_default()
            )))
        }
        Some(&(name, _, kind, gguf)) => Ok(Class { name, kind, gguf }),
        None => Err(unsupported(format!(
            "architecture {} cannot be converted to GGUF",
            class.or(model_type).unwrap_or("unknown")
        ))),
    }
}

/// An [`Error::Unsupported`] that lists what is supported.
pub(super) fn unsupported(message: String) -> Error {
    let mut names: Vec<&str> = CLASSES.iter().map(|(name, ..)| *name).collect();
    names.retain(|name| !matches!(*name, "LLaMAForCausalLM" | "Phi4ForCausalLM"));
    Error::Unsupported {
        message,
        suggestion: format!(
            "Supported: {}; or any architecture as a GGUF file at full precision",
            names.join(", ")
        ),
    }
}

/// A dimension of a tensor, by what decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    One,
    Hidden,
    FeedForward,
    /// All query heads.
    Queries,
    /// All key heads.
    Keys,
    HeadDim,
    /// Queries, keys and values in one.
    QueriesKeysValues,
    /// Gate and up in one.
    GateUp,
    Experts,
    ExpertFeedForward,
    SharedFeedForward,
}

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    None,
    Optional,
    Required,
}

/// What happens to values on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    None,
    /// Rows in rotary pairs, per query head.
    QueryPairs,
    /// Rows in rotary pairs, per key head.
    KeyPairs,
    /// The norm multiplies by one more than what is stored.
    PlusOne,
    /// Queries get the part of their scale that llama.cpp does not know.
    QueryScale,
    /// Both.
    PlusOneQueryScale,
}

/// Which biases the configuration switches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Biases {
    /// `attention_bias`
    pub(super) attention: bool,
    /// `mlp_bias`
    pub(super) mlp: bool,
}

/// A module of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Module {
    /// Its name after `model.layers.N.`.
    pub(super) hf: &'static str,
    /// Its name after `blk.N.`.
    pub(super) gguf: &'static str,
    pub(super) out: Size,
    /// `None` for vectors.
    pub(super) inputs: Option<Size>,
    pub(super) bias: Bias,
    pub(super) edit: Edit,
}

/// A matrix per expert, which are stacked.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertModule {
    /// `model.layers.N.{before}.E.{after}.weight`
    pub(super) before: &'static str,
    pub(super) after: &'static str,
    pub(super) gguf: &'static str,
    pub(super) out: Size,
    pub(super) inputs: Size,
    /// How newer checkpoints may hold all experts in one tensor `[experts, …]`.
    pub(super) fused: Option<Fused>,
}

/// A tensor of all experts, and which part of each expert's rows is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fused {
    pub(super) hf: &'static str,
    /// Part number and number of parts.
    pub(super) part: (usize, usize),
}

const fn linear(hf: &'static str, gguf: &'static str, out: Size, inputs: Size) -> Module {
    Module { hf, gguf, out, inputs: Some(inputs), bias: Bias::None, edit: Edit::None }
}

const fn norm(hf: &'static str, gguf: &'static str) -> Module {
    Module { hf, gguf, out: Size::Hidden, inputs: None, bias: Bias::None, edit: Edit::None }
}

impl Module {
    const fn bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    const fn edit(mut self, edit: Edit) -> Self {
        self.edit = edit;
        self
    }

    const fn of(mut self, out: Size) -> Self {
        self.out = out;
        self
    }
}

impl Kind {
    /// Whether llama.cpp's architecture is `llama`, which wants q and k in rotary pairs.
    pub(super) const fn is_llama(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral | Self::Mixtral)
    }

    pub(super) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    pub(super) const fn has_experts(self) -> bool {
        matches!(self, Self::Mixtral | Self::Qwen2Moe | Self::Qwen3Moe)
    }

    /// What the final norm needs.
    pub(super) const fn norm_edit(self) -> Edit {
        if self.is_gemma() { Edit::PlusOne } else { Edit::None }
    }

    /// The modules of a block, experts aside.
    pub(super) fn modules(self, biases: Biases) -> Vec<Module> {
        let edit = self.norm_edit();
        let mut list = vec![norm("input_layernorm", "attn_norm").edit(edit)];
        list.extend(self.attention(biases));
        match self {
            Self::Gemma2 | Self::Gemma3 => list.extend([
                norm("post_attention_layernorm", "post_attention_norm").edit(edit),
                norm("pre_feedforward_layernorm", "ffn_norm").edit(edit),
                norm("post_feedforward_layernorm", "post_ffw_norm").edit(edit),
            ]),
            _ => list.push(norm("post_attention_layernorm", "ffn_norm")),
        }
        list.extend(self.feed_forward(biases));
        list
    }

    fn attention(self, biases: Biases) -> Vec<Module> {
        use Size::{HeadDim, Hidden, Keys, Queries, QueriesKeysValues};
        if self == Self::Phi3 {
            return vec![
                linear("self_attn.qkv_proj", "attn_qkv", QueriesKeysValues, Hidden),
                linear("self_attn.o_proj", "attn_output", Hidden, Queries),
            ];
        }
        let (qkv, out) = match self {
            Self::Qwen2 | Self::Qwen2Moe => (Bias::Required, Bias::None),
            // One that is missing is zero.
            _ if biases.attention => (Bias::Required, Bias::Optional),
            _ => (Bias::None, Bias::None),
        };
        let (q_edit, k_edit) = match self {
            _ if self.is_llama() => (Edit::QueryPairs, Edit::KeyPairs),
            Self::Gemma2 => (Edit::QueryScale, Edit::None),
            _ => (Edit::None, Edit::None),
        };
        let mut list = vec![
            linear("self_attn.q_proj", "attn_q", Queries, Hidden).bias(qkv).edit(q_edit),
            linear("self_attn.k_proj", "attn_k", Keys, Hidden).bias(qkv).edit(k_edit),
            linear("self_attn.v_proj", "attn_v", Keys, Hidden).bias(qkv),
            linear("self_attn.o_proj", "attn_output", Hidden, Queries).bias(out),
        ];
        if matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3) {
            let edit = self.norm_edit();
            let q_edit = if self == Self::Gemma3 { Edit::PlusOneQueryScale } else { edit };
            list.push(norm("self_attn.q_norm", "attn_q_norm").of(HeadDim).edit(q_edit));
            list.push(norm("self_attn.k_norm", "attn_k_norm").of(HeadDim).edit(edit));
        }
        list
    }

    fn feed_forward(self, biases: Biases) -> Vec<Module> {
        use Size::{Experts, FeedForward, GateUp, Hidden, One, SharedFeedForward};
        match self {
            Self::Phi3 => vec![
                linear("mlp.gate_up_proj", "ffn_up", GateUp, Hidden),
                linear("mlp.down_proj", "ffn_down", Hidden, FeedForward),
            ],
            Self::Mixtral => {
                vec![linear("block_sparse_moe.gate", "ffn_gate_inp", Experts, Hidden)]
            }
            Self::Qwen3Moe => vec![linear("mlp.gate", "ffn_gate_inp", Experts, Hidden)],
            Self::Qwen2Moe => vec![
                linear("mlp.gate", "ffn_gate_inp", Experts, Hidden),
                linear("mlp.shared_expert_gate", "ffn_gate_inp_shexp", One, Hidden),
                linear("mlp.shared_expert.gate_proj", "ffn_gate_shexp", SharedFeedForward, Hidden),
                linear("mlp.shared_expert.up_proj", "ffn_up_shexp", SharedFeedForward, Hidden),
                linear("mlp.shared_expert.down_proj", "ffn_down_shexp", Hidden, SharedFeedForward),
            ],
            _ => {
                let bias = if biases.mlp { Bias::Required } else { Bias::None };
                vec![
                    linear("mlp.gate_proj", "ffn_gate", FeedForward, Hidden).bias(bias),
                    linear("mlp.up_proj", "ffn_up", FeedForward, Hidden).bias(bias),
                    linear("mlp.down_proj", "ffn_down", Hidden, FeedForward).bias(bias),
                ]
            }
        }
    }

    /// The matrices of each expert.
    pub(super) fn experts(self) -> Vec<ExpertModule> {
        use Size::{ExpertFeedForward, FeedForward, Hidden};
        match self {
            Self::Mixtral => [
                ("w1", "ffn_gate_exps", FeedForward, Hidden),
                ("w2", "ffn_down_exps", Hidden, FeedForward),
                ("w3", "ffn_up_exps", FeedForward, Hidden),
            ]
            .map(|(after, gguf, out, inputs)| {
                let before = "block_sparse_moe.experts";
                ExpertModule { before, after, gguf, out, inputs, fused: None }
            })
            .to_vec(),
            Self::Qwen2Moe | Self::Qwen3Moe => [
                ("gate_proj", "ffn_gate_exps", ExpertFeedForward, Hidden, "gate_up_proj", (0, 2)),
                ("up_proj", "ffn_up_exps", ExpertFeedForward, Hidden, "gate_up_proj", (1, 2)),
                ("down_proj", "ffn_down_exps", Hidden, ExpertFeedForward, "down_proj", (0, 1)),
            ]
            .map(|(after, gguf, out, inputs, hf, part)| ExpertModule {
                before: "mlp.experts",
                after,
                gguf,
                out,
                inputs,
                fused: Some(Fused { hf, part }),
            })
            .to_vec(),
            _ => Vec::new(),
        }
    }
}
