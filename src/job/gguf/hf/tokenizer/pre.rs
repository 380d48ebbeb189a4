//! Which pre-tokenizer of llama.cpp (`tokenizer.ggml.pre`) cuts texts as this tokenizer does.
//!
//! By what it does to a probe text, as llama.cpp's converter finds it; for tokenizers that are not
//! in its table, by the regular expressions in `tokenizer.json`.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::files::TokenizerFiles;
use super::pre_hashes::{PROBE, by_hash, has_name, names};
use crate::base::suggest::did_you_mean;
use crate::tokenizer::library::Library;
use crate::tokenizer::pre_tokenizers::{self, GPT2};
use crate::{Error, Result};

/// Names to try by structure; the first of several that do the same is the one most used.
const CANDIDATES: [&str; 23] = [
    "llama-bpe",
    "qwen2",
    "gpt-2",
    "smollm",
    "tekken",
    "gpt-4o",
    "qwen35",
    "deepseek-v3",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-r1-qwen",
    "dbrx",
    "falcon",
    "starcoder",
    "command-r",
    "bailingmoe",
    "seed-coder",
    "bloom",
    "viking",
    "ufakzeka",
    "olmo",
    "stablelm2",
    "default",
];

/// What to write if nothing fits, which is what llama.cpp assumes for a file that says nothing.
const FALLBACK: &str = "default";

/// What to say about a name that no llama.cpp known to this program has: loading would fail.
pub(in crate::job::gguf) fn doubt(name: &str) -> Option<String> {
    let known = has_name(name) || pre_tokenizers::by_name(name).is_some();
    (!known).then(|| {
        format!(
            "\"{name}\" is no pre-tokenizer that is known{}; llama.cpp may refuse the file",
            did_you_mean(name, names().chain(CANDIDATES))
        )
    })
}

/// The name for a byte-level tokenizer.
pub(super) fn name(
    files: &TokenizerFiles,
    (text, root): (&str, &Json),
    asked: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<String> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    let path = files.directory.join("tokenizer.json");
    let hash = probe_hash(&Library::load(text, root, &path)?).map_err(|error| match error {
        Error::General(message) => Error::damaged(&path, message),
        other => other,
    })?;
    if let Some(name) = by_hash(&hash) {
        return Ok(name.to_owned());
    }
    if let Some(name) = by_structure(root) {
        return Ok(name.to_owned());
    }
    warnings.push(format!(
        "UNKNOWN PRE-TOKENIZER: {} cuts text into words in a way that is not known (probe {hash}); \
         \"{FALLBACK}\" is written, with which the model may be much worse than it is. Name the \
         right one with --pre",
        path.display()
    ));
    Ok(FALLBACK.to_owned())
}

/// The hash of the probe's token ids, special tokens included.
fn probe_hash(tokenizer: &Library) -> Result<String> {
    let ids = tokenizer.encode(PROBE, true)?;
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(format!("{:x}", Sha256::digest(format!("[{}]", ids.join(", ")))))
}

/// The first candidate with the same expressions and the same rule about whole words.
fn by_structure(root: &Json) -> Option<&'static str> {
    let splits = splits(&root["pre_tokenizer"])?;
    let ignore_merges = root["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let nfc = is_nfc(&root["normalizer"])?;
    let same = |name: &&&str, with_nfc: bool| {
        pre_tokenizers::by_name(name).is_some_and(|known| {
            known.ignore_merges == ignore_merges
                && (!with_nfc || known.nfc == nfc)
                && known.splits.len() == splits.len()
                && known.splits.iter().zip(&splits).all(|(a, b)| a == b)
        })
    };
    // Normal forms differ on few texts: a name that differs only there is better than none.
    let candidates = || CANDIDATES.iter();
    candidates()
        .find(|name| same(name, true))
        .or_else(|| candidates().find(|name| same(name, false)))
        .copied()
}

/// Whether the normalizer is NFC; `None` for those that change more.
fn is_nfc(normalizer: &Json) -> Option<bool> {
    match normalizer["type"].as_str() {
        None => Some(false),
        Some("NFC") => Some(true),
        Some("Sequence") => match normalizer["normalizers"].as_array().map(Vec::as_slice) {
            None | Some([]) => Some(false),
            Some([one]) => is_nfc(one),
            Some(_) => None,
        },
        Some(_) => None,
    }
}

/// The expressions that cut a text, in order; the words of GPT-2 as [`GPT2`].
fn splits(pre_tokenizer: &Json) -> Option<Vec<String>> {
    let steps: Vec<&Json> = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![pre_tokenizer],
    };
    let mut splits = Vec::new();
    for step in steps {
        match step["type"].as_str()? {
            "ByteLevel" => {
                if step["add_prefix_space"].as_bool() == Some(true) {
                    return None;
                }
                if step["use_regex"].as_bool() != Some(false) {
                    splits.push(GPT2.to_owned());
                }
            }
            "Digits" => match step["individual_digits"].as_bool() {
                Some(true) => splits.push(r"\p{N}".to_owned()),
                _ => splits.push(r"\p{N}+".to_owned()),
            },
            "Split" => {
                let isolated = step["behavior"].as_str() == Some("Isolated");
                // "Removed" with "invert" keeps the matches alone, which is the same for expressions
                // that match everything.
                let kept = step["behavior"].as_str() == Some("Removed")
                    && step["invert"].as_bool() == Some(true);
                if !isolated && !kept {
                    return None;
                }
                let regex = step["pattern"]["Regex"].as_str()?;
                splits.push(regex.replace('\r', r"\r").replace('\n', r"\n"));
            }
            _ => return None,
        }
    }
    Some(splits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structures_are_recognised() {
        let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": regex });
        let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated" });
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let sequence = |steps: &[Json]| json!({ "type": "Sequence", "pretokenizers": steps });
        // Spelled as in the models' own files.
        let llama = concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let qwen = llama.replace("{1,3}", "");
        let nfc = json!({ "type": "NFC" });
        for (pre, ignore_merges, normalizer, expected) in [
            (byte_level(true), false, Json::Null, Some("gpt-2")),
            (sequence(&[digits, byte_level(true)]), false, Json::Null, Some("smollm")),
            (sequence(&[split(llama), byte_level(false)]), true, Json::Null, Some("llama-bpe")),
            (sequence(&[split(llama), byte_level(false)]), false, Json::Null, Some("dbrx")),
            (sequence(&[split(&qwen), byte_level(false)]), false, nfc, Some("qwen2")),
            (
                sequence(&[split(&qwen), byte_level(false)]),
                false,
                Json::Null,
                Some("deepseek-r1-qwen"),
            ),
            (sequence(&[split("[a-z]+"), byte_level(false)]), false, Json::Null, None),
            (json!({ "type": "Whitespace" }), false, Json::Null, None),
        ] {
            let root = json!({
                "pre_tokenizer": pre,
                "normalizer": normalizer,
                "model": { "ignore_merges": ignore_merges },
            });
            assert_eq!(by_structure(&root), expected, "{root}");
        }
    }

    #[test]
    fn every_candidate_is_known() {
        for name in CANDIDATES {
            assert!(pre_tokenizers::by_name(name).is_some(), "{name}");
        }
    }
}
