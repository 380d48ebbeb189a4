//! Which model it is: one definition for everything that keeps work on it, or says what a result was
//! made from.
//!
//! A model is what its files hold, every byte of them. Where they lie, what their folder is called and
//! when they were written does not matter: a copy is the same model, and a file that was replaced by
//! another of the same size and time is not.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::gguf_parts;
use crate::base::progress::Progress;
use crate::files::checkpoint::hexadecimal;
use crate::files::safetensors;
use crate::{Error, Result};

/// Kind of an identity, in front of its digest.
pub(crate) const KIND: &str = "files-sha256";
/// Bytes that are hashed on their own, so that all threads can take part.
const CHUNK: u64 = 8 << 20;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;
/// Models above this take long enough that a person wants to see it go on.
const SHOWN: u64 = 2 << 30;
/// What a directory's model is read from besides its weights.
const TEXTS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "quant_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
/// A folder of more of them.
const TEMPLATES: &str = "additional_chat_templates";

/// What a file was when it was hashed: path, device, number, size, times of modification and change.
type Stamp = (PathBuf, u64, u64, u64, (i64, i64), (i64, i64));

/// The identity of the model at `path` (a directory, or a file, with all parts if it is split):
/// `files-sha256:` and the digest over the names, lengths and contents of its files. Contents stand as
/// the SHA-256 of the digests of their pieces of 8 MiB; the name of a single file does not count.
///
/// Read once: asked again, it looks whether the files are still the same ones.
///
/// # Errors
/// [`Error::Io`]; what opening the model would refuse; [`Error::Interrupted`].
pub(crate) fn identity(path: &Path, progress: &dyn Progress) -> Result<String> {
    static KNOWN: Mutex<Option<HashMap<Vec<Stamp>, String>>> = Mutex::new(None);
    let files = files(path)?;
    let stamps = files.iter().map(|file| stamp(file)).collect::<Result<Vec<_>>>()?;
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(identity) = known().as_ref().and_then(|known| known.get(&stamps)) {
        return Ok(identity.clone());
    }
    let total = stamps.iter().map(|stamp| stamp.3).sum();
    let shown = total > SHOWN;
    if shown {
        progress.start("Reading the model", total, "bytes");
    }
    let mut hash = Sha256::new();
    for (file, stamp) in files.iter().zip(&stamps) {
        let name = if files.len() > 1 { file.file_name() } else { None };
        let name = name.unwrap_or_default().as_encoded_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(stamp.3.to_le_bytes());
        hash.update(contents(file, stamp.3, shown.then_some(progress))?);
    }
    if shown {
        progress.finish();
    }
    let identity = format!("{KIND}:{}", hexadecimal(&hash.finalize()));
    known().get_or_insert_with(HashMap::new).insert(stamps, identity.clone());
    Ok(identity)
}

/// SHA-256 over the digests of the pieces of a file.
fn contents(path: &Path, length: u64, progress: Option<&dyn Progress>) -> Result<[u8; 32]> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let pieces = (0..length.div_ceil(CHUNK)).into_par_iter().map_init(
        || vec![0; BUFFER],
        |buffer, piece| {
            let (mut at, end) = (piece * CHUNK, length.min((piece + 1) * CHUNK));
            let mut hash = Sha256::new();
            while at < end {
                let count = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                file.read_exact_at(&mut buffer[..count], at).map_err(|e| Error::io(path, e))?;
                hash.update(&buffer[..count]);
                at += count as u64;
            }
            if let Some(progress) = progress {
                progress.advance(end - piece * CHUNK);
                if progress.stop_requested() {
                    return Err(Error::Interrupted { resume: None });
                }
            }
            Ok(hash.finalize())
        },
    );
    let digests = pieces.collect::<Result<Vec<_>>>()?;
    let mut hash = Sha256::new();
    digests.iter().for_each(|digest| hash.update(digest));
    Ok(hash.finalize().into())
}

/// Everything that the model at `path` is read from, in a fixed order.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        let parts = gguf_parts::part_paths(path).into_iter();
        return Ok(parts.filter(|part| part == path || part.exists()).collect());
    }
    let mut files = safetensors::shards(path)?;
    let templates = std::fs::read_dir(path.join(TEMPLATES)).into_iter().flatten().flatten();
    files.extend(templates.map(|entry| entry.path()).filter(|path| path.is_file()));
    files.extend(TEXTS.iter().map(|name| path.join(name)).filter(|path| path.is_file()));
    files.sort();
    files.dedup();
    Ok(files)
}

fn stamp(path: &Path) -> Result<Stamp> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io(path, error));
    }
    Ok((
        path.to_path_buf(),
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ))
}

#[cfg(test)]
mod tests;
