//! Byte-level BPE (`gpt2`): tokens in the alphabet of bytes, merges.

use serde_json::Value as Json;

use super::files::TokenizerFiles;
use super::vocabulary::{Vocabulary, kind};
use crate::{Error, Result};

/// The vocabulary of a `tokenizer.json`, filled up to `rows`.
pub(super) fn vocabulary(
    files: &TokenizerFiles,
    root: &Json,
    rows: usize,
    warnings: &mut Vec<String>,
) -> Result<Vocabulary> {
    let mut vocabulary = Vocabulary::unused(rows);
    for (token, id) in entries(files, root)? {
        if !vocabulary.set(id, token.as_bytes(), kind::NORMAL, 0.0) {
            return Err(Error::damaged(
                files.directory.join("tokenizer.json"),
                format!("token {token:?} has id {id}, the embedding has {rows} rows"),
            ));
        }
    }
    vocabulary.add(&files.added_tokens(), warnings);
    Ok(vocabulary)
}

/// Tokens and ids of the model.
pub(super) fn entries<'a>(
    files: &TokenizerFiles,
    root: &'a Json,
) -> Result<impl Iterator<Item = (&'a str, usize)>> {
    let damaged = |message: &str| Error::damaged(files.directory.join("tokenizer.json"), message);
    let map = root["model"]["vocab"]
        .as_object()
        .ok_or_else(|| damaged("the model has no list of tokens by text"))?;
    if map.values().any(|id| id.as_u64().is_none()) {
        return Err(damaged("a token's id is no whole number"));
    }
    Ok(map
        .iter()
        .filter_map(|(token, id)| Some((token.as_str(), usize::try_from(id.as_u64()?).ok()?))))
}

/// The merges as pairs, from either spelling: `"a b"` or `["a", "b"]`.
pub(super) fn merges<'a>(
    files: &TokenizerFiles,
    root: &'a Json,
) -> Result<Vec<(&'a str, &'a str)>> {
    let damaged = |merge: &Json| {
        let path = files.directory.join("tokenizer.json");
        Error::damaged(path, format!("{merge} is no merge of two tokens"))
    };
    let list = root["model"]["merges"].as_array();
    list.into_iter()
        .flatten()
        .map(|merge| {
            let pair = match merge {
                Json::String(text) => text.split_once(' '),
                pair => match pair.as_array().map(Vec::as_slice) {
                    Some([left, right]) => left.as_str().zip(right.as_str()),
                    _ => None,
                },
            };
            pair.ok_or_else(|| damaged(merge))
        })
        .collect()
}

/// A pair as the file has it: parts with a blank between them, blanks within as `Ġ`.
pub(super) fn joined((left, right): (&str, &str)) -> String {
    format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))
}
