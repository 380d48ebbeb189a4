//! `tokenizer.*`: the vocabulary, how texts are cut, special tokens and chat templates.

mod byte_level;
mod files;
pub(super) mod pre;
mod pre_hashes;
mod protobuf;
mod sentence_piece;
mod special;
mod templates;
mod vocabulary;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::texts::Texts;
use crate::arch::Family;
use crate::files::gguf::{Array, Value};
use crate::{Error, Result};
use files::TokenizerFiles;
use sentence_piece::SentencePiece;

/// What the keys of `tokenizer.*` are made from.
pub(super) struct Source<'a> {
    pub(super) texts: Texts<'a>,
    /// `config.json`, for ids that only it names.
    pub(super) config: &'a Map<String, Json>,
    /// `generation_config.json`, for the ends of texts.
    pub(super) generation: Option<&'a Json>,
    pub(super) family: &'static Family,
    /// The number of rows of the embedding, which is the number of tokens.
    pub(super) rows: usize,
}

impl Source<'_> {
    /// All keys of `tokenizer.*`. `pre` is the pre-tokenizer that was asked for.
    pub(super) fn metadata(
        &self,
        pre: Option<&str>,
        warnings: &mut Vec<String>,
    ) -> Result<IndexMap<String, Value>> {
        metadata(self, pre, warnings)
    }
}

fn metadata(
    source: &Source<'_>,
    pre: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, Value>> {
    let &Source { texts, family, rows, .. } = source;
    let files = TokenizerFiles::read(texts, warnings)?;
    warnings.extend(pre.and_then(pre::doubt));
    let mut metadata = IndexMap::new();
    let mut set = |key: &str, value: Value| {
        metadata.insert(format!("tokenizer.ggml.{key}"), value);
    };
    let (mut vocabulary, own, merges) =
        if let Some(piece) = sentence_piece(&files, family, rows, warnings)? {
            let SentencePiece { vocabulary, add_space_prefix, special } = piece;
            set("model", "llama".into());
            set("pre", pre.unwrap_or("default").into());
            let prefix = if family.gguf.starts_with("gemma") {
                Some(false)
            } else {
                files.flag("add_prefix_space").or(add_space_prefix)
            };
            if let Some(prefix) = prefix {
                set("add_space_prefix", prefix.into());
            }
            (vocabulary, special, None)
        } else {
            let (text, root) = byte_level_tokenizer(&files)?;
            set("model", "gpt2".into());
            set("pre", pre::name(&files, (text, root), pre, warnings)?.into());
            let vocabulary = byte_level::vocabulary(&files, root, rows, warnings)?;
            let merges: Vec<String> =
                byte_level::merges(&files, root)?.into_iter().map(byte_level::joined).collect();
            if root["pre_tokenizer"]["add_prefix_space"].as_bool() == Some(true) {
                warnings.push(
                "the tokenizer puts a blank in front of texts, which llama.cpp does not do for \
                 byte-level vocabularies"
                    .to_owned(),
            );
            }
            (vocabulary, [None; 4], Some(merges))
        };
    vocabulary.deduplicate(warnings);
    set("tokens", Array::of_strings(&vocabulary.tokens).into());
    if merges.is_none() {
        set("scores", Array::of_f32(&vocabulary.scores).into());
    }
    set("token_type", Array::of_i32(&vocabulary.kinds).into());
    // Readers demand the list even if it is empty: a vocabulary of bytes or characters.
    if let Some(merges) = merges {
        set("merges", Array::of_strings(&merges).into());
    }
    metadata.extend(special::metadata(&files, source, &vocabulary, own, warnings));
    metadata.extend(templates::metadata(&files, warnings)?);
    Ok(metadata)
}

/// The SentencePiece vocabulary, if the model has one: from `tokenizer.model`, unless that is a file
/// of another kind, else from `tokenizer.json`.
fn sentence_piece(
    files: &TokenizerFiles,
    family: &Family,
    rows: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<SentencePiece>> {
    let class = files.config.get("tokenizer_class").and_then(Json::as_str);
    let byte_level = family.gguf == "phi3" && class == Some("GPT2Tokenizer");
    if let Some(bytes) = files.model.as_deref().filter(|_| !byte_level) {
        match sentence_piece::from_model(files, bytes, rows, warnings) {
            Err(error @ Error::ValidationFailed { .. }) if files.tokenizer.is_some() => {
                warnings.push(format!("{error}; tokenizer.json is read instead"));
            }
            other => return other.map(Some),
        }
    }
    match &files.tokenizer {
        Some((_, root))
            if is_bpe(root)
                && root["model"]["byte_fallback"].as_bool() == Some(true)
                && !is_byte_level(root) =>
        {
            sentence_piece::from_json(files, root, rows, warnings).map(Some)
        }
        _ => Ok(None),
    }
}

/// `tokenizer.json` if it is byte-level BPE.
fn byte_level_tokenizer(files: &TokenizerFiles) -> Result<(&str, &Json)> {
    let Some((text, root)) = &files.tokenizer else {
        return Err(Error::ModelNotFound {
            message: format!(
                "{} has neither tokenizer.json nor tokenizer.model",
                files.directory.display()
            ),
            suggestion: "Put the model's tokenizer.json beside its weights; a GGUF file cannot do \
                         without a tokenizer"
                .to_owned(),
        });
    };
    if is_bpe(root) && is_byte_level(root) {
        return Ok((text, root));
    }
    Err(Error::Unsupported {
        message: format!(
            "{} has a tokenizer of kind {} that is neither byte-level BPE nor BPE with bytes to \
             fall back to",
            files.directory.display(),
            root["model"]["type"].as_str().unwrap_or("unknown")
        ),
        suggestion: "Put the model's tokenizer.model beside its weights, if there is one"
            .to_owned(),
    })
}

fn is_bpe(root: &Json) -> bool {
    root["model"]["type"].as_str().unwrap_or("BPE") == "BPE"
}

/// Whether texts are spelled in the alphabet of bytes.
fn is_byte_level(root: &Json) -> bool {
    [("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")].into_iter().any(|(key, list)| {
        let part = &root[key];
        let is_byte_level = |part: &Json| part["type"] == "ByteLevel";
        is_byte_level(part) || part[list].as_array().is_some_and(|l| l.iter().any(is_byte_level))
    })
}
