//! The files around a tokenizer, as far as they are there.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::base::{input, json};
use crate::files::texts::{MAX_CONFIG, MAX_TOKENIZER};
use crate::job::gguf::hf::texts::Texts;
use crate::{Error, Result};

/// What a directory says about its tokenizer.
pub(super) struct TokenizerFiles {
    /// The directory, or the file that carries the texts.
    pub(super) directory: PathBuf,
    /// Which of the two.
    pub(super) is_folder: bool,
    /// `tokenizer.json`, as text and parsed.
    pub(super) tokenizer: Option<(String, Value)>,
    /// `tokenizer_config.json`; empty if there is none.
    pub(super) config: Map<String, Value>,
    /// `special_tokens_map.json`; empty if there is none.
    special: Map<String, Value>,
    /// `tokenizer.model`
    pub(super) model: Option<Vec<u8>>,
}

/// A token beside the vocabulary proper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: usize,
    pub(super) content: String,
    pub(super) special: bool,
}

impl TokenizerFiles {
    pub(super) fn read(texts: Texts<'_>, warnings: &mut Vec<String>) -> Result<Self> {
        let directory = texts.path();
        let tokenizer = match texts.optional("tokenizer.json", MAX_TOKENIZER, warnings)? {
            None => None,
            Some(text) => {
                let path = directory.join("tokenizer.json");
                let value = json::read(&text)
                    .map_err(|e| Error::damaged(path, format!("not valid JSON: {e}")))?;
                Some((text, value))
            }
        };
        let mut object = |name: &str| -> Result<Map<String, Value>> {
            let Some(text) = texts.optional(name, MAX_CONFIG, warnings)? else {
                return Ok(Map::new());
            };
            match json::read(&text) {
                Ok(Value::Object(map)) => Ok(map),
                _ => Err(Error::damaged(directory.join(name), "not a JSON object")),
            }
        };
        let config = object("tokenizer_config.json")?;
        let special = object("special_tokens_map.json")?;
        let path = texts.folder().map(|folder| folder.join("tokenizer.model"));
        let model = match path.as_ref().map(|path| (path, input::read(path, MAX_TOKENIZER))) {
            Some((_, Ok(bytes))) => Some(bytes),
            Some((path, Err(error))) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(path, error));
            }
            _ => None,
        };
        Ok(Self {
            directory: directory.to_path_buf(),
            is_folder: path.is_some(),
            tokenizer,
            config,
            special,
            model,
        })
    }

    /// The content of a special token (`bos_token`) that one of the files names.
    pub(super) fn special_token(&self, name: &str) -> Option<String> {
        [&self.config, &self.special].into_iter().find_map(|file| {
            let token = file.get(name)?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        })
    }

    /// A truth value of `tokenizer_config.json`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key).and_then(Value::as_bool)
    }

    /// The added tokens of all files, one per id; what `tokenizer.json` says counts most.
    pub(super) fn added_tokens(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<AddedToken> = Vec::new();
        let mut add = |token: AddedToken| match tokens.iter_mut().find(|t| t.id == token.id) {
            Some(known) => *known = token,
            None => tokens.push(token),
        };
        let entry = |id: Option<usize>, value: &Value| {
            Some(AddedToken {
                id: id?,
                content: value.get("content")?.as_str()?.to_owned(),
                special: value.get("special").and_then(Value::as_bool).unwrap_or(false),
            })
        };
        if let Some(Value::Object(decoder)) = self.config.get("added_tokens_decoder") {
            decoder.iter().filter_map(|(id, v)| entry(id.parse().ok(), v)).for_each(&mut add);
        }
        let listed = self.tokenizer.as_ref().and_then(|(_, root)| root["added_tokens"].as_array());
        let id = |value: &Value| usize::try_from(value.get("id")?.as_u64()?).ok();
        listed.into_iter().flatten().filter_map(|v| entry(id(v), v)).for_each(&mut add);
        tokens.sort_by_key(|token| token.id);
        tokens
    }
}

/// Whether a token is one of those that steer the model, although its file does not say so. The list
/// is that of llama.cpp's converter.
pub(super) fn looks_special(token: &str) -> bool {
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<｜") && token.ends_with("｜>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}
