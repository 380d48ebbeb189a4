//! What a Hugging Face directory holds, for architectures that this crate does not run: its
//! configuration's sizes and its tensors as they lie there.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::hf;
use crate::arch::config_json::quantization;
use crate::files::packed::assemble::{Entry, assemble};
use crate::files::safetensors;
use crate::files::texts::{self, MAX_CONFIG};
use crate::weight::Weight;
use crate::{Error, Result};

/// A directory that was looked at.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The directory's name.
    pub name: String,
    /// The class that `config.json` names.
    pub class_name: String,
    /// `hidden_size`; 0 where the configuration does not say, as for all sizes.
    pub hidden_size: usize,
    /// `num_hidden_layers`
    pub num_layers: usize,
    /// `num_attention_heads`
    pub num_heads: usize,
    /// `num_key_value_heads`
    pub num_kv_heads: usize,
    /// `vocab_size`
    pub vocab_size: usize,
    /// `max_position_embeddings`
    pub max_positions: usize,
    /// The type of the weights: what the configuration says, else the one of most bytes.
    pub torch_dtype: String,
    /// Tensors by name.
    pub weights: IndexMap<String, Weight>,
    /// Tensors of types that are not read, with the type.
    pub unread: Vec<(String, String)>,
}

impl Survey {
    /// Number of values of all tensors.
    #[must_use]
    pub(crate) fn parameter_count(&self) -> u64 {
        self.weights.values().map(|weight| weight.elements() as u64).sum()
    }
}

/// Looks at a directory.
///
/// # Errors
/// [`Error::ModelNotFound`] if a file is missing, [`Error::ValidationFailed`] if one is damaged.
pub(crate) fn survey(directory: &Path) -> Result<Survey> {
    let path = directory.join("config.json");
    let text = texts::read_text(&path, MAX_CONFIG)?.ok_or_else(|| hf::without_config(directory))?;
    let root: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::damaged(&path, format!("{e}")))?;
    let inner = root.get("text_config").and_then(Value::as_object);
    let find = |key: &str| {
        let of = |map: &Map<String, Value>| map.get(key).filter(|value| !value.is_null()).cloned();
        inner.and_then(of).or_else(|| of(&root))
    };
    let size = |key: &str| {
        find(key).and_then(|v| v.as_u64()).and_then(|v| usize::try_from(v).ok()).unwrap_or(0)
    };
    let word = |key: &str| find(key).and_then(|value| value.as_str().map(str::to_owned));
    let class = root.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);

    let entries =
        assemble(safetensors::read_all(directory)?, quantization(&root)?.as_ref(), directory)?;
    let mut weights = IndexMap::new();
    let mut unread = Vec::new();
    for (name, entry) in entries {
        match entry {
            Entry::Plain(Ok(tensor)) => drop(weights.insert(name, Weight::Stored(tensor))),
            Entry::Packed(tensor) => drop(weights.insert(name, Weight::Packed(tensor))),
            Entry::Plain(Err(kind)) => unread.push((name, kind)),
        }
    }
    // A head that is stored besides the embedding that serves as one counts once.
    let tied = find("tie_word_embeddings").and_then(|value| value.as_bool()).unwrap_or(false);
    if tied {
        weights.shift_remove("lm_head.weight");
    }
    let heads = size("num_attention_heads");
    Ok(Survey {
        name: hf::model_name(directory),
        class_name: class.unwrap_or("unknown").to_owned(),
        hidden_size: size("hidden_size"),
        num_layers: size("num_hidden_layers"),
        num_heads: heads,
        num_kv_heads: match size("num_key_value_heads") {
            0 => heads,
            count => count,
        },
        vocab_size: match size("vocab_size") {
            0 => embedding_rows(&weights),
            rows => rows,
        },
        max_positions: size("max_position_embeddings"),
        torch_dtype: word("dtype")
            .or_else(|| word("torch_dtype"))
            .unwrap_or_else(|| hf::most_used_dtype(&weights)),
        weights,
        unread,
    })
}

fn embedding_rows(weights: &IndexMap<String, Weight>) -> usize {
    weights
        .iter()
        .find(|(name, _)| name.ends_with("embed_tokens.weight"))
        .map_or(0, |(_, weight)| weight.rows())
}
