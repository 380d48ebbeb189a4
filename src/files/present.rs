//! What is there instead of a model: pointers of Git LFS, pages of an error, adapters, names with
//! prefixes. Errors say it, because "download the model again" helps with few of these.

use std::path::Path;

use serde_json::Value;

use super::texts::{MAX_CONFIG, read_text};
use crate::Error;
use crate::base::lists::some_of;

/// Bytes of a file that are looked at.
const START: usize = 512;

/// What the first bytes of a file that is no model say it is, and what to do about it.
#[must_use]
pub(crate) fn what_is(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    const AGAIN: &str =
        "Download the file again: what was saved is the answer to a failed download";
    const ANSWERS: [&str; 6] = [
        "{\"error\"",
        "entry not found",
        "not found",
        "access denied",
        "invalid ",
        "repository not",
    ];
    let start = &bytes[..bytes.len().min(START)];
    if start.starts_with(b"version https://git-lfs") {
        return Some((
            "a Git LFS pointer, not the file itself",
            "Fetch the file with `git lfs install` and `git lfs pull`, or download the model from \
             the hub",
        ));
    }
    if start.starts_with(b"PK\x03\x04") {
        return Some((
            "a ZIP archive or a pickle of PyTorch",
            "Use a version of the model with safetensors; pickles can run code when opened",
        ));
    }
    if start.starts_with(b"\x1f\x8b") {
        return Some(("compressed by gzip", "Unpack the file first"));
    }
    if start.starts_with(b"GGUF") {
        return Some(("a GGUF file", "Give the path of the file itself"));
    }
    if start.starts_with(&super::detect::LITTLEBIT_MAGIC) {
        return Some(("a .littlebit file", "Give the path of the file itself"));
    }
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').to_lowercase();
    let text = text.trim_start();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return Some(("an HTML page", AGAIN));
    }
    if text.starts_with("<?xml") || text.starts_with("<error") {
        return Some(("an XML answer of a server", AGAIN));
    }
    ANSWERS
        .iter()
        .any(|answer| text.starts_with(answer))
        .then_some(("an answer of a server", AGAIN))
}

/// The same for a file; `None` as well for one that cannot be read.
fn what_file(path: &Path) -> Option<(&'static str, &'static str)> {
    use std::io::Read;
    if path.is_dir() {
        return Some((
            "a directory, where a file belongs",
            "Move its contents to where they belong",
        ));
    }
    if !path.is_file() {
        return None;
    }
    let mut start = Vec::with_capacity(START);
    std::fs::File::open(path).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    what_is(&start)
}

/// The error about a file that is no model, if one can say what it is.
#[must_use]
pub(crate) fn instead_of_file(path: &Path) -> Option<Error> {
    let (what, suggestion) = what_file(path)?;
    Some(not_the_file(path, what, suggestion))
}

/// The error about contents that were read from a file and are not what they should be.
#[must_use]
pub(crate) fn instead_of_text(path: &Path, text: &str) -> Option<Error> {
    let (what, suggestion) = what_is(text.as_bytes())?;
    Some(not_the_file(path, what, suggestion))
}

fn not_the_file(path: &Path, what: &str, suggestion: &str) -> Error {
    Error::ModelNotFound {
        message: format!("{} is {what}", path.display()),
        suggestion: suggestion.to_owned(),
    }
}

/// The files of an adapter of PEFT.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Whether a weight file is an adapter's.
#[must_use]
pub(crate) fn is_adapter_file(name: &str) -> bool {
    name.starts_with("adapter_model")
}

/// Kind and base of the adapter in a directory, for messages.
fn adapter(directory: &Path) -> Option<(String, String)> {
    let text = read_text(&directory.join(ADAPTER_CONFIG), MAX_CONFIG).ok()??;
    let root: Value = serde_json::from_str(&text).unwrap_or_default();
    let word = |key: &str| root.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = word("peft_type").map_or_else(|| "an".to_owned(), |kind| format!("a {kind}"));
    let base = word("base_model_name_or_path").unwrap_or("its base model");
    Some((kind, base.to_owned()))
}

/// The error about a directory that holds an adapter and no model.
#[must_use]
pub(crate) fn adapter_instead(directory: &Path) -> Option<Error> {
    let (kind, base) = adapter(directory)?;
    Some(Error::ModelNotFound {
        message: format!(
            "{} holds {kind} adapter of {base} ({ADAPTER_CONFIG}), not a model",
            directory.display()
        ),
        suggestion: format!(
            "Merge the adapter into {base} first (`merge_and_unload` of peft), and give the merged \
             model"
        ),
    })
}

/// A warning about an adapter beside the weights of a model.
#[must_use]
pub(crate) fn adapter_beside(directory: &Path) -> Option<String> {
    let (kind, base) = adapter(directory)?;
    Some(format!(
        "{} also holds {kind} adapter of {base} ({ADAPTER_CONFIG}), which is not merged: the weights \
         of the model are used without it",
        directory.display()
    ))
}

/// The error about tensors that a model needs and a directory or file does not have: what is missing
/// and what is there instead.
pub(crate) fn missing_tensors(
    path: &Path,
    class: &str,
    (missing, of): (&[&str], Option<usize>),
    others: &[&str],
) -> Error {
    let count = match of {
        Some(all) => format!("{} of the {all} tensors", missing.len()),
        None => format!("{} tensors", missing.len()),
    };
    let mut message =
        format!("{} lacks {count} of a {class}: {}", path.display(), some_of(missing));
    let adapted = |name: &&str| name.contains(".lora_") || name.contains(".base_layer.");
    if !others.is_empty() {
        message.push_str(&format!("; there are {} others: {}", others.len(), some_of(others)));
    }
    let suggestion = if others.iter().any(adapted) {
        "These are the tensors of an adapter that is not merged: merge it into its base model first \
         (`merge_and_unload` of peft)"
    } else if others.is_empty() {
        "Download the model again; check that config.json belongs to the weights"
    } else {
        "Check that config.json belongs to these weights: they have other names or are of another \
         model"
    };
    Error::ModelNotFound { message, suggestion: suggestion.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_told_apart() {
        for (bytes, word) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"[..], "LFS"),
            (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", "HTML"),
            (b"<html lang=\"en\">", "HTML"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
            (b"Entry not found", "server"),
            (b"{\"error\": \"Repository not found\"}", "server"),
            (b"PK\x03\x04rest", "pickle"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"GGUF\x03\0\0\0", "GGUF"),
        ] {
            let (what, _) = what_is(bytes).unwrap();
            assert!(what.contains(word), "{what}");
        }
        for other in [&[0xff, 0, 1, 2][..], b"", b"{}", b"notes", b"\x10\0\0\0\0\0\0\0{\"a\""] {
            assert!(what_is(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn missing_tensors_say_what_is_there() {
        let path = Path::new("m");
        let error = missing_tensors(path, "Llama", (&["a", "b"], Some(9)), &["x", "y"]);
        assert!(error.to_string().contains("lacks 2 of the 9 tensors"), "{error}");
        assert!(error.to_string().contains("2 others: x, y"), "{error}");
        assert!(!error.suggestion().contains("Download"));
        let adapted = ["model.layers.0.self_attn.q_proj.lora_A.weight"];
        let error = missing_tensors(path, "Llama", (&["a"], None), &adapted);
        assert!(error.suggestion().contains("merge"), "{}", error.suggestion());
        let error = missing_tensors(path, "Llama", (&["a"], None), &[]);
        assert!(error.suggestion().contains("Download"));
    }
}
