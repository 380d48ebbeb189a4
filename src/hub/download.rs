//! Fetches the contents of one file: continued where an earlier attempt stopped, counted, hashed
//! while they arrive, and visible under their name only when they are right.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::Target;
use super::cache::{RepoCache, make_parent};
use super::client::{Client, Remote, Trouble, range_start, whole_length};
use super::pace::Pace;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::{Error, Result};

const CHUNK_BYTES: usize = 256 << 10;
/// So much more on the disk means that the line works and patience starts again.
const RENEWING_BYTES: u64 = 1 << 20;

/// Reports bytes of one file, each of them once, however often it is downloaded again.
struct Meter<'a> {
    progress: &'a dyn Progress,
    reported: u64,
}

impl Meter<'_> {
    /// An earlier attempt left that many.
    fn found(&mut self, bytes: u64) {
        if bytes > self.reported {
            self.progress.resumed(bytes - self.reported);
            self.reported = bytes;
        }
    }

    fn reached(&mut self, bytes: u64) {
        if bytes > self.reported {
            self.progress.advance(bytes - self.reported);
            self.reported = bytes;
        }
    }
}

/// A file on its way in, with the hash of what is there so far.
struct Partial {
    file: fs::File,
    length: u64,
    hash: Sha256,
}

impl Partial {
    /// Opens what an earlier attempt left. Its bytes are read once to continue the hash.
    fn open(path: &Path, remote: &Remote) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut partial = Self { file, length: 0, hash: Sha256::new() };
        let length = partial.file.metadata()?.len();
        if remote.size.is_some_and(|size| length > size) {
            partial.restart()?;
            return Ok(partial);
        }
        if remote.sha256().is_some() {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let count = partial.file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                partial.hash.update(&buffer[..count]);
                partial.length += count as u64;
            }
        } else {
            partial.length = partial.file.seek(SeekFrom::End(0))?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// A file of a commit, and what the hub says about it.
pub(super) struct File<'a> {
    pub(super) target: &'a Target,
    pub(super) name: &'a str,
    pub(super) remote: &'a Remote,
    /// The most bytes that a file of its kind may have.
    pub(super) most: Option<u64>,
}

impl File<'_> {
    /// Refuses a file that is larger than any of its kind.
    fn check_size(&self, bytes: u64) -> Result<(), Trouble> {
        match self.most {
            Some(most) if bytes > most => Err(Trouble::Fatal(Error::Network {
                message: format!(
                    "`{}` of {} is larger than {}, which none is",
                    self.name,
                    self.target.describe(),
                    human_bytes(most)
                ),
                suggestion: "Check the repository and HF_ENDPOINT".into(),
            })),
            _ => Ok(()),
        }
    }
}

/// Makes sure that the contents of `file` are in the cache as a blob, and reports each byte to the
/// current stage of `progress` once.
pub(super) fn fetch_blob(
    client: &Client,
    cache: &RepoCache,
    file: &File<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let (remote, name) = (file.remote, file.name);
    let mut meter = Meter { progress, reported: 0 };
    let blob = cache.blob(&remote.etag);
    make_parent(&blob)?;
    let _lock = cache.lock(&remote.etag, progress)?;
    if let Ok(metadata) = fs::metadata(&blob)
        && remote.size.is_none_or(|size| size == metadata.len())
    {
        meter.found(metadata.len());
        return Ok(());
    }
    file.check_size(remote.size.unwrap_or(0)).map_err(|trouble| client.give_up(trouble))?;

    let path = cache.incomplete(&remote.etag);
    let at_path = |error| Error::io(&path, error);
    let mut partial = Partial::open(&path, remote).map_err(at_path)?;
    if partial.length > 0 {
        progress.debug(&format!("{name}: continuing at byte {}", partial.length));
    }
    meter.found(partial.length);
    let mut continued = partial.length > 0;
    loop {
        meter.reached(partial.length);
        receive(client, file, &mut partial, &path, &mut meter)?;
        let Some(expected) = remote.sha256() else { break };
        let actual = hex(&partial.hash.clone().finalize());
        if actual.eq_ignore_ascii_case(expected) {
            break;
        }
        if !continued {
            let _ = fs::remove_file(&path);
            return Err(Error::damaged(
                &blob,
                format!("`{name}` arrived with SHA-256 {actual}, the hub announces {expected}"),
            ));
        }
        // What was there before may have been bad; a whole download decides.
        progress.warn(&format!("{name}: the interrupted download was damaged; starting over"));
        continued = false;
        partial.restart().map_err(at_path)?;
    }
    partial.file.sync_all().map_err(at_path)?;
    fs::rename(&path, &blob).map_err(|e| Error::io(&blob, e))
}

