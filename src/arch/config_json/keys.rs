//! What a `config.json` says beyond what is read: keys that change nothing pass, everything else is
//! refused by name, so that no setting of the computation is left out in silence.

use serde_json::Value;

use super::classes::Class;
use super::fields::Fields;
use crate::arch::family::Windows;
use crate::base::lists;
use crate::{Error, Result};

/// Keys that say nothing about what a model computes for a text: identity, training, generation, tasks,
/// files, other runtimes, other senses than text (whose tensors are accounted for apart).
const CHANGE_NOTHING: &[&str] = &[
    "attn_impl",
    "attn_implementation",
    "audio_config",
    "author",
    "auto_map",
    "aux_loss_alpha",
    "bad_words_ids",
    "base_model",
    "begin_suppress_tokens",
    "bf16",
    "cache_implementation",
    "chat_template",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "datasets",
    "description",
    "deterministic_flash_attn",
    "disable_exllama",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "experts_implementation",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "flash_attn",
    "fp16",
    "fp32",
    "freeze",
    "fused_qkv",
    "gradient_checkpointing",
    "id2label",
    "image_seq_length",
    "image_size",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "language",
    "layerdrop",
    "length_penalty",
    "library_name",
    "license",
    "loss_type",
    "max_batch_size",
    "max_context_length",
    "max_length",
    "max_new_tokens",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "min_length",
    "mm_tokens_per_image",
    "model_max_length",
    "model_name",
    "model_name_or_path",
    "multimodal_projector_bias",
    "n_ctx",
    "n_inner",
    "name",
    "name_or_path",
    "neftune_noise_alpha",
    "no_repeat_ngram_size",
    "norm_epsilon",
    "num_beam_groups",
    "num_beams",
    "num_key_value_groups",
    "num_labels",
    "num_return_sequences",
    "offload_folder",
    "penalty_alpha",
    "pipeline_tag",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "processor_class",
    "projector_hidden_act",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_jitter_noise",
    "sampler_seed",
    "seed",
    "seq_aux",
    "seq_length",
    "sliding_window_size",
    "spatial_merge_size",
    "suppress_tokens",
    "tags",
    "task_specific_params",
    "temperature",
    "tensor_parallel",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "typical_p",
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
    "use_return_dict",
    "use_rms_norm",
    "use_sdpa",
    "version",
    "vision_config",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "xla_device",
    "z_loss",
];

/// Keys with this beginning change nothing: private notes of transformers and of trainers.
const NEUTRAL_BEGINNINGS: &[&str] = &[
    "_",
    "generation_",
    "init_",
    "initializer_",
    "output_",
    "summary_",
    "tf_",
    "tokenizer_",
    "training_",
    "transformers_",
    "trl_",
    "unsloth",
    "wandb",
];

/// Keys with this end change nothing: `bos_token_id`, `router_aux_loss_coef`, `vision_start_token`.
const NEUTRAL_ENDS: &[&str] = &["_loss_coef", "_token", "_token_id", "_token_ids", "_token_index"];

/// Keys with this in them change nothing when no training goes on.
const NEUTRAL_PARTS: &[&str] = &["dropout", "pdrop"];

/// Keys of other models with the values at which they change nothing. They come before the rule that
/// null, false and nothing are neutral.
const SWITCHES: &[(&str, &[Neutral])] = &[
    ("activation", &[Neutral::Text("silu"), Neutral::Text("swiglu")]),
    ("activation_function", &[Neutral::Text("silu"), Neutral::Text("swiglu")]),
    ("causal", &[Neutral::True]),
    ("embedding_multiplier", &[Neutral::Number(1.0)]),
    ("first_k_dense_replace", &[Neutral::Number(0.0)]),
    ("hidden_activation", &[Neutral::Text("silu")]),
    ("is_causal", &[Neutral::True]),
    ("logit_scale", &[Neutral::Number(1.0)]),
    ("logits_scaling", &[Neutral::Number(1.0)]),
    ("moe_intermediate_size", &[Neutral::Number(0.0)]),
    ("n_shared_experts", &[Neutral::Number(0.0)]),
    ("no_rope_layers", &[Neutral::AllOnes]),
    ("num_experts_per_tok", &[Neutral::Number(0.0), Neutral::Number(1.0)]),
    ("residual_multiplier", &[Neutral::Number(1.0)]),
    ("rope_pct", &[Neutral::Number(1.0)]),
    ("rotary_pct", &[Neutral::Number(1.0)]),
    ("scale_attn_weights", &[Neutral::True]),
    ("use_rope", &[Neutral::True]),
];

/// Keys that repeat what another key says, under the name of another library: neutral with the same
/// value.
const SAME_AS: &[(&str, &str)] = &[
    ("layer_norm_eps", "rms_norm_eps"),
    ("layer_norm_epsilon", "rms_norm_eps"),
    ("norm_eps", "rms_norm_eps"),
    ("rotary_emb_base", "rope_theta"),
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_positions", "max_position_embeddings"),
];

