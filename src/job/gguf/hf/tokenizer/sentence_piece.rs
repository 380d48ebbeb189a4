//! SentencePiece (`llama`): tokens with scores, from `tokenizer.model` or from a `tokenizer.json`
//! that was made from one.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::byte_level::{entries, merges};
use super::files::TokenizerFiles;
use super::protobuf::{self, SentencePieceModel};
use super::vocabulary::{Vocabulary, kind};
use crate::base::{input, json};
use crate::files::texts::MAX_CONFIG;
use crate::{Error, Result};

/// A vocabulary, and whether a blank is put in front of a text.
pub(super) struct SentencePiece {
    pub(super) vocabulary: Vocabulary,
    pub(super) add_space_prefix: Option<bool>,
    /// Ids that the model file itself names: unknown, beginning, end, padding.
    pub(super) special: [Option<u32>; 4],
}

/// Reads `tokenizer.model`.
pub(super) fn from_model(
    files: &TokenizerFiles,
    bytes: &[u8],
    rows: usize,
    warnings: &mut Vec<String>,
) -> Result<SentencePiece> {
    let path = files.directory.join("tokenizer.model");
    let SentencePieceModel { pieces, is_bpe, add_dummy_prefix, special } =
        protobuf::parse(bytes).ok_or_else(|| Error::damaged(&path, "not a SentencePiece model"))?;
    if !is_bpe {
        return Err(Error::Unsupported {
            message: format!("{} is a SentencePiece model other than BPE", path.display()),
            suggestion: "Tokenizers of this kind cannot be put into a GGUF file".to_owned(),
        });
    }
    let mut vocabulary = Vocabulary::unused(rows);
    let mut outside = 0;
    for (id, piece) in pieces.iter().enumerate() {
        let mut text = piece.text.clone();
        if piece.kind == kind::USER_DEFINED {
            text = text.replace('▁', " ");
        }
        if !vocabulary.set(id, text.as_bytes(), piece.kind, piece.score) {
            outside += 1;
        }
    }
    if outside > 0 {
        warnings.push(format!(
            "{outside} tokens of tokenizer.model have ids beyond the {rows} rows of the embedding \
             and are left out"
        ));
    }
    add_from_list(files, &mut vocabulary);
    vocabulary.add(&files.added_tokens(), warnings);
    let add_space_prefix = Some(add_dummy_prefix);
    Ok(SentencePiece { vocabulary, add_space_prefix, special })
}

/// Adds the tokens of `added_tokens.json`, which older checkpoints have beside `tokenizer.model`.
fn add_from_list(files: &TokenizerFiles, vocabulary: &mut Vocabulary) {
    let text = input::read_to_string(&files.directory.join("added_tokens.json"), MAX_CONFIG);
    let map = text.ok().and_then(|text| json::read(&text).ok());
    for (token, id) in map.as_ref().and_then(Json::as_object).into_iter().flatten() {
        if let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) {
            vocabulary.set(id, token.as_bytes(), kind::USER_DEFINED, -1000.0);
        }
    }
}

/// Reads a `tokenizer.json` of BPE with bytes to fall back to. Its merges say in which order tokens
/// are made; scores that fall in this order make llama.cpp join the same pairs.
pub(super) fn from_json(
    files: &TokenizerFiles,
    root: &Json,
    rows: usize,
    warnings: &mut Vec<String>,
) -> Result<SentencePiece> {
    let mut vocabulary = Vocabulary::unused(rows);
    let scores = scores(files, root)?;
    let unknown = root["model"]["unk_token"].as_str();
    for (token, id) in entries(files, root)? {
        let token_kind = match token {
            _ if Some(token) == unknown => kind::UNKNOWN,
            _ if is_byte(token) => kind::BYTE,
            _ => kind::NORMAL,
        };
        let score = match token_kind {
            kind::NORMAL => scores.get(token).copied(),
            _ => None,
        };
        // Tokens that no merge makes are single characters: below all others.
        let lowest = -(scores.len() as f32) - id as f32;
        let score = score.unwrap_or(if token_kind == kind::NORMAL { lowest } else { 0.0 });
        if !vocabulary.set(id, token.as_bytes(), token_kind, score) {
            return Err(Error::damaged(
                files.directory.join("tokenizer.json"),
                format!("token {token:?} has id {id}, the embedding has {rows} rows"),
            ));
        }
    }
    vocabulary.add(&files.added_tokens(), warnings);
    Ok(SentencePiece { vocabulary, add_space_prefix: space_prefix(root), special: [None; 4] })
}

/// A score for each token that a merge makes: the place of its first merge, from above.
fn scores(files: &TokenizerFiles, root: &Json) -> Result<HashMap<String, f32>> {
    let mut scores = HashMap::new();
    for (left, right) in merges(files, root)? {
        let place = scores.len() as f32;
        scores.entry(format!("{left}{right}")).or_insert(-place);
    }
    Ok(scores)
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether the normalizer or the pre-tokenizer puts a blank in front of a text.
fn space_prefix(root: &Json) -> Option<bool> {
    let mut parts = Vec::new();
    for (key, list) in [("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")] {
        match root[key][list].as_array() {
            Some(steps) => parts.extend(steps),
            None => parts.push(&root[key]),
        }
    }
    let kind = |part: &Json, name: &str| part["type"].as_str() == Some(name);
    if parts.iter().any(|part| kind(part, "Prepend")) {
        return Some(true);
    }
    if let Some(meta) = parts.iter().find(|part| kind(part, "Metaspace")) {
        let scheme = meta["prepend_scheme"].as_str();
        let old = meta["add_prefix_space"].as_bool().unwrap_or(true);
        return Some(scheme.map_or(old, |scheme| scheme != "never"));
    }
    // Blanks are replaced and nothing is put in front.
    parts.iter().any(|part| kind(part, "Replace")).then_some(false)
}
