//! [`DirectoryWriter`]: streams tensors into the shards of a directory that appears complete or not at
//! all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rustix::fs::{FlockOperation, RenameFlags};
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::companions::{SideFile, is_companion};
use super::layout::{self, Shard};
use crate::base::lists::some_of;
use crate::files::atomic::{is_temporary_of, sync_folder};
use crate::files::checkpoint::hexadecimal;
use crate::files::gguf::WrittenFile;
use crate::files::space;
use crate::{Error, Result};

/// Largest shard unless the caller says otherwise: 5 GB, as in transformers.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Key in the header of a shard that says who wrote it.
const PRODUCER: &str = "producer";
/// Its value starts with this.
const US: &str = "llm-quantize";

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSlot {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSlot {
    /// Bytes of the tensor.
    ///
    /// # Errors
    /// [`Error::General`] if they do not fit 64 bits or are no whole number.
    pub fn bytes(&self) -> Result<u64> {
        layout::slot_bytes(self)
    }
}

/// A directory that is written and verified.
#[derive(Debug)]
pub struct WrittenDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Its files with sizes and hashes, shards first.
    pub files: Vec<WrittenFile>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of the shards.
    pub weight_bytes: u64,
}

/// A directory under construction, beside its target under another name. Tensors are put in the order
/// of their slots; [`finish`](Self::finish) verifies everything and renames. Dropped before that,
/// nothing is left.
///
/// A target that exists must be empty, or hold nothing but a model that this program wrote, which is
/// then replaced.
#[derive(Debug)]
pub struct DirectoryWriter {
    target: PathBuf,
    temporary: PathBuf,
    /// Locked as long as this process lives, so that nobody takes the folder for abandoned.
    _lock: File,
    slots: Vec<TensorSlot>,
    shards: Vec<Shard>,
    hashes: Vec<[u8; 32]>,
    /// Slot that is written next, or in part.
    slot: usize,
    written: u64,
    hash: Sha256,
    shard: usize,
    first_of_shard: usize,
    file: Option<BufWriter<File>>,
    finished: bool,
}

