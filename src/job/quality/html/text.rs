//! Numbers and names as the page shows them.

/// Text that HTML does not take for markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// The last part of a path, which tells models apart better than its beginning.
pub(super) fn short_name(model: &str) -> &str {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model)
}

/// Four significant digits.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let digits = (3.0 - size.log10().floor()).clamp(0.0, 7.0) as usize;
    format!("{value:.digits$}")
}

/// A value and its standard error, both to the second digit of the error.
pub(super) fn with_error(value: f64, error: f64) -> String {
    let error = error.abs();
    if !(1e-9..1e6).contains(&error) {
        return format!("{} ± {}", number(value), number(error));
    }
    let digits = (1.0 - error.log10().floor()).clamp(0.0, 10.0) as usize;
    format!("{value:.digits$} ± {error:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(
            escape("<script>alert('x & \"y\"')</script>"),
            "&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;"
        );
        assert_eq!(short_name("/a/b/model.gguf"), "model.gguf");
        assert_eq!(short_name("dir/"), "dir");
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in [
            (23.5678, "23.57"),
            (0.012_345_6, "0.01235"),
            (123_456.0, "123456"),
            (0.0, "0"),
            (1.5e-5, "1.500e-5"),
            (-3.0, "-3.000"),
        ] {
            assert_eq!(number(value), text);
        }
        for (value, error, text) in [
            (23.5678, 0.5619, "23.57 ± 0.56"),
            (0.000_278_04, 4.268e-6, "0.0002780 ± 0.0000043"),
            (5.0, 0.0, "5.000 ± 0"),
            (1234.5, 45.6, "1234 ± 46"),
        ] {
            assert_eq!(with_error(value, error), text);
        }
    }
}
