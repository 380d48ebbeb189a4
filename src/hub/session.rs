//! One revision of a repository: which commit it is, what the cache has of it, and what has to be
//! downloaded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::{Client, Remote, Trouble};
use super::spec::{check_file_name, has_extension, is_commit};
use super::{
    CONFIG, HubOptions, MAX_DATASET_BYTES, MAX_INDEX_BYTES, MAX_SHARDS, RepoKind, SINGLE_WEIGHTS,
    TOKENIZER, Target, WEIGHTS_INDEX, address, download, outline,
};
use crate::base::progress::Progress;
use crate::base::{input, json};
use crate::files::chat_files::{MORE_TEMPLATES, MOST_TEMPLATES};
use crate::files::space::check_free_space;
use crate::files::texts::{MAX_CONFIG, MAX_TOKENIZER};
use crate::{Error, Result};

/// Which commit to use, and whether the hub can be asked about it.
pub(super) enum Found {
    /// The hub answers, or need not be asked.
    Now(String),
    /// Only the cache can be used: the commit it knows for the revision, and the reason.
    Cached(Option<String>, NoHub),
}

/// Why the hub is not asked.
pub(super) enum NoHub {
    NotNeeded,
    Offline,
    Failed(Error),
}

/// The files of one revision, in the cache and on the hub.
pub(super) struct Session<'a> {
    pub(super) target: &'a Target,
    pub(super) client: Client,
    pub(super) cache: RepoCache,
    options: &'a HubOptions,
    pub(super) progress: &'a dyn Progress,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        target: &'a Target,
        options: &'a HubOptions,
        progress: &'a dyn Progress,
    ) -> Self {
        let client = Client::new(options);
        let cache = RepoCache::new(&options.cache_dir, target);
        Self { target, client, cache, options, progress }
    }

    /// Finds out which commit the revision stands for by asking about `file`.
    pub(super) fn commit(&self, file: &str) -> Result<Found> {
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
                .warn(&format!("the token travels unencrypted to {}", self.client.shown()));
        }
        match self.ask(self.target, file) {
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

    /// Asks about a file, patiently; but where nothing has ever answered, there is no network.
    fn ask(&self, target: &Target, file: &str) -> Result<Remote, Trouble> {
        let mut patience = self.client.patience();
        loop {
            match self.client.remote(target, file) {
                Ok(remote) => return Ok(remote),
                Err(trouble @ Trouble::Unreachable(_)) if !self.client.has_answered() => {
                    return Err(trouble);
                }
                Err(trouble) => {
                    patience.wait_after(trouble, &format!("Looking up {file}"), self.progress)?;
                }
            }
        }
    }

    /// Further chat templates of a commit, as far as the hub lists its files.
    pub(super) fn more_templates(&self, commit: &str) -> Vec<String> {
        let listed = self.client.listing(&self.target.at(commit)).unwrap_or_default();
        let is_one = |name: &String| {
            let file = name.strip_prefix(MORE_TEMPLATES).and_then(|rest| rest.strip_prefix('/'));
            file.is_some_and(|file| has_extension(file, "jinja") && !file.contains('/'))
                && check_file_name(name).is_ok()
        };
        listed.into_iter().filter(is_one).take(MOST_TEMPLATES).collect()
    }

    /// [`Self::ensure_all`] for one file; `None` if the commit has none of this name.
    pub(super) fn ensure(&self, commit: &str, file: &str) -> Result<Option<PathBuf>> {
        let missing = self.ensure_all(commit, &[file], &format!("Downloading {file}"))?;
        Ok(missing.is_empty().then(|| self.cache.snapshot(commit).join(file)))
    }

    /// Downloads those of `files` that are not cached, as one stage of progress in bytes. Returns
    /// those that the commit does not have.
    pub(super) fn ensure_all(
        &self,
        commit: &str,
        files: &[&str],
        stage: &str,
    ) -> Result<Vec<String>> {
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
            match self.ask(&target, file) {
                Ok(mut remote) => {
                    if remote.size.is_none() && has_extension(file, "safetensors") {
                        // A body without an end must not fill the disk.
                        remote.size = Some(outline::header(self, &target, file)?.file_bytes);
                    }
                    wanted.push((file, remote));
                }
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
            let most = most_bytes(self.target.kind, file);
            download::fetch_blob(
                &self.client,
                &self.cache,
                &download::File { target: &target, name: file, remote: &remote, most },
                self.progress,
            )?;
            self.cache.link(commit, file, &remote.etag)?;
        }
        self.progress.finish();
        Ok(missing)
    }

    /// Writes the ref early if there is none, so that what an interrupted run got can be found; an
    /// existing one moves only when the new commit is complete, so that offline runs keep working.
    pub(super) fn remember_first(&self, commit: &str) -> Result<()> {
        match self.cache.commit_of(&self.target.revision) {
            Some(_) => Ok(()),
            None => self.cache.set_ref(&self.target.revision, commit),
        }
    }

    /// The weight files of a commit: one file, or the shards that the index names.
    pub(super) fn weight_files(&self, commit: &str) -> Result<Vec<String>> {
        let target = self.target.at(commit);
        if self.cache.file(commit, SINGLE_WEIGHTS).is_some() {
            return Ok(vec![SINGLE_WEIGHTS.into()]);
        }
        if !self.cache.is_known_absent(commit, SINGLE_WEIGHTS) {
            match self.ask(&target, SINGLE_WEIGHTS) {
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
    pub(super) fn cached_model(
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

    pub(super) fn not_cached(&self, file: &str, why: &NoHub) -> Error {
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
            NoHub::Failed(error) => Error::Network {
                message: format!("{error}, and {what} is not in the cache"),
                suggestion: error.suggestion(),
            },
        }
    }

    pub(super) fn no_config(&self, commit: &str) -> Error {
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

    /// An index that promises a file which is not there.
    pub(super) fn lacks_weights(&self, file: &str) -> Error {
        Error::model_not_found(format!(
            "{} is incomplete on {}: its index names `{file}`, which is not there",
            self.target.describe(),
            self.client.shown()
        ))
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

/// The most that a file may have, where its kind says something about that: so that a server without
/// end does not fill the disk. Far above the largest real ones.
fn most_bytes(kind: RepoKind, file: &str) -> Option<u64> {
    if kind == RepoKind::Dataset {
        return Some(MAX_DATASET_BYTES);
    }
    match file {
        WEIGHTS_INDEX => Some(MAX_INDEX_BYTES),
        _ if has_extension(file, "safetensors") => None,
        TOKENIZER | "tokenizer.model" => Some(MAX_TOKENIZER),
        _ => Some(MAX_CONFIG),
    }
}

/// The distinct files that a weight index names, in order.
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let length = fs::metadata(index).map_err(|e| Error::io(index, e))?.len();
    if length > MAX_INDEX_BYTES {
        return Err(Error::damaged(index, format!("{length} bytes are too many for an index")));
    }
    let bytes = input::read(index, MAX_INDEX_BYTES).map_err(|e| Error::io(index, e))?;
    let parsed: Index = json::read_bytes_as(&bytes)
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
