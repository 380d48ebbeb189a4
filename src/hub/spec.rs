//! What a user's MODEL argument means: a path on this machine or a model on the hub.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Error, Result};

/// The revision that is meant when none is given.
pub const DEFAULT_REVISION: &str = "main";

/// Longest repository id, as the hub has it.
const MAX_REPO_CHARACTERS: usize = 96;
const MAX_REVISION_CHARACTERS: usize = 200;

/// File types that make a text a path, never a hub id.
const FILE_EXTENSIONS: &[&str] =
    &["gguf", "littlebit", "safetensors", "json", "bin", "pt", "pth", "onnx", "txt", "zip", "gz"];

/// A model repository on the hub, at a revision. Nothing is sent to the hub or made on the disk
/// before both fields have been checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubSpec {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag, `refs/pr/…` or commit.
    pub revision: String,
}

impl HubSpec {
    /// Reads `org/name` or `org/name@revision`, with the hub's own rules for both parts.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_parts(text)
            .map_err(|reason| Error::InvalidArgument(format!("`{text}` is no hub id: {reason}")))
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, revision),
            None => (text, DEFAULT_REVISION),
        };
        check_repo(repo)?;
        check_revision(revision)?;
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.repo.split_once('/').map_or(self.repo.as_str(), |(_, name)| name)
    }
}

impl fmt::Display for HubSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

impl FromStr for HubSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSpec {
    /// A file or folder that exists.
    Path(PathBuf),
    /// A repository on the hub.
    Hub(HubSpec),
}

impl ModelSpec {
    /// Decides what `text` means. Whatever exists on this machine is a path. Otherwise it is a hub
    /// id if it reads like one; if it reads like a path, or like neither, the model is not found.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if !text.is_empty() && path.exists() {
            return Ok(Self::Path(path.to_path_buf()));
        }
        if text.starts_with('~') {
            return Err(Error::ModelNotFound {
                message: format!("`{text}` does not exist"),
                suggestion: "The shell replaces ~ only at the start of an unquoted word; \
                             write the whole path"
                    .into(),
            });
        }
        if looks_like_path(text) {
            return Err(Error::ModelNotFound {
                message: format!("`{text}` does not exist"),
                suggestion: nearest_hint(path),
            });
        }
        HubSpec::parse_parts(text).map(Self::Hub).map_err(|reason| {
            Error::model_not_found(format!(
                "`{text}` does not exist on this machine and is no hub id: {reason}"
            ))
        })
    }
}

/// Says how far the path does exist, which is where the typing error is.
fn nearest_hint(path: &Path) -> String {
    path.ancestors()
        .skip(1)
        .find(|parent| !parent.as_os_str().is_empty() && parent.exists())
        .map_or_else(
            || "Check the path or the hub id (org/name or org/name@revision)".into(),
            |parent| format!("Check the path: {} exists, what follows does not", parent.display()),
        )
}

fn looks_like_path(text: &str) -> bool {
    let without_revision = text.split('@').next().unwrap_or_default();
    text.starts_with(['.', '/', '~'])
        || text.ends_with('/')
        || text.contains('\\')
        || without_revision.matches('/').count() > 1
        || FILE_EXTENSIONS.iter().any(|known| has_extension(without_revision, known))
}

/// The rules of `huggingface_hub.utils.validate_repo_id`, with the namespace required.
pub(super) fn check_repo(repo: &str) -> Result<(), String> {
    let Some((namespace, name)) = repo.split_once('/') else {
        return Err("an id is org/name".into());
    };
    if name.contains('/') {
        return Err("an id has one slash".into());
    }
    if repo.len() > MAX_REPO_CHARACTERS {
        return Err(format!("longer than {MAX_REPO_CHARACTERS} characters"));
    }
    for part in [namespace, name] {
        if part.is_empty() {
            return Err("an id is org/name".into());
        }
        if let Some(bad) = part.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c))
        {
            return Err(format!("{bad:?} cannot be part of it"));
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err("its parts cannot begin or end with - or .".into());
        }
    }
    if repo.contains("--") || repo.contains("..") {
        return Err("-- and .. cannot be part of it".into());
    }
    if has_extension(name, "git") {
        return Err("it cannot end in .git".into());
    }
    Ok(())
}

