//! Models and data from the Hugging Face hub, or from a mirror of it.
//!
//! Downloads land in the cache that Python's `huggingface_hub` uses, in its layout (see `cache`),
//! so nothing is downloaded twice on a machine where both are used. What is asked and when:
//!
//! - One question finds out which commit a branch stands for; the rest of the run uses that commit,
//!   so all files belong together even if somebody pushes meanwhile.
//! - Files of that commit that are in the cache are taken from there without a question. A revision
//!   that is itself a commit therefore needs no network at all once it is complete.
//! - Without a network, or with the hub down, a complete cached model is used with a warning.
//! - `config.json` comes first and is shown to the caller, who can refuse the architecture before
//!   gigabytes of weights are moved.
//!
//! A plan needs only the headers of the weights, which are read by HTTP ranges (see `outline`).
//!
//! Interrupted downloads continue where they stopped. Lengths are always compared with what the hub
//! announces; large files (stored by the hub under their SHA-256) are hashed as well.
//!
//! The transfer is written on the HTTP client directly rather than on the `hf-hub` crate because
//! that crate (0.5) sends the token to the storage hosts that the hub redirects to, appends a
//! resumed body without looking whether the server continued at the right byte, checks neither
//! length nor hash, uses server headers as file names unseen, and knows no timeouts.

mod address;
mod cache;
mod client;
mod download;
mod outline;
mod pace;
mod patience;
mod resolver;
mod session;
mod spec;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use outline::Outline;
pub use spec::{DEFAULT_REVISION, HubSpec, ModelSpec};

use crate::base::progress::Progress;
use crate::settings::{Settings, Token};
use crate::{Error, Result};
use session::{Found, NoHub, Session};
use spec::{check_file_name, check_repo, check_revision, is_commit};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const SINGLE_WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Downloaded when the repository has them.
const COMPANIONS: &[&str] = &[
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "chat_template.json",
    "tokenizer.model",
    "README.md",
];
/// An index names every tensor once; the largest known ones have some ten megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;
const MAX_SHARDS: usize = 10_000;
/// Texts and questions; the ones that are read have some ten megabytes.
const MAX_DATASET_BYTES: u64 = 4 << 30;

/// How to reach the hub and where to keep what it sends.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// `https://huggingface.co` or a mirror.
    pub endpoint: String,
    /// The folder that holds `models--org--name` folders.
    pub cache_dir: PathBuf,
    /// Sent to `endpoint` and to no other host.
    pub token: Option<Token>,
    /// Use the cache only.
    pub offline: bool,
    /// Further attempts after a broken connection; progress on a file renews them.
    pub retries: u32,
    /// Pause before the first further attempt; doubled each time, up to a minute.
    pub retry_wait: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence on a connection.
    pub stall_timeout: Duration,
}

impl HubOptions {
    /// The defaults with a cache folder.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            retries: 5,
            retry_wait: Duration::from_secs(1),
            // Nobody waits longer to hear that there is no network.
            connect_timeout: Duration::from_secs(4),
            stall_timeout: Duration::from_secs(30),
        }
    }

    /// What the environment asks for. Reads the token file if there is one.
    pub fn from_settings(settings: &Settings) -> Result<Self> {
        let Some(cache_dir) = &settings.hub_cache else {
            return Err(Error::InvalidArgument(
                "there is no home directory for the download cache; set LLM_QUANTIZE_CACHE".into(),
            ));
        };
        Ok(Self {
            endpoint: settings.endpoint.clone(),
            token: settings.hub_token()?,
            offline: settings.offline,
            ..Self::new(cache_dir)
        })
    }
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl RepoKind {
    /// What stands before the id in the address of its page.
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A repository at a revision.
#[derive(Debug, Clone)]
struct Target {
    kind: RepoKind,
    repo: String,
    revision: String,
}

impl Target {
    fn checked(kind: RepoKind, repo: &str, revision: &str) -> Result<Self> {
        check_repo(repo).and_then(|()| check_revision(revision)).map_err(|reason| {
            Error::InvalidArgument(format!("`{repo}@{revision}` is no hub id: {reason}"))
        })?;
        Ok(Self { kind, repo: repo.to_owned(), revision: revision.to_owned() })
    }

    fn at(&self, commit: &str) -> Self {
        Self { revision: commit.to_owned(), ..self.clone() }
    }

    fn describe(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "model",
            RepoKind::Dataset => "dataset",
        };
        if self.revision == DEFAULT_REVISION {
            format!("the {kind} {}", self.repo)
        } else {
            format!("the {kind} {} at {}", self.repo, self.revision)
        }
    }
}

