//! Advisory locks on whole files, held across processes.

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::atomic::is_still_at;
use crate::{Error, Result};

/// An exclusive lock; given up when dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
}

/// The outcome of an attempt to lock a file.
pub(crate) enum Attempt {
    /// Nobody else has it now.
    Locked(FileLock),
    /// Somebody else has it; the file, to read who.
    Busy(File),
    /// Whoever had it has removed the file: a lock on it protects nothing any more.
    Gone,
}

impl FileLock {
    /// Makes the file at `path` if needed and tries to lock it, without waiting.
    ///
    /// On file systems without locks every attempt succeeds: users of those are not kept from
    /// working, only not kept apart.
    pub(crate) fn attempt(path: &Path) -> Result<Attempt> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io(path, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) | Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                let here = is_still_at(&file, path);
                Ok(if here { Attempt::Locked(Self { file }) } else { Attempt::Gone })
            }
            Err(Errno::WOULDBLOCK) => Ok(Attempt::Busy(file)),
            Err(errno) => Err(Error::io(path, errno.into())),
        }
    }

    /// The locked file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing alone would keep the lock while a child process that is just being started still
        // has a copy of the descriptor.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}
