//! Which class a `config.json` names, and where the text model's part of it is.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::arch::Family;
use crate::arch::families::{self, MINISTRAL};
use crate::arch::family::COMMON_KEYS;
use crate::{Error, Result};

/// Models around a text model that get nothing but text here: `model_type` of the whole. Beyond text
/// they add tokens of other senses to its embeddings, nothing else.
const WRAPPERS: [&str; 15] = [
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
    "gemma3",
];

/// Text models of wrappers that have names of their own.
const TEXT_TYPES: [(&str, &str); 3] =
    [("qwen2_vl_text", "qwen2"), ("qwen2_5_vl_text", "qwen2"), ("qwen3_vl_text", "qwen3")];

/// What a `config.json` describes.
#[derive(Debug)]
pub(in crate::arch) struct Class<'a> {
    pub(in crate::arch) family: &'static Family,
    /// The text model's class.
    pub(in crate::arch) name: &'static str,
    /// The text model's part of the file, if it is not the whole.
    pub(super) text: Option<&'a Map<String, Value>>,
}

impl Class<'_> {
    /// The keys that are read for this class.
    pub(super) fn known_keys(&self) -> Vec<&'static str> {
        let mut keys = COMMON_KEYS.to_vec();
        keys.extend(self.family.keys);
        keys
    }
}

/// An [`Error::Unsupported`] that lists what is supported.
pub(crate) fn unsupported(message: String) -> Error {
    let all = || families::ALL.iter().flat_map(|family| family.classes);
    let types: BTreeSet<&str> = all().map(|(_, kind)| *kind).collect();
    let classes: BTreeSet<&str> = all().map(|(class, _)| *class).collect();
    let list = |set: BTreeSet<&str>| set.into_iter().collect::<Vec<_>>().join(", ");
    let suggestion = format!(
        "Supported architectures: {} ({}), and the text part of llava, mistral3, qwen2_vl, \
         qwen2_5_vl, qwen3_vl, internvl, idefics3 and smolvlm models that contain one of them",
        list(types),
        list(classes)
    );
    Error::Unsupported { message, suggestion }
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
        return match families::of_type(plain) {
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
            families::of_class(class)
        }
        (None, Some(kind)) => families::of_type(kind),
    };
    let Some(found) = found else {
        let name = class.or(outer_type).unwrap_or_default();
        return Err(unsupported(format!("architecture {name} is not supported")));
    };
    if let Some(kind) = outer_type
        && kind != found.2
        && text.is_none()
    {
        return Err(unsupported(format!(
            "`architectures` says {}, `model_type` says {kind}: what the model computes is unclear",
            found.1
        )));
    }
    Ok(with_layer_types(found, text.unwrap_or(root), text))
}

/// transformers reads a Mistral with `layer_types` as a Ministral.
fn with_layer_types<'a>(
    (family, name, kind): (&'static Family, &'static str, &'static str),
    fields: &Map<String, Value>,
    text: Option<&'a Map<String, Value>>,
) -> Class<'a> {
    let typed = fields.get("layer_types").is_some_and(|types| !types.is_null());
    let name = if kind == "mistral" && typed { MINISTRAL } else { name };
    Class { family, name, text }
}
