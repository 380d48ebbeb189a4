//! The files of a model directory besides its weights.

use crate::files::chat_files::MORE_TEMPLATES;

/// A small file of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name in the directory, with `/` behind that of a folder in it.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

impl SideFile {
    /// A file of that text.
    #[must_use]
    pub fn text(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), bytes: text.into().into_bytes() }
    }
}

/// What is copied from a Hugging Face directory as it is.
pub(crate) const COPIED: [&str; 13] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "NOTICE",
];

/// What is written new.
const WRITTEN: [&str; 4] =
    ["config.json", "quantize_config.json", "README.md", "model.safetensors.index.json"];

/// Whether a file of that name is of a model written by this program.
pub(super) fn is_companion(name: &str) -> bool {
    COPIED.contains(&name)
        || WRITTEN.contains(&name)
        || name == MORE_TEMPLATES
        || (name.starts_with("model") && name.ends_with(".safetensors"))
}
