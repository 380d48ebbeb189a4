//! Where a long text can be cut so that the tokens of the pieces are the tokens of the whole.
//!
//! Two kinds of tokenizers have such places, and most models have one of these two:
//!
//! - Byte-level BPE whose words are cut by a regular expression of the GPT-2 family. Between an
//!   ASCII letter and a blank that is followed by an ASCII letter all of these end a word, and no
//!   earlier or later character has a say in it.
//! - `SentencePiece` BPE. No piece but line breaks themselves contains a line break, so no merge
//!   crosses one. A blank that the normalizer puts in front of the text must not be put in front of
//!   the later pieces. It is put behind special tokens as well, so a text with special tokens is
//!   not cut.
//!
//! Everything else is encoded in one piece.

use serde_json::Value;

use super::pre_tokenizers;

/// Pieces are at least this long, bytes: enough to make up for handing them to a thread.
const SHORTEST: usize = 1 << 15;

/// Pieces are not made longer than this, bytes: the tokenizer takes some fifty times the memory.
const LONGEST: usize = 1 << 20;

/// Where a tokenizer's texts may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutRule {
    /// Nowhere.
    Never,
    /// Between a letter and a blank with a letter after it (ASCII).
    BeforeBlank,
    /// After a line break, unless another one follows.
    AfterLine,
}

impl CutRule {
    fn of(root: &Value) -> (Self, Option<Value>) {
        if root["model"]["type"] != "BPE" {
            return (Self::Never, None);
        }
        let added = || root["added_tokens"].as_array().into_iter().flatten();
        if words_end_before_blanks(root) && added().all(keeps_to_words) {
            return (Self::BeforeBlank, None);
        }
        if added().all(keeps_to_lines)
            && lines_are_apart(root)
            && let Some(continued) = without_prefix(root)
        {
            return (Self::AfterLine, Some(continued));
        }
        (Self::Never, None)
    }

    /// Whether `bytes` may be cut before `at`, which lies inside them.
    fn allows(self, bytes: &[u8], at: usize) -> bool {
        let next = |offset: usize| bytes.get(at + offset).copied().unwrap_or(0);
        match self {
            Self::Never => false,
            Self::BeforeBlank => {
                next(0) == b' '
                    && next(1).is_ascii_alphabetic()
                    && bytes[at - 1].is_ascii_alphabetic()
            }
            Self::AfterLine => bytes[at - 1] == b'\n' && next(0) != b'\n',
        }
    }
}

/// How the texts of a tokenizer are cut.
#[derive(Debug)]
pub(super) struct Cutter {
    rule: CutRule,
    /// Texts with one of these are not cut.
    barriers: Vec<String>,
}

impl Cutter {
    /// The cutter for a `tokenizer.json`, and the file for the later pieces where it differs.
    pub(super) fn of(root: &Value) -> (Self, Option<Value>) {
        let (rule, continued) = CutRule::of(root);
        let added = root["added_tokens"].as_array().into_iter().flatten();
        let barriers = match rule {
            CutRule::AfterLine => {
                added.filter_map(|token| Some(token["content"].as_str()?.to_owned())).collect()
            }
            CutRule::Never | CutRule::BeforeBlank => Vec::new(),
        };
        (Self { rule, barriers }, continued)
    }

    /// Cuts a text into pieces for `threads` threads.
    pub(super) fn pieces<'a>(&self, text: &'a str, threads: usize) -> Vec<&'a str> {
        let length = (text.len() / (2 * threads.max(1))).clamp(SHORTEST, LONGEST);
        if text.len() > length && self.has_barrier(text.as_bytes()) {
            return vec![text];
        }
        pieces(text, self.rule, length)
    }

    /// Cuts a piece at every place there is, if that gives words: most of them come again and
    /// again.
    pub(super) fn words<'a>(&self, piece: &'a str) -> Vec<&'a str> {
        match self.rule {
            CutRule::BeforeBlank => pieces(piece, self.rule, 1),
            CutRule::Never | CutRule::AfterLine => vec![piece],
        }
    }

    fn has_barrier(&self, text: &[u8]) -> bool {
        let mut begins = [false; 256];
        for barrier in &self.barriers {
            if let Some(first) = barrier.as_bytes().first() {
                begins[usize::from(*first)] = true;
            }
        }
        (0..text.len()).any(|at| {
            begins[usize::from(text[at])]
                && self.barriers.iter().any(|barrier| {
                    !barrier.is_empty() && text[at..].starts_with(barrier.as_bytes())
                })
        })
    }
}

