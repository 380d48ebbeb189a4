//! The `.dat` format: i32 number of entries; each i32 length and name, i32 calls, i32 number of
//! values, f32 values (mean squares times calls); then, in files since 2024, i32 number of chunks,
//! i32 length and name of the text. Little-endian.

use std::io::Write;
use std::path::Path;

use super::sums::{ColumnSums, DEFAULT_CHUNK, ImportanceSums};
use super::{Contents, Importance};
use crate::files::atomic::AtomicFile;
use crate::{Error, Result};

/// Longer names belong to something else than a tensor.
const MAX_NAME: usize = 4096;

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let (now, later) =
            self.bytes.split_at_checked(count).ok_or_else(|| format!("it ends within {what}"))?;
        self.bytes = later;
        Ok(now)
    }

    fn i32(&mut self, what: &str) -> Result<i32, String> {
        let mut number = [0; 4];
        number.copy_from_slice(self.take(4, what)?);
        Ok(i32::from_le_bytes(number))
    }

    /// A positive number of things.
    fn count(&mut self, what: &str) -> Result<usize, String> {
        let number = self.i32(what)?;
        usize::try_from(number).ok().filter(|&n| n > 0).ok_or_else(|| format!("{what} is {number}"))
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let length = self.count(&format!("the length of {what}"))?;
        if length > MAX_NAME {
            return Err(format!("{what} has {length} bytes: no importance matrix"));
        }
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<Contents, String> {
    let mut cursor = Cursor { bytes };
    let mut contents = Contents::default();
    for number in 0..cursor.count("the number of entries")? {
        let name = cursor.name(&format!("the name of entry {number}"))?;
        let calls = cursor.i32(&name)?;
        let count = cursor.count(&format!("the number of values of {name}"))?;
        let length = count.checked_mul(4).ok_or("too many values")?;
        let (chunks, _) = cursor.take(length, &name)?.as_chunks::<4>();
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes) / divisor).collect();
        if contents.entries.insert(name.clone(), Importance { values }).is_some() {
            return Err(format!("{name} appears twice"));
        }
    }
    // The first files ended here.
    if !cursor.bytes.is_empty() {
        contents.chunks = cursor.i32("the number of chunks")?.max(0) as u32;
        if !cursor.bytes.is_empty() {
            let length = cursor.i32("the length of the text's name")?.max(0) as usize;
            let name = cursor.take(length, "the text's name")?;
            if !name.is_empty() {
                contents.datasets.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Ok(contents)
}

/// Everything in a file. A value is a mean times the number of calls, and a call is a chunk.
pub(super) fn read_sums(bytes: &[u8]) -> Result<ImportanceSums, String> {
    let contents = read(bytes)?;
    let mut calls = Cursor { bytes };
    let mut sums = ImportanceSums {
        datasets: contents.datasets,
        chunks: contents.chunks,
        chunk_size: DEFAULT_CHUNK,
        ..ImportanceSums::default()
    };
    calls.count("the number of entries")?;
    for (name, entry) in contents.entries {
        calls.name(&name)?;
        let count = f64::from(calls.i32(&name)?.max(1)) * sums.count_of_chunk();
        let values = calls.count(&name)?;
        calls.take(4 * values, &name)?;
        let entry = ColumnSums {
            sums: entry.values.iter().map(|mean| f64::from(*mean) * count).collect(),
            counts: vec![count],
        };
        sums.entries.insert(name, entry);
    }
    Ok(sums)
}

/// Writes, reads back and renames.
pub(super) fn write(sums: &ImportanceSums, path: &Path) -> Result<()> {
    let bytes = encode(sums).map_err(|message| Error::General(format!("{message} for .dat")))?;
    let mut file = AtomicFile::create(path)?;
    file.write_all(&bytes).map_err(|e| Error::io(path, e))?;
    let written = std::fs::read(file.sync()?).map_err(|e| Error::io(path, e))?;
    let back = read(&written).map_err(|message| Error::damaged(path, message))?;
    if written != bytes || back.entries.len() != sums.entries.len() {
        return Err(Error::damaged(path, "it does not read back as it was written"));
    }
    file.commit()
}

fn encode(sums: &ImportanceSums) -> Result<Vec<u8>, String> {
    let number = |value: usize| i32::try_from(value).map_err(|_| "too many values".to_owned());
    let mut bytes = Vec::new();
    let put = |bytes: &mut Vec<u8>, value: i32| bytes.extend(value.to_le_bytes());
    put(&mut bytes, number(sums.entries.len())?);
    for (name, entry) in &sums.entries {
        put(&mut bytes, number(name.len())?);
        bytes.extend(name.as_bytes());
        let largest = entry.counts.iter().copied().fold(0.0, f64::max);
        // Rounded up: a reader takes 0 for "no calls".
        let calls = (largest / sums.count_of_chunk()).ceil().max(1.0);
        put(&mut bytes, calls as i32);
        put(&mut bytes, number(entry.sums.len())?);
        for mean in entry.means() {
            bytes.extend(((mean * calls) as f32).to_le_bytes());
        }
    }
    put(&mut bytes, i32::try_from(sums.chunks).unwrap_or(i32::MAX));
    let dataset = sums.datasets.first().map_or("", String::as_str);
    put(&mut bytes, number(dataset.len())?);
    bytes.extend(dataset.as_bytes());
    Ok(bytes)
}