/// Receives the rest of the file, over as many connections as patience allows.
fn receive(
    client: &Client,
    file: &File<'_>,
    partial: &mut Partial,
    path: &Path,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let task = format!("Downloading {}", file.name);
    let mut patience = client.patience();
    loop {
        if file.remote.size == Some(partial.length) {
            return Ok(());
        }
        let before = partial.length;
        match receive_once(client, file, partial, path, meter) {
            Ok(()) => return Ok(()),
            Err(trouble) => {
                if partial.length >= before.saturating_add(RENEWING_BYTES) {
                    patience.renew();
                }
                patience
                    .wait_after(trouble, &task, meter.progress)
                    .map_err(|trouble| client.give_up(trouble))?;
            }
        }
    }
}

/// Receives over one connection. `Ok` means that the file is whole as far as its length tells.
fn receive_once(
    client: &Client,
    file: &File<'_>,
    partial: &mut Partial,
    path: &Path,
    meter: &mut Meter<'_>,
) -> Result<(), Trouble> {
    let on_disk = |error| Trouble::Fatal(Error::io(path, error));
    let rest = (partial.length > 0).then(|| format!("bytes={}-", partial.length));
    let response = client.open(file.target, file.name, rest.as_deref())?;
    let status = response.status();
    let fits = match status {
        StatusCode::PARTIAL_CONTENT => range_start(&response) == Some(partial.length),
        // Either nothing was asked for in particular, or the server does not continue files.
        status if status.is_success() => {
            partial.restart().map_err(on_disk)?;
            true
        }
        _ => false,
    };
    if !fits {
        // "Range not satisfiable", or another range than the one asked for.
        partial.restart().map_err(on_disk)?;
        return Err(Trouble::passing(format!(
            "the server cannot continue the file (HTTP {})",
            status.as_u16()
        )));
    }
    let announced = whole_length(&response);
    if let (Some(expected), Some(announced)) = (file.remote.size, announced)
        && expected != announced
    {
        return Err(Trouble::passing(format!(
            "the hub announces {expected} bytes, the storage host {announced}"
        )));
    }
    let size = file.remote.size.or(announced);
    file.check_size(size.unwrap_or(0))?;

    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut pace = Pace::new(client.stall_timeout());
    loop {
        if meter.progress.stop_requested() {
            return Err(Trouble::Fatal(Error::Interrupted { resume: None }));
        }
        let count = body.read(&mut buffer).map_err(|error| {
            let error = client.clean(&error.to_string());
            Trouble::passing(format!(
                "the connection broke after {} bytes ({error})",
                partial.length
            ))
        })?;
        if count == 0 {
            break;
        }
        pace.received(count).map_err(Trouble::passing)?;
        if size.is_some_and(|size| size - partial.length < count as u64) {
            partial.restart().map_err(on_disk)?;
            return Err(Trouble::passing("the server sends more bytes than it announced"));
        }
        if let Err(trouble) = file.check_size(partial.length + count as u64) {
            partial.restart().map_err(on_disk)?;
            let _ = fs::remove_file(path);
            return Err(trouble);
        }
        partial.append(&buffer[..count]).map_err(on_disk)?;
        meter.reached(partial.length);
    }
    match size {
        Some(size) if size != partial.length => Err(Trouble::passing(format!(
            "the connection ended after {} of {size} bytes",
            partial.length
        ))),
        _ => Ok(()),
    }
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
