//! The `.dat` format: i32 number of entries; each i32 length and name, i32 calls, i32 number of
//! values, f32 values (mean squares times calls); then, in files since 2024, i32 number of chunks,
//! i32 length and name of the text. Little-endian.

use super::{Contents, Importance};

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
