//! One finished unit of work in one file.
//!
//! ```text
//! bytes 0..8     "LQUNIT1\n"
//! 8..16          length H of the header, u64
//! 16..24         length T of the whole file, u64
//! 24..24+H       header, JSON: unit, run, meta, floats, sections
//! then           the floats of `meta`, f64 each, then the sections in the header's order
//! T-32..T        SHA-256 of everything before
//! ```
//!
//! All numbers are little-endian. The lengths tell a file that ends early from one that goes on
//! too long, the hash finds every flipped bit, and the names in the header find a file that was
//! copied from another unit or another run.

use std::io::{self, Read, Write};
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::base::input;
use crate::files::atomic::AtomicFile;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"LQUNIT1\n";
const PREFIX_BYTES: u64 = 24;
const HASH_BYTES: u64 = 32;
const MAX_HEADER_BYTES: u64 = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// A named piece of a unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Section {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// 32-bit numbers, kept bit for bit.
    F32(Vec<f32>),
}

/// What a unit of work has produced: a small JSON value and named sections.
///
/// Everything comes back exactly as it was saved, also the floating-point numbers inside `meta`
/// (they are stored as bits; JSON text would cost the last digit).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UnitData {
    /// Statistics and the like.
    pub meta: Value,
    /// Large contents, in order.
    pub sections: IndexMap<String, Section>,
}

impl UnitData {
    /// A unit without sections.
    #[must_use]
    pub fn new(meta: Value) -> Self {
        Self { meta, sections: IndexMap::new() }
    }

    /// Adds bytes under a name; a section of that name is replaced.
    #[must_use]
    pub fn with_bytes(mut self, name: impl Into<String>, bytes: Vec<u8>) -> Self {
        self.sections.insert(name.into(), Section::Bytes(bytes));
        self
    }

    /// Adds numbers under a name; a section of that name is replaced.
    #[must_use]
    pub fn with_f32(mut self, name: impl Into<String>, values: Vec<f32>) -> Self {
        self.sections.insert(name.into(), Section::F32(values));
        self
    }

