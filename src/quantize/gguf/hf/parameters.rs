//! `{arch}.*`: the hyper-parameters, typed as llama.cpp reads them.

use indexmap::IndexMap;

use super::architectures::{Class, Kind};
use super::rope::Rope;
use super::sizes::Sizes;
use crate::Result;
use crate::formats::gguf::Value;
use crate::quantize::gguf::tensor::GgufTensor;
use crate::source::config_json::Fields;

const MAX_POSITIONS: u64 = u32::MAX as u64;

/// Metadata under the prefix of the architecture, and the tensors that come from the configuration.
pub(super) fn metadata(
    fields: &Fields,
    class: Class,
    sizes: &Sizes,
    vocabulary: usize,
    warnings: &mut Vec<String>,
) -> Result<(IndexMap<String, Value>, Vec<GgufTensor>)> {
    let mut metadata = IndexMap::new();
    let mut set = |key: &str, value: Value| {
        metadata.insert(format!("{}.{key}", class.gguf), value);
    };
    let number = |size: usize| Value::from(size as u32);
    set("block_count", number(sizes.layers));
    set("context_length", number(sizes.context));
    set("embedding_length", number(sizes.hidden));
    set("feed_forward_length", number(sizes.feed_forward));
    set("attention.head_count", number(sizes.heads));
    set("attention.head_count_kv", number(sizes.kv_heads));
    let rope = Rope::read(fields, class.kind)?.parts(fields, class, sizes, warnings)?;
    for (key, value) in rope.metadata {
        set(key, value);
    }
    set("attention.layer_norm_rms_epsilon", Value::from(sizes.rms_norm_eps as f32));
    if sizes.explicit_head_dim && class.kind != Kind::Phi3 {
        set("attention.key_length", number(sizes.head_dim));
        set("attention.value_length", number(sizes.head_dim));
    }
    if sizes.experts > 0 {
        set("expert_count", number(sizes.experts));
        set("expert_used_count", number(sizes.experts_used));
    }
    if matches!(class.kind, Kind::Qwen2Moe | Kind::Qwen3Moe) {
        set("expert_feed_forward_length", number(sizes.expert_feed_forward));
    }
    if class.kind == Kind::Qwen2Moe {
        set("expert_shared_feed_forward_length", number(sizes.shared_feed_forward));
    }
    if class.kind.is_llama() {
        set("vocab_size", number(vocabulary));
    }
    let window = match fields.get("sliding_window") {
        Some(serde_json::Value::Null) => None,
        _ => fields.optional_integer("sliding_window", MAX_POSITIONS)?,
    };
    match class.kind {
        Kind::Gemma2 => {
            let soft = |key: &str, default: f64| -> Result<Value> {
                Ok(Value::from(fields.positive(key)?.unwrap_or(default) as f32))
            };
            set("attn_logit_softcapping", soft("attn_logit_softcapping", 50.0)?);
            set("final_logit_softcapping", soft("final_logit_softcapping", 30.0)?);
            set("attention.sliding_window", number(window.unwrap_or(4096)));
        }
        Kind::Gemma3 => {
            if let Some(soft) = fields.positive("final_logit_softcapping")? {
                set("final_logit_softcapping", Value::from(soft as f32));
            }
            if fields.optional_integer("sliding_window_pattern", MAX_POSITIONS)? != Some(1) {
                set("attention.sliding_window", number(window.unwrap_or(4096)));
            }
        }
        Kind::Phi3 => set("attention.sliding_window", number(window.unwrap_or(0))),
        _ => {
            let used = match class.kind {
                Kind::Mistral | Kind::Mixtral => true,
                _ => fields.flag("use_sliding_window", false)?,
            };
            if let Some(window) = window.filter(|window| used && *window < sizes.context) {
                warnings.push(format!(
                    "the model's sliding window of {window} tokens is not used by llama.cpp, which \
                     attends to the whole context"
                ));
            }
        }
    }
    Ok((metadata, rope.tensors))
}
