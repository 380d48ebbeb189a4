//! Where every byte of a file, or of a set of split files, will lie: known before any is made.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::{IndexMap, IndexSet};

use super::reader::{DEFAULT_ALIGNMENT, MAX_KEY_BYTES, MAX_NAME_BYTES};
use super::value::{Value, encode_string};
use crate::codec::StoredType;
use crate::files::detect::GGUF_MAGIC;
use crate::{Error, Result};

const VERSION: u32 = 3;
const MAX_DIMENSIONS: usize = 4;
/// Split files are numbered by a u16, and named with five digits.
const MAX_FILES: usize = u16::MAX as usize;

/// Metadata of split files: number of the file (u16, from 0), number of files (u16), number of
/// tensors in all of them (i32).
const SPLIT_KEYS: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name, at most 63 bytes.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its type in the file.
    pub kind: StoredType,
}

/// A file of a layout.
#[derive(Debug, Clone)]
pub struct LayoutFile {
    /// `-00001-of-00003` if there are several files.
    pub suffix: Option<String>,
    /// Size of the file.
    pub bytes: u64,
    /// Which of the planned tensors are in it.
    pub tensors: Range<usize>,
    /// Everything before the tensor data, padding included.
    pub(super) header: Vec<u8>,
    /// How many of its metadata values there are.
    pub(super) values: usize,
}

impl LayoutFile {
    /// Everything before the tensor data, padding included.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The path of this file when the whole is to be written to `target`.
    #[must_use]
    pub fn path(&self, target: &Path) -> PathBuf {
        match &self.suffix {
            None => target.to_path_buf(),
            Some(suffix) => split_path(target, suffix),
        }
    }
}

/// `model.gguf` and `-00001-of-00003` → `model-00001-of-00003.gguf`.
#[must_use]
pub fn split_path(target: &Path, suffix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    target.with_file_name(format!("{stem}{suffix}.gguf"))
}

/// Header, offsets and padding of all files.
#[derive(Debug, Clone)]
pub struct FileLayout {
    files: Vec<LayoutFile>,
    /// Bytes of each tensor, without padding.
    pub(super) lengths: Vec<u64>,
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) alignment: usize,
}

impl FileLayout {
    /// Lays out `tensors` in the given order. With `split_max`, no file is larger than that many
    /// bytes; if one file is enough it is an ordinary one. The first of several has all metadata.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what the format cannot hold (names, dimensions, rows that do
    /// not fill blocks, an alignment that is no power of two) and when the header or a tensor alone
    /// is larger than `split_max`.
    pub fn new(
        metadata: &IndexMap<String, Value>,
        tensors: &[PlannedTensor],
        split_max: Option<u64>,
    ) -> Result<Self> {
        let alignment = alignment(metadata)?;
        let lengths = check(metadata, tensors)?;
        let plan = Plan { metadata, tensors, lengths: &lengths, alignment };
        let whole = plan.file(0..tensors.len(), None);
        let files = match split_max {
            Some(most) if whole.bytes > most => plan.split(most)?,
            _ => vec![whole],
        };
        Ok(Self { files, lengths, tensors: tensors.to_vec(), alignment })
    }

    /// The files in order.
    #[must_use]
    pub fn files(&self) -> &[LayoutFile] {
        &self.files
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of each tensor's data in the order they were given, padding not included.
    #[must_use]
    pub fn tensor_bytes(&self) -> &[u64] {
        &self.lengths
    }

    /// Zero bytes that follow a tensor.
    pub(super) fn padding(&self, tensor: usize) -> usize {
        (padded(self.lengths[tensor], self.alignment) - self.lengths[tensor]) as usize
    }
}

fn padded(bytes: u64, alignment: usize) -> u64 {
    bytes.next_multiple_of(alignment as u64)
}

/// Dimensions as ggml counts them: outermost ones of 1 do not count.
pub(super) fn counted(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&size| size == 1).count();
    &shape[ones.min(shape.len().saturating_sub(1))..]
}

fn alignment(metadata: &IndexMap<String, Value>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        // ggml wants a multiple of 8.
        Some(Value::U32(value)) if value.is_power_of_two() && *value >= 8 => Ok(*value as usize),
        Some(other) => Err(Error::InvalidArgument(format!(
            "general.alignment is {other:?}, not a power of two from 8 (u32)"
        ))),
    }
}

