//! The keys of a `config.json` that change nothing in what a language model computes, so that every
//! other key that is not read can be refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use super::config_json::{Fields, keys};
use crate::{Error, Result};

/// Names, versions, training, generation, labels, settings of one runtime, sizes of tokenizers; and
/// what describes other senses than text, whose tensors are accounted for apart.
const CHANGE_NOTHING: [&str; 116] = [
    // Identity.
    "architectures",
    "auto_map",
    "dtype",
    "is_llama_config",
    "license",
    "model_name",
    "model_type",
    "name",
    "name_or_path",
    "tokenizer_class",
    "tokenizer_name",
    "torch_dtype",
    "version",
    // Training.
    "aux_loss_alpha",
    "bf16",
    "chunk_size_feed_forward",
    "finetuning_task",
    "fp16",
    "fp32",
    "freeze",
    "gradient_checkpointing",
    "initializer_factor",
    "initializer_range",
    "initializer_std",
    "layerdrop",
    "loss_type",
    "neftune_noise_alpha",
    "router_jitter_noise",
    "seq_aux",
    "torchscript",
    "z_loss",
    // How a library runs the model.
    "attn_implementation",
    "cache_implementation",
    "deterministic_flash_attn",
    "disable_exllama",
    "experts_implementation",
    "flash_attn",
    "fused_qkv",
    "offload_folder",
    "pretraining_tp",
    "return_dict",
    "tensor_parallel",
    "use_bfloat16",
    "use_cache",
    "use_cache_kernel",
    "use_cache_quantization",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_fused_rms_norm",
    "use_fused_rope",
    "use_fused_swiglu",
    "use_logn_attn_kernel",
    "use_rms_norm",
    "use_sdpa",
    // Lengths that nothing is computed from.
    "max_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "n_ctx",
    "seq_length",
    // Generation.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "penalty_alpha",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sampler_seed",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Tasks.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    // Weights that are read as their own part of the file says.
    "quantization_config",
    "text_config",
    // The other senses of a multimodal model.
    "audio_config",
    "image_seq_length",
    "image_size",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "processor_class",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_config",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    // Copies of what another key says, under names that no class reads.
    "layer_norm_eps",
    "layer_norm_epsilon",
    "max_context_length",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "norm_epsilon",
    "num_key_value_groups",
    "sliding_window_size",
    "xla_device",
];

/// The starts of such keys: `_name_or_path`, `output_attentions`, `unsloth_version`, `trl_…`.
const STARTS: [&str; 8] =
    ["_", "output_", "transformers_", "unsloth_", "tf_", "trl_", "wandb_", "training_"];

/// The ends of such keys: `attention_dropout`, `resid_pdrop`, `bos_token_id`, `image_token_index`,
/// `router_aux_loss_coef`, `vision_start_token`.
const ENDS: [&str; 9] = [
    "dropout",
    "dropout_prob",
    "dropout_rate",
    "pdrop",
    "_token_id",
    "_token_ids",
    "_token_index",
    "_token",
    "_loss_coef",
];

/// Whether a key changes nothing, whatever its value.
fn changes_nothing(key: &str) -> bool {
    CHANGE_NOTHING.contains(&key)
        || STARTS.iter().any(|start| key.starts_with(start))
        || ENDS.iter().any(|end| key.ends_with(end))
}

/// Whether a value says that something is not used: nothing, false, zero, an empty text, list or
/// object; one for what is multiplied with.
fn is_unused(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => {
            let factor = ["_multiplier", "_scaling", "_scale", "_factor", "_mod"];
            let is_factor = factor.iter().any(|end| key.ends_with(end));
            number.as_f64().is_some_and(|n| n == 0.0 || (is_factor && (n - 1.0).abs() < 1e-12))
        }
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The keys of a configuration that could change the computation and are not among those that are
/// read (`is_read`).
pub(crate) fn unaccounted(map: &Map<String, Value>, is_read: impl Fn(&str) -> bool) -> Vec<&str> {
    let fields = Fields::new(map, Path::new("config.json"));
    let neutral = |key: &str, value: &Value| {
        keys::is_neutral(&fields, key, value)
            || (!keys::is_switch(key) && (changes_nothing(key) || is_unused(key, value)))
    };
    map.iter()
        .filter(|(key, value)| !is_read(key) && !neutral(key, value))
        .map(|(key, _)| key.as_str())
        .collect()
}

/// Refuses a configuration with keys that could change the computation and are not read, by name.
/// `what` is whose: `LlamaForCausalLM`, or a part such as `rope_scaling` of it.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn refuse_unaccounted(
    map: &Map<String, Value>,
    is_read: impl Fn(&str) -> bool,
    what: &str,
) -> Result<()> {
    let unknown = unaccounted(map, is_read);
    if unknown.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = unknown
        .iter()
        .take(5)
        .map(|key| {
            let value = map.get(*key).map(Value::to_string).unwrap_or_default();
            let short: String = value.chars().take(40).collect();
            let cut = if short.len() < value.len() { "…" } else { "" };
            format!("`{key}` {short}{cut}")
        })
        .collect();
    let more = match unknown.len().saturating_sub(shown.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::Unsupported {
        message: format!(
            "{what} with settings that are not known here and may change what the model computes: \
             {}{more}",
            shown.join(", ")
        ),
        suggestion:
            "Remove them from a copy of config.json if they change nothing for this model; \
                     otherwise it cannot be processed right"
                .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn left(config: &Value) -> Vec<&str> {
        let read = ["hidden_size", "rope_theta"];
        unaccounted(config.as_object().unwrap(), |key| read.contains(&key))
    }

    #[test]
    fn ordinary_keys_change_nothing() {
        let config = json!({
            "_name_or_path": "org/model", "transformers_version": "4.38.2", "torch_dtype": "float16",
            "use_cache": true, "attention_dropout": 0.1, "resid_pdrop": 0.1, "pretraining_tp": 4,
            "initializer_range": 0.02, "task_specific_params": { "x": {} },
            "auto_map": { "AutoConfig": "c.C" }, "quantization_config": { "bits": 4 },
            "bos_token_id": 1, "image_token_index": 7, "router_aux_loss_coef": 0.001,
            "output_router_logits": true, "hidden_size": 64, "rope_theta": 1e4,
            "unsloth_version": "2025.1", "id2label": { "0": "A" }, "full_attn_mod": 1,
        });
        assert!(left(&config).is_empty(), "{:?}", left(&config));
    }

    #[test]
    fn what_is_not_used_changes_nothing() {
        let config = json!({
            "new_thing": null, "use_new_thing": false, "new_layers": [], "new_size": 0,
            "new_name": "", "new_parts": {}, "residual_multiplier": 1.0, "logit_scale": 1,
        });
        assert!(left(&config).is_empty(), "{:?}", left(&config));
    }

    #[test]
    fn what_may_change_the_computation_is_left_and_named() {
        let config = json!({
            "use_qk_norm": true, "residual_multiplier": 0.22, "clip_qkv": 8.0, "new_act": "relu",
            "no_rope_layers": [1, 0], "hidden_size": 64,
        });
        assert_eq!(
            left(&config),
            ["use_qk_norm", "residual_multiplier", "clip_qkv", "new_act", "no_rope_layers"]
        );
        let map = config.as_object().unwrap();
        let error = refuse_unaccounted(map, |_| false, "LlamaForCausalLM").unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
        assert!(error.to_string().contains("`clip_qkv` 8.0"), "{error}");
    }
}
