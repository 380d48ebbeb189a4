//! Importance matrices: for each matrix of a model the mean square of every column's input, as
//! `llama-imatrix` measures them.
//!
//! Two formats are read and written, told apart by their contents: GGUF files (since 2025) and the
//! `.dat` files before them. Format: `tools/imatrix/imatrix.cpp` of llama.cpp. [`ImportanceMatrix`]
//! is what a quantizer reads, [`ImportanceSums`] what is measured, merged and written.

mod dat;
mod gguf;
mod sums;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

pub use sums::{ColumnSums, DEFAULT_CHUNK, ImportanceSums, Method};

use super::checkpoint::hexadecimal;
use super::detect::GGUF_MAGIC;
use crate::base::SharedBytes;
use crate::{Error, Result};

/// The importance of one tensor's columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    /// Mean squares: the columns of the first expert's matrix, then those of the next.
    pub values: Vec<f32>,
}

/// The contents of a file.
#[derive(Debug, Clone)]
pub struct ImportanceMatrix {
    /// Where it was read from.
    pub path: PathBuf,
    /// By GGUF tensor name, in file order.
    pub entries: IndexMap<String, Importance>,
    /// The texts it was measured on, as the file names them.
    pub datasets: Vec<String>,
    /// How many chunks of text it was measured on; 0 if the file does not say.
    pub chunks: u32,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
}

/// What a reader finds, before it is checked.
#[derive(Default)]
struct Contents {
    entries: IndexMap<String, Importance>,
    datasets: Vec<String>,
    chunks: u32,
}

impl ImportanceMatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// [`Error::Imatrix`] when there is no such file, when it is damaged or something else, and when
    /// a value is NaN, infinite or negative.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = SharedBytes::map(path).map_err(|error| match error {
            Error::Io { source, .. } => Error::imatrix(path, source.to_string()),
            other => Error::imatrix(path, other.to_string()),
        })?;
        let sha256 = hexadecimal(&Sha256::digest(&bytes[..]));
        let contents = if bytes.starts_with(&GGUF_MAGIC) {
            gguf::read(bytes, path)
        } else {
            dat::read(&bytes)
        };
        let Contents { entries, datasets, chunks } =
            contents.map_err(|message| Error::imatrix(path, message))?;
        if entries.is_empty() {
            return Err(Error::imatrix(path, "it has no entries"));
        }
        for (name, entry) in &entries {
            let bad = |value: &f32| !value.is_finite() || *value < 0.0;
            if let Some(column) = entry.values.iter().position(bad) {
                return Err(Error::imatrix(
                    path,
                    format!("{name} has {} at column {column}", entry.values[column]),
                ));
            }
        }
        Ok(Self { path: path.to_path_buf(), entries, datasets, chunks, sha256 })
    }

    /// The importance of the columns of tensor `name`, `[matrices, columns]`, or `None` if it was not
    /// measured.
    ///
    /// # Errors
    /// [`Error::Imatrix`] if it was measured for another number of columns or matrices.
    pub fn columns(&self, name: &str, matrices: usize, columns: usize) -> Result<Option<&[f32]>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if matrices.checked_mul(columns) != Some(entry.values.len()) {
            return Err(Error::imatrix(
                &self.path,
                format!(
                    "{name} has {} values, the model's tensor has {matrices} × {columns} columns",
                    entry.values.len()
                ),
            ));
        }
        Ok(Some(&entry.values))
    }
}
