//! The sizes of a model, with what the configuration classes assume for missing keys.

use super::architectures::{Biases, Class, Kind, Size, unsupported};
use crate::Result;
use crate::arch::config_json::Fields;

const MAX_WIDTH: u64 = 1 << 24;
const MAX_COUNT: u64 = 1 << 16;
const MAX_POSITIONS: u64 = u32::MAX as u64;

/// Sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) feed_forward: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Whether the configuration states the width of a head, or its class has one of its own.
    pub(super) explicit_head_dim: bool,
    pub(super) context: usize,
    pub(super) rms_norm_eps: f64,
    /// 0 for dense models.
    pub(super) experts: usize,
    pub(super) experts_used: usize,
    pub(super) expert_feed_forward: usize,
    pub(super) shared_feed_forward: usize,
    pub(super) biases: Biases,
    /// What queries are multiplied with so that the scale that llama.cpp's graph has for them makes
    /// that of the model.
    pub(super) query_scale: f32,
}

/// Key/value heads, width of a head, context length of the configuration classes.
fn defaults(kind: Kind) -> (Option<usize>, Option<usize>, usize) {
    match kind {
        Kind::Llama => (None, None, 2048),
        Kind::Mistral | Kind::Mixtral => (Some(8), None, 131_072),
        Kind::Qwen2 => (Some(32), None, 32_768),
        Kind::Qwen3 => (Some(32), Some(128), 32_768),
        Kind::Qwen2Moe => (Some(16), None, 32_768),
        Kind::Qwen3Moe => (Some(4), None, 32_768),
        Kind::Gemma2 => (Some(4), Some(256), 8192),
        Kind::Gemma3 => (Some(4), Some(256), 131_072),
        Kind::Phi3 => (None, None, 4096),
    }
}

impl Sizes {
    pub(super) fn read(fields: &Fields, class: Class) -> Result<Self> {
        let kind = class.kind;
        refuse_variants(fields, class)?;
        let (kv_default, head_dim_default, context_default) = defaults(kind);
        let hidden = fields.size("hidden_size", MAX_WIDTH)?;
        let heads = match (kind, fields.optional_size("num_attention_heads", MAX_COUNT)?) {
            (_, Some(heads)) => heads,
            (Kind::Gemma2 | Kind::Gemma3, None) => 8,
            (_, None) => fields.size("num_attention_heads", MAX_COUNT)?,
        };
        let kv_heads = match fields.get("num_key_value_heads") {
            Some(serde_json::Value::Null) => heads,
            None => kv_default.unwrap_or(heads),
            Some(_) => fields.size("num_key_value_heads", MAX_COUNT)?,
        };
        let stated = match fields.get("head_dim") {
            None => head_dim_default,
            Some(_) => fields.optional_size("head_dim", MAX_COUNT)?,
        };
        let head_dim = match stated {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(fields.damaged(format!(
                    "`hidden_size` {hidden} is no multiple of `num_attention_heads` {heads} and \
                     there is no `head_dim`"
                )));
            }
        };
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(fields.damaged(format!(
                "{heads} heads of width {head_dim} with {kv_heads} key/value heads"
            )));
        }
        let feed_forward = match kind {
            // Every layer of these has experts; the key may be missing.
            Kind::Qwen3Moe => {
                let stated = fields.optional_size("intermediate_size", MAX_WIDTH)?;
                stated.unwrap_or(6144)
            }
            _ => fields.size("intermediate_size", MAX_WIDTH)?,
        };
        let layers = fields.size("num_hidden_layers", MAX_COUNT)?;
        if kind == Kind::Phi3 && head_dim * heads != hidden {
            return Err(unsupported(format!("{} with `head_dim` {head_dim}", class.name)));
        }
        let mut sizes = Self {
            hidden,
            feed_forward,
            layers,
            heads,
            kv_heads,
            head_dim,
            explicit_head_dim: stated.is_some(),
            context: fields
                .optional_size("max_position_embeddings", MAX_POSITIONS)?
                .unwrap_or(context_default),
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(match kind {
                Kind::Phi3 | Kind::Mixtral => 1e-5,
                _ => 1e-6,
            }),
            experts: 0,
            experts_used: 0,
            expert_feed_forward: feed_forward,
            shared_feed_forward: 0,
            biases: Biases {
                attention: kind == Kind::Llama && fields.flag("attention_bias", false)?,
                mlp: kind == Kind::Llama && fields.flag("mlp_bias", false)?,
            },
            query_scale: query_scale(fields, kind, [hidden, heads, head_dim, layers])?,
        };
        if kind.has_experts() {
            sizes.read_experts(fields, kind)?;
        }
        Ok(sizes)
    }

    fn read_experts(&mut self, fields: &Fields, kind: Kind) -> Result<()> {
        let local = fields.optional_size("num_local_experts", MAX_COUNT)?;
        let count = match local {
            Some(count) => Some(count),
            None => fields.optional_size("num_experts", MAX_COUNT)?,
        };
        let used = fields.optional_size("num_experts_per_tok", MAX_COUNT)?;
        let (count_default, used_default) = match kind {
            Kind::Mixtral => (8, 2),
            Kind::Qwen2Moe => (60, 4),
            _ => (128, 8),
        };
        self.experts = count.unwrap_or(count_default);
        self.experts_used = used.unwrap_or(used_default);
        if kind != Kind::Mixtral {
            self.expert_feed_forward = fields.size("moe_intermediate_size", MAX_WIDTH)?;
        }
        if kind == Kind::Qwen2Moe {
            self.shared_feed_forward = fields.size("shared_expert_intermediate_size", MAX_WIDTH)?;
        }
        Ok(())
    }

    /// A dimension as a number.
    pub(super) fn get(&self, size: Size) -> usize {
        match size {
            Size::One => 1,
            Size::Hidden => self.hidden,
            Size::FeedForward => self.feed_forward,
            Size::Queries => self.heads * self.head_dim,
            Size::Keys => self.kv_heads * self.head_dim,
            Size::HeadDim => self.head_dim,
            Size::QueriesKeysValues => (self.heads + 2 * self.kv_heads) * self.head_dim,
            Size::GateUp => 2 * self.feed_forward,
            Size::Experts => self.experts,
            Size::ExpertFeedForward => self.expert_feed_forward,
            Size::SharedFeedForward => self.shared_feed_forward,
        }
    }
}

