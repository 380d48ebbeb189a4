//! What a `tokenizer.json` must keep to before the library reads it, with a name for what is wrong,
//! and which files can do no harm at all.

use serde_json::Value;

use super::{charsmap, pre_tokenizers};

/// Steps of a part of the file, at all depths. The longest real ones have about a dozen.
const MOST_STEPS: usize = 64;
/// Sequences in sequences.
const DEEPEST: usize = 8;
/// Bytes of a regular expression. The longest real ones have about 4,000.
const LONGEST_REGEX: usize = 64 << 10;
/// How many times longer all normalizers together may make a text.
const MOST_GROWTH: f64 = 10_000.0;
/// Above this, and with expressions that are not known, texts are encoded under watch.
const TAME_GROWTH: f64 = 64.0;

type Check = std::result::Result<(), String>;

/// The parts of a file that consist of steps, and the key of the steps within a sequence.
const PARTS: [(&str, &str); 4] = [
    ("normalizer", "normalizers"),
    ("pre_tokenizer", "pretokenizers"),
    ("post_processor", "processors"),
    ("decoder", "decoders"),
];

/// Checks what the library takes for granted.
pub(super) fn check(root: &Value) -> Check {
    if !root.is_object() {
        return Err("not a JSON object".to_owned());
    }
    for (part, list) in PARTS {
        let mut steps = Vec::new();
        flatten(&root[part], part, list, 0, &mut steps)?;
        for step in &steps {
            check_step(step).map_err(|e| format!("{part}: {e}"))?;
        }
        let growth = growth(&steps);
        if growth > MOST_GROWTH {
            return Err(format!("{part}: its steps may make a text {growth:.0} times longer"));
        }
    }
    check_merges(&root["model"])
}

/// The steps of a part, sequences resolved.
fn flatten<'a>(
    value: &'a Value,
    part: &str,
    list: &str,
    depth: usize,
    steps: &mut Vec<&'a Value>,
) -> Check {
    match value {
        Value::Null => return Ok(()),
        Value::Object(_) => {}
        other => return Err(format!("{part}: an object is expected, not {}", kind(other))),
    }
    if depth > DEEPEST {
        return Err(format!("{part}: sequences are nested more than {DEEPEST} deep"));
    }
    // Files of old have sequences without a type.
    if let Some(inner) = value.get(list) {
        let Some(inner) = inner.as_array() else {
            return Err(format!("{part}: \"{list}\" is not a list"));
        };
        for step in inner {
            flatten(step, part, list, depth + 1, steps)?;
        }
    } else {
        steps.push(value);
    }
    if steps.len() > MOST_STEPS {
        return Err(format!("{part}: more than {MOST_STEPS} steps"));
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn check_step(step: &Value) -> Check {
    if let Some(regex) = step["pattern"]["Regex"].as_str()
        && regex.len() > LONGEST_REGEX
    {
        return Err(format!("a regular expression of {} bytes", regex.len()));
    }
    match step["type"].as_str() {
        Some("Replace" | "Split") if step["pattern"]["String"] == "" => {
            Err("the pattern of a step is empty".to_owned())
        }
        Some("FixedLength") if step["length"] == 0 => Err("pieces of no characters".to_owned()),
        Some("Precompiled") => charsmap::check(&step["precompiled_charsmap"])
            .map_err(|e| format!("precompiled_charsmap: {e}")),
        _ => check_template(step),
    }
}

/// Templates name only special tokens that they define.
fn check_template(processor: &Value) -> Check {
    let pieces = ["single", "pair"].into_iter().filter_map(|key| processor[key].as_array());
    for piece in pieces.flatten() {
        let Some(id) = piece["SpecialToken"]["id"].as_str() else { continue };
        if processor["special_tokens"].get(id).is_none() {
            return Err(format!("the template names {id:?} without defining it"));
        }
    }
    Ok(())
}

/// The right parts of merges begin with the prefix of continued words, if there is one, and no
/// merge is longer than every token.
fn check_merges(model: &Value) -> Check {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    let longest = model["vocab"]
        .as_object()
        .and_then(|vocabulary| vocabulary.keys().map(String::len).max())
        .unwrap_or_default();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let (left, right) = match merge {
            Value::String(text) if text.starts_with("#version") => continue,
            Value::String(text) => {
                let mut parts = text.split(' ');
                (parts.next(), parts.next())
            }
            pair => (pair[0].as_str(), pair[1].as_str()),
        };
        let (Some(left), Some(right)) = (left, right) else {
            return Err(format!("the merge {merge} is not a pair of tokens"));
        };
        let Some(rest) = right.strip_prefix(prefix) else {
            return Err(format!("the merge {merge} does not continue a word with {prefix:?}"));
        };
        if left.len().max(right.len()).max(left.len() + rest.len()) > longest {
            return Err(format!("the merge {merge} makes a token that is not in the vocabulary"));
        }
    }
    Ok(())
}

/// How many times longer the steps may make a text, as far as that can be told from outside.
fn growth(steps: &[&Value]) -> f64 {
    steps.iter().map(|step| step_growth(step)).product()
}

fn step_growth(step: &Value) -> f64 {
    let length = |value: &Value| value.as_str().map_or(0, str::len) as f64;
    match step["type"].as_str() {
        Some("Replace") => {
            let content = length(&step["content"]);
            (content / length(&step["pattern"]["String"]).max(1.0)).max(1.0)
        }
        // Each word gets one; words have a byte at least.
        Some("Prepend") => (length(&step["prepend"]) / 16.0).max(1.0),
        Some("Metaspace") => (length(&step["replacement"]) / 16.0).max(1.0),
        _ => 1.0,
    }
}

/// Which directions of a tokenizer need no watch: all its steps are such as published tokenizers
/// have, whose costs are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tame {
    pub(super) encoding: bool,
    pub(super) decoding: bool,
}

