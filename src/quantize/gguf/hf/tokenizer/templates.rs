//! Chat templates, from wherever a model keeps them.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::files::TokenizerFiles;
use crate::formats::gguf::{Array, Value};
use crate::formats::input;
use crate::source::hf::{MAX_CONFIG, optional_text};
use crate::source::json;
use crate::{Error, Result};

const KEY: &str = "tokenizer.chat_template";

/// The metadata of all templates: the field of `tokenizer_config.json`, else `chat_template.jinja`
/// with those in `additional_chat_templates/`, else `chat_template.json`. The default one is
/// `tokenizer.chat_template`, others have their names behind it and in `tokenizer.chat_templates`.
pub(super) fn metadata(
    files: &TokenizerFiles,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, Value>> {
    let templates = match files.config.get("chat_template").filter(|field| !field.is_null()) {
        Some(field) => field.clone(),
        None => from_files(files, warnings)?,
    };
    let mut metadata = IndexMap::new();
    match templates {
        Json::Null => {}
        Json::String(text) => {
            metadata.insert(KEY.to_owned(), Value::from(text));
        }
        Json::Array(list) => {
            let mut names = Vec::new();
            for entry in &list {
                let texts = entry["name"].as_str().zip(entry["template"].as_str());
                let Some((name, text)) = texts else { continue };
                if name == "default" {
                    metadata.insert(KEY.to_owned(), Value::from(text));
                    continue;
                }
                let name = key_name(name);
                let key = format!("{KEY}.{name}");
                if metadata.insert(key, Value::from(text)).is_none() {
                    names.push(name);
                }
            }
            if !names.is_empty() {
                let names = Array::of_strings(&names);
                metadata.insert("tokenizer.chat_templates".to_owned(), names.into());
            }
        }
        _ => warnings.push("the chat template is no text and is left out".to_owned()),
    }
    Ok(metadata)
}

/// A name as part of a key: other characters than letters, digits, `-` and `_` do not belong there.
fn key_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn from_files(files: &TokenizerFiles, warnings: &mut Vec<String>) -> Result<Json> {
    if !files.is_folder {
        return Ok(Json::Null);
    }
    let directory = &files.directory;
    if let Some(text) = optional_text(directory, "chat_template.jinja", MAX_CONFIG, warnings)? {
        let mut list = vec![serde_json::json!({ "name": "default", "template": text })];
        let folder = directory.join("additional_chat_templates");
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
            .collect();
        paths.sort();
        for path in paths {
            let text = input::read_to_string(&path, MAX_CONFIG).map_err(|e| Error::io(&path, e))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            list.push(serde_json::json!({ "name": name, "template": text }));
        }
        return Ok(Json::Array(list));
    }
    let text = optional_text(directory, "chat_template.json", MAX_CONFIG, warnings)?;
    let root = text.and_then(|text| json::read(&text).ok());
    Ok(root.map_or(Json::Null, |root| root["chat_template"].clone()))
}
