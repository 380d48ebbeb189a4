//! From GGUF back to a `.littlebit` file.

use std::path::Path;

use half::f16;
use sha2::{Digest, Sha256};

use super::{
    ARCHITECTURE, FILE_KEY, INDEX_KEY, VERSION, VERSION_KEY, factor_name, signs, tensor_name,
};
use crate::base::SharedBytes;
use crate::base::progress::{NullProgress, Progress};
use crate::codec::StoredType;
use crate::files::detect::{self, PathKind};
use crate::files::gguf::GgufFile;
use crate::files::littlebit::index::{Kind, PathRecord, TensorRecord};
use crate::files::littlebit::preamble::Preamble;
use crate::files::littlebit::{Contents, Index, LittleBitFile};
use crate::weight::ScaleType;
use crate::{Error, Result};

/// Whether a GGUF file holds binary factors.
///
/// # Errors
/// [`Error::ValidationFailed`] if its architecture is no text.
pub(crate) fn is_gguf_ext(file: &GgufFile) -> Result<bool> {
    Ok(file.text("general.architecture")?.is_some_and(|name| name.starts_with(ARCHITECTURE)))
}

/// Opens one as the `.littlebit` file that it stands for, which is rebuilt in memory.
///
/// # Errors
/// [`Error::ValidationFailed`] if `path` is damaged, [`Error::Unsupported`] if it is another kind of
/// file or of a later version, [`Error::Reconstruction`] if factors do not have the form that the
/// index says or the bytes do not match their checksums.
pub(crate) fn open(path: &Path) -> Result<LittleBitFile> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    Ok(restore(path, &NullProgress)?.stored_in(size))
}

/// Opens a `.littlebit` file or a GGUF file that stands for one, told apart by their contents.
///
/// # Errors
/// As [`LittleBitFile::open`] and [`open`].
pub(crate) fn open_either(path: &Path) -> Result<LittleBitFile> {
    match detect::path_kind(path)? {
        PathKind::Gguf => open(path),
        PathKind::Directory => Err(Error::Unsupported {
            message: format!(
                "{} is a directory, where a .littlebit file or a GGUF file with binary factors is \
                 expected",
                path.display()
            ),
            suggestion: "Name the file itself; `llm-quantize info` looks at a model's directory"
                .into(),
        }),
        _ => LittleBitFile::open(path),
    }
}

/// The `.littlebit` file, in memory; every checksum of its index is compared.
///
/// # Errors
/// [`Error::ValidationFailed`] if `path` is damaged, [`Error::Unsupported`] if it is another kind of
/// file or of a later version, [`Error::Reconstruction`] if factors do not have the form that the
/// index says or the bytes do not match their checksums.
pub(super) fn restore(path: &Path, progress: &dyn Progress) -> Result<LittleBitFile> {
    let file = GgufFile::open(path)?;
    let unsupported = |message: String| Error::Unsupported {
        message: format!("{}: {message}", path.display()),
        suggestion: "Give a GGUF file that `littlebit convert … gguf-ext` wrote".into(),
    };
    if !is_gguf_ext(&file)? {
        return Err(unsupported("a GGUF file without binary factors".into()));
    }
    let version = file.u32(VERSION_KEY)?;
    if version != Some(VERSION) {
        return Err(unsupported(format!("{VERSION_KEY} is {version:?}, {VERSION} is understood")));
    }
    let text = file.text(INDEX_KEY)?.ok_or_else(|| file.damaged(format!("no {INDEX_KEY}")))?;
    let index: Index =
        serde_json::from_str(text).map_err(|e| file.damaged(format!("{INDEX_KEY}: {e}")))?;
    let index_offset = index
        .sections
        .last()
        .and_then(|last| last.offset.checked_add(last.length)?.checked_next_multiple_of(64))
        .ok_or_else(|| file.damaged(format!("{INDEX_KEY} has no sections")))?;
    // Also bounds every offset and length.
    let contents = Contents::check(&index, index_offset).map_err(|e| file.damaged(e))?;
    let most = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    // Ranks that do not fill bytes take less room in blocks.
    if index_offset > most.saturating_mul(8) {
        return Err(file.damaged(format!("{INDEX_KEY} describes more than the file holds")));
    }
    let preamble = Preamble {
        flags: contents.flags(),
        index_offset,
        index_length: text.len() as u64,
        index_sha256: Sha256::digest(text).into(),
    };
    let mut bytes = vec![0; index_offset as usize];
    let first = preamble.to_bytes();
    bytes[..first.len()].copy_from_slice(&first);
    let mut rebuilt = Rebuilt { file: &file, index: &index, bytes };
    for (name, &section) in &contents.files {
        let key = format!("{FILE_KEY}{name}");
        let text = file.text(&key)?.ok_or_else(|| file.damaged(format!("no {key}")))?;
        rebuilt.put(section, text.as_bytes(), name)?;
    }
    index.tensors.iter().try_for_each(|record| rebuilt.tensor(record))?;
    let mut bytes = rebuilt.bytes;
    bytes.extend_from_slice(text.as_bytes());
    let restored = LittleBitFile::from_bytes(path, SharedBytes::from_vec(bytes))?;
    restored.verify_checksums(progress).map_err(|error| match error {
        Error::ValidationFailed { message, .. } => {
            Error::Reconstruction(format!("{}: {message}", path.display()))
        }
        other => other,
    })?;
    Ok(restored)
}

