//! The reader: parses and checks everything but the tensor data, which stays mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::cursor::Cursor;
use super::value::{Array, Value};
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::files::detect::GGUF_MAGIC;
use crate::weight::StoredTensor;
use crate::{Error, Result};

pub(super) const DEFAULT_ALIGNMENT: usize = 32;
pub(super) const MAX_KEY_BYTES: usize = 65_535;
/// ggml keeps names in 64 bytes with a terminator.
pub(super) const MAX_NAME_BYTES: usize = 63;
const MAX_DIMENSIONS: u32 = 4;

/// A tensor of the directory.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Dimensions, outermost first (the reverse of the file).
    pub shape: Vec<usize>,
    /// Element type.
    pub kind: StoredType,
    /// Where the data lies in the file.
    pub range: Range<usize>,
}

/// An opened file.
#[derive(Debug)]
pub struct GgufFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    /// Boundary on which tensors start, bytes.
    pub alignment: usize,
    /// Metadata in file order.
    pub metadata: IndexMap<String, Value>,
    /// Tensors in file order.
    pub tensors: IndexMap<String, TensorInfo>,
    bytes: SharedBytes,
}

impl GgufFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// [`Error::ValidationFailed`] with the place of what is wrong, [`Error::Unsupported`] for
    /// other versions and byte orders.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(SharedBytes::map(path)?, path)
    }

    /// Checks the bytes of a file. `path` is for messages.
    pub fn parse(bytes: SharedBytes, path: &Path) -> Result<Self> {
        let mut cursor = Cursor::new(&bytes, path);
        if cursor.array::<4>("the magic")? != GGUF_MAGIC {
            return Err(Error::damaged(path, "not a GGUF file"));
        }
        let version = cursor.u32("the version")?;
        check_version(version, path)?;
        let tensor_count = cursor.u64("the number of tensors")?;
        let value_count = cursor.u64("the number of metadata values")?;

        let mut metadata = IndexMap::new();
        for _ in 0..value_count {
            let key = cursor.name(MAX_KEY_BYTES, "a metadata key")?;
            let value = cursor.value(&key)?;
            if let Some(_earlier) = metadata.insert(key.clone(), value) {
                return Err(cursor.damaged(format!("the key {key} appears twice")));
            }
        }
        let alignment = alignment(&metadata, &cursor)?;

        let mut directory = IndexMap::new();
        for _ in 0..tensor_count {
            let (name, entry) = entry(&mut cursor)?;
            if let Some(_earlier) = directory.insert(name.clone(), entry) {
                return Err(cursor.damaged(format!("the tensor {name} appears twice")));
            }
        }
        let start = cursor.position().checked_next_multiple_of(alignment).ok_or_else(|| {
            cursor.damaged("the tensor data would start beyond the address space")
        })?;
        let tensors = place(directory, start, alignment, bytes.len(), path)?;
        Ok(Self { path: path.to_path_buf(), version, alignment, metadata, tensors, bytes })
    }

    /// A tensor with its data, if the file has it.
    ///
    /// # Errors
    /// [`Error::ValidationFailed`] if its data is not in the file.
    pub fn tensor(&self, name: &str) -> Result<Option<StoredTensor>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let bytes = self
            .bytes
            .slice(info.range.clone())
            .ok_or_else(|| self.damaged(format!("the data of {name} is outside the file")))?;
        StoredTensor::new(info.shape.clone(), info.kind, bytes)
            .map(Some)
            .map_err(|e| self.damaged(format!("{name}: {e}")))
    }

    /// An error about this file.
    pub fn damaged(&self, message: impl Into<String>) -> Error {
        Error::damaged(&self.path, message)
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.damaged(format!("{key} is of type {}, not {expected}", value.kind().name()))
    }

    /// A u32 value. Other integer types are an error, as in llama.cpp.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::U32(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(key, other, "u32")),
        }
    }

    /// An f32 value.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(key, other, "f32")),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(key, other, "bool")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong_type(key, other, "string")),
        }
    }

    /// An array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong_type(key, other, "array")),
        }
    }
}

fn check_version(version: u32, path: &Path) -> Result<()> {
    let what = match version {
        2 | 3 => return Ok(()),
        other if other.trailing_zeros() >= 16 => "big-endian".to_owned(),
        other => format!("version {other}"),
    };
    Err(Error::Unsupported {
        message: format!("{}: GGUF {what}", path.display()),
        suggestion: "Versions 2 and 3, little-endian, are read: convert the model again".to_owned(),
    })
}

fn alignment(metadata: &IndexMap<String, Value>, cursor: &Cursor) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(value)) if value.is_power_of_two() => Ok(*value as usize),
        Some(other) => {
            Err(cursor.damaged(format!("general.alignment is {other:?}, not a power of two (u32)")))
        }
    }
}

/// A line of the directory: shape, type, offset from the start of the data.
struct Entry {
    shape: Vec<usize>,
    kind: StoredType,
    offset: u64,
}

fn entry(cursor: &mut Cursor) -> Result<(String, Entry)> {
    let name = cursor.name(MAX_NAME_BYTES, "a tensor name")?;
    let dimensions = cursor.u32(&name)?;
    if dimensions > MAX_DIMENSIONS {
        return Err(cursor.damaged(format!("{name} has {dimensions} dimensions")));
    }
    let mut shape = Vec::with_capacity(4);
    let mut elements: i64 = 1;
    for _ in 0..dimensions {
        let size = cursor.u64(&name)?;
        let checked = i64::try_from(size)
            .ok()
            .filter(|&size| size > 0)
            .and_then(|size| elements.checked_mul(size))
            .and_then(|product| Some((usize::try_from(size).ok()?, product)));
        let Some((size, product)) = checked else {
            return Err(cursor.damaged(format!("{name} has a dimension of {size}")));
        };
        elements = product;
        shape.push(size);
    }
    if shape.is_empty() {
        shape.push(1);
    }
    shape.reverse();
    let id = cursor.u32(&name)?;
    let kind = StoredType::from_id(id)
        .ok_or_else(|| cursor.damaged(format!("{name} has the unknown type {id}")))?;
    let offset = cursor.u64(&name)?;
    Ok((name, Entry { shape, kind, offset }))
}

/// Checks that the tensors follow each other on aligned places inside the file.
fn place(
    directory: IndexMap<String, Entry>,
    start: usize,
    alignment: usize,
    file_length: usize,
    path: &Path,
) -> Result<IndexMap<String, TensorInfo>> {
    let mut next = 0usize;
    let mut tensors = IndexMap::with_capacity(directory.len());
    for (name, Entry { shape, kind, offset }) in directory {
        let length = kind.byte_length(&shape).ok_or_else(|| {
            Error::damaged(
                path,
                format!(
                    "{name} of shape {shape:?} does not fill blocks of {} values of {}",
                    kind.block().0,
                    kind.name()
                ),
            )
        })?;
        if offset != next as u64 {
            return Err(Error::damaged(
                path,
                format!("{name} is at offset {offset} of the data, {next} was expected"),
            ));
        }
        let from = start.checked_add(next);
        let range = from.and_then(|from| Some(from..from.checked_add(length)?));
        let Some(range) = range.filter(|range| range.end <= file_length) else {
            return Err(Error::damaged(
                path,
                format!("the data of {name} ends beyond the end of the file; truncated?"),
            ));
        };
        let after =
            next.checked_add(length).and_then(|end| end.checked_next_multiple_of(alignment));
        next = after.ok_or_else(|| Error::damaged(path, "the tensors exceed the address space"))?;
        tensors.insert(name, TensorInfo { shape, kind, range });
    }
    Ok(tensors)
}
