//! Takes one file out of a ZIP archive (PKWARE APPNOTE 6.3): stored and deflated members, sizes
//! from the central directory, CRC-32 checked. Encryption, ZIP64 and split archives are refused.

use std::io::Read;

use flate2::Crc;
use flate2::read::DeflateDecoder;

/// End of central directory record: signature, size without comment.
const END_SIGNATURE: u32 = 0x0605_4b50;
const END_SIZE: usize = 22;
/// A comment is at most this long, so the record starts within the last 22 + 65,535 bytes.
const LONGEST_COMMENT: usize = 0xffff;
/// Central directory entry: signature, size without its three variable fields.
const ENTRY_SIGNATURE: u32 = 0x0201_4b50;
const ENTRY_SIZE: usize = 46;
/// Local file header: signature, size without its two variable fields.
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const LOCAL_SIZE: usize = 30;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// General-purpose flag bit 0.
const ENCRYPTED: u16 = 1;

/// What the central directory says about a member.
#[derive(Debug)]
struct Entry {
    flags: u16,
    method: u16,
    crc: u32,
    packed: usize,
    unpacked: usize,
    header: usize,
}

/// The contents of the member whose path is `name`, at most `limit` bytes.
///
/// # Errors
/// What is wrong with the archive, as a phrase without the archive's path.
pub(super) fn extract(archive: &[u8], name: &str, limit: usize) -> Result<Vec<u8>, String> {
    let entry = find(archive, name)?;
    if entry.flags & ENCRYPTED != 0 {
        return Err(format!("`{name}` is encrypted"));
    }
    if entry.unpacked > limit {
        return Err(format!("`{name}` claims {} bytes, more than {limit}", entry.unpacked));
    }
    let packed = data(archive, &entry).ok_or_else(|| format!("`{name}` lies outside the file"))?;
    let contents = match entry.method {
        STORED => packed.to_vec(),
        DEFLATED => {
            let mut contents = Vec::new();
            // One byte more than claimed tells a bomb or a damaged stream from a good one.
            DeflateDecoder::new(packed)
                .take(entry.unpacked as u64 + 1)
                .read_to_end(&mut contents)
                .map_err(|error| format!("`{name}` cannot be inflated: {error}"))?;
            contents
        }
        other => return Err(format!("`{name}` uses compression method {other}")),
    };
    if contents.len() != entry.unpacked {
        return Err(format!("`{name}` does not have the {} bytes it claims", entry.unpacked));
    }
    let mut crc = Crc::new();
    crc.update(&contents);
    if crc.sum() != entry.crc {
        return Err(format!("`{name}` fails its checksum"));
    }
    Ok(contents)
}

/// Walks the central directory until the member is found.
fn find(archive: &[u8], name: &str) -> Result<Entry, String> {
    let not_zip = || "not a ZIP archive, or a truncated one".to_owned();
    let last = archive.len().checked_sub(END_SIZE).ok_or_else(not_zip)?;
    let first = last.saturating_sub(LONGEST_COMMENT);
    let end = (first..=last)
        .rev()
        .find(|&at| {
            let comment = u16_at(archive, at + 20).map_or(0, usize::from);
            u32_at(archive, at) == Some(END_SIGNATURE) && at + END_SIZE + comment <= archive.len()
        })
        .ok_or_else(not_zip)?;
    let entries = u16_at(archive, end + 10).ok_or_else(not_zip)?;
    let mut at = u32_at(archive, end + 16).ok_or_else(not_zip)? as usize;
    for _ in 0..entries {
        let damaged = || "its directory is damaged".to_owned();
        if u32_at(archive, at) != Some(ENTRY_SIGNATURE) {
            return Err(damaged());
        }
        let half = |offset: usize| u16_at(archive, at + offset).ok_or_else(damaged);
        let word = |offset: usize| u32_at(archive, at + offset).ok_or_else(damaged);
        let name_length = usize::from(half(28)?);
        let start = at + ENTRY_SIZE;
        let found = archive.get(start..start + name_length).ok_or_else(damaged)?;
        if found == name.as_bytes() {
            let entry = Entry {
                flags: half(8)?,
                method: half(10)?,
                crc: word(16)?,
                packed: word(20)? as usize,
                unpacked: word(24)? as usize,
                header: word(42)? as usize,
            };
            let zip64 = u32::MAX as usize;
            if [entry.packed, entry.unpacked, entry.header].contains(&zip64) {
                return Err("it is a ZIP64 archive".to_owned());
            }
            return Ok(entry);
        }
        at = start + name_length + usize::from(half(30)?) + usize::from(half(32)?);
    }
    Err(format!("it has no `{name}`"))
}

/// The packed bytes of a member. Its local header is read for nothing but its length.
fn data<'a>(archive: &'a [u8], entry: &Entry) -> Option<&'a [u8]> {
    let at = entry.header;
    if u32_at(archive, at)? != LOCAL_SIGNATURE {
        return None;
    }
    let name_length = usize::from(u16_at(archive, at.checked_add(26)?)?);
    let extra_length = usize::from(u16_at(archive, at.checked_add(28)?)?);
    let start = at.checked_add(LOCAL_SIZE + name_length + extra_length)?;
    archive.get(start..start.checked_add(entry.packed)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Python's `zipfile` (an independent writer): `a/one.txt` = "one\n" stored,
    /// `two.txt` = 40 × "abc " deflated, archive comment "hi".
    const PYTHON_ZIP: &[u8] = include_bytes!("../../tests/fixtures/python-zipfile.zip");

    #[test]
    fn members_written_by_another_program_are_read() {
        assert_eq!(extract(PYTHON_ZIP, "a/one.txt", 100).unwrap(), b"one\n");
        assert_eq!(extract(PYTHON_ZIP, "two.txt", 1000).unwrap(), "abc ".repeat(40).as_bytes());
        assert!(extract(PYTHON_ZIP, "three.txt", 100).unwrap_err().contains("three.txt"));
        assert!(extract(PYTHON_ZIP, "two.txt", 100).unwrap_err().contains("160"));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_an_error_or_harmless() {
        let good = extract(PYTHON_ZIP, "two.txt", 1000).unwrap();
        for length in 0..PYTHON_ZIP.len() {
            assert!(extract(&PYTHON_ZIP[..length], "two.txt", 1000).is_err(), "{length} bytes");
        }
        for at in 0..PYTHON_ZIP.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = PYTHON_ZIP.to_vec();
                bytes[at] ^= flip;
                // A flip in a timestamp or in the other member changes nothing here.
                if let Ok(contents) = extract(&bytes, "two.txt", 1000) {
                    assert_eq!(contents, good, "byte {at} flipped by {flip:#x}");
                }
            }
        }
    }
}
