//! A Hugging Face directory: `config.json`, safetensors (one file or shards), tokenizer files.
//!
//! Everything is checked before a weight is read: the architecture, the set of shards, the headers,
//! names and shapes of all tensors.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::{LocalModel, ModelFormat, experts, text_names};
use crate::arch::catalog::{keep_expected, keep_head};
use crate::arch::{config_json, tensors};
use crate::base::json as json_file;
use crate::base::lists::some_of;
use crate::codec::StoredType;
use crate::files::packed::assemble::{self, Entry};
use crate::files::safetensors::{RawTensor, file_names, read_all};
use crate::files::texts::{MAX_CONFIG, MAX_TOKENIZER, optional_text, read_text};
use crate::files::{chat_files, present};
use crate::weight::Weight;
use crate::{Error, Result};

/// Refuses a model by its `config.json` alone, before its weights are there.
///
/// # Errors
/// [`Error::Unsupported`] with the architecture's name; [`Error::ValidationFailed`] for a file that
/// describes no possible model.
pub fn check_supported(config: &Path) -> Result<()> {
    let text = read_text(config, MAX_CONFIG)?
        .ok_or_else(|| Error::model_not_found(format!("{} does not exist", config.display())))?;
    config_json::parse(&text, config).map(|_| ())
}

/// Opens a directory.
///
/// # Errors
/// As [`super::open_local`].
pub fn open(directory: &Path) -> Result<LocalModel> {
    let config_path = directory.join("config.json");
    let Some(mut text) = read_text(&config_path, MAX_CONFIG)? else {
        return Err(without_config(directory));
    };
    let mut parsed = config_json::parse(&text, &config_path)?;
    if let Some(generation) =
        optional_text(directory, "generation_config.json", MAX_CONFIG, &mut parsed.warnings)?
    {
        merge_end_tokens(directory, &generation, &mut parsed, &mut text);
    }

    let quantization = parsed.quantization.as_ref();
    let mut left_out = Vec::new();
    let raw = read_raw(directory, &mut left_out, &mut parsed.warnings)?;
    let tensors = assemble::assemble(raw, quantization, directory)?;
    let mut weights = IndexMap::with_capacity(tensors.len());
    let mut refused = BTreeMap::new();
    for (name, tensor) in tensors {
        match tensor {
            Entry::Plain(Ok(tensor)) => {
                weights.insert(name, Weight::Stored(tensor));
            }
            Entry::Packed(tensor) => {
                weights.insert(name, Weight::Packed(tensor));
            }
            Entry::Plain(Err(dtype)) => {
                refused.insert(name, dtype);
            }
        }
    }
    refuse_other_types(&refused, &parsed, directory)?;
    if keep_head(&weights, &mut parsed.config, &mut parsed.warnings) {
        set(&mut text, "tie_word_embeddings", json!(false));
    }
    let warnings = &mut parsed.warnings;
    experts::split(&mut weights, &parsed.config, directory)?;
    left_out.extend(keep_expected(&mut weights, &parsed.config, directory, warnings)?);
    if parsed.config.torch_dtype.is_empty() {
        parsed.config.torch_dtype = most_used_dtype(&weights);
    }
    if parsed.nested {
        // The weights have the names of the plain class now.
        text = config_json::write(&parsed.config);
    }

    let tokenizer_json =
        optional_text(directory, "tokenizer.json", MAX_TOKENIZER, &mut parsed.warnings)?;
    if tokenizer_json.is_none() {
        parsed.warnings.push(missing_tokenizer(directory));
    }
    Ok(LocalModel {
        name: model_name(directory),
        path: directory.to_path_buf(),
        format: ModelFormat::HuggingFace,
        config: parsed.config,
        config_json: text,
        tokenizer_json,
        tokenizer_config_json: tokenizer_config(directory, &mut parsed.warnings)?,
        weights,
        left_out,
        warnings: parsed.warnings,
    })
}

pub(crate) fn without_config(directory: &Path) -> Error {
    let names = file_names(directory);
    if names.contains(present::ADAPTER_CONFIG)
        && let Some(error) = present::adapter_instead(directory)
    {
        return error;
    }
    let with = |suffix: &str| {
        names.iter().filter(|name| name.ends_with(suffix)).map(String::as_str).collect::<Vec<_>>()
    };
    let suggestion = if !with(".gguf").is_empty() {
        format!("Give the path of one GGUF file: {}", some_of(&with(".gguf")))
    } else if !with(".littlebit").is_empty() {
        format!("Give the path of one .littlebit file: {}", some_of(&with(".littlebit")))
    } else if names.contains("params.json") {
        "This is the original layout of the weights; use the Hugging Face version of the model"
            .to_owned()
    } else {
        "Give a directory with config.json and model.safetensors, a GGUF file or a hub id"
            .to_owned()
    };
    Error::ModelNotFound {
        message: format!("no config.json in {}", directory.display()),
        suggestion,
    }
}