/// Makes a model available on this machine and returns its folder, which looks like any Hugging
/// Face model directory: `config.json`, tokenizer, safetensors.
///
/// `check_config` gets the path of `config.json` before anything large is downloaded (also when
/// everything is cached); its error ends the work.
///
/// Fails with exit code 3 when the repository, the revision or a needed file does not exist (or is
/// not cached, offline), 4 when access is denied, 6 when a file arrives damaged, 1 when the hub
/// cannot be reached or the disk is full.
pub fn fetch(
    spec: &HubSpec,
    options: &HubOptions,
    check_config: &dyn Fn(&Path) -> Result<()>,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let target = Target::checked(RepoKind::Model, &spec.repo, &spec.revision)?;
    let session = Session::new(&target, options, progress);
    match prepare(&session, &target, check_config)? {
        Prepared::Cached(folder) => Ok(folder),
        Prepared::Small { commit, weights } => {
            let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
            let stage = format!("Downloading {spec}");
            let missing = session.ensure_all(&commit, &weights, &stage)?;
            if let Some(file) = missing.first() {
                return Err(session.lacks_weights(file));
            }
            session.cache.set_ref(&target.revision, &commit)?;
            Ok(session.cache.snapshot(&commit))
        }
    }
}

/// Makes everything of a model available but its weights: of those, the headers, which say all that
/// a plan needs. What is cached is taken from the cache. Nothing else is downloaded or kept.
///
/// # Errors
/// Those of [`fetch`].
pub fn fetch_outline(
    spec: &HubSpec,
    options: &HubOptions,
    check_config: &dyn Fn(&Path) -> Result<()>,
    progress: &dyn Progress,
) -> Result<Outline> {
    let target = Target::checked(RepoKind::Model, &spec.repo, &spec.revision)?;
    let session = Session::new(&target, options, progress);
    match prepare(&session, &target, check_config)? {
        Prepared::Cached(folder) => Ok(Outline::complete(folder)),
        Prepared::Small { commit, weights } => {
            let outline = outline::fetch(&session, &commit, &weights)?;
            if outline.is_complete() {
                session.cache.set_ref(&target.revision, &commit)?;
            }
            Ok(outline)
        }
    }
}

/// A model whose weights may be missing still.
enum Prepared {
    /// The cache has all of it.
    Cached(PathBuf),
    /// The small files of a commit are there; these are its weight files.
    Small { commit: String, weights: Vec<String> },
}

/// Fetches everything but the weights.
fn prepare(
    session: &Session<'_>,
    target: &Target,
    check_config: &dyn Fn(&Path) -> Result<()>,
) -> Result<Prepared> {
    if is_commit(&target.revision) && session.cache.file(&target.revision, TOKENIZER).is_some() {
        // A commit never changes, and weights come last: with them everything is there.
        let cached = session.cached_model(Some(&target.revision), &NoHub::NotNeeded, check_config);
        if !matches!(cached, Err(Error::ModelNotFound { .. })) {
            return cached.map(Prepared::Cached);
        }
    }
    let commit = match session.commit(CONFIG)? {
        Found::Now(commit) => commit,
        Found::Cached(commit, why) => {
            let cached = session.cached_model(commit.as_deref(), &why, check_config);
            return cached.map(Prepared::Cached);
        }
    };

    let Some(config) = session.ensure(&commit, CONFIG)? else {
        return Err(session.no_config(&commit));
    };
    session.remember_first(&commit)?;
    check_config(&config)?;
    session.ensure_all(&commit, COMPANIONS, "Downloading tokenizer")?;
    if session.cache.file(&commit, CHAT_TEMPLATE).is_some() {
        let more = session.more_templates(&commit);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        session.ensure_all(&commit, &more, "Downloading chat templates")?;
    }
    let weights = session.weight_files(&commit)?;
    Ok(Prepared::Small { commit, weights })
}

/// Makes one file of a repository available on this machine and returns its path.
///
/// A `revision` that is a full commit is taken from the cache without asking the hub. Errors are
/// those of [`fetch`].
pub fn fetch_file(
    kind: RepoKind,
    repo: &str,
    revision: &str,
    file: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    check_file_name(file).map_err(Error::InvalidArgument)?;
    let target = Target::checked(kind, repo, revision)?;
    let session = Session::new(&target, options, progress);
    let commit = match session.commit(file)? {
        Found::Now(commit) => commit,
        Found::Cached(commit, why) => {
            let path = commit.and_then(|commit| session.cache.file(&commit, file));
            return path.ok_or_else(|| session.not_cached(file, &why));
        }
    };
    let missing = session.ensure_all(&commit, &[file], &format!("Downloading {file}"))?;
    if !missing.is_empty() {
        return Err(Error::model_not_found(format!("{} has no file `{file}`", target.describe())));
    }
    session.cache.set_ref(&target.revision, &commit)?;
    Ok(session.cache.snapshot(&commit).join(file))
}

/// [`fetch_file`] from a dataset repository.
pub fn fetch_dataset_file(
    repo: &str,
    revision: &str,
    file: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    fetch_file(RepoKind::Dataset, repo, revision, file, options, progress)
}
