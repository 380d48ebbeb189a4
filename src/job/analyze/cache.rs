//! Importance matrices kept for the next analysis of the same model on the same tokens.
//!
//! An entry is a finished file, named after the fingerprint of the run that made it. The cache is a
//! help, not a duty: where it cannot be used, the work is done and a warning says so.

use std::path::{Path, PathBuf};

use crate::base::progress::Progress;
use crate::files::checkpoint::Fingerprint;
use crate::files::imatrix::ImportanceSums;
use crate::{Error, Result};

/// A place for the result of one run.
#[derive(Debug)]
pub(super) struct Entry {
    path: PathBuf,
}

impl Entry {
    pub(super) fn new(folder: &Path, fingerprint: &Fingerprint) -> Self {
        let name = format!("{}.imatrix", fingerprint.folder_name());
        Self { path: folder.join(name) }
    }

    /// What an earlier run has put there.
    pub(super) fn load(&self, progress: &dyn Progress) -> Option<ImportanceSums> {
        if !self.path.is_file() {
            return None;
        }
        match ImportanceSums::open(&self.path) {
            Ok(sums) => {
                progress.note(&format!("Using the matrix in the cache: {}", self.path.display()));
                Some(sums)
            }
            Err(error) => {
                progress.warn(&format!("the cached matrix cannot be used: {error}"));
                None
            }
        }
    }

    /// Puts the result there.
    pub(super) fn store(&self, sums: &ImportanceSums, progress: &dyn Progress) {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let kept: Result<()> = std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(folder, e))
            .and_then(|()| sums.write_gguf(&self.path));
        if let Err(error) = kept {
            progress.warn(&format!("the matrix is not kept in the cache: {error}"));
        }
    }
}
