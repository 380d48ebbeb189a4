//! The two functions of Python's library that chat templates call: `json.dumps` and `strftime`.

use std::fmt::Write;

use serde_json::Value;

/// JSON with Python's blanks: `", "` and `": "`, or one item per line with `indent`.
pub(super) fn python_json(
    value: &Value,
    indent: Option<usize>,
    sort_keys: bool,
    ensure_ascii: bool,
) -> String {
    let mut out = String::new();
    write_value(&mut out, value, &Style { indent, sort_keys, ensure_ascii }, 0);
    out
}

struct Style {
    indent: Option<usize>,
    sort_keys: bool,
    ensure_ascii: bool,
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) {
    match value {
        Value::Array(items) => {
            let items: Vec<(Option<&str>, &Value)> =
                items.iter().map(|item| (None, item)).collect();
            write_items(out, ['[', ']'], &items, style, depth);
        }
        Value::Object(map) => {
            let mut items: Vec<(Option<&str>, &Value)> =
                map.iter().map(|(key, item)| (Some(key.as_str()), item)).collect();
            if style.sort_keys {
                items.sort_by_key(|(key, _)| *key);
            }
            write_items(out, ['{', '}'], &items, style, depth);
        }
        Value::String(text) => write_text(out, text, style.ensure_ascii),
        other => out.push_str(&other.to_string()),
    }
}

fn write_items(
    out: &mut String,
    [open, close]: [char; 2],
    items: &[(Option<&str>, &Value)],
    style: &Style,
    depth: usize,
) {
    out.push(open);
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    for (i, (key, item)) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if style.indent.is_some() { "," } else { ", " });
        }
        line(out, depth + 1);
        if let Some(key) = key {
            write_text(out, key, style.ensure_ascii);
            out.push_str(": ");
        }
        write_value(out, item, style, depth + 1);
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
}

fn write_text(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || ensure_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A time (seconds since 1970, UTC) in the format of `strftime`, English names. Codes that are not
/// known stay as they are.
pub(super) fn format_time(format: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day, day_of_year) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let Some(mut code) = chars.next() else {
            out.push('%');
            break;
        };
        // `%-d`: without the leading zero.
        let plain = code == '-';
        if plain {
            code = chars.next().unwrap_or('-');
        }
        let mut number = |value: u64, width: usize| {
            let width = if plain { 0 } else { width };
            let _ = write!(out, "{value:0width$}");
        };
        match code {
            'd' => number(day, 2),
            'm' => number(month, 2),
            'Y' => number(year, 4),
            'y' => number(year % 100, 2),
            'j' => number(day_of_year, 3),
            'H' => number(hour, 2),
            'I' => number(hour12, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'B' => out.push_str(month_name),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'A' => out.push_str(day_name),
            'a' => out.push_str(&day_name[..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => {
                let _ = write!(out, "{year:04}-{month:02}-{day:02}");
            }
            'T' => {
                let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
            }
            '%' => out.push('%'),
            other => {
                out.push('%');
                out.push(other);
            }
        }
    }
    out
}

/// Year, month, day and day of the year of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil_date(days: u64) -> (u64, u64, u64, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // 400 years have 146,097 days.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let day_of_year = rest + 1;
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected texts are what `json.dumps` of Python 3.11 prints.
    #[test]
    fn json_looks_like_pythons() {
        let value = json!({ "b": [1, 2.5, true, null], "a": "é \"x\"\n</s>", "e": {}, "l": [] });
        assert_eq!(
            python_json(&value, None, false, false),
            r#"{"b": [1, 2.5, true, null], "a": "é \"x\"\n</s>", "e": {}, "l": []}"#
        );
        assert_eq!(
            python_json(&json!({ "b": [1, 2], "a": {} }), Some(2), true, false),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2\n  ]\n}"
        );
        assert_eq!(
            python_json(&json!("é😀\u{1}"), None, false, true),
            r#""\u00e9\ud83d\ude00\u0001""#
        );
    }

    /// Expected texts are what `date -u` prints.
    #[test]
    fn times_look_like_strftime() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %-d %I%p %%";
        assert_eq!(
            format_time(format, 0),
            "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 1 12AM %"
        );
        assert_eq!(
            format_time(format, 1_709_210_096),
            "2024-02-29 12:34:56 Thu Thursday Feb February 060 24 29 12PM %"
        );
        assert_eq!(
            format_time(format, 4_133_980_799),
            "2100-12-31 23:59:59 Fri Friday Dec December 365 00 31 11PM %"
        );
        assert_eq!(
            format_time("%d %b %Y|%F|%T|%q|%", 951_782_400),
            "29 Feb 2000|2000-02-29|00:00:00|%q|%"
        );
        assert!(format_time("%Y", u64::MAX).len() > 4);
    }
}
