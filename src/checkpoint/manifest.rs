//! `manifest.json`: which run a checkpoint folder belongs to.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Fingerprint;
use crate::formats::atomic::write_atomically;
use crate::formats::input;
use crate::{Error, Result};

/// Name of the manifest in a run's folder.
pub(super) const MANIFEST: &str = "manifest.json";
/// Raised whenever the layout of a folder or of a unit changes.
const FORMAT: u32 = 1;
/// A fingerprint has some dozens of short fields.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    fields: Vec<(String, String)>,
    /// Hash of the fingerprint, so that an edited or damaged file is not taken for another run.
    checksum: String,
}

/// Only this much is read before the format is known.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

pub(super) fn write(folder: &Path, fingerprint: &Fingerprint) -> Result<()> {
    let manifest = Manifest {
        format: FORMAT,
        fields: fingerprint.fields().to_vec(),
        checksum: fingerprint.hash(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| Error::Checkpoint(format!("the manifest cannot be written: {e}")))?;
    text.push(b'\n');
    write_atomically(&folder.join(MANIFEST), &text)
}

/// Reads a folder's manifest. `None` if there is none; an error (exit 7) if it is damaged or of
/// another format.
pub(super) fn read(folder: &Path) -> Result<Option<Fingerprint>> {
    let path = folder.join(MANIFEST);
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, error)),
    };
    let damaged = |what: &str| Error::Checkpoint(format!("{} is damaged ({what})", path.display()));
    if length > MAX_BYTES {
        return Err(damaged("too large"));
    }
    let bytes = input::read(&path, MAX_BYTES).map_err(|e| Error::io(&path, e))?;
    let format =
        serde_json::from_slice::<FormatOnly>(&bytes).map_err(|e| damaged(&e.to_string()))?.format;
    if format != FORMAT {
        return Err(Error::Checkpoint(format!(
            "{} was written in checkpoint format {format}, this version reads {FORMAT}",
            path.display()
        )));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let stored = Fingerprint::from_fields(manifest.fields)
        .ok_or_else(|| damaged("its fields are not those of a run"))?;
    if stored.hash() != manifest.checksum {
        return Err(damaged("its checksum does not match"));
    }
    Ok(Some(stored))
}
