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
mod spec;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use spec::{DEFAULT_REVISION, HubSpec, ModelSpec};

use crate::formats::space::check_free_space;
use crate::progress::Progress;
use crate::settings::{Settings, Token};
use crate::{Error, Result};
use cache::RepoCache;
use client::{Client, Remote, Trouble};
use spec::{check_file_name, check_repo, check_revision, has_extension, is_commit};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE_WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Downloaded when the repository has them.
const COMPANIONS: &[&str] = &[
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "README.md",
];
/// An index names every tensor once; the largest known ones have some ten megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;
const MAX_SHARDS: usize = 10_000;

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
            connect_timeout: Duration::from_secs(10),
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
    if is_commit(&target.revision) && session.cache.file(&target.revision, TOKENIZER).is_some() {
        // A commit never changes, and weights come last: with them everything is there.
        let cached = session.cached_model(Some(&target.revision), &NoHub::NotNeeded, check_config);
        if !matches!(cached, Err(Error::ModelNotFound { .. })) {
            return cached;
        }
    }
    let commit = match session.commit(CONFIG)? {
        Found::Now(commit) => commit,
        Found::Cached(commit, why) => {
            return session.cached_model(commit.as_deref(), &why, check_config);
        }
    };

    let Some(config) = session.ensure(&commit, CONFIG)? else {
        return Err(session.no_config(&commit));
    };
    session.remember_first(&commit)?;
    check_config(&config)?;
    session.ensure_all(&commit, COMPANIONS, "Downloading tokenizer")?;
    let weights = session.weight_files(&commit)?;
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let missing = session.ensure_all(&commit, &weights, &format!("Downloading {spec}"))?;
    if let Some(file) = missing.first() {
        return Err(Error::model_not_found(format!(
            "{} is incomplete on {}: its index names `{file}`, which is not there",
            target.describe(),
            session.client.endpoint()
        )));
    }
    session.cache.set_ref(&target.revision, &commit)?;
    Ok(session.cache.snapshot(&commit))
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

/// Which commit to use, and whether the hub can be asked about it.
enum Found {
    /// The hub answers, or need not be asked.
    Now(String),
    /// Only the cache can be used: the commit it knows for the revision, and the reason.
    Cached(Option<String>, NoHub),
}

/// Why the hub is not asked.
enum NoHub {
    NotNeeded,
    Offline,
    Failed(Error),
}

struct Session<'a> {
    target: &'a Target,
    client: Client,
    cache: RepoCache,
    options: &'a HubOptions,
    progress: &'a dyn Progress,
}

impl<'a> Session<'a> {
    fn new(target: &'a Target, options: &'a HubOptions, progress: &'a dyn Progress) -> Self {
        let client = Client::new(options);
        let cache = RepoCache::new(&options.cache_dir, target);
        Self { target, client, cache, options, progress }
    }

    /// Finds out which commit the revision stands for by asking about `file`.
    fn commit(&self, file: &str) -> Result<Found> {
        let revision = &self.target.revision;
        let cached = self.cache.commit_of(revision);
        if self.options.offline {
            return Ok(Found::Cached(cached, NoHub::Offline));
        }
        if let Some(commit) = &cached
            && is_commit(revision)
            && self.cache.file(commit, file).is_some()
        {
            return Ok(Found::Now(commit.clone()));
        }
        if self.options.token.is_some()
            && self.options.endpoint.starts_with("http://")
            && !address::is_loopback(&self.options.endpoint)
        {
            self.progress
                .warn(&format!("the token travels unencrypted to {}", self.options.endpoint));
        }
        match self.ask(self.target, file, false) {
            Ok(remote) => Ok(Found::Now(remote.commit)),
            Err(Trouble::Missing(error)) if file == CONFIG => {
                Err(self.explain_missing_config(self.target, error))
            }
            Err(trouble @ (Trouble::Unreachable(_) | Trouble::Passing { .. })) => {
                Ok(Found::Cached(cached, NoHub::Failed(self.client.give_up(trouble))))
            }
            Err(trouble) => Err(self.client.give_up(trouble)),
        }
    }

