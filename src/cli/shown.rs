//! Texts that come from elsewhere, as a terminal may get them.
//!
//! Names, messages and metadata are read from files that anyone may have made. A control character
//! in them could move the cursor, change the title of the window or hide what was printed; a line
//! break could begin a line that looks like one of ours.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// What never reaches a terminal: C0, DEL and C1 controls, and the marks that turn the direction of
/// what follows.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text as a part of one line.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hostile)
}

/// A text with a layout of its own: line breaks and tabs stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hostile(c) && c != '\n' && c != '\t')
}

/// A JSON document with its hostile characters, all of which are within texts, as escapes: the
/// same document.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    let hostile = |c: char| is_hostile(c) && c != '\n';
    if !document.chars().any(hostile) {
        return Cow::Borrowed(document);
    }
    let mut out = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        if hostile(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Generated text for a terminal: what a terminal would obey is left out.
pub(crate) fn spoken(text: &str) -> String {
    text.chars().filter(|&c| !c.is_control() || c == '\n' || c == '\t').collect()
}

/// A report for people whose values are those of `json`: values that take more than a line are
/// written as one, and all controls are spelled out.
pub(crate) fn report(text: &str, json: &Value) -> String {
    let mut values = HashMap::new();
    collect(json, &mut values);
    let mut out = String::with_capacity(text.len());
    // What was taken over already.
    let mut done = 0;
    for (at, _) in text.match_indices('\n').filter(|_| !values.is_empty()) {
        let found = values.iter().filter_map(|(&(before, length), known)| {
            let start = at.checked_sub(before).filter(|&start| start >= done)?;
            let value = text.get(start..start + length)?;
            known.contains(value).then_some((start, value))
        });
        // A value can be a part of another one.
        if let Some((start, value)) = found.max_by_key(|(_, value)| value.len()) {
            out.push_str(&lines(&text[done..start]));
            out.push_str(&one_line(value));
            done = start + value.len();
        }
    }
    out.push_str(&lines(&text[done..]));
    out
}

/// Texts by the bytes before their first line break and all their bytes.
type Values<'a> = HashMap<(usize, usize), HashSet<&'a str>>;

/// All texts of a document that have line breaks.
fn collect<'a>(json: &'a Value, values: &mut Values<'a>) {
    let mut add = |text: &'a str| {
        if let Some(at) = text.find('\n').filter(|_| !text.trim().is_empty()) {
            values.entry((at, text.len())).or_default().insert(text);
        }
    };
    match json {
        Value::String(text) => add(text),
        Value::Object(map) => map.keys().for_each(|key| add(key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
    }
    match json {
        Value::Array(items) => items.iter().for_each(|item| collect(item, values)),
        Value::Object(map) => map.values().for_each(|item| collect(item, values)),
        _ => {}
    }
}

fn escaped(text: &str, hostile: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hostile(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn controls_are_spelled_out() {
        assert_eq!(one_line("plain ÄÖ ▁日本"), "plain ÄÖ ▁日本");
        assert_eq!(one_line("\x1b]0;x\x07\x1b[2J"), r"\u{1b}]0;x\u{7}\u{1b}[2J");
        assert_eq!(one_line("a\r\n\tb\x7f\u{9b}31m"), r"a\r\n\tb\u{7f}\u{9b}31m");
        assert_eq!(one_line("a\u{202e}b\u{2066}c\u{2028}"), r"a\u{202e}b\u{2066}c\u{2028}");
        assert_eq!(lines("a\n\tb\x1bc"), "a\n\tb\\u{1b}c");
        let document = json!({ "a": "\u{9b}\u{7f}\u{202e}é\u{1b}" });
        let text = serde_json::to_string_pretty(&document).unwrap();
        assert_eq!(json(&text), "{\n  \"a\": \"\\u009b\\u007f\\u202eé\\u001b\"\n}");
        assert_eq!(serde_json::from_str::<Value>(&json(&text)).unwrap(), document);
        assert_eq!(spoken("a\n\tb\x1b[0mc\r"), "a\n\tb[0mc");
    }

    #[test]
    fn values_of_a_report_stay_on_their_line() {
        let json =
            json!({ "name": "Evil\nerror: FAKE", "list": [{ "x\n1": "Evil\nerror: FAKE (x)" }] });
        let text = "Model:  Evil\nerror: FAKE\nLayer:  x\n1\nWhy:    Evil\nerror: FAKE (x)\n";
        assert_eq!(
            report(text, &json),
            "Model:  Evil\\nerror: FAKE\nLayer:  x\\n1\nWhy:    Evil\\nerror: FAKE (x)\n"
        );
        assert_eq!(report("a\n", &json!({ "a": "\n" })), "a\n");
    }
}
