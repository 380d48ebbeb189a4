//! Types that the user names for particular tensors.

use fancy_regex::Regex;

use crate::base::suggest::did_you_mean;
use crate::codec::StoredType;
use crate::{Error, Result};

/// A `--tensor-type`: a pattern that is searched for in names, and the type.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
    kind: StoredType,
}

/// What the user wants otherwise than the level has it.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--tensor-type`, in the order given.
    pub(super) patterns: Vec<Pattern>,
    /// `--output-tensor-type`; also for embeddings that serve as the output matrix.
    pub output: Option<StoredType>,
    /// `--token-embedding-type`.
    pub embedding: Option<StoredType>,
    /// `--pure`: the level's base type for every tensor.
    pub pure: bool,
    /// `--leave-output-tensor`.
    pub leave_output: bool,
}

impl Overrides {
    /// Adds a `REGEX=TYPE`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the text has no `=`, the pattern is no regular expression
    /// or the type is unknown.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (pattern, kind) = text
            .rsplit_once('=')
            .filter(|(pattern, kind)| !pattern.is_empty() && !kind.is_empty())
            .ok_or_else(|| {
                Error::InvalidArgument(format!("--tensor-type {text}: REGEX=TYPE is expected"))
            })?;
        let kind = parse_type(kind)?;
        let regex = Regex::new(pattern)
            .map_err(|e| Error::InvalidArgument(format!("--tensor-type {pattern}: {e}")))?;
        self.patterns.push(Pattern { text: pattern.into(), regex, kind });
        Ok(())
    }

    /// The first pattern that is found in `name`, and its type. A pattern that gives up (too much
    /// backtracking) does not match.
    #[must_use]
    pub fn matching(&self, name: &str) -> Option<(&str, StoredType)> {
        self.patterns
            .iter()
            .find(|pattern| pattern.regex.is_match(name).unwrap_or(false))
            .map(|pattern| (pattern.text.as_str(), pattern.kind))
    }

    /// The patterns, in the order given.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| pattern.text.as_str())
    }

    /// Whether the pattern of that text is found in `name`.
    #[must_use]
    pub fn finds(&self, text: &str, name: &str) -> bool {
        let mut patterns = self.patterns.iter().filter(|pattern| pattern.text == text);
        patterns.any(|pattern| pattern.regex.is_match(name).unwrap_or(false))
    }

    /// Patterns that no name of `names` contains.
    #[must_use]
    pub fn unused(&self, names: &[&str]) -> Vec<&str> {
        self.patterns
            .iter()
            .filter(|pattern| {
                !names.iter().any(|name| pattern.regex.is_match(name).unwrap_or(false))
            })
            .map(|pattern| pattern.text.as_str())
            .collect()
    }

    /// Everything that was asked for, as one line: the same text for the same request.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut parts: Vec<String> = self
            .patterns
            .iter()
            .map(|pattern| format!("{}={}", pattern.text, pattern.kind.name()))
            .collect();
        parts.extend(self.embedding.map(|kind| format!("embedding={}", kind.name())));
        parts.extend(self.output.map(|kind| format!("output={}", kind.name())));
        parts.extend(self.pure.then(|| "pure".to_owned()));
        parts.extend(self.leave_output.then(|| "leave-output".to_owned()));
        parts.join(" ")
    }
}

/// The tensor type of that name, in any case.
///
/// # Errors
/// [`Error::InvalidArgument`] with the names there are.
pub fn parse_type(text: &str) -> Result<StoredType> {
    StoredType::from_name(text.trim()).ok_or_else(|| {
        let names: Vec<&str> = StoredType::of_weights().map(StoredType::name).collect();
        Error::InvalidArgument(format!(
            "{text} is not a tensor type{}; there are {}",
            did_you_mean(text, names.iter().copied()),
            names.join(", ")
        ))
    })
}