/// Pieces of at least `length` bytes, but for the last one.
fn pieces(text: &str, rule: CutRule, length: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > length {
        let bytes = rest.as_bytes();
        // Cuts lie beside ASCII characters, which are characters of their own in UTF-8.
        let Some(at) = (length..bytes.len()).find(|&at| rule.allows(bytes, at)) else { break };
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Steps of a pre-tokenizer or normalizer that may be a sequence.
fn steps<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match value.get("type").and_then(Value::as_str) {
        None => Vec::new(),
        Some("Sequence") => value[list].as_array().into_iter().flatten().collect(),
        Some(_) => vec![value],
    }
}

fn words_end_before_blanks(root: &Value) -> bool {
    let normal = steps(&root["normalizer"], "normalizers")
        .iter()
        .all(|step| matches!(step["type"].as_str(), Some("NFC")));
    let mut ends_words = false;
    for step in steps(&root["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            Some("ByteLevel") if step["add_prefix_space"] != true => {
                ends_words |= step["use_regex"] != false;
            }
            Some("Digits") => {}
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] != true => {
                match step["pattern"]["Regex"].as_str().map(pre_tokenizers::splitting) {
                    Some(Some(ends)) => ends_words |= ends,
                    _ => return false,
                }
            }
            _ => return false,
        }
    }
    normal && ends_words
}

/// Whether an added token cannot lie across a cut between `x` and ` y`, nor swallow the blank.
fn keeps_to_words(token: &Value) -> bool {
    let Some(text) = token["content"].as_str() else { return false };
    let letter = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphabetic);
    let bytes = text.as_bytes();
    let across = bytes.windows(3).any(|window| {
        window[1] == b' ' && window[0].is_ascii_alphabetic() && window[2].is_ascii_alphabetic()
    });
    let swallows = token["rstrip"] == true && letter(bytes.last())
        || token["lstrip"] == true && letter(bytes.first());
    // A token that begins or ends with a blank could lie across as well.
    let touches = bytes.first() == Some(&b' ') && letter(bytes.get(1))
        || bytes.last() == Some(&b' ') && letter(bytes.iter().rev().nth(1));
    !across && !swallows && !touches
}

fn keeps_to_lines(token: &Value) -> bool {
    let text = token["content"].as_str();
    text.is_some_and(|text| !text.contains('\n'))
        && token["lstrip"] != true
        && token["rstrip"] != true
}

/// Whether no token joins a line break with anything but line breaks.
fn lines_are_apart(root: &Value) -> bool {
    let model = &root["model"];
    let Some(vocabulary) = model["vocab"].as_object() else { return false };
    let no_suffixes = ["continuing_subword_prefix", "end_of_word_suffix"]
        .iter()
        .all(|key| matches!(model[*key].as_str(), None | Some("")));
    let has_line_break = vocabulary.contains_key("\n") || model["byte_fallback"] == true;
    no_suffixes
        && has_line_break
        && vocabulary.keys().all(|token| !token.contains('\n') || token.chars().all(|c| c == '\n'))
}

