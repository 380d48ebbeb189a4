//! Which class a `config.json` names, and where the text model's part of it is.

use std::path::Path;

use serde_json::{Map, Value};

use crate::arch::config::Architecture;
use crate::{Error, Result};

/// The class that transformers makes of a Mistral with `layer_types`.
pub(super) const MINISTRAL: &str = "MinistralForCausalLM";

/// Class, `model_type`, architecture.
const CLASSES: [(&str, &str, Architecture); 5] = [
    ("LlamaForCausalLM", "llama", Architecture::Llama),
    ("MistralForCausalLM", "mistral", Architecture::Mistral),
    (MINISTRAL, "ministral", Architecture::Mistral),
    ("Qwen2ForCausalLM", "qwen2", Architecture::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Architecture::Qwen3),
];

/// Models around a text model that get nothing but text here: `model_type` of the whole. Beyond text
/// they add tokens of other senses to its embeddings, nothing else.
const WRAPPERS: [&str; 14] = [
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "video_llava",
    "vipllava",
    "mistral3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
    "voxtral",
];

/// Text models of wrappers that have names of their own.
const TEXT_TYPES: [(&str, &str); 3] =
    [("qwen2_vl_text", "qwen2"), ("qwen2_5_vl_text", "qwen2"), ("qwen3_vl_text", "qwen3")];

/// What a `config.json` describes.
#[derive(Debug)]
pub(super) struct Class<'a> {
    pub(super) architecture: Architecture,
    /// The text model's class.
    pub(super) name: &'static str,
    /// The text model's part of the file, if it is not the whole.
    pub(super) text: Option<&'a Map<String, Value>>,
}

impl Class<'_> {
    /// The keys that are read for this class.
    pub(super) fn known_keys(&self) -> Vec<&'static str> {
        let mut keys = vec![
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
            // Read by Mistral and Qwen; a warning names it elsewhere.
            "sliding_window",
            "layer_types",
            "max_window_layers",
        ];
        if matches!(self.architecture, Architecture::Qwen2 | Architecture::Qwen3) {
            keys.push("use_sliding_window");
        }
        if self.architecture == Architecture::Qwen2 {
            keys.push("qkv_bias");
        }
        keys
    }
}

/// What is supported, for messages.
const SUPPORTED: &str = "Supported architectures: llama, mistral, ministral, qwen2, qwen3 \
     (LlamaForCausalLM, MistralForCausalLM, MinistralForCausalLM, Qwen2ForCausalLM, \
     Qwen3ForCausalLM), and the text part of llava, mistral3, qwen2_vl, qwen2_5_vl, qwen3_vl, \
     internvl, idefics3 and smolvlm models that contain one of them";

/// An [`Error::Unsupported`] that lists what is supported.
pub(crate) fn unsupported(message: String) -> Error {
    Error::Unsupported { message, suggestion: SUPPORTED.to_owned() }
}

/// Reads class and `model_type`.
pub(super) fn class<'a>(root: &'a Map<String, Value>, path: &Path) -> Result<Class<'a>> {
    let inner = match root.get("text_config") {
        Some(Value::Object(inner)) => Some(inner),
        _ => None,
    };
    let outer_type = root.get("model_type").and_then(Value::as_str);
    if let (Some(inner), Some(kind)) = (inner, outer_type)
        && WRAPPERS.contains(&kind)
    {
        let model_type = inner.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let plain = TEXT_TYPES.iter().find(|(text, _)| *text == model_type);
        let plain = plain.map_or(model_type, |(_, plain)| plain);
        return match of_type(plain) {
            Some(found) => Ok(with_layer_types(found, inner, Some(inner))),
            None => Err(unsupported(format!(
                "{kind} around a text model of type {}",
                if model_type.is_empty() { "unknown" } else { model_type }
            ))),
        };
    }
    let text = inner.filter(|_| !root.contains_key("hidden_size"));
    let class = root.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let found = match (class, outer_type) {
        (None, None) => {
            return Err(Error::damaged(path, "neither `architectures` nor `model_type` is given"));
        }
        (Some(class), _) => {
            let class = if class == "LLaMAForCausalLM" { "LlamaForCausalLM" } else { class };
            CLASSES.iter().find(|(name, ..)| *name == class).copied()
        }
        (None, Some(kind)) => of_type(kind),
    };
    let Some(found) = found else {
        let name = class.or(outer_type).unwrap_or_default();
        return Err(unsupported(format!("architecture {name} is not supported")));
    };
    if let Some(kind) = outer_type
        && kind != found.1
        && text.is_none()
    {
        return Err(unsupported(format!(
            "`architectures` says {}, `model_type` says {kind}: what the model computes is unclear",
            found.0
        )));
    }
    Ok(with_layer_types(found, text.unwrap_or(root), text))
}

fn of_type(kind: &str) -> Option<(&'static str, &'static str, Architecture)> {
    CLASSES.iter().find(|(_, model_type, _)| *model_type == kind).copied()
}

/// transformers reads a Mistral with `layer_types` as a Ministral.
fn with_layer_types<'a>(
    (name, kind, architecture): (&'static str, &'static str, Architecture),
    fields: &Map<String, Value>,
    text: Option<&'a Map<String, Value>>,
) -> Class<'a> {
    let typed = fields.get("layer_types").is_some_and(|types| !types.is_null());
    let name = if kind == "mistral" && typed { MINISTRAL } else { name };
    Class { architecture, name, text }
}
