//! Room on the disk and permission to write, asked before the work instead of after it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::base::size::human_bytes;
use crate::{Error, Result};

/// Fails with a [`StorageFull`](io::ErrorKind::StorageFull) error that names both figures unless
/// the file system that holds `directory` has `bytes` free for this user.
///
/// `directory` need not exist yet: the nearest existing parent is asked.
pub(crate) fn check_free_space(directory: &Path, bytes: u64) -> Result<()> {
    let available = free_bytes(directory)?;
    if available >= bytes {
        return Ok(());
    }
    let message = format!("{} needed, {} available", human_bytes(bytes), human_bytes(available));
    Err(Error::io(directory, io::Error::new(io::ErrorKind::StorageFull, message)))
}

/// What [`check_free_space`] would refuse, as a warning; `None` if there is room, or nobody knows.
#[must_use]
pub(crate) fn shortage(directory: &Path, bytes: u64) -> Option<String> {
    let available = free_bytes(directory).ok().filter(|available| *available < bytes)?;
    Some(format!(
        "{} has room for {}, and {} are needed; the run will be refused",
        normalized(directory).display(),
        human_bytes(available),
        human_bytes(bytes)
    ))
}

/// Bytes that this user may still write to the file system that holds `directory` (or would hold
/// it, if it does not exist yet).
pub(crate) fn free_bytes(directory: &Path) -> Result<u64> {
    let existing = nearest_existing(directory);
    let status =
        rustix::fs::statvfs(&existing).map_err(|errno| Error::io(&existing, errno.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Fails unless a file can be made in `directory`, or `directory` itself could be made.
///
/// Nothing is left behind and no folder is made, so a dry run may ask as well.
pub(crate) fn check_writable(directory: &Path) -> Result<()> {
    let existing = nearest_existing(directory);
    // The folder by its whole name: `.` tells nobody which one it is.
    let named = std::path::absolute(&existing).unwrap_or_else(|_| existing.clone());
    let refused = |error: io::Error| {
        let message = format!("no file can be made here: {error}");
        Error::io(&named, io::Error::new(error.kind(), message))
    };
    let metadata = fs::metadata(&existing).map_err(|e| Error::io(&existing, e))?;
    if !metadata.is_dir() {
        let error = io::Error::new(io::ErrorKind::NotADirectory, "not a folder");
        return Err(Error::io(&existing, error));
    }
    // Only making a file tells the truth on read-only mounts, quotas and network shares. One without a
    // name leaves nothing behind, whatever happens.
    if nameless(&existing).is_some() {
        return Ok(());
    }
    let probe = existing.join(format!(".llm-quantize-write-test-{}", std::process::id()));
    fs::File::create(&probe).map_err(refused)?;
    fs::remove_file(&probe).map_err(|e| Error::io(directory, e))
}

/// A new file in `folder` that has no name and goes when it is closed, where the system has such.
pub(crate) fn nameless(folder: &Path) -> Option<fs::File> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).ok().map(fs::File::from)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}

/// The empty path means the current folder.
fn normalized(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn nearest_existing(path: &Path) -> PathBuf {
    normalized(path)
        .ancestors()
        .map(normalized)
        .find(|candidate| candidate.exists())
        .unwrap_or(Path::new("."))
        .to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_names_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        check_free_space(folder.path(), 1).unwrap();
        check_free_space(&folder.path().join("not/yet/there"), 1).unwrap();
        let error = check_free_space(folder.path(), u64::MAX).unwrap_err();
        let Error::Io { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        let text = error.to_string();
        assert!(text.contains("16384 PB needed") && text.contains("available"), "{text}");
        assert!(error.suggestion().contains("space"), "{}", error.suggestion());
    }

    #[test]
    fn free_space_agrees_with_df() {
        let folder = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("df")
            .args(["-P", "-k"])
            .arg(folder.path())
            .output()
            .expect("df exists on every Unix");
        let text = String::from_utf8(output.stdout).unwrap();
        let available: u64 =
            text.lines().nth(1).unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
        let ours = free_bytes(folder.path()).unwrap() / 1024;
        // Others write to the same disk meanwhile.
        assert!(ours.abs_diff(available) < 8 * 1024 * 1024, "{ours} KiB, df says {available}");
    }

    #[test]
    fn writable_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(folder.path()).unwrap();
        check_writable(&folder.path().join("a/b")).unwrap();
        check_writable(Path::new("")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(check_writable(&file).is_err());
        assert!(check_writable(&file.join("below")).is_err());
        // /proc accepts no files, whoever asks.
        #[cfg(target_os = "linux")]
        assert!(check_writable(Path::new("/proc")).is_err());
    }
}
