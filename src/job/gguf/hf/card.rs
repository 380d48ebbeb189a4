//! The model card: the part of `README.md` between two lines `---`, which is YAML of a simple kind.
//!
//! Read are values, lists (a line per item or in brackets) and quotes on the top level; deeper
//! structures are skipped.

use indexmap::IndexMap;

/// Values by key; a single value is a list of one.
pub(super) type Card = IndexMap<String, Vec<String>>;

/// Reads the front matter of a text; empty if it has none.
pub(super) fn parse(text: &str) -> Card {
    let mut card = Card::new();
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return card;
    }
    let mut list: Option<String> = None;
    for line in lines {
        if line.trim_end() == "---" {
            break;
        }
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if let (Some(item), Some(key)) = (trimmed.strip_prefix("- "), &list) {
            // An item that is a structure itself is none of the simple ones.
            if !is_pair(item) {
                card.entry(key.clone()).or_default().extend(scalar(item));
            }
            continue;
        }
        if line.starts_with([' ', '\t']) {
            continue;
        }
        list = None;
        let Some((key, value)) = trimmed.split_once(':') else { continue };
        let (key, value) = (key.trim().to_owned(), value.trim());
        if value.is_empty() {
            list = Some(key);
        } else if let Some(items) = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
            card.insert(key, items.split(',').filter_map(scalar).collect());
        } else if !value.starts_with(['{', '|', '>', '&', '*']) {
            card.insert(key, scalar(value).into_iter().collect());
        }
    }
    card.retain(|_, values| !values.is_empty());
    card
}

fn is_pair(item: &str) -> bool {
    let quoted = item.starts_with(['"', '\'']);
    !quoted && (item.contains(": ") || item.ends_with(':'))
}

/// A text without its quotes and without a comment behind it.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            return rest.split_once(quote).map(|(inside, _)| inside.to_owned());
        }
    }
    let text = text.split_once(" #").map_or(text, |(text, _)| text).trim();
    (!text.is_empty() && text != "null" && text != "~").then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_the_hub_are_read() {
        let card = parse(concat!(
            "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"no\"\n  - de\n",
            "base_model: [org/One, 'org/Two']\n# a comment\ntags:\n  - chat # here\n",
            "model-index:\n- name: x\n  results:\n  - task: y\npipeline_tag: text-generation\n",
            "empty:\nlicense_link: https://example.org/a#b\n---\nlicense: mit\n"
        ));
        let get = |key: &str| card.get(key).map(|values| values.join("|")).unwrap_or_default();
        assert_eq!(get("license"), "apache-2.0");
        assert_eq!(get("language"), "en|no|de");
        assert_eq!(get("base_model"), "org/One|org/Two");
        assert_eq!(get("tags"), "chat");
        assert_eq!(get("pipeline_tag"), "text-generation");
        assert_eq!(get("license_link"), "https://example.org/a#b");
        assert!(!card.contains_key("empty") && !card.contains_key("model-index"));
        assert!(parse("# Title\n---\nlicense: mit\n---\n").is_empty());
        assert!(parse("").is_empty());
    }
}
