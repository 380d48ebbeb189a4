//! How large a chat template may be. Its parser goes down a level for each sign of a chain such as
//! `not not x`, and what it builds from `a or b or c` is as deep as the chain is long.

/// Bytes of a template. The longest published ones have about 50,000.
const LONGEST: usize = 1 << 20;
/// Bytes of one tag. The longest published ones have about 2,000.
const LONGEST_TAG: usize = 32 << 10;
/// Blocks in blocks.
const DEEPEST: usize = 100;
/// Branches of all conditions that are open.
const MOST_BRANCHES: usize = 1000;

/// Checks a template before it is parsed.
pub(super) fn check(template: &str) -> Result<(), String> {
    if template.len() > LONGEST {
        return Err(format!("it has {} bytes, more than {LONGEST}", template.len()));
    }
    let mut rest = template;
    // Branches of each block that is open.
    let mut blocks: Vec<usize> = Vec::new();
    while let Some(at) = find_tag(rest) {
        let tag = &rest[at..];
        let length = tag_length(tag);
        let tag = &tag[..length];
        rest = &rest[at + length..];
        if tag.starts_with("{#") {
            continue;
        }
        if length > LONGEST_TAG {
            return Err(format!("one of its tags has {length} bytes, more than {LONGEST_TAG}"));
        }
        if !tag.starts_with("{%") {
            continue;
        }
        let word = tag[2..].trim_start_matches(['-', '+']).trim_start();
        let word = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
        match word.unwrap_or_default() {
            "raw" => rest = after_raw(rest),
            "if" | "for" | "macro" | "call" | "filter" | "with" | "block" | "autoescape" => {
                blocks.push(1);
            }
            // The parser takes each branch for a block in the one before.
            "elif" => blocks.last_mut().into_iter().for_each(|branches| *branches += 1),
            end if end.starts_with("end") => {
                blocks.pop();
            }
            _ => {}
        }
        if blocks.len() > DEEPEST {
            return Err(format!("its blocks are nested more than {DEEPEST} deep"));
        }
        if blocks.iter().sum::<usize>() > MOST_BRANCHES {
            return Err(format!("its conditions have more than {MOST_BRANCHES} branches"));
        }
    }
    Ok(())
}

fn find_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len())
        .find(|&at| bytes[at] == b'{' && matches!(bytes.get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Bytes of the tag that a text begins with, its end included. Texts in quotes end no tag.
fn tag_length(tag: &str) -> usize {
    let bytes = tag.as_bytes();
    let end = match bytes[1] {
        b'{' => b"}}",
        b'%' => b"%}",
        _ => return tag.find("#}").map_or(tag.len(), |at| at + 2),
    };
    let mut at = 2;
    let mut quote = None;
    // Within brackets, nothing ends a tag.
    let mut open = 0i64;
    while at < bytes.len() {
        match quote {
            Some(_) if bytes[at] == b'\\' => at += 1,
            Some(mark) if bytes[at] == mark => quote = None,
            Some(_) => {}
            None if open == 0 && bytes[at..].starts_with(end) => return at + 2,
            None => match bytes[at] {
                b'(' | b'[' | b'{' => open += 1,
                b')' | b']' | b'}' => open -= 1,
                mark @ (b'"' | b'\'') => quote = Some(mark),
                _ => {}
            },
        }
        at += 1;
    }
    tag.len()
}

/// What follows the end of a raw block.
fn after_raw(text: &str) -> &str {
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        rest = &rest[at + 2..];
        if rest.trim_start_matches(['-', '+']).trim_start().starts_with("endraw") {
            return rest.find("%}").map_or("", |at| &rest[at + 2..]);
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_end_where_the_parser_ends_them() {
        assert_eq!(tag_length("{{ '}}' }} }}"), "{{ '}}' }}".len());
        assert_eq!(tag_length(r#"{% if "\"%}" %}x"#), r#"{% if "\"%}" %}"#.len());
        assert_eq!(tag_length("{# ' #} ' #}"), "{# ' #}".len());
        assert_eq!(tag_length("{{ open"), "{{ open".len());
        assert_eq!(tag_length("{{ {'a': {}} }} }}"), "{{ {'a': {}} }}".len());
    }

    #[test]
    fn long_and_deep_templates_are_refused() {
        let plain = "{% for m in messages %}{% if m %}{{ m }}{% endif %}{% endfor %}";
        assert_eq!(check(&plain.repeat(1000)), Ok(()));
        let text = "{ not a tag, ".repeat(10_000);
        assert_eq!(check(&text), Ok(()));
        assert_eq!(check(&format!("{{# {text} #}}")), Ok(()));
        let chain = format!("{{{{ {}1 }}}}", "not ".repeat(10_000));
        assert!(check(&chain).unwrap_err().contains("tags"));
        // What looks like a comment is none within a raw block.
        let hidden = format!("{{% raw %}}{{#{{% endraw %}}{chain}#}}");
        assert!(check(&hidden).unwrap_err().contains("tags"));
        assert!(check(&"{%- if 1 %}".repeat(200)).unwrap_err().contains("nested"));
        let branches = format!("{{% if 1 %}}{}", "{% elif 1 %}".repeat(2000));
        assert!(check(&branches).unwrap_err().contains("branches"));
        assert!(check(&"a".repeat(2 << 20)).unwrap_err().contains("bytes"));
    }
}
