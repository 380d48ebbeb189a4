//! `precompiled_charsmap`: SentencePiece's table of replacements. The length of a trie (four bytes,
//! little-endian), the trie (a double array of 32-bit units), texts that end with a zero byte.

use serde_json::Value;

type Check<T = ()> = std::result::Result<T, String>;

/// Bytes of a table. The real ones have about 250,000.
const MOST: usize = 64 << 20;

/// Checks that every path through the trie stays inside it and leads to a text.
pub(super) fn check(value: &Value) -> Check {
    let text = value.as_str().ok_or("not a text")?;
    if text.len() > MOST {
        return Err(format!("{} bytes long", text.len()));
    }
    let bytes = from_base64(text).ok_or("not base64")?;
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Err("too short to be a table".to_owned());
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > rest.len() || length == 0 || !length.is_multiple_of(4) {
        return Err(format!("a trie of {length} bytes in {}", rest.len()));
    }
    let (trie, texts) = rest.split_at(length);
    let texts = std::str::from_utf8(texts).map_err(|_| "its texts are not UTF-8")?;
    let units: Vec<u32> = trie
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]))
        .collect();
    walk(&units, texts)
}

/// Where the children of a unit begin, relative to it.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

fn walk(units: &[u32], texts: &str) -> Check {
    let outside = || "its trie leads out of itself".to_owned();
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(units[0])];
    while let Some(node) = open.pop() {
        for byte in 1..=255u8 {
            let at = node ^ usize::from(byte);
            let unit = *units.get(at).ok_or_else(outside)?;
            // Bit 31 set: not a label.
            if unit & (1 << 31 | 0xff) != u32::from(byte) || seen[at] {
                continue;
            }
            seen[at] = true;
            let child = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = *units.get(child).ok_or_else(outside)?;
                let start = (leaf & !(1 << 31)) as usize;
                if !texts.is_char_boundary(start) {
                    return Err(format!("a text at {start} of {}", texts.len()));
                }
            }
            open.push(child);
        }
    }
    Ok(())
}

/// Standard base64 with its padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let body = text.trim_end_matches('=').as_bytes();
    if bytes.len() - body.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in body {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected bytes are those of RFC 4648, section 10.
    #[test]
    fn base64_is_read() {
        assert_eq!(from_base64("").unwrap(), b"");
        assert_eq!(from_base64("Zg==").unwrap(), b"f");
        assert_eq!(from_base64("Zm8=").unwrap(), b"fo");
        assert_eq!(from_base64("Zm9vYmFy").unwrap(), b"foobar");
        assert_eq!(from_base64("Zm9vYmF"), None);
        assert_eq!(from_base64("Zm9=YmFy"), None);
    }

    /// A trie of 256 units that maps "a" to the text at `value`.
    fn table(value: u32, child: u32) -> Vec<u32> {
        let mut units = vec![1 << 31; 256];
        units[0] = 0;
        units[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | child << 10;
        if let Some(leaf) = units.get_mut(usize::from(b'a') ^ child as usize) {
            *leaf = value | 1 << 31;
        }
        units
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(walk(&table(0, 1), "b\0"), Ok(()));
        assert_eq!(walk(&table(2, 1), "b\0"), Ok(()));
        assert!(walk(&table(3, 1), "b\0").unwrap_err().contains("a text at 3"));
        assert!(walk(&table(1, 1), "é\0").unwrap_err().contains("a text at 1"));
        assert!(walk(&table(0, 300), "b\0").unwrap_err().contains("out of itself"));
        assert!(walk(&[5 << 10], "").unwrap_err().contains("out of itself"));
    }

    #[test]
    fn short_and_lying_tables_are_refused() {
        for text in ["", "AA==", "/////wEAAAA=", "AAAAAA=="] {
            assert!(check(&json!(text)).is_err(), "{text}");
        }
        assert_eq!(check(&json!(5)).unwrap_err(), "not a text");
    }
}