/// Adds the end tokens that only `generation_config.json` names, to the configuration and to its
/// text, so that files made from this model end their generations as well.
fn merge_end_tokens(
    directory: &Path,
    generation: &str,
    parsed: &mut config_json::ParsedConfig,
    text: &mut String,
) {
    let path = directory.join("generation_config.json");
    let more = match config_json::generation_end_tokens(generation, &path) {
        Ok(more) => more,
        Err(error) => {
            parsed.warnings.push(format!("{error}; the file is left out"));
            return;
        }
    };
    let ids = &mut parsed.config.eos_token_ids;
    let before = ids.len();
    for id in more {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.len() > before {
        set(text, "eos_token_id", json!(ids));
    }
}

/// Sets a key in the text of a configuration.
fn set(text: &mut String, key: &str, value: Value) {
    if let Ok(Value::Object(mut root)) = json_file::read(text) {
        root.insert(key.to_owned(), value);
        *text = json_file::write(&Value::Object(root));
    }
}

/// All tensors of the text model by the names of its plain class, in file order, whatever their
/// types. Warnings say what is left out and what lies beside the weights.
pub(crate) fn read_raw(
    directory: &Path,
    left_out: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, RawTensor>> {
    warnings.extend(present::adapter_beside(directory));
    text_names::plain(read_all(directory)?, directory, left_out, warnings)
}

/// Expected tensors of other types are refused by name; others do not matter.
fn refuse_other_types(
    refused: &BTreeMap<String, String>,
    parsed: &config_json::ParsedConfig,
    directory: &Path,
) -> Result<()> {
    let expected = tensors::of_model(&parsed.config);
    let Some((name, dtype)) =
        expected.iter().find_map(|tensor| refused.get_key_value(&tensor.name))
    else {
        return Ok(());
    };
    Err(Error::Unsupported {
        message: format!("{name} in {} has element type {dtype}", directory.display()),
        suggestion: "Weights must be F32, F16 or BF16: use the original checkpoint".to_owned(),
    })
}

pub(crate) fn most_used_dtype(weights: &IndexMap<String, Weight>) -> String {
    let mut bytes: BTreeMap<&str, usize> = BTreeMap::new();
    for weight in weights.values() {
        if let Weight::Stored(tensor) = weight {
            let name = match tensor.dtype {
                StoredType::F32 => "float32",
                StoredType::BF16 => "bfloat16",
                _ => "float16",
            };
            *bytes.entry(name).or_default() += tensor.bytes.len();
        }
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("float32", |(name, _)| name).to_owned()
}

fn missing_tokenizer(directory: &Path) -> String {
    let other =
        ["tokenizer.model", "vocab.json"].into_iter().find(|name| directory.join(name).is_file());
    match other {
        Some(other) => format!(
            "no tokenizer.json in {} ({other} alone is not read): text cannot be processed",
            directory.display()
        ),
        None => {
            format!("no tokenizer.json in {}: text cannot be processed", directory.display())
        }
    }
}

/// `tokenizer_config.json` with the chat templates in it, wherever the model keeps them.
fn tokenizer_config(directory: &Path, warnings: &mut Vec<String>) -> Result<Option<String>> {
    let text = optional_text(directory, "tokenizer_config.json", MAX_CONFIG, warnings)?;
    let mut root = match text.as_deref().map(json_file::read) {
        Some(Ok(Value::Object(root))) => root,
        None => serde_json::Map::new(),
        Some(_) => {
            warnings.push(format!(
                "{}: not a JSON object; the file is left out",
                directory.join("tokenizer_config.json").display()
            ));
            serde_json::Map::new()
        }
    };
    let field = root.get("chat_template").filter(|field| !field.is_null());
    let templates = chat_files::templates(directory, field, warnings)?;
    if templates.as_ref() != field
        && let Some(templates) = templates
    {
        root.insert("chat_template".to_owned(), templates);
        return Ok(Some(json_file::write(&Value::Object(root))));
    }
    Ok(if root.is_empty() { None } else { text })
}

/// `org/name` for a snapshot in the hub's cache, else the directory's own name.
pub(crate) fn model_name(directory: &Path) -> String {
    let full = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let cached = full.components().rev().find_map(|part| {
        let repository = part.as_os_str().to_str()?.strip_prefix("models--")?;
        Some(repository.replacen("--", "/", 1))
    });
    cached
        .or_else(|| full.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "model".to_owned())
}