/// Keys that transformers ignores for these classes and another runtime does not: named, not refused.
const IGNORED_BY_TRANSFORMERS: &[&str] = &["dual_chunk_attention_config"];

/// What transformers does not compute either, and what it is: named, not refused.
const LEFT_OUT: &[(&str, &str)] = &[
    ("sparse_attention_config", "sparse attention for very long texts"),
    ("num_nextn_predict_layers", "layers that predict further tokens"),
    ("num_mtp_layers", "layers that predict further tokens"),
    ("mtp_num_hidden_layers", "layers that predict further tokens"),
];

/// A value at which a key changes nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    True,
    Number(f64),
    Text(&'static str),
    /// A list of ones: every layer as usual.
    AllOnes,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::True => value == &Value::Bool(true),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Text(text) => value.as_str() == Some(text),
            Self::AllOnes => value.as_array().is_some_and(|list| {
                list.iter().all(|one| one.as_u64() == Some(1) || one == &Value::Bool(true))
            }),
        }
    }
}

/// Refuses keys that are neither `known` (read by the caller) nor known to change nothing.
///
/// # Errors
/// [`Error::Unsupported`] with name and value.
pub(crate) fn refuse_unknown(fields: &Fields, known: &[&str], class: &str) -> Result<()> {
    let refused: Vec<(&str, &Value)> = fields
        .entries()
        .filter(|(key, value)| !known.contains(key) && !is_neutral(fields, key, value))
        .collect();
    let Some((key, value)) = refused.first() else { return Ok(()) };
    let others: Vec<&str> = refused[1..].iter().map(|(key, _)| *key).collect();
    let more = if others.is_empty() {
        String::new()
    } else {
        format!("; also {}", lists::some_of(&others))
    };
    Err(Error::Unsupported {
        message: format!(
            "{class} with `{key}` {}, which may change what the model computes{more}",
            short(value)
        ),
        suggestion: match *key {
            "quantization" | "compression_config" => {
                "The weights are quantized in a way that is not read: use the original checkpoint"
                    .to_owned()
            }
            _ => format!(
                "{class} is supported as transformers defines it, without `{key}`; if the key has no \
                 effect on this model, remove it from config.json"
            ),
        },
    })
}

/// The same for what is around a text model: there the other senses have their settings.
pub(crate) fn refuse_unknown_around(fields: &Fields, known: &[&str], class: &str) -> Result<()> {
    const SENSES: [&str; 14] = [
        "audio",
        "downsample_ratio",
        "image",
        "mm_",
        "multimodal",
        "pixel",
        "projector",
        "scale_factor",
        "spatial_",
        "temporal_",
        "text_config",
        "video",
        "vision",
        "visual",
    ];
    let more = fields.entries().map(|(key, _)| key);
    let more = more.filter(|key| SENSES.iter().any(|part| key.contains(part)));
    let known: Vec<&str> = known.iter().copied().chain(more).collect();
    refuse_unknown(fields, &known, class)
}

/// Warns of keys that do nothing here and something elsewhere.
pub(super) fn warn(fields: &Fields, class: &Class, warnings: &mut Vec<String>) {
    let unread = class.family.windows == Windows::Never;
    for (key, value) in fields.entries() {
        let ignored = IGNORED_BY_TRANSFORMERS.contains(&key) || (unread && key == "sliding_window");
        if let Some((_, what)) = LEFT_OUT.iter().find(|(name, _)| *name == key)
            && !is_unused(key, value)
        {
            warnings.push(format!("`{key}` of config.json ({what}) is left out"));
        }
        if ignored && !is_unused(key, value) {
            warnings.push(format!(
                "`{key}` {} of config.json has no effect in a {}, as in transformers",
                short(value),
                class.name
            ));
        }
    }
}

/// Whether a key changes nothing with that value.
fn is_neutral(fields: &Fields, key: &str, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if let Some((_, neutral)) = SWITCHES.iter().find(|(name, _)| *name == key) {
        return neutral.iter().any(|neutral| neutral.is(value));
    }
    if let Some((_, same)) = SAME_AS.iter().find(|(name, _)| *name == key) {
        return fields.get(same).is_some_and(|other| other.as_f64() == value.as_f64());
    }
    is_unused(key, value)
        || CHANGE_NOTHING.contains(&key)
        || IGNORED_BY_TRANSFORMERS.contains(&key)
        || LEFT_OUT.iter().any(|(name, _)| *name == key)
        || NEUTRAL_BEGINNINGS.iter().any(|start| key.starts_with(start))
        || (NEUTRAL_ENDS.iter().any(|end| key.ends_with(end)) && !key.contains("_per_"))
        || NEUTRAL_PARTS.iter().any(|part| key.contains(part))
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

/// A value as a message shows it.
fn short(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
