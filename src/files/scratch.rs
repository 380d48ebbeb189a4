//! Memory that lives in a file nobody else sees.

#![allow(unsafe_code, reason = "a writable mapping; says why it is sound")]

use std::path::Path;

use memmap2::MmapMut;

use crate::{Error, Result};

/// `bytes` zero bytes in a new file of `folder` that has no name: it disappears with the process,
/// whatever ends it.
///
/// # Errors
/// If there is no room, or the folder cannot be written.
pub(crate) fn map(folder: &Path, bytes: usize) -> Result<MmapMut> {
    super::space::check_free_space(folder, bytes as u64)?;
    let path = folder.join(format!(".scratch-{}-{:p}", std::process::id(), &raw const bytes));
    let file = if let Some(file) = super::space::nameless(folder) {
        file
    } else {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&path, e))?;
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        file
    };
    file.set_len(bytes.max(1) as u64).map_err(|e| Error::io(&path, e))?;
    // SAFETY: the file was created by this call and has no name any more, so nothing but this
    // mapping changes it.
    unsafe { MmapMut::map_mut(&file) }.map_err(|e| Error::io(&path, e))
}
