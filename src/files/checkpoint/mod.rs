//! Finished work of long runs, kept so that a run that was stopped, killed or cut off from power
//! continues where it was.
//!
//! A run is described by its [`Fingerprint`]; what it has finished is a set of units, each in a
//! file of its own:
//!
//! ```text
//! <checkpoint dir>/
//!   <model>-<hash of the fingerprint>/     one run
//!     manifest.json                        the fingerprint
//!     lock                                 held while a process works on the run
//!     units/<name>.unit                    one finished unit
//! ```
//!
//! A unit counts as done only when its file is whole: it is written under another name, flushed
//! and renamed, and its checksum is verified when the run is opened again. A file that does not
//! pass is reported and its unit is simply done again.

mod fingerprint;
mod manifest;
mod unit;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

pub use fingerprint::Fingerprint;
pub use unit::{Section, UnitData};

use super::atomic::{is_temporary_of, remove_abandoned, sync_folder};
use super::lock::{Attempt, FileLock};
use crate::base::progress::Progress;
use crate::{Error, Result};
use manifest::MANIFEST;

const UNITS: &str = "units";
const LOCK: &str = "lock";
const EXTENSION: &str = ".unit";
/// Differences between two runs that are listed.
const SHOWN_DIFFERENCES: usize = 6;

/// The store of one run, locked against other processes for as long as the value lives.
///
/// [`save`](Self::save) and [`load`](Self::load) may be called from several threads.
#[derive(Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    run: String,
    done: Mutex<BTreeSet<String>>,
    _lock: FileLock,
}

