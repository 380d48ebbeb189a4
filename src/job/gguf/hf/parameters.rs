//! `{arch}.*`: the hyper-parameters, typed as llama.cpp reads them.

use indexmap::IndexMap;

use super::architectures::{Class, Kind};
use super::attention;
use super::rope::Rope;
use super::sizes::Sizes;
use crate::Result;
use crate::arch::config_json::Fields;
use crate::files::gguf::Value;
use crate::job::gguf::tensor::GgufTensor;

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
    let rope = Rope::read(fields, class)?.parts(fields, class, sizes, warnings)?;
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
    for (key, value) in attention::metadata(fields, class, sizes, warnings)? {
        set(key, value);
    }
    Ok((metadata, rope.tensors))
}
