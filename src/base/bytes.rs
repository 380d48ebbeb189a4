//! Bytes with a shared owner: a mapped file, or memory. The only place where a file is mapped.

#![allow(unsafe_code, reason = "mapping a file needs it; every block says why it is sound")]

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use super::input;
use crate::{Error, Result};

enum Owner {
    Map(memmap2::Mmap),
    Heap(Vec<u8>),
}

/// A cheap clone of a range of bytes whose owner lives as long as any clone.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

impl SharedBytes {
    /// Maps a whole file. An empty file gives empty bytes.
    pub fn map(path: &Path) -> Result<Self> {
        let file = input::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length == 0 {
            return Ok(Self::from_vec(Vec::new()));
        }
        // SAFETY: the map is read-only and private. The crate replaces its own files by rename and
        // never writes into a file that it maps; a foreign process that truncates a model while it
        // is being read can raise SIGBUS, as with every reader of mapped weights.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let range = 0..map.len();
        Ok(Self { owner: Arc::new(Owner::Map(map)), range })
    }

    /// Takes over a buffer.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(Owner::Heap(bytes)), range }
    }

    /// A part of these bytes, or `None` when `range` does not lie inside them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self {
            owner: Arc::clone(&self.owner),
            range: start..start + (range.end - range.start),
        })
    }

    /// Tells the system that these pages will not be needed soon, so that resident memory does not
    /// grow with the file. A hint: contents stay valid.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Map(map) = &*self.owner {
            // SAFETY: the map is file-backed, read-only and shared, so dropped pages are read
            // again from the file on the next access and no data can be lost.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    self.range.start,
                    self.range.len(),
                )
            };
        }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Map(map) => map,
            Owner::Heap(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &*self.owner {
            Owner::Map(_) => "mapped",
            Owner::Heap(_) => "heap",
        };
        write!(f, "SharedBytes({kind}, {} bytes)", self.len())
    }
}
