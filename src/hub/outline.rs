//! A model without its weights: config, tokenizer, and of each weight file the header, which is a few
//! kilobytes of gigabytes.
//!
//! On the disk it is a folder like any model's. Its weight files have their whole length, but only the
//! header is in them: the rest is a hole, which takes no room and reads as zeros. So everything that
//! opens models opens this one, and whoever reads values, which no plan does, gets zeros.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use safetensors::tensor::Metadata;
use ureq::http::StatusCode;

use super::Target;
use super::client::{Client, Trouble, range_start, whole_length};
use super::pace::Pace;
use super::session::Session;
use crate::files::safetensors::MAX_HEADER;
use crate::{Error, Result};

/// The first part that is asked for: most headers are smaller.
const FIRST_BYTES: u64 = 128 << 10;
/// Folders of outlines in a repository's part of the cache.
const FOLDER: &str = ".outlines";
/// After this time an outline belongs to a process that was killed.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A model whose weights need not be on this machine. What was made for it goes with it.
#[derive(Debug)]
pub struct Outline {
    folder: PathBuf,
    /// Bytes of the weights that are not on this machine.
    pub missing_bytes: u64,
    /// Where the files are that are kept.
    pub snapshot: PathBuf,
    scratch: Option<PathBuf>,
}

impl Outline {
    /// Of a model that is complete.
    pub(super) fn complete(folder: PathBuf) -> Self {
        Self { folder: folder.clone(), missing_bytes: 0, snapshot: folder, scratch: None }
    }

    /// The folder, which opens like any model's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the weights are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.scratch.is_none()
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            let _ = fs::remove_dir_all(scratch);
            // As far as no other process has one.
            let _ = scratch.parent().map(fs::remove_dir);
        }
    }
}

/// Makes the outline of a commit whose small files are cached.
pub(super) fn fetch(session: &Session<'_>, commit: &str, weights: &[String]) -> Result<Outline> {
    let snapshot = session.cache.snapshot(commit);
    let missing: Vec<&String> =
        weights.iter().filter(|file| session.cache.file(commit, file).is_none()).collect();
    if missing.is_empty() {
        return Ok(Outline::complete(snapshot));
    }
    let mut outline = new_folder(session, commit, snapshot)?;
    let target = session.target.at(commit);
    session.progress.start("Reading headers", missing.len() as u64, "files");
    for &file in &missing {
        let header = header(session, &target, file)?;
        let path = outline.folder.join(file);
        // Longer lengths than a file system allows are refused there.
        File::create(&path)
            .and_then(|mut made| {
                made.write_all(&header.bytes)?;
                made.set_len(header.file_bytes)
            })
            .map_err(|e| Error::io(&path, e))?;
        outline.missing_bytes = outline.missing_bytes.saturating_add(header.file_bytes);
        session.progress.advance(1);
    }
    session.progress.finish();
    Ok(outline)
}

/// A folder with links to everything of the commit that is cached.
fn new_folder(session: &Session<'_>, commit: &str, snapshot: PathBuf) -> Result<Outline> {
    static OUTLINES: AtomicU64 = AtomicU64::new(0);
    let all = session.cache.folder().join(FOLDER);
    remove_stale(&all);
    let number = OUTLINES.fetch_add(1, Ordering::Relaxed);
    let scratch = all.join(format!("{}-{number}", std::process::id()));
    // The name of a model is found in the path of its files.
    let name = session.cache.folder().file_name().unwrap_or_default();
    let folder = scratch.join(name).join("snapshots").join(commit);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let outline = Outline { folder, missing_bytes: 0, snapshot, scratch: Some(scratch) };
    let snapshot = &outline.snapshot;
    for entry in fs::read_dir(snapshot).map_err(|e| Error::io(snapshot, e))?.flatten() {
        // Through the links of the cache: the contents themselves.
        let Ok(contents) = entry.path().canonicalize() else { continue };
        if contents.is_file() {
            let link = outline.folder.join(entry.file_name());
            std::os::unix::fs::symlink(&contents, &link)
                .or_else(|_| fs::copy(&contents, &link).map(drop))
                .map_err(|e| Error::io(&link, e))?;
        }
    }
    Ok(outline)
}

/// Removes what killed processes have left.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The beginning of a weight file, up to the first byte of data.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) bytes: Vec<u8>,
    /// Bytes of the whole file: as the server says, else as the header does.
    pub(super) file_bytes: u64,
}

