//! The chat templates of a Hugging Face directory, which may lie in four places. Every reader in this
//! program takes them from here, so that all take the same.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::texts::{MAX_CONFIG, optional_text};
use crate::Result;
use crate::base::json as json_file;

/// The folder of further templates, one file for each.
pub(crate) const MORE_TEMPLATES: &str = "additional_chat_templates";

/// More templates than that are not read.
pub(crate) const MOST_TEMPLATES: usize = 64;

/// The templates: one as a text; several as a list of objects with `name` and `template`. `field` is
/// that of `tokenizer_config.json`. As in transformers, `chat_template.jinja` counts more than the
/// field, and `chat_template.json` less; those in `additional_chat_templates/` come on top.
///
/// # Errors
/// [`crate::Error::Io`].
pub(crate) fn templates(
    directory: &Path,
    field: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<Option<Value>> {
    let field = field.filter(|field| !field.is_null());
    let file = optional_text(directory, "chat_template.jinja", MAX_CONFIG, warnings)?;
    let base = match (file, field) {
        (Some(file), field) => {
            if field.is_some_and(|field| field.as_str() != Some(&file)) {
                warnings.push(
                    "the chat template in tokenizer_config.json is another one than that in \
                     chat_template.jinja, which counts"
                        .to_owned(),
                );
            }
            Some(Value::String(file))
        }
        (None, Some(field)) => Some(field.clone()),
        (None, None) => optional_text(directory, "chat_template.json", MAX_CONFIG, warnings)?
            .and_then(|text| json_file::read(&text).ok())
            .and_then(|root| root.get("chat_template").cloned()),
    };
    let mut more = Vec::new();
    for path in more_files(directory) {
        let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else { continue };
        let text = optional_text(folder, &file.to_string_lossy(), MAX_CONFIG, warnings)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        more.extend(text.map(|text| json!({ "name": name, "template": text })));
    }
    if more.is_empty() {
        return Ok(base);
    }
    let mut all = match base {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(one) => vec![json!({ "name": "default", "template": one })],
    };
    for template in more {
        all.retain(|known| known["name"] != template["name"]);
        all.push(template);
    }
    Ok(Some(Value::Array(all)))
}

/// The files of further templates, by name.
pub(crate) fn more_files(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory.join(MORE_TEMPLATES))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.truncate(MOST_TEMPLATES);
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_counts_most_and_others_come_on_top() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut warnings = Vec::new();
        let field = json!("field");
        let mut get = |field: Option<&Value>| {
            templates(folder.path(), field, &mut warnings).unwrap().unwrap_or_default()
        };
        assert_eq!(get(None), Value::Null);
        write("chat_template.json", r#"{ "chat_template": "json" }"#);
        assert_eq!(get(Some(&Value::Null)), "json");
        assert_eq!(get(Some(&field)), "field");
        write("chat_template.jinja", "field");
        assert_eq!(get(Some(&field)), "field");
        std::fs::create_dir(folder.path().join(MORE_TEMPLATES)).unwrap();
        write("additional_chat_templates/tool.jinja", "T");
        write("additional_chat_templates/notes.txt", "no template");
        let both = json!([
            { "name": "default", "template": "field" }, { "name": "tool", "template": "T" }
        ]);
        assert_eq!(get(None), both);
        assert!(warnings.is_empty(), "{warnings:?}");
        write("chat_template.jinja", "file");
        let all = templates(folder.path(), Some(&field), &mut warnings).unwrap().unwrap();
        assert_eq!(all[0]["template"], "file");
        assert!(warnings[0].contains("chat_template.jinja"), "{warnings:?}");
    }
}