    /// Asks about a file, patiently. `insist`: also when no connection can be made, which the
    /// first question takes for "no network" at once.
    fn ask(&self, target: &Target, file: &str, insist: bool) -> Result<Remote, Trouble> {
        let mut patience = self.client.patience();
        loop {
            match self.client.remote(target, file) {
                Ok(remote) => return Ok(remote),
                Err(trouble @ Trouble::Unreachable(_)) if !insist => return Err(trouble),
                Err(trouble) => {
                    patience.wait_after(trouble, &format!("Looking up {file}"), self.progress)?;
                }
            }
        }
    }

    /// [`Self::ensure_all`] for one file; `None` if the commit has none of this name.
    fn ensure(&self, commit: &str, file: &str) -> Result<Option<PathBuf>> {
        let missing = self.ensure_all(commit, &[file], &format!("Downloading {file}"))?;
        Ok(missing.is_empty().then(|| self.cache.snapshot(commit).join(file)))
    }

    /// Downloads those of `files` that are not cached, as one stage of progress in bytes. Returns
    /// those that the commit does not have.
    fn ensure_all(&self, commit: &str, files: &[&str], stage: &str) -> Result<Vec<String>> {
        let target = self.target.at(commit);
        let (mut wanted, mut missing) = (Vec::new(), Vec::new());
        for &file in files {
            if self.cache.file(commit, file).is_some() {
                continue;
            }
            if self.cache.is_known_absent(commit, file) {
                missing.push(file.to_owned());
                continue;
            }
            match self.ask(&target, file, true) {
                Ok(remote) => wanted.push((file, remote)),
                Err(Trouble::Missing(_)) => {
                    self.cache.mark_absent(commit, file);
                    missing.push(file.to_owned());
                }
                Err(trouble) => return Err(self.client.give_up(trouble)),
            }
        }
        if wanted.is_empty() {
            return Ok(missing);
        }

        let total =
            wanted.iter().filter_map(|(_, remote)| remote.size).fold(0, u64::saturating_add);
        let present = wanted.iter().fold(0_u64, |sum, (_, remote)| {
            let [blob, incomplete] =
                [self.cache.blob(&remote.etag), self.cache.incomplete(&remote.etag)];
            let length =
                fs::metadata(blob).or_else(|_| fs::metadata(incomplete)).map_or(0, |m| m.len());
            sum.saturating_add(length)
        });
        check_free_space(self.cache.folder(), total.saturating_sub(present))?;

        self.progress.start(stage, total, "bytes");
        for (file, remote) in wanted {
            download::fetch_blob(&self.client, &self.cache, &target, file, &remote, self.progress)?;
            self.cache.link(commit, file, &remote.etag)?;
        }
        self.progress.finish();
        Ok(missing)
    }

    /// Writes the ref early if there is none, so that what an interrupted run got can be found; an
    /// existing one moves only when the new commit is complete, so that offline runs keep working.
    fn remember_first(&self, commit: &str) -> Result<()> {
        match self.cache.commit_of(&self.target.revision) {
            Some(_) => Ok(()),
            None => self.cache.set_ref(&self.target.revision, commit),
        }
    }

    /// The weight files of a commit: one file, or the shards that the index names.
    fn weight_files(&self, commit: &str) -> Result<Vec<String>> {
        let target = self.target.at(commit);
        if self.cache.file(commit, SINGLE_WEIGHTS).is_some() {
            return Ok(vec![SINGLE_WEIGHTS.into()]);
        }
        if !self.cache.is_known_absent(commit, SINGLE_WEIGHTS) {
            match self.ask(&target, SINGLE_WEIGHTS, true) {
                Ok(_) => return Ok(vec![SINGLE_WEIGHTS.into()]),
                Err(Trouble::Missing(_)) => self.cache.mark_absent(commit, SINGLE_WEIGHTS),
                Err(trouble) => return Err(self.client.give_up(trouble)),
            }
        }
        match self.ensure(commit, WEIGHTS_INDEX)? {
            Some(index) => shards(&index),
            None => Err(self.no_weights(&target)),
        }
    }

