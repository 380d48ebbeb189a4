//! `manifest.json`: which run a checkpoint folder belongs to.

use std::fs;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use crate::base::input;
use crate::files::atomic::write_atomically;
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
    let refused = |message: String| Error::CheckpointRefused {
        message,
        suggestion:
            "Leave out --resume: what is whole in the checkpoint is then used, and the rest \
                     is done again"
                .into(),
    };
    let damaged = |what: &str| refused(format!("{} is damaged ({what})", path.display()));
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) => return Err(damaged(&error.to_string())),
    };
    if !metadata.is_file() {
        return Err(damaged("not a file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(damaged("too large"));
    }
    let bytes = input::read(&path, MAX_BYTES).map_err(|e| damaged(&e.to_string()))?;
    let format =
        serde_json::from_slice::<FormatOnly>(&bytes).map_err(|e| damaged(&e.to_string()))?.format;
    if format != FORMAT {
        return Err(refused(format!(
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