/// The rules of `git check-ref-format`, as far as they matter for a URL and a file name.
pub(super) fn check_revision(revision: &str) -> Result<(), String> {
    if revision.is_empty() {
        return Err("the revision after @ is empty".into());
    }
    if revision.len() > MAX_REVISION_CHARACTERS {
        return Err(format!("the revision is longer than {MAX_REVISION_CHARACTERS} characters"));
    }
    if let Some(bad) =
        revision.chars().find(|c| !c.is_ascii_graphic() || "~^:?*[\\@{}".contains(*c))
    {
        return Err(format!("{bad:?} cannot be part of a revision"));
    }
    if revision.split('/').any(|part| {
        part.is_empty()
            || part.starts_with('.')
            || part.ends_with('.')
            || has_extension(part, "lock")
    }) || revision.contains("..")
    {
        return Err(format!("`{revision}` is no revision"));
    }
    Ok(())
}

/// A file's path inside a repository, which becomes a path on this machine: plain names separated
/// by slashes, nothing that leads elsewhere.
pub(super) fn check_file_name(name: &str) -> Result<(), String> {
    let plain = !name.is_empty()
        && name.len() <= 1000
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
        && !name.contains(['\\', '\0'])
        && !name.chars().any(char::is_control);
    if plain { Ok(()) } else { Err(format!("{name:?} is no file name in a repository")) }
}

/// Whether a file name has this extension, in whatever case.
pub(super) fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Whether a revision is a full commit, which never changes its contents.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_and_without_revision() {
        let plain = HubSpec::parse("Qwen/Qwen2.5-0.5B_x").unwrap();
        assert_eq!((plain.repo.as_str(), plain.revision.as_str()), ("Qwen/Qwen2.5-0.5B_x", "main"));
        assert_eq!(plain.name(), "Qwen2.5-0.5B_x");
        assert_eq!(plain.to_string(), "Qwen/Qwen2.5-0.5B_x");
        let pinned: HubSpec = "a/b@refs/pr/3".parse().unwrap();
        assert_eq!((pinned.repo.as_str(), pinned.revision.as_str()), ("a/b", "refs/pr/3"));
        assert_eq!(pinned.to_string(), "a/b@refs/pr/3");
    }

    #[test]
    fn what_the_hub_would_refuse_is_refused() {
        for text in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "org/na me",
            "org/näme",
            "-org/name",
            "org/name-",
            "org/.name",
            "org/name.",
            "or--g/name",
            "org/na..me",
            "org/name.git",
            "org/name@",
            "org/name@a b",
            "org/name@../x",
            "org/name@a..b",
            "org/name@/x",
            "org/name@x/",
            "org/name@a//b",
            "org/name@.hidden",
            "org/name@x.lock",
            "org/name@a@b",
            "org/name@a:b",
            "org/name@a?b",
            "org/na%2Fme",
        ] {
            let error = HubSpec::parse(text).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}");
        }
        assert!(HubSpec::parse(&format!("a/{}", "b".repeat(94))).is_ok());
        assert!(HubSpec::parse(&format!("a/{}", "b".repeat(95))).is_err());
        assert!(HubSpec::parse(&format!("a/b@{}", "c".repeat(201))).is_err());
    }

    #[test]
    fn an_existing_path_wins_over_the_hub() {
        // The tests run in the crate's folder, where src/model looks just like a hub id.
        assert_eq!(ModelSpec::parse("src/model").unwrap(), ModelSpec::Path("src/model".into()));
        let ModelSpec::Hub(spec) = ModelSpec::parse("src/no-such-model").unwrap() else {
            panic!("not a path")
        };
        assert_eq!(spec.repo, "src/no-such-model");
    }

    #[test]
    fn missing_paths_and_nonsense_are_not_found() {
        for text in [
            "./missing",
            "../missing/x",
            "/missing/model",
            "~/model",
            "a/b/c",
            "missing.gguf",
            "org/model.GGUF",
            "org/model.littlebit",
            "missing/",
            "C:\\models",
            "",
            "bare-name",
            "org/na me",
            "org/name@",
        ] {
            let error = ModelSpec::parse(text).expect_err(text);
            assert_eq!(error.exit_code(), 3, "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
        let error = ModelSpec::parse("src/model/missing/model").unwrap_err();
        assert!(error.suggestion().contains("src/model exists"), "{}", error.suggestion());
    }

    #[test]
    fn names_of_repository_files() {
        for good in
            ["config.json", "a/b.safetensors", "model-00001-of-00002.safetensors", "..a", "ü"]
        {
            check_file_name(good).unwrap();
        }
        let long = "x".repeat(256);
        for bad in
            ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\\b", "a\0b", "a\nb", &long]
        {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_full_commits_are_commits() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567"));
        assert!(!is_commit("0123456"));
        assert!(!is_commit("main"));
        assert!(!is_commit("0123456789ABCDEF0123456789abcdef01234567"));
    }
}