/// A `.littlebit` file whose sections are being filled.
struct Rebuilt<'a> {
    file: &'a GgufFile,
    index: &'a Index,
    bytes: Vec<u8>,
}

impl Rebuilt<'_> {
    fn put(&mut self, section: usize, bytes: &[u8], what: &str) -> Result<()> {
        let place = self.index.sections.get(section).filter(|s| s.length == bytes.len() as u64);
        let place =
            place.and_then(|s| self.bytes.get_mut(s.offset as usize..)?.get_mut(..bytes.len()));
        match place {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::Reconstruction(format!(
                "{}: {what} has {} bytes, which is not what the index says",
                self.file.path.display(),
                bytes.len()
            ))),
        }
    }

    fn tensor(&mut self, record: &TensorRecord) -> Result<()> {
        match (record.kind, record.section, &record.paths) {
            (Kind::Stored, Some(section), _) => {
                let name = tensor_name(&record.name);
                let bytes = self.data(&name, None)?;
                self.put(section, &bytes, &name)
            }
            (Kind::Factorized, _, Some(paths)) => {
                let [out, input] = record.shape[..] else { return Ok(()) };
                let paths = paths.iter().enumerate();
                paths.into_iter().try_for_each(|(at, path)| {
                    self.path(&record.name, at, path, (out as usize, input as usize))
                })
            }
            _ => Ok(()),
        }
    }

    fn path(
        &mut self,
        tensor: &str,
        at: usize,
        path: &PathRecord,
        (out, input): (usize, usize),
    ) -> Result<()> {
        let rank = path.rank as usize;
        let wrong = |name: &str, what: String| Error::Reconstruction(format!("{name}: {what}"));
        for (part, section, shape, transposed) in
            [("left", path.left, (rank, out), true), ("right", path.right, (rank, input), false)]
        {
            let name = factor_name(tensor, at, part);
            let blocks = self.data(&name, Some(StoredType::Q1_0))?;
            let signs =
                signs::from_blocks(&blocks, shape, transposed).map_err(|e| wrong(&name, e))?;
            self.put(section, &signs.bytes, &name)?;
        }
        let kind = match &path.scale_type {
            None => ScaleType::F16,
            Some(name) => ScaleType::from_name(name)
                .ok_or_else(|| wrong(tensor, format!("scales of type {name}")))?,
        };
        for (part, section) in [
            ("row_scale", Some(path.row_scale)),
            ("latent_scale", path.latent_scale),
            ("column_scale", Some(path.column_scale)),
        ] {
            let Some(section) = section else { continue };
            let name = factor_name(tensor, at, part);
            let values = self.data(&name, Some(StoredType::F16))?;
            let values: Vec<f16> =
                values.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
            let bytes = kind.encode(&values).map_err(|e| wrong(&name, e))?;
            self.put(section, &bytes, &name)?;
        }
        Ok(())
    }

    /// The bytes of a tensor, which must be of type `kind` if one is given.
    fn data(&self, name: &str, kind: Option<StoredType>) -> Result<SharedBytes> {
        let tensor = self
            .file
            .tensor(name)?
            .ok_or_else(|| self.file.damaged(format!("the tensor {name} is missing")))?;
        match kind {
            Some(kind) if kind != tensor.dtype => Err(self.file.damaged(format!(
                "{name} is of type {} instead of {}",
                tensor.dtype.name(),
                kind.name()
            ))),
            _ => Ok(tensor.bytes),
        }
    }
}
