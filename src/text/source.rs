//! Which text a run calibrates on and which one it measures with, and where each came from.
//!
//! The order: the user's file; WikiText-2 from the hub's cache or the hub; the built-in text, with
//! a notice. The two texts never overlap, so that a perplexity is always measured on text that the
//! compression has not seen.

use std::path::{Path, PathBuf};

use super::documents::{ChatRenderer, Coverage, DocumentFile};
use super::{builtin, wikitext};
use crate::base::progress::Progress;
use crate::{Error, Result};

/// Fetches a file of a hub dataset, or finds it in the cache: `(dataset, revision, file)`.
pub(crate) type DatasetFetcher<'a> = &'a dyn Fn(&str, &str, &str) -> Result<PathBuf>;

/// Text to read for each token wanted, bytes: about four times what English takes in common
/// vocabularies, so that windows can be spread over more text than they use.
const BYTES_PER_TOKEN: usize = 16;
/// Least and most that is read of a file for one purpose, bytes.
const LEAST_TEXT: usize = 1 << 20;
const MOST_TEXT: usize = 256 << 20;

/// What text is wanted.
#[derive(Clone, Copy)]
pub struct TextRequest<'a> {
    /// The user's file to calibrate on.
    pub calibration_data: Option<&'a Path>,
    /// The user's file to measure with. Without it, the last fifth of `calibration_data` is.
    pub evaluation_data: Option<&'a Path>,
    /// Tokens to calibrate on: of a larger file, only a part is read.
    pub calibration_tokens: usize,
    /// Tokens to measure with, or as many as there are.
    pub evaluation_tokens: Option<usize>,
    /// Renders conversations with the model's chat template, if it has one.
    pub render: Option<ChatRenderer<'a>>,
    /// Access to the hub or its cache, if it may be asked.
    pub fetch: Option<DatasetFetcher<'a>>,
}

impl Default for TextRequest<'_> {
    /// Whatever is found without a user's file and without the hub: the built-in text.
    fn default() -> Self {
        Self {
            calibration_data: None,
            evaluation_data: None,
            calibration_tokens: 256 * 2048,
            evaluation_tokens: None,
            render: None,
            fetch: None,
        }
    }
}

/// Text to calibrate on and text to measure with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSource {
    /// Where the text to calibrate on came from: `wikitext-2`, `built-in`, or a file name.
    pub name: String,
    /// Where the text to measure with came from, with the part of it that it is.
    pub evaluation_name: String,
    /// Documents to calibrate on.
    pub calibration: Vec<String>,
    /// Documents to measure with; none of them is in `calibration`.
    pub evaluation: Vec<String>,
    /// What the user should know about the choice: always set when it is not what was asked for or
    /// what is usual. Already passed to [`Progress::note`].
    pub notice: Option<String>,
}

impl TextSource {
    /// Finds the text for a request.
    ///
    /// # Errors
    /// [`Error::Calibration`] when a file that the user named cannot be used: no other text takes
    /// its place. The hub being out of reach is no error; the notice says so.
    pub fn open(request: &TextRequest, progress: &dyn Progress) -> Result<Self> {
        let mut source = match request.calibration_data {
            Some(path) => Self::from_file(path, request)?,
            None => Self::default_text(request)?,
        };
        if let Some(path) = request.evaluation_data {
            if request.calibration_data.is_some_and(|other| same_file(path, other)) {
                return Err(Error::Calibration(format!(
                    "{}: the same file cannot serve to calibrate on and to measure with; leave \
                     one out and its last fifth is reserved",
                    path.display()
                )));
            }
            let file = DocumentFile::open(path, request.render)?;
            source.evaluation = file.read(Coverage::First, evaluation_limit(request))?;
            source.evaluation_name = file_name(path);
        }
        if let Some(notice) = &source.notice {
            progress.note(notice);
        }
        Ok(source)
    }

    /// The text that travels with the program.
    #[must_use]
    pub fn builtin() -> Self {
        let documents = |text| builtin::documents(text).map(str::to_owned).collect();
        Self {
            name: builtin::NAME.to_owned(),
            evaluation_name: format!("{} (held out)", builtin::NAME),
            calibration: documents(builtin::CALIBRATION),
            evaluation: documents(builtin::HELD_OUT),
            notice: None,
        }
    }

    fn from_file(path: &Path, request: &TextRequest) -> Result<Self> {
        let file = DocumentFile::open(path, request.render)?;
        let name = file_name(path);
        let limit = text_limit(request.calibration_tokens);
        if request.evaluation_data.is_some() {
            let calibration = file.read(Coverage::Spread, limit)?;
            let evaluation = Vec::new();
            return Ok(Self {
                name,
                evaluation_name: String::new(),
                calibration,
                evaluation,
                notice: None,
            });
        }
        let (calibration, evaluation) = file.read_split(limit, evaluation_limit(request))?;
        let evaluation_name = format!("{name} (last fifth)");
        let notice =
            Some(format!("Calibrating on the first four fifths of {name}, measuring on the rest"));
        Ok(Self { name, evaluation_name, calibration, evaluation, notice })
    }

    fn default_text(request: &TextRequest) -> Result<Self> {
        let fetched = request
            .fetch
            .map(|fetch| fetch(wikitext::DATASET, wikitext::REVISION, wikitext::ARCHIVE));
        let loaded = match fetched {
            None => Err("the hub is not asked".to_owned()),
            Some(Err(interrupted @ Error::Interrupted { .. })) => return Err(interrupted),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(archive)) => Self::wikitext(&archive),
        };
        Ok(loaded.unwrap_or_else(|reason| Self {
            notice: Some(format!(
                "Using the built-in text to calibrate and to measure: WikiText-2 is not \
                     available ({reason}); give your own with --calibration-data"
            )),
            ..Self::builtin()
        }))
    }

    fn wikitext(archive: &Path) -> Result<Self, String> {
        let [train, test] = wikitext::load(archive, [wikitext::TRAIN, wikitext::TEST])?;
        Ok(Self {
            name: format!("{} train", wikitext::NAME),
            evaluation_name: format!("{} test", wikitext::NAME),
            calibration: vec![train],
            evaluation: vec![test],
            notice: None,
        })
    }
}

fn text_limit(tokens: usize) -> usize {
    tokens.saturating_mul(BYTES_PER_TOKEN).clamp(LEAST_TEXT, MOST_TEXT)
}

fn evaluation_limit(request: &TextRequest) -> usize {
    request.evaluation_tokens.map_or(MOST_TEXT, text_limit)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
