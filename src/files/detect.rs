//! What a path is, by its contents; the extension decides nothing.

use std::io::Read;
use std::path::Path;

use crate::base::input;
use crate::{Error, Result};

/// First bytes of a GGUF file.
pub(crate) const GGUF_MAGIC: [u8; 4] = *b"GGUF";

/// First bytes of a `.littlebit` file: a byte that no text has, the name, and line endings that a
/// transfer in text mode would change.
pub(crate) const LITTLEBIT_MAGIC: [u8; 8] = *b"\x89LBT\r\n\x1a\n";

/// Kinds of paths that a user may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathKind {
    /// There is nothing.
    Missing,
    /// A directory.
    Directory,
    /// A GGUF file.
    Gguf,
    /// A `.littlebit` file.
    LittleBit,
    /// A safetensors file.
    SafeTensors,
    /// Something else.
    Unknown,
}

/// Looks at `path` and at most its first 16 bytes.
pub(crate) fn path_kind(path: &Path) -> Result<PathKind> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(PathKind::Missing);
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    if metadata.is_dir() {
        return Ok(PathKind::Directory);
    }
    input::check(&metadata).map_err(|e| Error::io(path, e))?;
    let mut start = Vec::with_capacity(16);
    input::open(path)
        .and_then(|file| file.take(16).read_to_end(&mut start))
        .map_err(|e| Error::io(path, e))?;
    Ok(bytes_kind(&start, metadata.len()))
}

/// The kind of a file of `length` bytes that begins with `start`.
fn bytes_kind(start: &[u8], length: u64) -> PathKind {
    if start.starts_with(&GGUF_MAGIC) {
        return PathKind::Gguf;
    }
    if start.starts_with(&LITTLEBIT_MAGIC) {
        return PathKind::LittleBit;
    }
    // safetensors: the length of a JSON header, then the header.
    match start.split_first_chunk::<8>() {
        Some((header, rest))
            if rest.starts_with(b"{")
                && u64::from_le_bytes(*header).checked_add(8).is_some_and(|end| end <= length) =>
        {
            PathKind::SafeTensors
        }
        _ => PathKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_files_apart_by_their_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path_kind(&path).unwrap()
        };
        assert_eq!(kind("a.bin", b"GGUF\x03\0\0\0"), PathKind::Gguf);
        assert_eq!(kind("b.gguf", b"\x89LBT\r\n\x1a\n...."), PathKind::LittleBit);
        assert_eq!(kind("c", b"\x02\0\0\0\0\0\0\0{}"), PathKind::SafeTensors);
        assert_eq!(kind("d.safetensors", b"\x03\0\0\0\0\0\0\0{}"), PathKind::Unknown);
        assert_eq!(kind("e", &[0xff; 20]), PathKind::Unknown);
        assert_eq!(kind("f.gguf", b"GGU"), PathKind::Unknown);
        assert_eq!(kind("g.gguf", b""), PathKind::Unknown);
        assert_eq!(path_kind(folder.path()).unwrap(), PathKind::Directory);
        assert_eq!(path_kind(&folder.path().join("none")).unwrap(), PathKind::Missing);
        assert_eq!(path_kind(&folder.path().join("a.bin/x")).unwrap(), PathKind::Missing);
    }
}
