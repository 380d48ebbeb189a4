//! Special tokens: their ids, and whether texts are framed by them.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::Source;
use super::files::TokenizerFiles;
use super::vocabulary::{Vocabulary, kind};
use crate::files::gguf::Value;

/// Names in the Hugging Face files and in GGUF, where one of them is spelled so.
const KINDS: [(&str, &str); 6] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
];

/// Texts of tokens that end a turn, the most specific first.
const END_OF_TURN: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|endofturn|>",
    "<EOT>",
    "_<EOT>",
];

/// The text of the token that ends a message to a tool.
const END_OF_MESSAGE: &str = "<|eom_id|>";

/// Further texts by which readers know an end without being told.
const OTHER_ENDS: [&str; 3] = ["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"];

/// Ids and flags under `tokenizer.ggml.`. `own` are the ids that the vocabulary itself names:
/// unknown, beginning, end, padding.
pub(super) fn metadata(
    files: &TokenizerFiles,
    source: &Source<'_>,
    vocabulary: &Vocabulary,
    own: [Option<u32>; 4],
    warnings: &mut Vec<String>,
) -> IndexMap<String, Value> {
    let config = source.config;
    let mut metadata = IndexMap::new();
    let inside = |id: u32| (id as usize) < vocabulary.tokens.len();
    let mut ids: IndexMap<&str, u32> = IndexMap::new();
    for (hf, gguf) in KINDS {
        let named = files.special_token(&format!("{hf}_token")).and_then(|t| vocabulary.id(&t));
        // A list of ids names several ends; the tokenizer's own choice or the first is the one.
        let configured = config.get(&format!("{hf}_token_id")).and_then(|id| match id {
            Json::Array(list) => list.first().and_then(Json::as_u64),
            id => id.as_u64(),
        });
        let configured = configured.and_then(|id| u32::try_from(id).ok());
        let of_vocabulary = match hf {
            "unk" => own[0],
            "bos" => own[1],
            "eos" => own[2],
            "pad" => own[3],
            _ => None,
        };
        if let Some(id) = named.or(configured).or(of_vocabulary).filter(|&id| inside(id)) {
            metadata.insert(format!("tokenizer.ggml.{gguf}_token_id"), Value::from(id));
            ids.insert(hf, id);
        }
    }
    let (eot, eom) = ends(source, vocabulary, ids.get("eos").copied(), warnings);
    for (name, id) in [("eot", eot), ("eom", eom)] {
        if let Some(id) = id {
            metadata.insert(format!("tokenizer.ggml.{name}_token_id"), Value::from(id));
        }
    }
    let (bos, eos) = frame(files, vocabulary, &ids, warnings);
    for (name, add) in [("bos", bos), ("eos", eos)] {
        if let Some(add) = add {
            metadata.insert(format!("tokenizer.ggml.add_{name}_token"), Value::from(add));
        }
    }
    metadata
}

/// The tokens that end a turn and a message: those known by their text, else further ones of those at
/// which the model ends its texts. A file has three places; what has none is said.
fn ends(
    source: &Source<'_>,
    vocabulary: &Vocabulary,
    eos: Option<u32>,
    warnings: &mut Vec<String>,
) -> (Option<u32>, Option<u32>) {
    let control = |text: &str| {
        let id = vocabulary.id(text)?;
        let kinds = [kind::CONTROL, kind::USER_DEFINED];
        kinds.contains(&vocabulary.kinds[id as usize]).then_some(id)
    };
    let mut turn = END_OF_TURN.iter().find_map(|text| control(text));
    let mut message = control(END_OF_MESSAGE);
    let generation = source.generation.and_then(|settings| settings.get("eos_token_id"));
    let mut left: Vec<u32> = Vec::new();
    for stated in [source.config.get("eos_token_id"), generation].into_iter().flatten() {
        let ids = stated.as_array().map_or(std::slice::from_ref(stated), Vec::as_slice);
        left.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    // Readers find some by their text, but only where they are control tokens.
    let found = |id: u32| {
        let known = END_OF_TURN.iter().chain(&OTHER_ENDS).chain([&END_OF_MESSAGE]);
        let mut known = known.filter(|text| **text != "<|endofturn|>" && **text != "_<EOT>");
        vocabulary.kinds.get(id as usize) == Some(&kind::CONTROL)
            && known.any(|text| vocabulary.tokens[id as usize] == text.as_bytes())
    };
    let mut lost: Vec<u32> = Vec::new();
    for id in left {
        let has_place = [eos, turn, message].contains(&Some(id)) || lost.contains(&id);
        if has_place || found(id) || id as usize >= vocabulary.tokens.len() {
            continue;
        }
        match (turn, message) {
            (None, _) => turn = Some(id),
            (_, None) => message = Some(id),
            _ => lost.push(id),
        }
    }
    if !lost.is_empty() {
        let shown: Vec<String> = lost
            .iter()
            .map(|&id| {
                format!("{id} {:?}", String::from_utf8_lossy(&vocabulary.tokens[id as usize]))
            })
            .collect();
        warnings.push(format!(
            "the model also ends its texts at the tokens {}, for which a GGUF file has no place: \
             generation will not stop there",
            shown.join(", ")
        ));
    }
    (turn, message)
}

/// Whether a text begins with BOS and ends with EOS: what the post-processor of `tokenizer.json`
/// does, else what `tokenizer_config.json` says.
fn frame(
    files: &TokenizerFiles,
    vocabulary: &Vocabulary,
    ids: &IndexMap<&str, u32>,
    warnings: &mut Vec<String>,
) -> (Option<bool>, Option<bool>) {
    let stated = (files.flag("add_bos_token"), files.flag("add_eos_token"));
    let Some((_, root)) = &files.tokenizer else { return stated };
    let steps: Vec<&Json> = match &root["post_processor"] {
        // Nothing is added unless a flag says so.
        Json::Null => return (stated.0.or(Some(false)), stated.1.or(Some(false))),
        step => step["processors"].as_array().map_or(vec![step], |list| list.iter().collect()),
    };
    let template = steps.iter().find(|step| step["type"] == "TemplateProcessing");
    let Some(single) = template.and_then(|template| template["single"].as_array()) else {
        return (Some(false), Some(false));
    };
    let token = |piece: Option<&Json>| {
        let text = piece?["SpecialToken"]["id"].as_str()?;
        Some((text.to_owned(), vocabulary.id(text)))
    };
    let mut adds = |piece: Option<&Json>, name: &str| match token(piece) {
        Some((_, id)) if id.is_some() && id == ids.get(name).copied() => true,
        Some((text, _)) => {
            warnings.push(format!(
                "the tokenizer puts {text} around texts, which is not the {name} token; llama.cpp \
                 will not do so"
            ));
            false
        }
        None => false,
    };
    let (first, last) =
        if single.len() > 1 { (single.first(), single.last()) } else { (None, None) };
    (Some(adds(first, "bos")), Some(adds(last, "eos")))
}
