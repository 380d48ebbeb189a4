//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds exist for the supported architectures: byte-level BPE ("gpt2": tokens and merges, the
//! words cut by a named pre-tokenizer) and `SentencePiece` BPE ("llama": tokens with scores, from
//! which the merges follow).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::pre_tokenizers::{self, GPT2, PreTokenizer};
use crate::Result;
use crate::files::gguf::GgufFile;

/// Values of `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const UNUSED: i64 = 5;
    pub(super) const BYTE: i64 = 6;
}

/// Far above the longest token of any real vocabulary (a few hundred blanks).
const MAX_TOKEN_BYTES: usize = 4096;

/// Texts of tokens that end a turn or a text, in case the metadata names only one of them.
const END_TEXTS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Both files as text.
pub(crate) struct TokenizerFiles {
    pub(crate) tokenizer_json: String,
    pub(crate) tokenizer_config_json: String,
}

/// Builds the files. `None`, with a warning, for kinds of tokenizers that are not known.
pub(crate) fn rebuild(
    file: &GgufFile,
    context: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<TokenizerFiles>> {
    let Some(vocabulary) = Vocabulary::read(file)? else {
        warnings
            .push(format!("{} has no tokenizer: text cannot be processed", file.path.display()));
        return Ok(None);
    };
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let (mut tokenizer, add_bos) = match model {
        "gpt2" => byte_level(file, &vocabulary, warnings)?,
        "llama" => (sentence_piece(file, &vocabulary)?, true),
        other => {
            warnings.push(format!(
                "{}: tokenizers of kind \"{other}\" are not known: text cannot be processed",
                file.path.display()
            ));
            return Ok(None);
        }
    };
    let special = SpecialTokens::read(file, add_bos)?;
    tokenizer["post_processor"] = special.template(&vocabulary);
    Ok(Some(TokenizerFiles {
        tokenizer_json: tokenizer.to_string(),
        tokenizer_config_json: tokenizer_config(file, &vocabulary, &special, context)?,
    }))
}

/// The BOS token of the metadata.
pub(crate) fn bos_token(file: &GgufFile) -> Result<Option<u32>> {
    Ok(SpecialTokens::read(file, false)?.bos)
}

/// The tokens that end a generation: those that the metadata names, then those that are known by
/// their text.
pub(crate) fn end_tokens(file: &GgufFile) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = SpecialTokens::read(file, false)?.eos.into_iter().collect();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ids.extend(file.u32(key)?);
    }
    if let Some(vocabulary) = Vocabulary::read(file)? {
        ids.retain(|&id| (id as usize) < vocabulary.tokens.len());
        for text in END_TEXTS {
            ids.extend(
                vocabulary
                    .ids
                    .get(text)
                    .filter(|&&id| vocabulary.kinds[id as usize] == kind::CONTROL),
            );
        }
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// Tokens with their types and scores; all texts differ.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i64>,
    scores: Vec<f32>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn read(file: &GgufFile) -> Result<Option<Self>> {
        let Some(list) = file.array("tokenizer.ggml.tokens")? else { return Ok(None) };
        let texts = list
            .strings()
            .ok_or_else(|| file.damaged("tokenizer.ggml.tokens is not a list of strings"))?;
        let mut tokens = Vec::with_capacity(texts.len());
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.enumerate() {
            let number = u32::try_from(id).map_err(|_| file.damaged("too many tokens"))?;
            if text.len() > MAX_TOKEN_BYTES {
                return Err(file.damaged(format!("token {id} has {} bytes", text.len())));
            }
            let text = match std::str::from_utf8(text) {
                Ok("") => format!("[EMPTY_{id}]"),
                Ok(text) => text.to_owned(),
                Err(_) => format!("[INVALID_{id}]"),
            };
            if let Some(other) = ids.insert(text.clone(), number) {
                return Err(file.damaged(format!("the tokens {other} and {id} are both {text:?}")));
            }
            tokens.push(text);
        }
        let kinds = match file.array("tokenizer.ggml.token_type")? {
            None => vec![kind::NORMAL; tokens.len()],
            Some(list) => list.integers().unwrap_or_default(),
        };
        let scores = match file.array("tokenizer.ggml.scores")? {
            None => vec![0.0; tokens.len()],
            Some(list) => list.floats().unwrap_or_default(),
        };
        if kinds.len() < tokens.len() || scores.len() < tokens.len() {
            return Err(file.damaged("fewer token types or scores than tokens"));
        }
        Ok(Some(Self { tokens, kinds, scores, ids }))
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// Ids by text. What only fills the list up to the rows of the embedding is no token: it stands
    /// for no text.
    fn map(&self) -> Value {
        let fills =
            |id: usize, text: &str| self.kinds[id] == kind::UNUSED && text == format!("[PAD{id}]");
        let tokens = self.tokens.iter().enumerate().filter(|(id, text)| !fills(*id, text));
        Value::Object(tokens.map(|(id, text)| (text.clone(), json!(id))).collect::<Map<_, _>>())
    }

    /// Tokens that are found in the text as a whole. `escaped`: whether blanks are spelled ▁.
    fn added(&self, escaped: bool) -> Vec<Value> {
        let mut added = Vec::new();
        for (id, (text, kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let special = match *kind {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => continue,
            };
            let content = if escaped && !special { text.replace('▁', " ") } else { text.clone() };
            added.push(json!({
                "id": id,
                "content": content,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            }));
        }
        added
    }
}

/// Ids of special tokens and which of them frame a text.
struct SpecialTokens {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl SpecialTokens {
    /// `add_bos`: whether the kind of tokenizer begins texts with BOS when the file does not say.
    fn read(file: &GgufFile, add_bos: bool) -> Result<Self> {
        let is_sentence_piece = file.text("tokenizer.ggml.model")? == Some("llama");
        let id = |name: &str, default: u32| -> Result<Option<u32>> {
            let value = file.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
            Ok(value.or(is_sentence_piece.then_some(default)))
        };
        Ok(Self {
            bos: id("bos", 1)?,
            eos: id("eos", 2)?,
            unknown: id("unknown", 0)?,
            padding: file.u32("tokenizer.ggml.padding_token_id")?,
            add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        })
    }

    /// The post-processor that frames a text.
    fn template(&self, vocabulary: &Vocabulary) -> Value {
        let frame = |add: bool, id: Option<u32>| {
            let id = id.filter(|_| add)?;
            Some((id, vocabulary.text(id)?))
        };
        let (bos, eos) = (frame(self.add_bos, self.bos), frame(self.add_eos, self.eos));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let token = |token: Option<(u32, &str)>, segment: u32| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": segment } }))
        };
        let sequence = |name: &str, segment: u32| {
            Some(json!({ "Sequence": { "id": name, "type_id": segment } }))
        };
        let framed = |name: &str, segment: u32| {
            [token(bos, segment), sequence(name, segment), token(eos, segment)]
        };
        let single: Vec<Value> = framed("A", 0).into_iter().flatten().collect();
        let pair: Vec<Value> = framed("A", 0).into_iter().chain(framed("B", 1)).flatten().collect();
        let mut special = Map::new();
        for (id, text) in bos.into_iter().chain(eos) {
            special.insert(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
        }
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special,
        })
    }
}

fn tokenizer_json(added: &[Value], normalizer: &Value, words: &Value, decoder: &Value) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": words,
        "post_processor": null,
        "decoder": decoder,
    })
}

