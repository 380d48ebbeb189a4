//! Chat templates, from wherever a model keeps them.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::files::TokenizerFiles;
use crate::Result;
use crate::files::chat_files;
use crate::files::gguf::{Array, Value};

const KEY: &str = "tokenizer.chat_template";

/// The metadata of all templates, the same that the directory itself is used with. The default one
/// is `tokenizer.chat_template`, others have their names behind it and in `tokenizer.chat_templates`.
pub(super) fn metadata(
    files: &TokenizerFiles,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, Value>> {
    let field = files.config.get("chat_template");
    let templates = if files.is_folder {
        chat_files::templates(&files.directory, field, warnings)?
    } else {
        field.cloned()
    };
    let templates = templates.unwrap_or_default();
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
