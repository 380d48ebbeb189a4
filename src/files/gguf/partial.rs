//! Writing that can be interrupted: what is finished stays in files of another name, and a journal
//! says how far they can be trusted.
//!
//! Beside each target lies `<name>.part-<run>` until it is complete. The journal has a line per
//! finished tensor: its number and the SHA-256 of its file up to the tensor's end, padding
//! included. When the work is taken up again the files are read once from the start; whatever does
//! not have the recorded hash, and all that follows it, is written again. So neither a killed
//! process nor a power cut can make a wrong file, and nothing needs to be flushed on the way.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layout::{FileLayout, LayoutFile};
use super::writer::{WrittenFile, check};
use crate::base::input;
use crate::files::atomic::sync_folder;
use crate::files::atomic::write_atomically;
use crate::files::checkpoint::hexadecimal;
use crate::files::lock::{Attempt, FileLock};
use crate::files::pieces::{Pieces, Sink};
use crate::{Error, Result};

/// Pieces of output that may wait for the disk.
const WAITING: usize = 3;
const READ_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 1 << 18;

/// Files of a layout on their way. Hashing and writing happen on a thread of their own.
#[derive(Debug)]
pub struct PartialGguf {
    layout: FileLayout,
    /// Tensors that are complete in the files.
    finished: usize,
    pieces: Pieces<OpenParts>,
    /// Bytes of the current tensor that were handed over.
    handed: u64,
    journal: Option<PathBuf>,
    /// The temporary files, to remove when nobody can take them up.
    parts: Vec<PathBuf>,
    /// Held against a second process that does the same.
    _locks: Vec<FileLock>,
}

/// A temporary file.
#[derive(Debug)]
struct OpenPart {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
}

impl PartialGguf {
    /// Opens the temporary files of `run` (a short name of what is being done), and takes over what
    /// `journal` vouches for. Without a journal everything begins anew and nothing is kept.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::CheckpointRefused`] when another process writes the same files.
    pub fn open(
        target: &Path,
        layout: &FileLayout,
        run: &str,
        journal: Option<PathBuf>,
    ) -> Result<Self> {
        let mut locks = Vec::new();
        let mut parts = Vec::new();
        for file in layout.files() {
            let path = part_path(&file.path(target), run);
            make_room(&path)?;
            match FileLock::attempt(&path)? {
                Attempt::Locked(lock) => locks.push(lock),
                Attempt::Busy(_) | Attempt::Gone => {
                    return Err(Error::CheckpointRefused {
                        message: format!("another process is writing {}", path.display()),
                        suggestion: "Wait until that process is done, or give this run another \
                                     --output-dir or --output-name"
                            .into(),
                    });
                }
            }
            parts.push(path);
        }
        let recorded = journal.as_deref().map(read_journal).unwrap_or_default();
        let (open, finished) = take_over(layout, &parts, &recorded)?;
        let log = journal.as_deref().map(|path| start_journal(path, &recorded[..finished]));
        let log = log.transpose()?;
        let open = OpenParts {
            missing: layout.lengths.get(finished).copied().unwrap_or(0),
            layout: layout.clone(),
            parts: open,
            tensor: finished,
            journal: log,
        };
        Ok(Self {
            layout: layout.clone(),
            finished,
            pieces: Pieces::to(open, "gguf-writer", WAITING),
            handed: 0,
            journal,
            parts,
            _locks: locks,
        })
    }

    /// How many tensors are complete: the next bytes belong to the tensor of that number.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// The next bytes of the current tensor.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails; [`Error::General`] for bytes beyond the tensor.
    pub fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        let length = self.layout.tensor_bytes().get(self.finished).copied().unwrap_or(0);
        self.handed += bytes.len() as u64;
        if self.handed > length {
            return Err(Error::General("more bytes than the tensor has".to_owned()));
        }
        if self.handed == length {
            self.handed = 0;
            self.finished += 1;
        }
        self.pieces.send(bytes)
    }

    /// Waits until everything that was handed over is written, so that it can be taken up later.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pause(mut self) -> Result<()> {
        self.pieces.finish().map(|_| ())
    }

    /// Flushes the files to the disk, opens and checks each one, and gives them their names, the
    /// first one last: it is the one that stands for the whole.
    ///
    /// # Errors
    /// [`Error::General`] if tensors are missing, [`Error::ValidationFailed`] if a file does not read
    /// back as it was laid out, [`Error::Io`].
    pub fn finish(mut self, target: &Path) -> Result<Vec<WrittenFile>> {
        if self.finished < self.layout.tensor_bytes().len() {
            return Err(Error::General("the file lacks tensors".to_owned()));
        }
        let OpenParts { parts, .. } = self.pieces.finish()?;
        for (part, file) in parts.iter().zip(self.layout.files()) {
            part.file.get_ref().sync_all().map_err(|e| Error::io(&part.path, e))?;
            check(&part.path, &self.layout, file)
                .map_err(|error| Error::damaged(file.path(target), error.to_string()))?;
        }
        let mut written = Vec::with_capacity(parts.len());
        for (part, file) in parts.into_iter().zip(self.layout.files()).rev() {
            let path = file.path(target);
            fs::rename(&part.path, &path).map_err(|e| Error::io(&path, e))?;
            let sha256 = so_far(&part.hash);
            written.push(WrittenFile { path, bytes: file.bytes, sha256 });
        }
        written.reverse();
        self.parts.clear();
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        sync_folder(folder.unwrap_or(Path::new(".")))?;
        Ok(written)
    }
}