/// Byte-level BPE, and whether it begins texts with BOS by default.
fn byte_level(
    file: &GgufFile,
    vocabulary: &Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<(Value, bool)> {
    let pre = pre_tokenizer(file, warnings)?;
    let merges = merges(file, vocabulary, warnings)?;
    let normalizer = if pre.nfc { json!({ "type": "NFC" }) } else { Value::Null };
    let decoder = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
    });
    let mut tokenizer =
        tokenizer_json(&vocabulary.added(false), &normalizer, &words(&pre), &decoder);
    tokenizer["model"] = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": pre.ignore_merges,
        "vocab": vocabulary.map(),
        "merges": merges,
    });
    Ok((tokenizer, pre.add_bos))
}

fn pre_tokenizer(file: &GgufFile, warnings: &mut Vec<String>) -> Result<PreTokenizer> {
    let name = file.text("tokenizer.ggml.pre")?;
    if let Some(known) = name.and_then(pre_tokenizers::by_name) {
        return Ok(known);
    }
    let what = match name {
        Some(name) => format!("names the unknown pre-tokenizer \"{name}\""),
        None => "does not name its pre-tokenizer (tokenizer.ggml.pre)".to_owned(),
    };
    warnings.push(format!(
        "{} {what}; words are cut as by \"default\", which makes the model look worse than it is",
        file.path.display()
    ));
    Ok(pre_tokenizers::DEFAULT)
}