/// Gemma states the scale of its queries; llama.cpp takes the width of a head, and in the models of 27B
/// parameters, which it knows by their number of layers, the share of the width.
fn query_scale(
    fields: &Fields,
    kind: Kind,
    [hidden, heads, head_dim, layers]: [usize; 4],
) -> Result<f32> {
    let layers_of_27b = match kind {
        Kind::Gemma2 => 46,
        Kind::Gemma3 => 62,
        _ => return Ok(1.0),
    };
    let of_llama = if layers == layers_of_27b { hidden / heads } else { head_dim };
    let stated = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok((of_llama as f64 / stated).sqrt() as f32)
}

/// Members of a class that llama.cpp's graph of that architecture does not compute.
fn refuse_variants(fields: &Fields, class: Class) -> Result<()> {
    for key in ["hidden_act", "hidden_activation"] {
        let Some(activation) = fields.text(key)? else { continue };
        let fits = match (class.kind.is_gemma(), key) {
            (false, _) => matches!(activation, "silu" | "swish"),
            // The class does not read it: old files say "gelu" there.
            (true, "hidden_act") => {
                matches!(activation, "gelu" | "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast")
            }
            (true, _) => matches!(activation, "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast"),
        };
        if !fits {
            return Err(unsupported(format!("{} with `{key}` \"{activation}\"", class.name)));
        }
    }
    if class.kind != Kind::Llama && fields.flag("attention_bias", false)? {
        return Err(unsupported(format!("{} with `attention_bias`", class.name)));
    }
    if class.kind == Kind::Qwen2Moe && !fields.flag("qkv_bias", true)? {
        return Err(unsupported(format!("{} without `qkv_bias`", class.name)));
    }
    let both_ways = fields.get("use_bidirectional_attention");
    if both_ways.is_some_and(|value| !value.is_null() && value.as_bool() != Some(false)) {
        return Err(unsupported(format!("{} with `use_bidirectional_attention`", class.name)));
    }
    if class.kind == Kind::Gemma3 && fields.positive("attn_logit_softcapping")?.is_some() {
        return Err(unsupported(format!("{} with `attn_logit_softcapping`", class.name)));
    }
    if matches!(class.kind, Kind::Qwen2Moe | Kind::Qwen3Moe) {
        let dense = fields.get("mlp_only_layers").and_then(|list| list.as_array());
        let step = fields.optional_size("decoder_sparse_step", MAX_COUNT)?;
        if dense.is_some_and(|list| !list.is_empty()) || step.is_some_and(|step| step > 1) {
            return Err(unsupported(format!("{} with layers without experts", class.name)));
        }
        // llama.cpp has one rule per architecture, and no key for another.
        let rescaled = fields.flag("norm_topk_prob", false)?;
        if rescaled != (class.kind == Kind::Qwen3Moe) {
            let name = class.name;
            return Err(unsupported(format!("{name} with `norm_topk_prob` {rescaled}")));
        }
    }
    let dense = !class.kind.has_experts();
    for key in ["num_local_experts", "num_experts"] {
        if dense && fields.optional_integer(key, MAX_COUNT)?.is_some_and(|count| count > 1) {
            return Err(unsupported(format!("{} with a mixture of experts", class.name)));
        }
    }
    Ok(())
}