impl Drop for PartialGguf {
    fn drop(&mut self) {
        drop(self.pieces.finish());
        if self.journal.is_none() {
            for path in &self.parts {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// `model.gguf` → `model.gguf.part-<run>`.
#[must_use]
pub fn part_path(target: &Path, run: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".part-{run}"));
    target.with_file_name(name)
}

fn so_far(hash: &Sha256) -> String {
    hexadecimal(&hash.clone().finalize())
}

/// The hashes of the journal, in the order of the tensors. A last line that was cut off is no line.
fn read_journal(path: &Path) -> Vec<String> {
    let Ok(text) = input::read_to_string(path, input::MAX_DATA) else { return Vec::new() };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut hashes = Vec::new();
    for line in whole.lines() {
        match line.split_once(' ') {
            Some((number, hash)) if number.parse() == Ok(hashes.len()) => hashes.push(hash.into()),
            _ => break,
        }
    }
    hashes
}

/// Removes a folder where a file of this run belongs.
fn make_room(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { Ok(()) };
    removed.map_err(|e| Error::io(path, e))
}

/// Begins the journal anew with the lines that hold.
fn start_journal(path: &Path, hashes: &[String]) -> Result<File> {
    let mut text = String::new();
    for (number, hash) in hashes.iter().enumerate() {
        text.push_str(&format!("{number} {hash}\n"));
    }
    make_room(path)?;
    write_atomically(path, text.as_bytes())?;
    OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, e))
}

/// Opens the files and goes as far as `recorded` vouches for them; cuts off what follows. Gives
/// the number of tensors that are complete.
fn take_over(
    layout: &FileLayout,
    parts: &[PathBuf],
    recorded: &[String],
) -> Result<(Vec<OpenPart>, usize)> {
    let mut open = Vec::with_capacity(parts.len());
    let mut finished = 0;
    let mut whole = true;
    for (path, planned) in parts.iter().zip(layout.files()) {
        let mut file =
            File::options().read(true).write(true).open(path).map_err(|e| Error::io(path, e))?;
        let mut hash = Sha256::new();
        let mut length = 0;
        if whole {
            (length, hash, finished) = verify(layout, planned, &mut file, recorded, finished)
                .map_err(|e| Error::io(path, e))?;
            whole = finished == planned.tensors.end;
        }
        let mut start = || {
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
            if length == 0 {
                file.write_all(&planned.header)?;
            }
            std::io::Result::Ok(())
        };
        start().map_err(|e| Error::io(path, e))?;
        if length == 0 {
            hash.update(&planned.header);
        }
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        open.push(OpenPart { path: path.clone(), file, hash });
    }
    Ok((open, finished))
}

/// Reads a file as far as it is right: its length up to there, the hash, and the number of tensors
/// that are complete, counted over all files. A file without a right header has length 0.
fn verify(
    layout: &FileLayout,
    planned: &LayoutFile,
    file: &mut File,
    recorded: &[String],
    mut finished: usize,
) -> std::io::Result<(u64, Sha256, usize)> {
    let mut hash = Sha256::new();
    let available = file.metadata()?.len();
    let mut header = vec![0; planned.header.len()];
    if available < header.len() as u64 {
        return Ok((0, hash, finished));
    }
    file.read_exact(&mut header)?;
    if header != planned.header {
        return Ok((0, hash, finished));
    }
    hash.update(&header);
    let mut length = header.len() as u64;
    let mut buffer = vec![0; READ_BYTES];
    while finished < planned.tensors.end && finished < recorded.len() {
        let mut missing = layout.lengths[finished] + layout.padding(finished) as u64;
        let end = length + missing;
        if end > available {
            break;
        }
        let mut extended = hash.clone();
        while missing > 0 {
            let take = usize::try_from(missing).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact(&mut buffer[..take])?;
            extended.update(&buffer[..take]);
            missing -= take as u64;
        }
        if so_far(&extended) != recorded[finished] {
            break;
        }
        hash = extended;
        length = end;
        finished += 1;
    }
    Ok((length, hash, finished))
}

/// All files of a layout, and how far they are.
#[derive(Debug)]
struct OpenParts {
    layout: FileLayout,
    parts: Vec<OpenPart>,
    /// The tensor that is being written, and what is missing of it.
    tensor: usize,
    missing: u64,
    journal: Option<File>,
}

impl Sink for OpenParts {
    /// A piece belongs to one tensor.
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        let tensor = self.tensor;
        let number = self.layout.files().iter().position(|file| file.tensors.contains(&tensor));
        let Some(part) = number.and_then(|number| self.parts.get_mut(number)) else {
            return Err(Error::General("more bytes than the files have".to_owned()));
        };
        part.hash.update(piece);
        part.file.write_all(piece).map_err(|e| Error::io(&part.path, e))?;
        self.missing = self.missing.saturating_sub(piece.len() as u64);
        if self.missing > 0 {
            return Ok(());
        }
        let padding = vec![0; self.layout.padding(tensor)];
        part.hash.update(&padding);
        part.file
            .write_all(&padding)
            .and_then(|()| part.file.flush())
            .map_err(|e| Error::io(&part.path, e))?;
        if let Some(journal) = &mut self.journal {
            let line = format!("{tensor} {}\n", so_far(&part.hash));
            journal.write_all(line.as_bytes()).map_err(|e| Error::io(&part.path, e))?;
        }
        self.tensor += 1;
        self.missing = self.layout.lengths.get(self.tensor).copied().unwrap_or(0);
        Ok(())
    }
}
