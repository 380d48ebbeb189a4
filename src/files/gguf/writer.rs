//! The writer: tensors in the order of a layout, streamed, hashed and put into place when whole.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layout::{FileLayout, LayoutFile, counted};
use super::reader::GgufFile;
use crate::files::atomic::AtomicFile;
use crate::files::pieces::{Pieces, Sink};
use crate::{Error, Result};

/// Bytes that are handed to the disk at once, and how many such pieces may wait.
const PIECE_BYTES: usize = 1 << 20;
const WAITING: usize = 8;

/// A file that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its contents, in hexadecimal digits.
    pub sha256: String,
}

/// Writes the files of a layout. Everything goes to temporary files beside the target;
/// [`finish`](Self::finish) checks them and gives them their names. Dropped before that, nothing is
/// left.
///
/// Hashing and writing happen on a thread of their own while the caller makes the next values.
#[derive(Debug)]
pub struct GgufWriter {
    layout: FileLayout,
    pieces: Pieces<OpenFiles>,
    piece: Vec<u8>,
    /// The tensor that is being written, the file it is in, and what is missing of it.
    tensor: usize,
    file: usize,
    missing: u64,
}

impl GgufWriter {
    /// Opens the temporary files and writes the header of the first.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be made.
    pub fn create(target: &Path, layout: &FileLayout) -> Result<Self> {
        let files = layout
            .files()
            .iter()
            .map(|file| OpenFile::create(&file.path(target), file.bytes))
            .collect::<Result<Vec<_>>>()?;
        let mut writer = Self {
            layout: layout.clone(),
            pieces: Pieces::to(OpenFiles { files, current: 0 }, "gguf-writer", WAITING),
            piece: Vec::with_capacity(PIECE_BYTES),
            tensor: 0,
            file: 0,
            missing: 0,
        };
        writer.missing = writer.layout.lengths.first().copied().unwrap_or(0);
        let header = writer.layout.files().first().map(|file| file.header.clone());
        writer.hand_over(&header.unwrap_or_default())?;
        Ok(writer)
    }

    /// The next bytes. A call may end anywhere in a tensor and may go on into the next one.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails; [`Error::General`] for more bytes than the layout
    /// has.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.tensor == self.layout.lengths.len() {
                return Err(Error::General(
                    "more bytes than the layout of the file has".to_owned(),
                ));
            }
            let take = bytes.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
            let (now, later) = bytes.split_at(take);
            self.hand_over(now)?;
            self.missing -= take as u64;
            bytes = later;
            if self.missing == 0 {
                self.next_tensor()?;
            }
        }
        Ok(())
    }

    /// Pads the tensor that is complete and goes to the next, possibly in the next file.
    fn next_tensor(&mut self) -> Result<()> {
        let padding = vec![0; self.layout.padding(self.tensor)];
        self.hand_over(&padding)?;
        self.tensor += 1;
        self.missing = self.layout.lengths.get(self.tensor).copied().unwrap_or(0);
        let after = self.tensor == self.layout.files()[self.file].tensors.end;
        if after && let Some(next) = self.layout.files().get(self.file + 1) {
            let header = next.header.clone();
            self.file += 1;
            self.hand_over(&header)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.pieces.send(piece)
    }

    /// Flushes the files to the disk, opens and checks each one, and gives them their names, the
    /// first one last: it is the one that stands for the whole.
    ///
    /// # Errors
    /// [`Error::General`] if bytes are missing, [`Error::ValidationFailed`] if a file does not read
    /// back as it was laid out, [`Error::Io`].
    pub fn finish(self) -> Result<Vec<WrittenFile>> {
        self.finish_checked(|_| Ok(()))
    }

    /// [`finish`](Self::finish), with a check of the caller's on each file before any has its name.
    ///
    /// # Errors
    /// Those of the check too.
    pub(crate) fn finish_checked(
        mut self,
        also: impl Fn(&Path) -> Result<()>,
    ) -> Result<Vec<WrittenFile>> {
        if let Some(tensor) = self.layout.tensors.get(self.tensor) {
            return Err(Error::General(format!(
                "{} lacks {} of its bytes",
                tensor.name, self.missing
            )));
        }
        self.send()?;
        let OpenFiles { mut files, .. } = self.pieces.finish()?;
        for (file, planned) in files.iter_mut().zip(self.layout.files()) {
            let path = file.file.sync()?.to_path_buf();
            check(&path, &self.layout, planned)
                .map_err(|error| Error::damaged(file.file.target(), error.to_string()))?;
            also(&path)?;
        }
        let mut written = Vec::with_capacity(files.len());
        for OpenFile { file, bytes, hash, .. } in files.into_iter().rev() {
            let path = file.target().to_path_buf();
            file.commit()?;
            let sha256 = format!("{:x}", hash.finalize());
            written.push(WrittenFile { path, bytes, sha256 });
        }
        written.reverse();
        Ok(written)
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        // The files remove themselves.
        drop(self.pieces.finish());
    }
}

/// A file on its way.
#[derive(Debug)]
struct OpenFile {
    file: AtomicFile,
    /// Its size when complete, and what is missing.
    bytes: u64,
    missing: u64,
    hash: Sha256,
}

impl OpenFile {
    fn create(path: &Path, bytes: u64) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        Ok(Self { file, bytes, missing: bytes, hash: Sha256::new() })
    }
}

/// All files of a layout, and the one that is being written.
#[derive(Debug)]
struct OpenFiles {
    files: Vec<OpenFile>,
    current: usize,
}

impl Sink for OpenFiles {
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(open) = self.files.get_mut(self.current) else {
                return Err(Error::General("more bytes than the files have".to_owned()));
            };
            let take = bytes.len().min(usize::try_from(open.missing).unwrap_or(usize::MAX));
            let (now, later) = bytes.split_at(take);
            open.hash.update(now);
            let target = open.file.target().to_path_buf();
            open.file.write_all(now).map_err(|e| Error::io(target, e))?;
            open.missing -= take as u64;
            bytes = later;
            if open.missing == 0 {
                self.current += 1;
            }
        }
        Ok(())
    }
}

/// Reads a file back and compares it with its plan.
pub(super) fn check(path: &Path, layout: &FileLayout, planned: &LayoutFile) -> Result<()> {
    let file = GgufFile::open(path)?;
    let length = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    let wrong = |what: String| Err(Error::General(format!("read back with {what}")));
    if length != planned.bytes {
        return wrong(format!("{length} bytes instead of {}", planned.bytes));
    }
    if file.metadata.len() != planned.values || file.tensors.len() != planned.tensors.len() {
        return wrong("other numbers of tensors and values".to_owned());
    }
    for (tensor, (name, info)) in layout.tensors[planned.tensors.clone()].iter().zip(&file.tensors)
    {
        let same = tensor.name == *name
            && counted(&tensor.shape) == info.shape.as_slice()
            && tensor.kind == info.kind;
        if !same {
            return wrong(format!("another {name}"));
        }
    }
    Ok(())
}
