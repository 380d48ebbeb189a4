//! Fetches the contents of one file: continued where an earlier attempt stopped, counted, hashed
//! while they arrive, and visible under their name only when they are right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::Target;
use super::cache::{RepoCache, make_parent};
use super::client::{Client, Remote, Trouble, range_start, whole_length};
use crate::progress::Progress;
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
    fn reached(&mut self, bytes: u64) {
        if bytes > self.reported {
            self.progress.advance(bytes - self.reported);
            self.reported = bytes;
        }
    }
}

/// A file on its way in, with the hash of what is there so far.
struct Partial {
    file: File,
    length: u64,
    hash: Sha256,
}

impl Partial {
    /// Opens what an earlier attempt left. Its bytes are read once to continue the hash.
    fn open(path: &std::path::Path, remote: &Remote) -> io::Result<Self> {
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

/// Makes sure that the contents of `file` are in the cache as a blob, and reports each byte to the
/// current stage of `progress` once.
pub(super) fn fetch_blob(
    client: &Client,
    cache: &RepoCache,
    target: &Target,
    file: &str,
    remote: &Remote,
    progress: &dyn Progress,
) -> Result<()> {
    let mut meter = Meter { progress, reported: 0 };
    let blob = cache.blob(&remote.etag);
    make_parent(&blob)?;
    let _lock = cache.lock(&remote.etag, progress)?;
    if let Ok(metadata) = fs::metadata(&blob)
        && remote.size.is_none_or(|size| size == metadata.len())
    {
        meter.reached(metadata.len());
        return Ok(());
    }

    let path = cache.incomplete(&remote.etag);
    let at_path = |error| Error::io(&path, error);
    let mut partial = Partial::open(&path, remote).map_err(at_path)?;
    if partial.length > 0 {
        progress.debug(&format!("{file}: continuing at byte {}", partial.length));
    }
    let mut continued = partial.length > 0;
    loop {
        meter.reached(partial.length);
        receive(client, target, file, remote, &mut partial, &path, &mut meter)?;
        let Some(expected) = remote.sha256() else { break };
        let actual = hex(&partial.hash.clone().finalize());
        if actual.eq_ignore_ascii_case(expected) {
            break;
        }
        if !continued {
            let _ = fs::remove_file(&path);
            return Err(Error::damaged(
                &blob,
                format!("`{file}` arrived with SHA-256 {actual}, the hub announces {expected}"),
            ));
        }
        // What was there before may have been bad; a whole download decides.
        progress.warn(&format!("{file}: the interrupted download was damaged; starting over"));
        continued = false;
        partial.restart().map_err(at_path)?;
    }
    partial.file.sync_all().map_err(at_path)?;
    fs::rename(&path, &blob).map_err(|e| Error::io(&blob, e))
}

/// Receives the rest of the file, over as many connections as patience allows.
fn receive(
    client: &Client,
    target: &Target,
    file: &str,
    remote: &Remote,
    partial: &mut Partial,
    path: &std::path::Path,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let task = format!("Downloading {file}");
    let mut patience = client.patience();
    loop {
        if remote.size == Some(partial.length) {
            return Ok(());
        }
        let before = partial.length;
        match receive_once(client, target, file, remote, partial, path, meter) {
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
    target: &Target,
    file: &str,
    remote: &Remote,
    partial: &mut Partial,
    path: &std::path::Path,
    meter: &mut Meter<'_>,
) -> Result<(), Trouble> {
    let on_disk = |error| Trouble::Fatal(Error::io(path, error));
    let response = client.open(target, file, partial.length)?;
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
        return Err(Trouble::Passing {
            reason: format!("the server cannot continue the file (HTTP {})", status.as_u16()),
            wait: None,
        });
    }
    let announced = whole_length(&response);
    if let (Some(expected), Some(announced)) = (remote.size, announced)
        && expected != announced
    {
        return Err(Trouble::Passing {
            reason: format!("the hub announces {expected} bytes, the storage host {announced}"),
            wait: None,
        });
    }
    let size = remote.size.or(announced);

    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        if meter.progress.stop_requested() {
            return Err(Trouble::Fatal(Error::Interrupted { resume: None }));
        }
        let count = body.read(&mut buffer).map_err(|error| Trouble::Passing {
            reason: format!("the connection broke after {} bytes ({error})", partial.length),
            wait: None,
        })?;
        if count == 0 {
            break;
        }
        if size.is_some_and(|size| size - partial.length < count as u64) {
            partial.restart().map_err(on_disk)?;
            return Err(Trouble::Passing {
                reason: "the server sends more bytes than it announced".into(),
                wait: None,
            });
        }
        partial.append(&buffer[..count]).map_err(on_disk)?;
        meter.reached(partial.length);
    }
    match size {
        Some(size) if size != partial.length => Err(Trouble::Passing {
            reason: format!("the connection ended after {} of {size} bytes", partial.length),
            wait: None,
        }),
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
