//! The first 64 bytes of a `.littlebit` file.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | 8 bytes | magic `89 4C 42 54 0D 0A 1A 0A` |
//! | 8 | u32 | format version |
//! | 12 | u32 | flags: [`FLAG_LOG_SCALES`] |
//! | 16 | u64 | offset of the index |
//! | 24 | u64 | length of the index |
//! | 32 | 32 bytes | SHA-256 of the index |

use super::{ALIGNMENT, FORMAT_VERSION, MAX_INDEX_BYTES};
use crate::files::detect::LITTLEBIT_MAGIC;

/// Length of the preamble, bytes.
pub(crate) const PREAMBLE_BYTES: u64 = 64;

/// Bit 0 of the flags: set exactly if some scales are stored as logarithmic codes.
pub(crate) const FLAG_LOG_SCALES: u32 = 1;

/// Where the index lies and what it must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preamble {
    /// What the reader has to understand: [`FLAG_LOG_SCALES`] or nothing.
    pub flags: u32,
    /// First byte of the index; a multiple of [`ALIGNMENT`].
    pub index_offset: u64,
    /// Bytes of the index, padding included; it ends the file.
    pub index_length: u64,
    /// SHA-256 of these bytes.
    pub index_sha256: [u8; 32],
}

impl Preamble {
    /// The 64 bytes.
    #[must_use]
    pub(crate) fn to_bytes(self) -> [u8; PREAMBLE_BYTES as usize] {
        let mut bytes = [0; PREAMBLE_BYTES as usize];
        bytes[..8].copy_from_slice(&LITTLEBIT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_length.to_le_bytes());
        bytes[32..].copy_from_slice(&self.index_sha256);
        bytes
    }

    /// Reads the preamble of a file and checks it against the file's length. The error says what
    /// is wrong.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        if !file.starts_with(&LITTLEBIT_MAGIC) {
            return Err("not a .littlebit file, or one whose writing did not finish".into());
        }
        let version = u32::from_le_bytes(field(file, 8)?);
        if version != FORMAT_VERSION {
            return Err(format!(
                "format version {version}; this program reads version {FORMAT_VERSION}"
            ));
        }
        let flags = u32::from_le_bytes(field(file, 12)?);
        if flags & !FLAG_LOG_SCALES != 0 {
            return Err(format!(
                "flags {flags:#x} in the preamble, this program knows {FLAG_LOG_SCALES:#x}"
            ));
        }
        let preamble = Self {
            flags,
            index_offset: u64::from_le_bytes(field(file, 16)?),
            index_length: u64::from_le_bytes(field(file, 24)?),
            index_sha256: field(file, 32)?,
        };
        let Self { index_offset, index_length, .. } = preamble;
        if index_offset < PREAMBLE_BYTES || !index_offset.is_multiple_of(ALIGNMENT) {
            return Err(format!("the index cannot begin at byte {index_offset}"));
        }
        if index_length > MAX_INDEX_BYTES {
            return Err(format!(
                "an index of {index_length} bytes, the limit is {MAX_INDEX_BYTES}"
            ));
        }
        match index_offset.checked_add(index_length) {
            Some(end) if end == file.len() as u64 => Ok(preamble),
            Some(end) if end > file.len() as u64 => Err(format!(
                "truncated: {} bytes of the {end} that the preamble announces",
                file.len()
            )),
            _ => Err(format!(
                "the file has {} bytes, the index ends elsewhere ({index_offset} + {index_length})",
                file.len()
            )),
        }
    }
}

/// `N` bytes at `offset` of the preamble.
fn field<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], String> {
    file.get(offset..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or_else(|| format!("truncated inside the preamble ({} bytes)", file.len()))
}
