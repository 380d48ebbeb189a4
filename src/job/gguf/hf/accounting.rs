//! Which keys of a `config.json` are read for which class. What is not read here, and is not known to
//! change nothing, is refused by name.

use serde_json::{Map, Value as Json};

use super::architectures::{Class, Kind};
use crate::Result;
use crate::arch::config_keys::refuse_unaccounted;

/// Read for every class, if only to refuse other values than the one that is computed.
const ALL: [&str; 24] = [
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_bidirectional_attention",
];

/// What transformers does not compute either, and what it is.
const LEFT_OUT: [(&str, &str); 5] = [
    ("dual_chunk_attention_config", "attention in chunks for very long texts"),
    ("sparse_attention_config", "sparse attention for very long texts"),
    ("num_nextn_predict_layers", "layers that predict further tokens"),
    ("num_mtp_layers", "layers that predict further tokens"),
    ("mtp_num_hidden_layers", "layers that predict further tokens"),
];

/// Whether a key is read for a class.
fn is_read(kind: Kind, key: &str) -> bool {
    ALL.contains(&key)
        || key == "vocab_size"
        || match kind {
            Kind::Llama => key == "mlp_bias",
            Kind::Gemma2 | Kind::Gemma3 => matches!(
                key,
                "attn_logit_softcapping"
                    | "final_logit_softcapping"
                    | "query_pre_attn_scalar"
                    | "rope_local_base_freq"
                    | "sliding_window_pattern"
            ),
            Kind::Qwen2 | Kind::Qwen3 => key == "use_sliding_window",
            Kind::Qwen2Moe | Kind::Qwen3Moe => matches!(
                key,
                "decoder_sparse_step"
                    | "mlp_only_layers"
                    | "moe_intermediate_size"
                    | "norm_topk_prob"
                    | "qkv_bias"
                    | "shared_expert_intermediate_size"
                    | "use_sliding_window"
            ),
            Kind::Mistral | Kind::Mixtral | Kind::Phi3 => false,
        }
}

/// Refuses keys that may change the computation and are not read; names those that are left out.
///
/// # Errors
/// [`crate::Error::Unsupported`].
pub(super) fn check(
    root: &Map<String, Json>,
    class: Class,
    warnings: &mut Vec<String>,
) -> Result<()> {
    for (key, what) in LEFT_OUT {
        let used = root.get(key).is_some_and(|value| {
            !value.is_null() && value.as_bool() != Some(false) && value.as_f64() != Some(0.0)
        });
        if used {
            warnings.push(format!("`{key}` of config.json ({what}) is left out"));
        }
    }
    let left_out = |key: &str| LEFT_OUT.iter().any(|(name, _)| *name == key);
    refuse_unaccounted(root, |key| is_read(class.kind, key) || left_out(key), class.name)
}
