//! JSON as the programs of this ecosystem write it. Python's `json` writes and reads `NaN`,
//! `Infinity`, `-Infinity`, numbers beyond the range of a double and halves of surrogate pairs, and
//! takes the last of several equal keys; editors put a byte order mark in front. All of that is read
//! here, and written again as it was.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

/// Stands before the name of a number that JSON has not, in a string: where the value does not
/// matter nobody sees it, and a message about a key that does has its name.
const MARK: char = '\u{2060}';

const NAMES: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads a document. Numbers that JSON has not become strings, which no number can be mistaken for.
pub(crate) fn read(text: &str) -> Result<Value, serde_json::Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).or_else(|error| match strict(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(text) => serde_json::from_str(&text),
    })
}

/// The same of bytes.
pub(crate) fn read_bytes(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    std::str::from_utf8(bytes).map_err(serde_json::Error::custom).and_then(read)
}

/// The same into a type.
pub(crate) fn read_bytes_as<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_value(read_bytes(bytes)?)
}

/// Writes a document that [`read`] has read, with the numbers that JSON has not.
pub(crate) fn write(value: &Value) -> String {
    let mut text = format!("{value:#}\n");
    if text.contains(MARK) {
        for name in NAMES {
            text = text.replace(&format!("\"{MARK}{name}\""), name);
        }
    }
    text
}

/// Length of the first value of `bytes`, or that of all of them where it does not end.
pub(crate) fn first_value(bytes: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at += string(&bytes[at..]) - 1,
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth > 0 => depth -= 1,
            b',' | b']' | b'}' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
        if depth == 0 && matches!(byte, b'"' | b']' | b'}') {
            return at;
        }
    }
    bytes.len()
}

/// The document in strict JSON, if it is one but for what Python adds.
fn strict(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    // Up to where the text is in `out`.
    let mut taken = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let length = match byte {
            b'"' => string(&bytes[at..]),
            b'-' | b'0'..=b'9' | b'I' | b'N' => word(&bytes[at..]),
            _ => 1,
        };
        let token = text.get(at..at + length).unwrap_or_default();
        let replaced = match byte {
            b'"' => whole_pairs(token),
            b'-' | b'0'..=b'9' | b'I' | b'N' => number(token),
            _ => None,
        };
        if let Some(replaced) = replaced {
            out.push_str(&text[taken..at]);
            out.push_str(&replaced);
            taken = at + length;
        }
        at += length;
    }
    if taken == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[taken..]);
    Cow::Owned(out)
}

/// Length of the string that begins here, quotes included.
fn string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        at += match byte {
            b'"' => return at + 1,
            b'\\' => 2,
            _ => 1,
        };
    }
    bytes.len()
}

/// Length of the number or name that begins here.
fn word(bytes: &[u8]) -> usize {
    let part = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    bytes.iter().take_while(part).count().max(1)
}

/// What stands for a number that JSON has not.
fn number(token: &str) -> Option<String> {
    let name = match token {
        "NaN" | "Infinity" | "-Infinity" => token,
        // Rust reads more than JSON has, so it is asked for plain numbers only.
        _ if token.bytes().any(|b| b.is_ascii_alphabetic() && !matches!(b, b'e' | b'E')) => {
            return None;
        }
        _ => match token.parse::<f64>() {
            Ok(f64::INFINITY) => "Infinity",
            Ok(f64::NEG_INFINITY) => "-Infinity",
            _ => return None,
        },
    };
    Some(format!("\"{MARK}{name}\""))
}

/// A string with U+FFFD for halves of surrogate pairs, if there are any.
fn whole_pairs(token: &str) -> Option<String> {
    let unit = |at: usize| -> Option<u16> {
        let digits = token.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut out = String::new();
    let (mut taken, mut at) = (0, 0);
    while let Some(offset) = token[at..].find('\\') {
        at += offset;
        match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                out.push_str(&token[taken..at]);
                out.push_str("\\ufffd");
                at += 6;
                taken = at;
            }
            // The character after it is escaped, whatever it is.
            _ => at += 1 + token[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    (taken > 0).then(|| out + &token[taken..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What `json.loads` of Python 3.12 gives for the same text, but for the numbers.
    #[test]
    fn what_python_reads_is_read() {
        let mark = |name: &str| json!(format!("{MARK}{name}"));
        for (text, value) in [
            (r#"{"a": NaN}"#, json!({"a": mark("NaN")})),
            ("[Infinity,-Infinity]", json!([mark("Infinity"), mark("-Infinity")])),
            ("[1e999, -1e999, 1e-999]", json!([mark("Infinity"), mark("-Infinity"), 0.0])),
            ("\u{feff}{\"a\": 1}", json!({"a": 1})),
            ("\u{feff}[NaN]", json!([mark("NaN")])),
            (r#"{"a": 1, "b": 3, "a": 2}"#, json!({"a": 2, "b": 3})),
            (
                r#"["NaN", "a\"NaN, Infinity", NaN]"#,
                json!(["NaN", "a\"NaN, Infinity", mark("NaN")]),
            ),
            (r#"["\ud800x", "\udc00"]"#, json!(["\u{fffd}x", "\u{fffd}"])),
            (r#"["\ud83d\ude00", "\\ud800", NaN]"#, json!(["😀", "\\ud800", mark("NaN")])),
            (r#"["ü\\", "\u00e4", 1e999]"#, json!(["ü\\", "ä", mark("Infinity")])),
        ] {
            assert_eq!(read(text).unwrap(), value, "{text}");
            assert_eq!(read_bytes(text.as_bytes()).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "",
            "nan",
            "inf",
            "[+NaN]",
            "[NaN",
            "[Infinityx]",
            "[-NaN]",
            "{a: NaN}",
            "[1e]",
            "[.5]",
            "[01, NaN]",
            "\"a\nb\"",
            "[NaN,]",
            "\"\\u12\"",
            "\"\\",
            "\u{feff}\u{feff}1",
            "--Infinity",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read_bytes(b"[\"\xff\", NaN]").is_err());
    }

    #[test]
    fn it_is_written_as_it_was() {
        let text =
            "{\n  \"a\": Infinity,\n  \"b\": [\n    -Infinity,\n    NaN,\n    \"NaN\"\n  ]\n}\n";
        assert_eq!(write(&read(text).unwrap()), text);
    }

    #[test]
    fn the_first_value_ends_where_it_ends() {
        for (text, length) in [
            (r#"{"a": [NaN, "]}"]} , {"#, 18),
            ("NaN, 1", 3),
            ("\"a\\\"b\" x", 6),
            ("[1", 2),
            ("5]", 1),
        ] {
            assert_eq!(first_value(text.as_bytes()), length, "{text}");
        }
    }
}
