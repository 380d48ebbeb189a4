//! The few operations on URLs that following the hub's redirects takes.

/// Whether two URLs have the same scheme, host and port. Only then may a token travel along.
pub(super) fn same_origin(a: &str, b: &str) -> bool {
    origin(a).is_some_and(|origin_a| origin(b).is_some_and(|origin_b| origin_a == origin_b))
}

/// Whether the URL's host is this machine.
pub(super) fn is_loopback(url: &str) -> bool {
    let Some(origin) = origin(url) else { return false };
    let host = origin.split_once("://").map_or("", |(_, rest)| rest);
    let host = if let Some(bracketed) = host.strip_prefix('[') {
        bracketed.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `scheme://host[:port]` in lower case, without the port that the scheme implies.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let authority = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let implied = match scheme.as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let authority = authority.strip_suffix(implied).unwrap_or(&authority);
    (!authority.is_empty()).then(|| format!("{scheme}://{authority}"))
}

/// Resolves a `Location` header against the URL that sent it (RFC 9110, 10.2.2). `None` if it
/// leads to something that is not HTTP.
pub(super) fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://")?;
    if let Some((to, _)) = location.split_once("://")
        && to.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return (to.eq_ignore_ascii_case("https") || to.eq_ignore_ascii_case("http"))
            .then(|| location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
    Some(format!("{scheme}://{authority}{folder}{location}"))
}

/// Whether following this redirect would give up encryption.
pub(super) fn is_downgrade(from: &str, to: &str) -> bool {
    let encrypted =
        |url: &str| url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"));
    encrypted(from) && !encrypted(to)
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3) and, if `slashes` is set,
/// slashes.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || (slashes && byte == b'/');
        if plain {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        assert!(same_origin("https://hub.example/a", "https://HUB.example:443/b?c"));
        assert!(same_origin("http://h:80", "http://h/x"));
        for other in [
            "http://hub.example/a",
            "https://hub.example:8443/a",
            "https://cdn.hub.example/a",
            "https://hub.example@evil.example/a",
            "https://hub.example.evil/a",
            "nonsense",
        ] {
            assert!(!same_origin("https://hub.example/a", other), "{other}");
        }
    }

    #[test]
    fn loopback_hosts() {
        for url in
            ["http://127.0.0.1:8080/x", "http://localhost", "http://[::1]:9/", "http://127.9.9.9"]
        {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["https://huggingface.co", "http://10.0.0.1:80", "http://localhost.example/"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn locations() {
        let base = "https://hub.example/org/name/resolve/main/a.json?x=1";
        for (location, expected) in [
            ("https://cdn.example/b?sig=http://x", Some("https://cdn.example/b?sig=http://x")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/api/b?u=https://x", Some("https://hub.example/api/b?u=https://x")),
            ("b.json", Some("https://hub.example/org/name/resolve/main/b.json")),
            ("/b#part", Some("https://hub.example/b")),
            ("ftp://x/y", None),
        ] {
            assert_eq!(join(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(join("http://h", "b").as_deref(), Some("http://h/b"));
    }

    #[test]
    fn downgrades_and_encoding() {
        assert!(is_downgrade("https://a/", "http://a/"));
        assert!(!is_downgrade("http://a/", "http://b/"));
        assert!(!is_downgrade("https://a/", "HTTPS://b/"));
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("dir/ü a%.json", true), "dir/%C3%BC%20a%25.json");
    }
}
