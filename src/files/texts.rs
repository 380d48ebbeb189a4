//! Small text files of model directories.

use std::io::ErrorKind;
use std::path::Path;

use crate::base::input;
use crate::{Error, Result};

/// Caps on text files, far above the largest real ones.
pub(crate) const MAX_CONFIG: u64 = 16 << 20;

pub(crate) const MAX_TOKENIZER: u64 = 512 << 20;

/// The text of a file, `None` if there is no such file.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<Option<String>> {
    let text = match input::read_to_string(path, most) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err(Error::damaged(path, error.to_string()));
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}

/// A file that the model works without: when it cannot be read, that is a warning.
pub(crate) fn optional_text(
    directory: &Path,
    name: &str,
    most: u64,
    warnings: &mut Vec<String>,
) -> Result<Option<String>> {
    match read_text(&directory.join(name), most) {
        Err(error @ Error::ValidationFailed { .. }) => {
            warnings.push(format!("{error}; the file is left out"));
            Ok(None)
        }
        other => other,
    }
}