impl CheckpointStore {
    /// Works on a run in `dir`, which is made if needed: goes on from what an earlier run of exactly
    /// this fingerprint has finished there, or begins. The result is the same either way, so nobody
    /// loses hours for having forgotten to ask for it; the number of finished units is noted.
    ///
    /// A manifest that is damaged or missing is written anew, with a warning: units say themselves which
    /// run they belong to. Fails with [`Error::CheckpointRefused`] when another process works on the
    /// same run.
    pub fn create(dir: &Path, fingerprint: &Fingerprint, progress: &dyn Progress) -> Result<Self> {
        let folder = dir.join(fingerprint.folder_name());
        if folder.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            remove(&folder)?;
        }
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let lock = lock(&folder)?;
        match manifest::read(&folder) {
            Ok(Some(stored)) if stored == *fingerprint => {
                return Self::continued(folder, lock, fingerprint, progress);
            }
            // Another run whose name begins alike.
            Ok(Some(_)) => remove(&folder.join(UNITS))?,
            Ok(None) => {}
            Err(error @ Error::CheckpointRefused { .. }) => {
                progress.warn(&format!("{error}; it is written anew"));
                remove(&folder.join(MANIFEST))?;
            }
            Err(error) => return Err(error),
        }
        manifest::write(&folder, fingerprint)?;
        sync_folder(dir)?;
        Self::continued(folder, lock, fingerprint, progress)
    }

    /// Says that this run goes on where another has stopped, in the words of the command line's
    /// contract: `completed` of `layers` layers are finished. Nothing is said of a run that begins,
    /// unless somebody `asked` for a resumption.
    pub fn announce(&self, completed: usize, layers: usize, asked: bool, progress: &dyn Progress) {
        if asked || completed > 0 || !self.lock_done().is_empty() {
            progress.note(&format!("Resuming from checkpoint: {}", self.folder.display()));
            progress.note(&format!("Completed layers: {completed}/{layers}"));
        }
    }

    /// Continues the run that `dir` holds: either the run's own folder, or a folder of several
    /// runs, of which the one with exactly this fingerprint is taken.
    ///
    /// Every unit is verified; those that do not pass are reported to `progress` and are not done.
    /// Fails with [`Error::CheckpointRefused`] when there is no such run (saying what differs from the
    /// most similar one), when the manifest is damaged, or when another process works on the run.
    pub fn open(dir: &Path, fingerprint: &Fingerprint, progress: &dyn Progress) -> Result<Self> {
        let folder = find_run(dir, fingerprint, progress)?;
        let lock = lock(&folder)?;
        Self::continued(folder, lock, fingerprint, progress)
    }

    /// Takes over a locked folder with the right manifest.
    fn continued(
        folder: PathBuf,
        lock: FileLock,
        fingerprint: &Fingerprint,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let units = folder.join(UNITS);
        if units.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            remove(&units)?;
        }
        fs::create_dir_all(&units).map_err(|e| Error::io(&units, e))?;
        remove_abandoned(&units, |name| is_temporary_of(name, None));
        remove_abandoned(&folder, |name| is_temporary_of(name, None));

        let run = fingerprint.hash();
        let verdicts: Vec<_> = unit_files(&units)?
            .into_par_iter()
            .map(|(unit, path)| {
                let verdict = unit::verify(&path, &run, &unit);
                (unit, path, verdict)
            })
            .collect();
        let mut done = BTreeSet::new();
        for (unit, path, verdict) in verdicts {
            match verdict {
                Ok(()) => {
                    done.insert(unit);
                }
                Err(reason) => {
                    progress.warn(&format!(
                        "checkpoint {} cannot be used: {reason}; `{unit}` will be done again",
                        path.display()
                    ));
                    // It may be a folder, in whose place no file could be put.
                    remove(&path)?;
                }
            }
        }
        Ok(Self { folder, run, done: Mutex::new(done), _lock: lock })
    }

    /// The run's folder, for the command that resumes it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The units that are finished and safe on the disk.
    #[must_use]
    pub fn done(&self) -> BTreeSet<String> {
        self.lock_done().clone()
    }

    /// Whether a unit is finished.
    #[must_use]
    pub fn is_done(&self, unit: &str) -> bool {
        self.lock_done().contains(unit)
    }

    /// Keeps a finished unit. When this returns, the unit survives a crash of the machine.
    pub fn save(&self, unit: &str, data: &UnitData) -> Result<()> {
        unit::write(&self.path_of(unit), &self.run, unit, data)?;
        self.lock_done().insert(unit.to_owned());
        Ok(())
    }

    /// The contents of a finished unit, `None` if it is not done.
    ///
    /// Fails with [`Error::Checkpoint`] when the file has been damaged since it was verified. The
    /// unit is then no longer done.
    pub fn load(&self, unit: &str) -> Result<Option<UnitData>> {
        if !self.is_done(unit) {
            return Ok(None);
        }
        let path = self.path_of(unit);
        unit::read(&path, &self.run, unit).map(Some).map_err(|reason| {
            self.lock_done().remove(unit);
            Error::Checkpoint(format!(
                "{} was damaged while the run was going on: {reason}",
                path.display()
            ))
        })
    }

    /// Removes the store: the work it kept is in the output now. The parent folder goes too if it
    /// is empty.
    pub fn finish(self) -> Result<()> {
        // Units first: whatever is left when this is interrupted is still a valid, shorter run.
        remove(&self.folder.join(UNITS))?;
        remove(&self.folder.join(MANIFEST))?;
        fs::remove_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        if let Some(parent) = self.folder.parent() {
            // Fails, as it should, when other runs are in it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn path_of(&self, unit: &str) -> PathBuf {
        self.folder.join(UNITS).join(file_name(unit))
    }

    fn lock_done(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // The set is whole after every operation, also if another thread has panicked.
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a folder in which no run has left anything, whatever run it is.
///
/// # Errors
/// [`Error::Checkpoint`] when there is no checkpoint in it, or only damaged ones.
pub fn require_any(dir: &Path) -> Result<()> {
    if manifest::read(dir)?.is_some() {
        return Ok(());
    }
    let mut damaged = None;
    for folder in subfolders(dir)? {
        match manifest::read(&folder) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => {
                damaged.get_or_insert(error);
            }
        }
    }
    Err(damaged.unwrap_or_else(|| no_checkpoint(dir)))
}

fn no_checkpoint(dir: &Path) -> Error {
    Error::CheckpointRefused {
        message: format!("no checkpoint in {}", dir.display()),
        suggestion: "Check the path, or leave out --resume: the run then begins anew".into(),
    }
}

/// Finds the folder of the run, or says why there is none.
fn find_run(dir: &Path, fingerprint: &Fingerprint, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(stored) = manifest::read(dir)? {
        return if stored == *fingerprint {
            Ok(dir.to_path_buf())
        } else {
            Err(mismatch(dir, fingerprint, &stored))
        };
    }
    // The run's own folder decides, so that its damage is not hidden by other runs.
    let own = dir.join(fingerprint.folder_name());
    if manifest::read(&own)?.is_some_and(|stored| stored == *fingerprint) {
        return Ok(own);
    }

    let mut closest: Option<(PathBuf, Fingerprint, (bool, usize))> = None;
    let mut damaged = None;
    for folder in subfolders(dir)? {
        match manifest::read(&folder) {
            Ok(Some(stored)) if stored == *fingerprint => return Ok(folder),
            Ok(Some(stored)) => {
                // Another command's run is farther away than any of this one.
                let far = fingerprint.command() != stored.command();
                let distance = (far, fingerprint.differences(&stored).len());
                if closest.as_ref().is_none_or(|(_, _, least)| distance < *least) {
                    closest = Some((folder, stored, distance));
                }
            }
            Ok(None) => {}
            Err(error) => {
                progress.warn(&error.to_string());
                damaged.get_or_insert(error);
            }
        }
    }
    match (closest, damaged) {
        (Some((folder, stored, _)), _) => Err(mismatch(&folder, fingerprint, &stored)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(no_checkpoint(dir)),
    }
}

/// Why the run in `folder` is not this one, in one line.
fn mismatch(folder: &Path, ours: &Fingerprint, stored: &Fingerprint) -> Error {
    let folder = folder.display();
    let (mine, theirs) = (ours.command(), stored.command());
    if mine != theirs {
        let theirs = theirs.unwrap_or("another version of this program");
        return Error::CheckpointRefused {
            message: format!(
                "the checkpoint in {folder} belongs to another command: {theirs}, not {}",
                mine.unwrap_or("this one")
            ),
            suggestion:
                "Continue with the command that was interrupted, or leave out --resume: the \
                         run then begins anew"
                    .into(),
        };
    }
    let differences = ours.differences(stored);
    let more = differences.len().saturating_sub(SHOWN_DIFFERENCES);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Error::CheckpointRefused {
        message: format!(
            "the checkpoint in {folder} belongs to another run: {}{more}",
            differences[..differences.len().min(SHOWN_DIFFERENCES)].join("; ")
        ),
        suggestion: "Run with the model and the options of the interrupted run, or leave out \
                     --resume: the run then begins anew"
            .into(),
    }
}

/// In name order, so that ties between equally similar runs are always decided alike.
fn subfolders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io(dir, error)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Takes the run for this process.
fn lock(folder: &Path) -> Result<FileLock> {
    let path = folder.join(LOCK);
    if path.is_dir() {
        remove(&path)?;
    }
    let busy = |who: &str| {
        Err(Error::CheckpointRefused {
            message: format!("{} is in use by another process{who}", folder.display()),
            suggestion: "Wait until that process is done, or give this run another \
                         --checkpoint-dir and another output"
                .into(),
        })
    };
    match FileLock::attempt(&path)? {
        Attempt::Locked(lock) => {
            let mut file = lock.file();
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .map_err(|e| Error::io(&path, e))?;
            Ok(lock)
        }
        Attempt::Gone => busy(", which is finishing it"),
        Attempt::Busy(file) => {
            let mut holder = String::new();
            let _ = file.take(32).read_to_string(&mut holder);
            let holder = holder.trim();
            let known = !holder.is_empty() && holder.bytes().all(|b| b.is_ascii_digit());
            busy(&if known { format!(" (process {holder})") } else { String::new() })
        }
    }
}

/// Units and their files. Other files are not ours and are left alone.
fn unit_files(units: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(units) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(units, error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(units, e))?;
        if let Some(unit) = entry.file_name().to_str().and_then(unit_name) {
            files.push((unit, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// A unit's file name: letters, digits, `-`, `_` and `.` stand for themselves, everything else is
/// `%xx`, so that different units have different files and none leads out of the folder.
fn file_name(unit: &str) -> String {
    use std::fmt::Write;
    let mut name = String::with_capacity(unit.len() + EXTENSION.len());
    for (at, byte) in unit.bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(name, "%{byte:02x}");
        }
    }
    name + EXTENSION
}

/// The inverse of [`file_name`]; `None` for names that it does not make.
fn unit_name(file: &str) -> Option<String> {
    let mut rest = file.strip_suffix(EXTENSION)?.as_bytes();
    let mut unit = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            unit.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            unit.push(byte);
            rest = after;
        }
    }
    let unit = String::from_utf8(unit).ok()?;
    (file_name(&unit) == file).then_some(unit)
}

/// Removes a file, or a folder with what is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// A digest in hexadecimal digits.
pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(digest.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_survive_the_file_system() {
        for unit in [
            "model.layers.0.mlp.up_proj.weight",
            "a/b",
            "../../etc/passwd",
            ".hidden",
            "100%",
            "ü ñ",
            "line\nbreak",
        ] {
            let file = file_name(unit);
            assert!(
                file.is_ascii() && !file.contains(['/', '\n']) && !file.starts_with('.'),
                "{file}"
            );
            assert_eq!(unit_name(&file).as_deref(), Some(unit));
        }
        assert_ne!(file_name("a/b"), file_name("a%2fb"));
        for foreign in
            ["x.unit.tmp-1-2", "notes.txt", "%zz.unit", "%2.unit", "%41.unit", "%ff.unit"]
        {
            assert_eq!(unit_name(foreign), None, "{foreign}");
        }
    }
}