impl Tame {
    /// Of a file that passed [`check`].
    pub(super) fn of(root: &Value) -> Self {
        let tame = |[part, list]: [&str; 2], known: fn(&Value) -> bool| {
            let mut steps = Vec::new();
            flatten(&root[part], part, list, 0, &mut steps).is_ok()
                && growth(&steps) <= TAME_GROWTH
                && steps.iter().all(|step| known(step))
        };
        Self {
            encoding: tame(["normalizer", "normalizers"], tame_normalizer)
                && tame(["pre_tokenizer", "pretokenizers"], tame_pre_tokenizer)
                && matches!(root["model"]["type"].as_str(), None | Some("BPE")),
            decoding: tame(["decoder", "decoders"], tame_decoder),
        }
    }
}

fn short(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() <= 16)
}

fn plain_replacement(step: &Value) -> bool {
    short(&step["pattern"]["String"]) && short(&step["content"])
}

fn tame_normalizer(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase") => true,
        Some("Prepend") => short(&step["prepend"]),
        Some("Replace") => plain_replacement(step),
        _ => false,
    }
}

fn tame_pre_tokenizer(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("ByteLevel" | "Digits" | "Metaspace" | "Whitespace" | "WhitespaceSplit") => true,
        Some("Split") => {
            let regex = step["pattern"]["Regex"].as_str();
            short(&step["pattern"]["String"])
                || regex.is_some_and(|regex| pre_tokenizers::splitting(regex).is_some())
        }
        _ => false,
    }
}

fn tame_decoder(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("ByteLevel" | "ByteFallback" | "Fuse" | "Metaspace" | "WordPiece") => true,
        Some("Strip") => step["start"].as_u64() <= Some(16) && step["stop"].as_u64() <= Some(16),
        Some("Replace") => plain_replacement(step),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut root = json!({
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": ["a b"] },
        });
        assert_eq!(check(&root), Ok(()));
        change(&mut root);
        check(&root).unwrap_err()
    }

    #[test]
    fn what_the_library_takes_for_granted_is_checked() {
        let said = refused(|root| root["model"]["merges"] = json!(["ab ab"]));
        assert!(said.contains("\"ab ab\" makes a token that is not in the vocabulary"), "{said}");
        let said = refused(|root| root["model"]["merges"] = json!([["a", "b"], ["ab"]]));
        assert!(said.contains("not a pair"), "{said}");
        let said = refused(|root| {
            root["normalizer"] =
                json!({ "type": "Replace", "pattern": { "String": "" }, "content": "aaaa" });
        });
        assert_eq!(said, "normalizer: the pattern of a step is empty");
        let said =
            refused(|root| root["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 }));
        assert!(said.contains("no characters"), "{said}");
        let said = refused(|root| root["decoder"] = json!([1]));
        assert_eq!(said, "decoder: an object is expected, not a list");
        let said = refused(|root| {
            let step = json!({ "type": "Split", "pattern": { "Regex": "a".repeat(70_000) } });
            root["pre_tokenizer"] = step;
        });
        assert!(said.contains("70000 bytes"), "{said}");
    }

    #[test]
    fn sequences_have_bounds() {
        let said = refused(|root| {
            let mut value = json!({ "type": "NFC" });
            for _ in 0..20 {
                value = json!({ "type": "Sequence", "normalizers": [value] });
            }
            root["normalizer"] = value;
        });
        assert!(said.contains("nested"), "{said}");
        let said = refused(|root| {
            let steps = vec![json!({ "type": "Fuse" }); 65];
            root["decoder"] = json!({ "type": "Sequence", "decoders": steps });
        });
        assert!(said.contains("more than 64 steps"), "{said}");
        // Each step makes ten bytes of one.
        let said = refused(|root| {
            let step =
                json!({ "type": "Replace", "pattern": { "Regex": "." }, "content": "0123456789" });
            root["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![step; 6] });
        });
        assert_eq!(said, "normalizer: its steps may make a text 1000000 times longer");
    }

    #[test]
    fn published_forms_are_tame() {
        let llama = json!({
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            ] },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE" },
        });
        assert_eq!(Tame::of(&llama), Tame { encoding: true, decoding: true });
        let mut other = llama.clone();
        other["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": "(a+)+b" } });
        assert_eq!(Tame::of(&other), Tame { encoding: false, decoding: true });
        let mut other = llama;
        other["decoder"] =
            json!({ "type": "Strip", "content": " ", "start": 1, "stop": 1_000_000_000 });
        assert!(!Tame::of(&other).decoding);
    }
}