impl DirectoryWriter {
    /// Begins the directory `target` for these tensors: checks the target, the names and the room on
    /// the disk. `metadata` is added to the header of every shard (besides "format" and the program's
    /// name).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the target holds other files, [`Error::Io`],
    /// [`Error::General`] for slots that make no file.
    pub fn create(
        target: &Path,
        slots: Vec<TensorSlot>,
        max_shard_bytes: u64,
        metadata: IndexMap<String, String>,
    ) -> Result<Self> {
        check_target(target)?;
        let producer = concat!("llm-quantize ", env!("CARGO_PKG_VERSION")).to_owned();
        let mut all = IndexMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (PRODUCER.to_owned(), producer),
        ]);
        all.extend(metadata);
        let shards = layout::shards(&slots, max_shard_bytes, &all)?;
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = slots.iter().find(|slot| !names.insert(&slot.name)) {
            return Err(Error::General(format!("{} is there twice", twice.name)));
        }
        let (folder, name) = folder_and_name(target)?;
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        space::check_writable(&folder)?;
        remove_abandoned(&folder, &name);
        space::check_free_space(&folder, shards.iter().map(|shard| shard.bytes).sum())?;
        let (temporary, lock) = temporary_folder(&folder, &name)?;
        Ok(Self {
            target: target.to_path_buf(),
            temporary,
            _lock: lock,
            hashes: Vec::with_capacity(slots.len()),
            slots,
            shards,
            slot: 0,
            written: 0,
            hash: Sha256::new(),
            shard: 0,
            first_of_shard: 0,
            file: None,
            finished: false,
        })
    }

    /// Bytes of all shards, headers included.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Writes the next tensor, whole.
    ///
    /// # Errors
    /// [`Error::General`] if it is not the next one or has another size, [`Error::Io`].
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.written > 0 || self.next_bytes()? != bytes.len() as u64 {
            return Err(self.unexpected(name, bytes.len()));
        }
        self.append(name, bytes)
    }

    /// Writes a part of the next tensor, behind the parts that are written.
    ///
    /// # Errors
    /// [`Error::General`] if it is not the next one or becomes too long, [`Error::Io`].
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let whole = self.next_bytes()?;
        let expected = self.slots.get(self.slot).is_some_and(|slot| slot.name == name);
        if !expected || self.written + bytes.len() as u64 > whole {
            return Err(self.unexpected(name, bytes.len()));
        }
        let path = self.temporary.join(&self.shards[self.shard].name);
        self.write(&path, bytes).map_err(|e| Error::io(&path, e))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        if self.written < whole {
            return Ok(());
        }
        self.hashes.push(self.hash.finalize_reset().into());
        self.slot += 1;
        self.written = 0;
        if self.slot == self.first_of_shard + self.shards[self.shard].offsets.len() {
            if let Some(file) = self.file.take() {
                let file = file.into_inner().map_err(|e| Error::io(&path, e.into_error()))?;
                file.sync_all().map_err(|e| Error::io(&path, e))?;
            }
            self.first_of_shard = self.slot;
            self.shard += 1;
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let shard = &self.shards[self.shard];
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().write(true).create_new(true).open(path)?;
                let mut file = BufWriter::with_capacity(1 << 20, file);
                file.write_all(&shard.header)?;
                none.insert(file)
            }
        };
        if self.written == 0 {
            file.seek(SeekFrom::Start(shard.offsets[self.slot - self.first_of_shard]))?;
        }
        file.write_all(bytes)
    }

    fn next_bytes(&self) -> Result<u64> {
        self.slots.get(self.slot).map_or(Ok(0), layout::slot_bytes)
    }

    fn unexpected(&self, name: &str, bytes: usize) -> Error {
        let next = self.slots.get(self.slot).map_or("nothing", |slot| &slot.name);
        Error::General(format!("{bytes} bytes of {name} do not fit; {next} comes next"))
    }

    /// Adds the other files, reads everything back, compares it, and gives the directory its name.
    ///
    /// # Errors
    /// [`Error::General`] if tensors are missing or two files have one name,
    /// [`Error::ValidationFailed`] if something reads back otherwise than it was written,
    /// [`Error::Io`].
    pub fn finish(mut self, side: &[SideFile]) -> Result<WrittenDirectory> {
        if self.slot < self.slots.len() {
            return Err(self.unexpected("the end", 0));
        }
        let mut side = side.to_vec();
        if self.shards.len() > 1 {
            side.push(SideFile {
                name: "model.safetensors.index.json".to_owned(),
                bytes: layout::index(&self.slots, &self.shards)?.into_bytes(),
            });
        }
        let mut files = self.verify_shards()?;
        let weight_bytes = files.iter().map(|file| file.bytes).sum();
        for file in &side {
            let path = self.temporary.join(&file.name);
            let write = || -> std::io::Result<()> {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                let mut new = OpenOptions::new().write(true).create_new(true).open(&path)?;
                new.write_all(&file.bytes)?;
                new.sync_all()
            };
            write().map_err(|e| Error::io(&path, e))?;
            let back = fs::read(&path).map_err(|e| Error::io(&path, e))?;
            if back != file.bytes {
                return Err(Error::damaged(&path, "reads back otherwise than it was written"));
            }
            files.push(WrittenFile {
                path: self.target.join(&file.name),
                bytes: back.len() as u64,
                sha256: hexadecimal(&Sha256::digest(&back)),
            });
        }
        sync_folder(&self.temporary)?;
        self.rename()?;
        self.finished = true;
        Ok(WrittenDirectory {
            path: self.target.clone(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
            weight_bytes,
        })
    }

    /// Reads the shards from the disk: header, sizes, and the hash of every tensor.
    fn verify_shards(&self) -> Result<Vec<WrittenFile>> {
        let mut files = Vec::with_capacity(self.shards.len());
        let mut hashes = self.hashes.iter();
        let mut slots = self.slots.iter();
        for shard in &self.shards {
            let path = self.temporary.join(&shard.name);
            let failed = |what: String| Error::damaged(&path, format!("after writing: {what}"));
            let mut file = File::open(&path).map_err(|e| Error::io(&path, e))?;
            let length = file.metadata().map_err(|e| Error::io(&path, e))?.len();
            let mut header = vec![0; shard.header.len()];
            file.read_exact(&mut header).map_err(|e| Error::io(&path, e))?;
            if length != shard.bytes || header != shard.header {
                return Err(failed(format!("{length} bytes, not {}", shard.bytes)));
            }
            // The order of the data in the file.
            let mut order: Vec<(u64, &TensorSlot, &[u8; 32])> = shard
                .offsets
                .iter()
                .zip(slots.by_ref().zip(hashes.by_ref()))
                .map(|(&offset, (slot, hash))| (offset, slot, hash))
                .collect();
            order.sort_by_key(|(offset, ..)| *offset);
            let mut whole = Sha256::new_with_prefix(&header);
            let mut buffer = vec![0; 1 << 20];
            for (_, slot, expected) in order {
                let mut left = layout::slot_bytes(slot)?;
                let mut hash = Sha256::new();
                while left > 0 {
                    let part = &mut buffer[..left.min(1 << 20) as usize];
                    file.read_exact(part).map_err(|e| Error::io(&path, e))?;
                    hash.update(&*part);
                    whole.update(&*part);
                    left -= part.len() as u64;
                }
                if hash.finalize()[..] != expected[..] {
                    return Err(failed(format!("{} has other bytes", slot.name)));
                }
            }
            files.push(WrittenFile {
                path: self.target.join(&shard.name),
                bytes: length,
                sha256: hexadecimal(&whole.finalize()),
            });
        }
        Ok(files)
    }

    /// Puts the directory in the target's place.
    fn rename(&self) -> Result<()> {
        check_target(&self.target)?;
        let (folder, _) = folder_and_name(&self.target)?;
        let occupied = fs::read_dir(&self.target).is_ok_and(|mut entries| entries.next().is_some());
        if occupied {
            let here = rustix::fs::CWD;
            let swapped = rustix::fs::renameat_with(
                here,
                &self.temporary,
                here,
                &self.target,
                RenameFlags::EXCHANGE,
            );
            if swapped.is_err() {
                // File systems that cannot exchange two names.
                let aside = self.temporary.with_extension("old");
                fs::rename(&self.target, &aside).map_err(|e| Error::io(&self.target, e))?;
                if let Err(error) = fs::rename(&self.temporary, &self.target) {
                    let _ = fs::rename(&aside, &self.target);
                    return Err(Error::io(&self.target, error));
                }
                fs::rename(&aside, &self.temporary).map_err(|e| Error::io(&aside, e))?;
            }
            // What was there before, now under the temporary name.
            fs::remove_dir_all(&self.temporary).map_err(|e| Error::io(&self.temporary, e))?;
        } else {
            fs::rename(&self.temporary, &self.target).map_err(|e| Error::io(&self.target, e))?;
        }
        sync_folder(&folder)
    }
}