    /// The model as far as the cache has it, when the hub cannot be asked.
    fn cached_model(
        &self,
        commit: Option<&str>,
        why: &NoHub,
        check_config: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let Some(commit) = commit else { return Err(self.not_cached(CONFIG, why)) };
        let Some(config) = self.cache.file(commit, CONFIG) else {
            return Err(self.not_cached(CONFIG, why));
        };
        check_config(&config)?;
        if self.cache.file(commit, SINGLE_WEIGHTS).is_none() {
            let Some(index) = self.cache.file(commit, WEIGHTS_INDEX) else {
                return Err(self.not_cached(SINGLE_WEIGHTS, why));
            };
            for shard in shards(&index)? {
                if self.cache.file(commit, &shard).is_none() {
                    return Err(self.not_cached(&shard, why));
                }
            }
        }
        if let NoHub::Failed(error) = why {
            self.progress.warn(&format!("{error}; using the copy in the cache"));
        }
        Ok(self.cache.snapshot(commit))
    }

    fn not_cached(&self, file: &str, why: &NoHub) -> Error {
        let what = format!("`{file}` of {}", self.target.describe());
        let cache = self.cache.folder().display();
        match why {
            NoHub::NotNeeded => {
                Error::model_not_found(format!("{what} is not in the cache ({cache})"))
            }
            NoHub::Offline => Error::ModelNotFound {
                message: format!("{what} is not in the cache ({cache}), and offline mode is on"),
                suggestion: "Unset HF_HUB_OFFLINE and run again to download it".into(),
            },
            NoHub::Failed(error) => Error::General(format!("{error}. {what} is not in the cache")),
        }
    }

    fn no_config(&self, commit: &str) -> Error {
        let target = self.target.at(commit);
        let error = Error::model_not_found(format!("{} has no {CONFIG}", self.target.describe()));
        self.explain_missing_config(&target, error)
    }

    /// A repository without `config.json` often holds GGUF files only: say so.
    fn explain_missing_config(&self, target: &Target, error: Error) -> Error {
        let files = self.client.listing(target).unwrap_or_default();
        let gguf: Vec<&str> =
            files.iter().map(String::as_str).filter(|name| has_extension(name, "gguf")).collect();
        let Some(first) = gguf.first() else { return error };
        Error::ModelNotFound {
            message: format!(
                "{} has no {CONFIG}; it holds {} GGUF file(s), among them `{first}`",
                self.target.describe(),
                gguf.len()
            ),
            suggestion: "Download one of the GGUF files and give its path".into(),
        }
    }

    fn no_weights(&self, target: &Target) -> Error {
        let files = self.client.listing(target).unwrap_or_default();
        let other = files.iter().find(|name| {
            ["bin", "pt", "pth", "gguf", "safetensors", "h5", "msgpack"]
                .iter()
                .any(|extension| has_extension(name, extension))
        });
        let has = other.map_or_else(String::new, |name| format!("; it has `{name}`"));
        Error::Unsupported {
            message: format!(
                "{} has neither {SINGLE_WEIGHTS} nor {WEIGHTS_INDEX}{has}",
                self.target.describe()
            ),
            suggestion: "Use a repository with safetensors weights, or the path of a GGUF file"
                .into(),
        }
    }
}

/// The distinct files that a weight index names, in order.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let length = fs::metadata(index).map_err(|e| Error::io(index, e))?.len();
    if length > MAX_INDEX_BYTES {
        return Err(Error::damaged(index, format!("{length} bytes are too many for an index")));
    }
    let bytes = fs::read(index).map_err(|e| Error::io(index, e))?;
    let parsed: Index = serde_json::from_slice(&bytes)
        .map_err(|error| Error::damaged(index, format!("no weight index: {error}")))?;
    let files: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        return Err(Error::damaged(index, format!("names {} weight files", files.len())));
    }
    for file in &files {
        check_file_name(file).map_err(|reason| Error::damaged(index, reason))?;
    }
    Ok(files.into_iter().collect())
}