/// The tokenizer for pieces after the first: nothing is put in front of them. `None` if the
/// tokenizer does more than `SentencePiece`'s replacement of blanks.
fn without_prefix(root: &Value) -> Option<Value> {
    let is_blank_replacement =
        |step: &Value| step["pattern"]["String"] == " " && step["content"] == "▁";
    let mut kept = Vec::new();
    for step in steps(&root["normalizer"], "normalizers") {
        match step["type"].as_str()? {
            "Prepend" => {}
            "Replace" if is_blank_replacement(step) => kept.push(step.clone()),
            _ => return None,
        }
    }
    let mut words = root["pre_tokenizer"].clone();
    match words["type"].as_str() {
        None => {}
        Some("Metaspace") => {
            words["prepend_scheme"] = "never".into();
            if let Some(map) = words.as_object_mut() {
                map.shift_remove("add_prefix_space");
            }
        }
        Some(_) => return None,
    }
    let mut continued = root.clone();
    continued["normalizer"] = match kept.len() {
        0 => Value::Null,
        _ => serde_json::json!({ "type": "Sequence", "normalizers": kept }),
    };
    continued["pre_tokenizer"] = words;
    Some(continued)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_are_the_text() {
        let line = "Some words, then 1234 numbers; ÄÖ Ü\nand so on.\n\n  indented x y\n";
        let text = line.repeat(4000);
        for rule in [CutRule::Never, CutRule::BeforeBlank, CutRule::AfterLine] {
            let pieces = pieces(&text, rule, 1 << 14);
            assert_eq!(pieces.concat(), text);
            assert_eq!(pieces.len() > 5, rule != CutRule::Never, "{rule:?}");
            for piece in &pieces[1..] {
                match rule {
                    CutRule::BeforeBlank => {
                        assert!(
                            piece.starts_with(' ') && piece.as_bytes()[1].is_ascii_alphabetic()
                        );
                    }
                    _ => assert!(!piece.starts_with('\n')),
                }
            }
        }
        // No place to cut.
        assert_eq!(pieces(&"1".repeat(200_000), CutRule::BeforeBlank, 1).len(), 1);
        assert_eq!(
            pieces("some words, 12 of them; a b", CutRule::BeforeBlank, 1),
            ["some", " words, 12 of", " them; a", " b"]
        );
    }

    fn byte_level(steps: &Value, added: &Value) -> Value {
        json!({
            "added_tokens": added,
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] },
        })
    }

    #[test]
    fn only_known_words_are_cut() {
        let rule = |steps: Value, added: Value| CutRule::of(&byte_level(&steps, &added)).0;
        let gpt2 = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
        let split = |regex: &str| {
            json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated",
                "invert": false })
        };
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let none = || json!([]);
        assert_eq!(rule(json!([digits, gpt2]), none()), CutRule::BeforeBlank);
        assert_eq!(rule(json!([split(pre_tokenizers::GPT2), bytes]), none()), CutRule::BeforeBlank);
        // Nothing ends words, or nobody knows how.
        assert_eq!(rule(json!([digits, bytes]), none()), CutRule::Never);
        assert_eq!(rule(json!([split(r"\p{N}"), bytes]), none()), CutRule::Never);
        assert_eq!(rule(json!([split(r"[a-z ]+"), gpt2]), none()), CutRule::Never);
        let prefixed = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
        assert_eq!(rule(json!([prefixed]), none()), CutRule::Never);
        // Added tokens that could lie across a cut.
        let token = |text: &str, rstrip: bool| json!([{ "content": text, "rstrip": rstrip }]);
        assert_eq!(rule(json!([gpt2]), token("<|end of text|>", false)), CutRule::Never);
        assert_eq!(rule(json!([gpt2]), token("<|end|>", true)), CutRule::BeforeBlank);
        assert_eq!(rule(json!([gpt2]), token("end", true)), CutRule::Never);
        assert_eq!(rule(json!([gpt2]), token(" end", false)), CutRule::Never);
        assert_eq!(rule(json!([gpt2]), token("    ", false)), CutRule::BeforeBlank);
    }

    #[test]
    fn only_vocabularies_without_line_breaks_are_cut_at_lines() {
        let root = |vocabulary: Value, normalizer: Value| {
            json!({
                "added_tokens": [],
                "normalizer": normalizer,
                "pre_tokenizer": null,
                "model": { "type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": [] },
            })
        };
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let prepend = json!({ "type": "Prepend", "prepend": "▁" });
        let both = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
        let (rule, continued) = CutRule::of(&root(json!({ "▁a": 0, "\n\n": 1 }), both.clone()));
        assert_eq!(rule, CutRule::AfterLine);
        assert_eq!(
            continued.unwrap()["normalizer"],
            json!({ "type": "Sequence", "normalizers": [replace] })
        );
        assert_eq!(CutRule::of(&root(json!({ "a\n": 0 }), both)).0, CutRule::Never);
        let lower = json!({ "type": "Lowercase" });
        assert_eq!(CutRule::of(&root(json!({ "a": 0 }), lower)).0, CutRule::Never);
    }
}