impl Drop for DirectoryWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Refuses a target whose files would be mixed with a model's, or lost.
///
/// # Errors
/// [`Error::InvalidArgument`], [`Error::Io`].
pub(crate) fn check_target(target: &Path) -> Result<()> {
    let entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(target, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(target, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let refused = |files: &[&str], why: &str| {
        Err(Error::InvalidArgument(format!(
            "{} {why}: {}; choose another --output-dir or --output-name",
            target.display(),
            some_of(files)
        )))
    };
    let others: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !is_companion(name)).collect();
    if !others.is_empty() {
        return refused(&others, "holds files that are not of a model written here");
    }
    let shards = names.iter().filter(|name| name.ends_with(".safetensors"));
    let foreign: Vec<&str> =
        shards.map(String::as_str).filter(|name| !is_ours(&target.join(name))).collect();
    let has_shards = names.iter().any(|name| name.ends_with(".safetensors"));
    if !foreign.is_empty() || (!names.is_empty() && !has_shards) {
        let shown: Vec<&str> = names.iter().map(String::as_str).collect();
        return refused(&shown, "holds a model of another program, which would be lost");
    }
    Ok(())
}

/// Whether a safetensors file says that this program wrote it.
fn is_ours(path: &Path) -> bool {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length).min(100 << 20)).read_to_end(&mut header)?;
        Ok(header)
    };
    let Ok(header) = read() else { return false };
    let root: serde_json::Value = serde_json::from_slice(&header).unwrap_or_default();
    root["__metadata__"][PRODUCER].as_str().is_some_and(|producer| producer.starts_with(US))
}

/// The folder that holds `target`, and its name there.
fn folder_and_name(target: &Path) -> Result<(PathBuf, OsString)> {
    let Some(name) = target.file_name() else {
        return Err(Error::InvalidArgument(format!(
            "{} is no name of a directory to write",
            target.display()
        )));
    };
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((folder.to_path_buf(), name.to_owned()))
}

/// Removes folders that killed processes left for the same target.
fn remove_abandoned(folder: &Path, name: &OsString) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_temporary_of(&entry.file_name(), Some(name))) {
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if path.is_dir()
            && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn temporary_folder(folder: &Path, name: &OsString) -> Result<(PathBuf, File)> {
    const ATTEMPTS: usize = 1000;
    for number in 0..ATTEMPTS {
        let mut temporary = name.clone();
        temporary.push(format!(".tmp-{}-{number}", std::process::id()));
        let path = folder.join(temporary);
        match fs::create_dir(&path) {
            Ok(()) => {
                let lock = File::open(&path).map_err(|e| Error::io(&path, e))?;
                // Without locks the folder is merely not protected; see `atomic`.
                let _ = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
                return Ok((path, lock));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&path, error)),
        }
    }
    Err(Error::io(
        folder.join(name),
        std::io::Error::new(std::io::ErrorKind::AlreadyExists, "no free name for a folder"),
    ))
}
