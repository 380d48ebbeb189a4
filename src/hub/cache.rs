//! The Hugging Face cache on the disk, in the layout that Python's `huggingface_hub` reads and
//! writes, so that each finds what the other has downloaded:
//!
//! ```text
//! models--org--name/
//!   blobs/<etag>                     contents, named by what they are
//!   blobs/<etag>.incomplete          a download that was interrupted
//!   refs/<revision>                  the commit that a branch or tag stood for
//!   snapshots/<commit>/<file>        relative link to ../../blobs/<etag>
//!   .no_exist/<commit>/<file>        empty: that commit has no such file
//! .locks/models--org--name/<etag>.lock   held while a blob is written
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::patience::sleep;
use super::spec::is_commit;
use super::{RepoKind, Target};
use crate::base::input;
use crate::base::progress::Progress;
use crate::files::atomic::write_atomically;
use crate::files::lock::{Attempt, FileLock};
use crate::{Error, Result};

/// One repository's part of the cache.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, target: &Target) -> Self {
        let kind = match target.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        let name = format!("{kind}--{}", target.repo.replace('/', "--"));
        Self { folder: cache_dir.join(&name), locks: cache_dir.join(".locks").join(name) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that `revision` stood for when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_owned());
        }
        let commit =
            input::read_to_string(&self.folder.join("refs").join(revision), 1 << 10).ok()?;
        let commit = commit.trim();
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| commit.to_owned())
    }

    /// The folder with a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// A file that is there, contents and all (a link whose blob is gone does not count).
    pub(super) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(name);
        path.is_file().then_some(path)
    }

    /// Whether the hub has said that the commit lacks this file.
    pub(super) fn is_known_absent(&self, commit: &str, name: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(name).exists()
    }

    /// Remembers that the commit lacks this file. Best effort: it only saves a question.
    pub(super) fn mark_absent(&self, commit: &str, name: &str) {
        let path = self.folder.join(".no_exist").join(commit).join(name);
        if let Some(parent) = path.parent()
            && fs::create_dir_all(parent).is_ok()
        {
            let _ = File::create(path);
        }
    }

    /// Remembers what a branch or tag stands for.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        write_atomically(&path, commit.as_bytes())
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Shows a finished blob under its name in a commit's folder.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<PathBuf> {
        static LINKS: AtomicU64 = AtomicU64::new(0);
        let path = self.snapshot(commit).join(name);
        make_parent(&path)?;
        let mut relative = PathBuf::from("../..");
        relative.extend(std::iter::repeat_n("..", name.matches('/').count()));
        relative.extend(["blobs", etag]);

        // Made under another name and renamed, so that a stale link is replaced in one step.
        let mut temporary = path.clone().into_os_string();
        let number = LINKS.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".tmp-{}-{number}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        let linked = match std::os::unix::fs::symlink(&relative, &temporary) {
            Ok(()) => fs::rename(&temporary, &path),
            // File systems without links (exFAT, some shares): the contents move here.
            Err(_) => fs::rename(self.blob(etag), &path),
        };
        linked.map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }

    /// Waits until nobody else, Python included, is writing this blob.
    pub(super) fn lock(&self, etag: &str, progress: &dyn Progress) -> Result<FileLock> {
        const PAUSE: Duration = Duration::from_millis(500);
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let mut told = false;
        loop {
            match FileLock::attempt(&path)? {
                Attempt::Locked(lock) => return Ok(lock),
                Attempt::Gone => {}
                Attempt::Busy(_) => {
                    if !told {
                        told = true;
                        progress.note("Waiting for another process that downloads the same file");
                    }
                    sleep(PAUSE, progress)?;
                }
            }
        }
    }
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| Error::io(parent, e)),
        None => Err(Error::io(path, io::Error::from(io::ErrorKind::InvalidInput))),
    }
}