    /// The bytes of that name, if there are any.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        match self.sections.get(name)? {
            Section::Bytes(bytes) => Some(bytes),
            Section::F32(_) => None,
        }
    }

    /// The numbers of that name, if there are any.
    #[must_use]
    pub fn f32(&self, name: &str) -> Option<&[f32]> {
        match self.sections.get(name)? {
            Section::F32(values) => Some(values),
            Section::Bytes(_) => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    unit: String,
    run: String,
    meta: Value,
    floats: u64,
    sections: Vec<SectionHeader>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SectionHeader {
    name: String,
    kind: Kind,
    /// Elements, not bytes.
    length: u64,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Bytes,
    F32,
}

impl Kind {
    fn size(self) -> u64 {
        match self {
            Self::Bytes => 1,
            Self::F32 => 4,
        }
    }
}

impl Header {
    fn payload_bytes(&self) -> Option<u64> {
        self.sections.iter().try_fold(self.floats.checked_mul(8)?, |sum, section| {
            sum.checked_add(section.length.checked_mul(section.kind.size())?)
        })
    }
}

/// Writes a unit; the file appears whole or not at all.
pub(super) fn write(path: &Path, run: &str, unit: &str, data: &UnitData) -> Result<()> {
    let mut floats = Vec::new();
    collect_floats(&data.meta, &mut floats);
    let header = Header {
        unit: unit.into(),
        run: run.into(),
        meta: data.meta.clone(),
        floats: floats.len() as u64,
        sections: data
            .sections
            .iter()
            .map(|(name, section)| {
                let (kind, length) = match section {
                    Section::Bytes(bytes) => (Kind::Bytes, bytes.len()),
                    Section::F32(values) => (Kind::F32, values.len()),
                };
                SectionHeader { name: name.clone(), kind, length: length as u64 }
            })
            .collect(),
    };
    let text = serde_json::to_vec(&header)
        .map_err(|e| Error::Checkpoint(format!("unit `{unit}` cannot be written: {e}")))?;
    let total = header
        .payload_bytes()
        .map(|payload| PREFIX_BYTES + text.len() as u64 + payload + HASH_BYTES)
        .filter(|_| text.len() as u64 <= MAX_HEADER_BYTES)
        .ok_or_else(|| Error::Checkpoint(format!("unit `{unit}` is too large")))?;

    let at_path = |error| Error::io(path, error);
    let mut file = Hashing { inner: AtomicFile::create_beside_others(path)?, hash: Sha256::new() };
    let mut write = || -> io::Result<()> {
        file.write_all(MAGIC)?;
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&total.to_le_bytes())?;
        file.write_all(&text)?;
        for value in &floats {
            file.write_all(&value.to_le_bytes())?;
        }
        for section in data.sections.values() {
            match section {
                Section::Bytes(bytes) => file.write_all(bytes)?,
                Section::F32(values) => write_f32(&mut file, values)?,
            }
        }
        let digest = file.hash.clone().finalize();
        file.inner.write_all(&digest)
    };
    write().map_err(at_path)?;
    file.inner.commit()
}

fn write_f32(file: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK_BYTES.min(values.len() * 4));
    for chunk in values.chunks(CHUNK_BYTES / 4) {
        buffer.clear();
        for value in chunk {
            buffer.extend_from_slice(&value.to_le_bytes());
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

/// Checks a file from its first to its last byte, in constant memory. The error says what is wrong
/// with it.
pub(super) fn verify(path: &Path, run: &str, unit: &str) -> Result<(), String> {
    let file = input::open(path).map_err(|e| e.to_string())?;
    let mut checked = open(file, run, unit)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left = checked.payload;
    while left > 0 {
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        checked.reader.read_exact(&mut buffer[..count]).map_err(|e| e.to_string())?;
        left -= count as u64;
    }
    checked.finish()
}

/// Reads a file and checks it like [`verify`].
pub(super) fn read(path: &Path, run: &str, unit: &str) -> Result<UnitData, String> {
    let file = input::open(path).map_err(|e| e.to_string())?;
    let mut checked = open(file, run, unit)?;
    // The lengths were compared with the length of the file, so no allocation exceeds it.
    let mut take = |bytes: u64| -> Result<Vec<u8>, String> {
        let length = usize::try_from(bytes).map_err(|e| e.to_string())?;
        let mut buffer = vec![0; length];
        checked.reader.read_exact(&mut buffer).map_err(|e| e.to_string())?;
        Ok(buffer)
    };
    let floats = take(checked.header.floats * 8)?;
    let mut floats = floats.as_chunks::<8>().0.iter().map(|chunk| f64::from_le_bytes(*chunk));
    let mut sections = IndexMap::with_capacity(checked.header.sections.len());
    for section in &checked.header.sections {
        let bytes = take(section.length * section.kind.size())?;
        let contents = match section.kind {
            Kind::Bytes => Section::Bytes(bytes),
            Kind::F32 => Section::F32(
                bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect(),
            ),
        };
        if sections.insert(section.name.clone(), contents).is_some() {
            return Err(format!("two sections are called `{}`", section.name));
        }
    }
    let mut meta = checked.header.meta.clone();
    restore_floats(&mut meta, &mut floats)?;
    if floats.next().is_some() {
        return Err("more numbers than the metadata has".into());
    }
    checked.finish()?;
    Ok(UnitData { meta, sections })
}

/// A file whose header is read and agrees with its length.
struct Checked<R> {
    reader: HashingReader<R>,
    header: Header,
    payload: u64,
}

impl<R: Read> Checked<R> {
    fn finish(mut self) -> Result<(), String> {
        let expected = self.reader.hash.clone().finalize();
        let mut stored = [0; HASH_BYTES as usize];
        self.reader.inner.read_exact(&mut stored).map_err(|e| e.to_string())?;
        if expected.as_slice() != stored {
            return Err("its checksum does not match".into());
        }
        Ok(())
    }
}

fn open(
    file: std::fs::File,
    run: &str,
    unit: &str,
) -> Result<Checked<io::BufReader<std::fs::File>>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut reader = HashingReader {
        inner: io::BufReader::with_capacity(CHUNK_BYTES, file),
        hash: Sha256::new(),
    };
    if length < PREFIX_BYTES + HASH_BYTES {
        return Err(format!("it has {length} bytes, too few for any unit"));
    }
    let mut prefix = [0; PREFIX_BYTES as usize];
    reader.read_exact(&mut prefix).map_err(|e| e.to_string())?;
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&prefix[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if &prefix[..8] != MAGIC {
        return Err("it is no unit of this format".into());
    }
    let (header_length, total) = (word(8), word(16));
    if total != length {
        return Err(format!("it has {length} bytes instead of {total}"));
    }
    if header_length > MAX_HEADER_BYTES.min(length - PREFIX_BYTES - HASH_BYTES) {
        return Err("its header is longer than the file".into());
    }
    let mut text = vec![0; usize::try_from(header_length).map_err(|e| e.to_string())?];
    reader.read_exact(&mut text).map_err(|e| e.to_string())?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| format!("its header: {e}"))?;
    if header.unit != unit || header.run != run {
        return Err(format!("it belongs to unit `{}` of run {}", header.unit, header.run));
    }
    let payload = header.payload_bytes().ok_or("its sections are too long")?;
    if PREFIX_BYTES + header_length + HASH_BYTES != length.wrapping_sub(payload) {
        return Err("its sections do not fill it".into());
    }
    Ok(Checked { reader, header, payload })
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// The floating-point numbers of a JSON value in the order in which they are written.
fn collect_floats(value: &Value, floats: &mut Vec<f64>) {
    match value {
        Value::Number(number) if number.is_f64() => floats.extend(number.as_f64()),
        Value::Array(items) => items.iter().for_each(|item| collect_floats(item, floats)),
        Value::Object(fields) => fields.values().for_each(|item| collect_floats(item, floats)),
        _ => {}
    }
}

/// Puts the exact numbers back where [`collect_floats`] found them.
fn restore_floats(value: &mut Value, floats: &mut impl Iterator<Item = f64>) -> Result<(), String> {
    match value {
        Value::Number(number) if number.is_f64() => {
            let exact = floats.next().and_then(serde_json::Number::from_f64);
            *number = exact.ok_or("fewer numbers than the metadata has")?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| restore_floats(item, floats)),
        Value::Object(fields) => {
            fields.values_mut().try_for_each(|item| restore_floats(item, floats))
        }
        _ => Ok(()),
    }
}