/// Checks what a loader would refuse; gives the bytes of each tensor.
fn check(metadata: &IndexMap<String, Value>, tensors: &[PlannedTensor]) -> Result<Vec<u64>> {
    let refuse = |message: String| Err(Error::InvalidArgument(message));
    for key in metadata.keys() {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return refuse(format!("a metadata key of {} bytes", key.len()));
        }
        if SPLIT_KEYS.contains(&key.as_str()) {
            return refuse(format!("{key} is set by the writer of split files alone"));
        }
    }
    let mut names = IndexSet::new();
    let mut total = 0u64;
    let mut lengths = Vec::with_capacity(tensors.len());
    for PlannedTensor { name, shape, kind } in tensors {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return refuse(format!("the tensor name {name:?} has {} bytes", name.len()));
        }
        if !names.insert(name.as_str()) {
            return refuse(format!("two tensors are called {name}"));
        }
        if shape.is_empty() || counted(shape).len() > MAX_DIMENSIONS || shape.contains(&0) {
            return refuse(format!("{name} has the shape {shape:?}"));
        }
        let Some(length) = kind.byte_length(shape).map(|length| length as u64) else {
            return refuse(format!(
                "{name} of shape {shape:?} does not fill blocks of {} values of {}",
                kind.block().0,
                kind.name()
            ));
        };
        let sum = total.checked_add(length).filter(|&sum| sum < i64::MAX as u64 / 2);
        let Some(sum) = sum else { return refuse(format!("{name} exceeds the address space")) };
        total = sum;
        lengths.push(length);
    }
    Ok(lengths)
}

/// What the files are made of.
struct Plan<'a> {
    metadata: &'a IndexMap<String, Value>,
    tensors: &'a [PlannedTensor],
    lengths: &'a [u64],
    alignment: usize,
}

impl Plan<'_> {
    /// Lays out one file; `part` is its number and how many there are.
    fn file(&self, tensors: Range<usize>, part: Option<(usize, usize)>) -> LayoutFile {
        let mut values = IndexMap::new();
        if part.is_none_or(|(number, _)| number == 0) {
            values.extend(self.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())));
        } else if let Some(alignment) = self.metadata.get("general.alignment") {
            values.insert("general.alignment", alignment.clone());
        }
        if let Some((number, count)) = part {
            let of = [
                Value::U16(number as u16),
                Value::U16(count as u16),
                Value::I32(self.tensors.len() as i32),
            ];
            values.extend(SPLIT_KEYS.into_iter().zip(of));
        }
        let mut header = GGUF_MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((values.len() as u64).to_le_bytes());
        for (key, value) in &values {
            encode_string(key.as_bytes(), &mut header);
            value.encode(&mut header);
        }
        let mut offset = 0u64;
        for (tensor, length) in
            self.tensors[tensors.clone()].iter().zip(&self.lengths[tensors.clone()])
        {
            let dimensions = counted(&tensor.shape);
            encode_string(tensor.name.as_bytes(), &mut header);
            header.extend((dimensions.len() as u32).to_le_bytes());
            for dimension in dimensions.iter().rev() {
                header.extend((*dimension as u64).to_le_bytes());
            }
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += padded(*length, self.alignment);
        }
        header.resize(header.len().next_multiple_of(self.alignment), 0);
        LayoutFile {
            suffix: part.map(|(number, count)| format!("-{:05}-of-{count:05}", number + 1)),
            bytes: header.len() as u64 + offset,
            tensors,
            header,
            values: values.len(),
        }
    }

    /// Fills one file after the other up to `most` bytes.
    fn split(&self, most: u64) -> Result<Vec<LayoutFile>> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        while start < self.tensors.len() {
            let number = parts.len();
            if number == MAX_FILES {
                return Err(Error::InvalidArgument(format!(
                    "more than {MAX_FILES} files of {most} bytes would be needed"
                )));
            }
            // The count does not change the size of the header: it is a number of fixed width.
            let empty = self.file(start..start, Some((number, 1))).bytes;
            let mut end = start;
            let mut bytes = self.unpadded_header(start..start, number);
            let mut data = 0;
            while let Some(length) = self.lengths.get(end) {
                let more = directory_bytes(&self.tensors[end]);
                let next = data + padded(*length, self.alignment);
                if padded(bytes + more, self.alignment) + next > most {
                    break;
                }
                bytes += more;
                data = next;
                end += 1;
            }
            if end == start {
                return Err(Error::InvalidArgument(format!(
                    "{} takes {} bytes and the header of its file {empty}: no file of at most \
                     {most} bytes can hold it",
                    self.tensors[start].name, self.lengths[start]
                )));
            }
            parts.push(start..end);
            start = end;
        }
        let count = parts.len();
        let numbered = parts.into_iter().enumerate();
        Ok(numbered.map(|(number, tensors)| self.file(tensors, Some((number, count)))).collect())
    }

    /// Bytes of a header before its padding.
    fn unpadded_header(&self, tensors: Range<usize>, number: usize) -> u64 {
        let unaligned = Plan { alignment: 1, ..*self };
        unaligned.file(tensors, Some((number, 1))).header.len() as u64
    }
}

/// Bytes of a line of the directory.
fn directory_bytes(tensor: &PlannedTensor) -> u64 {
    (8 + tensor.name.len() + 4 + 8 * counted(&tensor.shape).len() + 4 + 8) as u64
}