/// The pre-tokenizer in the form that the models' own files have.
fn words(pre: &PreTokenizer) -> Value {
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex
        })
    };
    let split = |regex: &str| {
        json!({
            "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false
        })
    };
    let (splits, last) = match pre.splits.split_last() {
        Some((&GPT2, before)) => (before, byte_level(true)),
        _ => (pre.splits, byte_level(false)),
    };
    if splits.is_empty() {
        return last;
    }
    let mut steps: Vec<Value> = splits.iter().map(|regex| split(regex)).collect();
    steps.push(last);
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// The merges as pairs. Those whose parts or result are no tokens can never apply and are left out.
fn merges(
    file: &GgufFile,
    vocabulary: &Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>> {
    let list = file
        .array("tokenizer.ggml.merges")?
        .and_then(|list| list.strings())
        .ok_or_else(|| file.damaged("tokenizer.ggml.merges is not a list of strings"))?;
    let total = list.len();
    let mut merges = Vec::with_capacity(total);
    for merge in list {
        // The separating blank cannot be the first byte: that belongs to the left part.
        let pair = std::str::from_utf8(merge).ok().and_then(|text| {
            let at = text.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            Some((&text[..at], &text[at + 1..]))
        });
        if let Some((left, right)) = pair
            && [left, right, &format!("{left}{right}")]
                .iter()
                .all(|part| vocabulary.ids.contains_key(*part))
        {
            merges.push(json!([left, right]));
        }
    }
    if merges.len() < total {
        warnings.push(format!(
            "{}: {} of {total} merges do not fit the vocabulary and are left out",
            file.path.display(),
            total - merges.len()
        ));
    }
    Ok(merges)
}

/// `SentencePiece` BPE: blanks become ▁, one is put in front, characters outside the vocabulary fall
/// back to bytes.
fn sentence_piece(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Value> {
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizer = if prefix {
        json!({
            "type": "Sequence",
            "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace]
        })
    } else {
        replace
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let decoder = json!({ "type": "Sequence", "decoders": decoders });
    let unknown = SpecialTokens::read(file, true)?.unknown.and_then(|id| vocabulary.text(id));
    let mut tokenizer =
        tokenizer_json(&vocabulary.added(true), &normalizer, &Value::Null, &decoder);
    tokenizer["model"] = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": vocabulary.kinds.contains(&kind::BYTE),
        "ignore_merges": false,
        "vocab": vocabulary.map(),
        "merges": merges_from_scores(vocabulary),
    });
    Ok(tokenizer)
}

/// `SentencePiece` joins the two neighbours whose union has the highest score. As a list of merges:
/// every way to cut a piece into two pieces, the best piece first; among equals the longer left
/// part, then the longer right part, as the converter of transformers sorts them.
fn merges_from_scores(vocabulary: &Vocabulary) -> Vec<Value> {
    let is_piece = |id: u32| vocabulary.kinds[id as usize] == kind::NORMAL;
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (id, text) in vocabulary.tokens.iter().enumerate() {
        if vocabulary.kinds[id] != kind::NORMAL {
            continue;
        }
        let mut cuts: Vec<(u32, u32, &str, &str)> = text
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = text.split_at(at);
                let (&l, &r) = (vocabulary.ids.get(left)?, vocabulary.ids.get(right)?);
                (is_piece(l) && is_piece(r)).then_some((l, r, left, right))
            })
            .collect();
        cuts.sort_unstable_by_key(|&(l, r, _, _)| (l, r));
        let score = vocabulary.scores[id];
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| length(b.1).cmp(&length(a.1)))
            .then_with(|| length(b.2).cmp(&length(a.2)))
    });
    merges.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

fn tokenizer_config(
    file: &GgufFile,
    vocabulary: &Vocabulary,
    special: &SpecialTokens,
    context: usize,
) -> Result<String> {
    let mut root = Map::new();
    root.insert("add_bos_token".to_owned(), json!(special.add_bos));
    root.insert("add_eos_token".to_owned(), json!(special.add_eos));
    for (name, id) in [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("unk_token", special.unknown),
        ("pad_token", special.padding),
    ] {
        if let Some(text) = id.and_then(|id| vocabulary.text(id)) {
            root.insert(name.to_owned(), json!(text));
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        root.insert("chat_template".to_owned(), chat_templates(file, template)?);
    }
    root.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    root.insert("model_max_length".to_owned(), json!(context));
    root.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Ok(format!("{:#}\n", Value::Object(root)))
}

/// The template alone, or a list with the others that have names.
fn chat_templates(file: &GgufFile, default: &str) -> Result<Value> {
    let names: Vec<String> = file
        .array("tokenizer.chat_templates")?
        .and_then(|list| list.strings())
        .into_iter()
        .flatten()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    let mut list = vec![json!({ "name": "default", "template": default })];
    for name in names {
        if let Some(template) = file.text(&format!("tokenizer.chat_template.{name}"))? {
            list.push(json!({ "name": name, "template": template }));
        }
    }
    Ok(if list.len() == 1 { json!(default) } else { Value::Array(list) })
}
