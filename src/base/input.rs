//! Opening files to read. A path may name a pipe or a device: reading those never ends, or opening
//! one waits for somebody to write into it. All inputs are opened here.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Caps on files that are read into memory as a whole, far above the largest real ones.
pub(crate) const MAX_SETTINGS: u64 = 16 << 20;
pub(crate) const MAX_DATA: u64 = 4 << 30;

/// Opens a regular file, or a link to one.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Opening some devices does something, so the path is looked at first.
    check(&std::fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // If it became a pipe meanwhile, opening does not wait. Regular files know no waiting.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// The contents of a file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let too_large = || Error::new(ErrorKind::InvalidData, format!("larger than {} MB", most >> 20));
    if length > most {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // Files of the kernel's own say that they are empty, and some have no end.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    Ok(bytes)
}

/// The text of a file of at most `most` bytes.
pub(crate) fn read_to_string(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "not UTF-8 text"))
}

/// Says what is no regular file.
pub(crate) fn check(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::IsADirectory, "a directory, where a file is expected"));
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{}, not a regular file: save what it gives to a file first",
            kind(metadata.file_type())
        ),
    ))
}

#[cfg(unix)]
fn kind(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(not(unix))]
fn kind(_: FileType) -> &'static str {
    "a device"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_links_to_them_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_to_string(&path, 4).unwrap(), "text");
        assert!(read(&path, 3).unwrap_err().to_string().contains("larger than"));
        #[cfg(unix)]
        {
            let link = folder.path().join("b");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert_eq!(read(&link, 4).unwrap(), b"text");
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_to_string(&path, 4).unwrap_err().to_string(), "not UTF-8 text");
        let none = open(&folder.path().join("none")).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| {
            let error = open(path).unwrap_err();
            let kinds = [ErrorKind::InvalidInput, ErrorKind::IsADirectory];
            assert!(kinds.contains(&error.kind()));
            error.to_string()
        };
        assert!(said(folder.path()).starts_with("a directory"));
        assert!(said(Path::new("/dev/zero")).starts_with("a device, not a regular file"));
        let socket = folder.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(said(&socket).starts_with("a socket"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(said(&pipe).starts_with("a pipe"));
        #[cfg(target_os = "linux")]
        {
            // It says that it is a regular file of no bytes.
            let endless = read(Path::new("/proc/self/pagemap"), 1 << 20);
            assert!(endless.is_err());
        }
    }
}
