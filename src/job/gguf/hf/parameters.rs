//! `{arch}.*`: the hyper-parameters, typed as llama.cpp reads them.

use indexmap::IndexMap;

use super::attention;
use super::rope;
use crate::Result;
use crate::arch::ModelConfig;
use crate::files::gguf::Value;
use crate::job::gguf::tensor::GgufTensor;

/// Metadata under the prefix of the architecture, and the tensors that come from the configuration.
/// `explicit_head_dim`: whether the configuration states the width of a head, or its class has one of
/// its own; `vocabulary` is the number of embeddings.
pub(super) fn metadata(
    config: &ModelConfig,
    explicit_head_dim: bool,
    vocabulary: usize,
    warnings: &mut Vec<String>,
) -> Result<(IndexMap<String, Value>, Vec<GgufTensor>)> {
    let family = config.family;
    let mut metadata = IndexMap::new();
    let mut set = |key: &str, value: Value| {
        metadata.insert(format!("{}.{key}", family.gguf), value);
    };
    let number = |size: usize| Value::from(size as u32);
    set("block_count", number(config.num_layers));
    set("context_length", number(config.max_positions));
    set("embedding_length", number(config.hidden_size));
    set("feed_forward_length", number(config.intermediate_size));
    set("attention.head_count", number(config.num_heads));
    set("attention.head_count_kv", number(config.num_kv_heads));
    let rope = rope::parts(config, warnings)?;
    for (key, value) in rope.metadata {
        set(key, value);
    }
    set("attention.layer_norm_rms_epsilon", Value::from(config.rms_norm_eps as f32));
    if explicit_head_dim && !family.fused {
        set("attention.key_length", number(config.head_dim));
        set("attention.value_length", number(config.head_dim));
    }
    if let Some(experts) = config.experts {
        set("expert_count", number(experts.count));
        set("expert_used_count", number(experts.used));
        if !family.has_rope_pairs() {
            set("expert_feed_forward_length", number(experts.inner));
        }
        if let Some(shared) = experts.shared {
            set("expert_shared_feed_forward_length", number(shared));
        }
    }
    if family.has_rope_pairs() {
        set("vocab_size", number(vocabulary));
    }
    for (key, value) in attention::metadata(config, warnings)? {
        set(key, value);
    }
    Ok((metadata, rope.tensors))
}
