//! Opening `.littlebit` files. Opening reads the preamble, the index and the scales; signs and
//! stored tensors stay in the mapped file, and [`LittleBitFile::verify_checksums`] reads all of it.

use std::path::{Path, PathBuf};

use half::f16;
use sha2::{Digest, Sha256};

use super::CONFIG_FILE;
use super::contents::{Contents, Entry, PathEntry};
use super::index::{About, Index};
use super::preamble::Preamble;
use crate::base::SharedBytes;
use crate::base::progress::Progress;
use crate::codec::signs::BitMatrix;
use crate::weight::{Factor, FactorizedLinear, StoredTensor, Weight};
use crate::{Error, Result};

/// Bytes hashed between two reports of progress.
const HASH_CHUNK: usize = 16 << 20;

/// An open file whose index has been checked.
#[derive(Debug)]
pub struct LittleBitFile {
    path: PathBuf,
    bytes: SharedBytes,
    /// Of what lies on the disk, bytes.
    file_size: u64,
    index: Index,
    contents: Contents,
    index_offset: usize,
}

impl LittleBitFile {
    /// Maps a file and checks its preamble, the checksum of its index and every reference in it.
    /// Sections are not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, SharedBytes::map(path)?)
    }

    /// The same for bytes that are already there; `path` is named in errors.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: SharedBytes) -> Result<Self> {
        let path = path.as_ref();
        let damaged = |message: String| Error::damaged(path, message);
        let preamble = Preamble::parse(&bytes).map_err(damaged)?;
        let index_offset = usize::try_from(preamble.index_offset)
            .map_err(|_| damaged("larger than the address space".into()))?;
        let text = bytes.get(index_offset..).unwrap_or_default();
        if Sha256::digest(text)[..] != preamble.index_sha256 {
            return Err(damaged("the index does not match its checksum".into()));
        }
        let index: Index =
            serde_json::from_slice(text).map_err(|e| damaged(format!("the index: {e}")))?;
        let contents = Contents::check(&index, preamble.index_offset).map_err(damaged)?;
        if contents.flags() != preamble.flags {
            return Err(damaged(format!(
                "flags {:#x} in the preamble of a file whose contents need {:#x}",
                preamble.flags,
                contents.flags()
            )));
        }
        let file_size = bytes.len() as u64;
        Ok(Self { path: path.to_path_buf(), bytes, file_size, index, contents, index_offset })
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file, bytes.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// The index as it lies in the file.
    pub(crate) fn index_text(&self) -> Result<&str> {
        let text = self.bytes.get(self.index_offset..).unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| self.damaged("the index is not UTF-8".into()))
    }

    /// The whole file. Of one that came out of GGUF, what it stands for.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the file on the disk is a GGUF file that stands for this one.
    #[must_use]
    pub fn is_in_gguf(&self) -> bool {
        self.file_size != self.bytes.len() as u64
    }

    /// Says that the file on the disk has another size: it holds the same in another format.
    pub(crate) fn stored_in(mut self, file_size: u64) -> Self {
        self.file_size = file_size;
        self
    }

    /// The index as it was read.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Where the model came from and how it was compressed.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.index.about
    }

    /// The tensors and text files.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// A text file that the file carries, such as `tokenizer.json`.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(&section) = self.contents.files.get(name) else { return Ok(None) };
        String::from_utf8(self.section(section)?.to_vec())
            .map(Some)
            .map_err(|_| self.damaged(format!("{name} is not UTF-8")))
    }

    /// `config.json` as text.
    pub fn config_json(&self) -> Result<String> {
        self.text(CONFIG_FILE)?.ok_or_else(|| self.damaged(format!("no {CONFIG_FILE}")))
    }

    /// A tensor. Its values stay in the file, scales excepted, which are checked to be finite.
    pub fn tensor(&self, name: &str) -> Result<Option<Weight>> {
        let Some(entry) = self.contents.tensors.get(name) else { return Ok(None) };
        Ok(Some(match entry {
            Entry::Stored(entry) => Weight::Stored(StoredTensor::new(
                entry.shape.clone(),
                entry.dtype,
                self.section(entry.section)?,
            )?),
            Entry::Factorized(entry) => {
                let (out, input) = (entry.out_features, entry.in_features);
                let weight = entry
                    .paths
                    .iter()
                    .map(|path| self.factor(path, out, input))
                    .collect::<Result<_>>()
                    .and_then(|paths| FactorizedLinear::new(out, input, paths));
                Weight::Factorized(weight.map_err(|e| self.damaged(format!("{name}: {e}")))?)
            }
        }))
    }

    /// Compares every section with its checksum and every byte between sections with zero.
    /// Progress counts bytes.
    pub fn verify_checksums(&self, progress: &dyn Progress) -> Result<()> {
        progress.start("Verifying", self.index_offset as u64, "bytes");
        let mut position = super::preamble::PREAMBLE_BYTES as usize;
        for (number, expected) in self.contents.checksums.iter().enumerate() {
            let section = self.section(number)?;
            let mut digest = Sha256::new();
            for chunk in section.chunks(HASH_CHUNK) {
                if progress.stop_requested() {
                    return Err(Error::Interrupted { resume: None });
                }
                digest.update(chunk);
                progress.advance(chunk.len() as u64);
            }
            if digest.finalize()[..] != expected[..] {
                return Err(self.damaged(format!(
                    "section {number} ({}) does not match its checksum",
                    self.owner(number)
                )));
            }
            position += section.len();
            let next = position.next_multiple_of(super::ALIGNMENT as usize);
            if self.bytes.get(position..next).is_none_or(|gap| gap.iter().any(|&b| b != 0)) {
                return Err(self.damaged(format!("the bytes after section {number} are not zero")));
            }
            position = next;
            section.release();
        }
        progress.finish();
        Ok(())
    }

    /// Whose bytes a section holds, for messages.
    fn owner(&self, section: usize) -> &str {
        let file = self.contents.files.iter().find(|&(_, &s)| s == section).map(|(name, _)| name);
        let tensor = || {
            self.contents.tensors.iter().find(|(_, entry)| match entry {
                Entry::Stored(entry) => entry.section == section,
                Entry::Factorized(entry) => {
                    entry.paths.iter().flat_map(PathEntry::sections).any(|s| s == section)
                }
            })
        };
        file.or_else(|| tensor().map(|(name, _)| name)).map_or("unused", String::as_str)
    }

    /// The bytes of section `number`.
    pub(super) fn section(&self, number: usize) -> Result<SharedBytes> {
        let range = self.index.sections.get(number).and_then(|section| {
            let start = usize::try_from(section.offset).ok()?;
            Some(start..start.checked_add(usize::try_from(section.length).ok()?)?)
        });
        range
            .and_then(|range| self.bytes.slice(range))
            .ok_or_else(|| self.damaged(format!("section {number} lies outside the file")))
    }

    fn factor(&self, path: &PathEntry, out: usize, input: usize) -> Result<Factor> {
        let scale = |section| -> Result<Vec<f16>> {
            path.scale_type.decode(&self.section(section)?).map_err(Error::Reconstruction)
        };
        Ok(Factor {
            left: BitMatrix::new(out, path.rank, self.section(path.left)?)?,
            right: BitMatrix::new(path.rank, input, self.section(path.right)?)?,
            row_scale: scale(path.row_scale)?,
            latent_scale: path.latent_scale.map(scale).transpose()?,
            column_scale: scale(path.column_scale)?,
            scale_type: path.scale_type,
        })
    }

    fn damaged(&self, message: String) -> Error {
        Error::damaged(&self.path, message)
    }
}