/// Reads the header of a weight file, patiently.
pub(super) fn header(session: &Session<'_>, target: &Target, file: &str) -> Result<Header> {
    let client = &session.client;
    let mut patience = client.patience();
    loop {
        match read_header(client, target, file) {
            Ok(header) => return Ok(header),
            Err(Trouble::Missing(_)) => return Err(session.lacks_weights(file)),
            Err(trouble) => patience
                .wait_after(trouble, &format!("Reading the header of {file}"), session.progress)
                .map_err(|trouble| client.give_up(trouble))?,
        }
    }
}

fn read_header(client: &Client, target: &Target, file: &str) -> Result<Header, Trouble> {
    let damaged = |what: String| {
        let place = format!("{}/{file}", target.repo);
        Trouble::Fatal(Error::damaged(place, what))
    };
    let mut start = Start { client, target, file, bytes: Vec::new(), file_bytes: None };
    // The first part holds most headers whole, and says how long the others are.
    start.read(FIRST_BYTES)?;
    start.read(start.needed())?;
    let length =
        start.length().ok_or_else(|| damaged("too short for a safetensors file".into()))?;
    if length > MAX_HEADER as u64 {
        return Err(damaged(format!("a header of {length} bytes; no safetensors file?")));
    }
    let end = 8 + length;
    let Some(json) = start.bytes.get(8..end as usize) else {
        return Err(damaged(format!(
            "the header of {length} bytes does not fit into the file; truncated?"
        )));
    };
    let metadata: Metadata = serde_json::from_slice(json).map_err(|error| {
        damaged(format!("not a safetensors header: {}", client.clean(&error.to_string())))
    })?;
    let described = end.saturating_add(metadata.data_len() as u64);
    let file_bytes = start.file_bytes.unwrap_or(described);
    if file_bytes != described {
        return Err(damaged(format!(
            "{file_bytes} bytes long, but the header describes {described}; truncated?"
        )));
    }
    start.bytes.truncate(end as usize);
    Ok(Header { bytes: start.bytes, file_bytes })
}

/// The beginning of a file on the hub, as far as it was read.
struct Start<'a> {
    client: &'a Client,
    target: &'a Target,
    file: &'a str,
    bytes: Vec<u8>,
    /// Bytes of the whole file, if a server has said.
    file_bytes: Option<u64>,
}

impl Start<'_> {
    /// The length of the header, once its eight bytes are there.
    fn length(&self) -> Option<u64> {
        self.bytes.split_first_chunk::<8>().map(|(length, _)| u64::from_le_bytes(*length))
    }

    /// How many bytes hold the header, as far as is known.
    fn needed(&self) -> u64 {
        self.length().filter(|length| *length <= MAX_HEADER as u64).map_or(8, |length| 8 + length)
    }

    /// Goes on until the header is there, the part up to byte `wanted` is, or the file ends. A server
    /// that does not know ranges sends everything: then reading stops after the header, and the
    /// connection is dropped.
    fn read(&mut self, wanted: u64) -> Result<(), Trouble> {
        let from = self.bytes.len() as u64;
        if from >= self.needed() || self.file_bytes.is_some_and(|end| from >= end) {
            return Ok(());
        }
        let range = format!("bytes={from}-{}", wanted - 1);
        let response = self.client.open(self.target, self.file, Some(&range))?;
        let status = response.status();
        self.file_bytes = self.file_bytes.or_else(|| whole_length(&response));
        let mut skipped = match status {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(from) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Trouble::passing(
                    "the server sends another part than the one asked for",
                ));
            }
            // "Range not satisfiable": the file ends before.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
            _ => from,
        };
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        let mut pace = Pace::new(self.client.stall_timeout());
        while (self.bytes.len() as u64) < self.needed() {
            let count = body.read(&mut buffer).map_err(|error| {
                Trouble::passing(format!(
                    "the connection broke ({})",
                    self.client.clean(&error.to_string())
                ))
            })?;
            if count == 0 {
                break;
            }
            pace.received(count).map_err(Trouble::passing)?;
            let new = &buffer[usize::try_from(skipped).unwrap_or(count).min(count)..count];
            skipped -= (count - new.len()) as u64;
            self.bytes.extend_from_slice(new);
        }
        Ok(())
    }
}
