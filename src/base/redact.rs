//! Secrets out of texts: what a server sends back, and what a person typed, may hold a token or a
//! password, and reaches error messages, logs and reports.

use std::sync::{PoisonError, RwLock};

/// What stands where a secret stood.
const INSTEAD: &str = "hf_…";
/// Shorter ones are parts of ordinary words.
const SHORTEST: usize = 6;

/// Secrets that no text of this process may show.
static HIDDEN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Hides `secret` from every text that goes through [`conceal`] from now on.
pub(crate) fn hide(secret: &str) {
    let mut hidden = HIDDEN.write().unwrap_or_else(PoisonError::into_inner);
    if secret.len() >= SHORTEST && !hidden.iter().any(|known| known == secret) {
        hidden.push(secret.to_owned());
    }
}

/// The text without the secrets that are to be hidden.
pub(crate) fn conceal(text: &str) -> String {
    let hidden = HIDDEN.read().unwrap_or_else(PoisonError::into_inner);
    hidden.iter().fold(text.to_owned(), |text, secret| without(&text, secret))
}

/// The text without `secret`, as it is, percent-encoded or as JSON writes it.
pub(crate) fn without(text: &str, secret: &str) -> String {
    if secret.len() < SHORTEST {
        return text.to_owned();
    }
    let encoded: String = secret
        .bytes()
        .map(|byte| match byte {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect();
    let escaped = secret.replace('\\', "\\\\").replace('"', "\\\"");
    [secret, &encoded, &escaped]
        .into_iter()
        .fold(text.to_owned(), |text, form| text.replace(form, INSTEAD))
}

/// The text with its addresses cut to what is no secret: no name and password before the host, no
/// query, which is where signatures are.
pub(crate) fn addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'))
            .unwrap_or(after.len());
        let (address, follows) = after.split_at(end);
        let (address, query) = match address.find(['?', '#']) {
            Some(at) => (&address[..at], "?…"),
            None => (address, ""),
        };
        let authority = address.find('/').unwrap_or(address.len());
        let (authority, path) = address.split_at(authority);
        // The last one: a password may have one.
        out.push_str(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        out.push_str(path);
        out.push_str(query);
        rest = follows;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_host_and_path_only() {
        for (text, shown) in [
            ("no address", "no address"),
            ("see https://hub.example/a/b.", "see https://hub.example/a/b."),
            ("https://me:pass@hub.example/a", "https://hub.example/a"),
            ("\"https://me:p@ss@hub.example\": expected", "\"https://hub.example\": expected"),
            ("at http://h/x?X-Amz-Signature=abc&y=z now", "at http://h/x?… now"),
            ("http://h?token=t http://u@i/#t", "http://h?… http://i/?…"),
        ] {
            assert_eq!(addresses(text), shown);
        }
    }

    #[test]
    fn a_secret_goes_in_every_form() {
        let text = r#"a hf_s"e/t%1 b hf_s%22e%2Ft%251 c hf_s\"e/t%1"#;
        assert_eq!(without(text, "hf_s\"e/t%1"), "a hf_… b hf_… c hf_…");
        assert_eq!(without("a short one", "a"), "a short one");
        hide("hf_concealed_in_tests");
        assert_eq!(conceal("x=hf_concealed_in_tests."), "x=hf_….");
    }
}
