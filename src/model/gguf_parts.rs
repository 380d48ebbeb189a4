//! GGUF models in several files: `NAME-00001-of-00003.gguf` and its like.

use std::path::{Path, PathBuf};

use crate::base::lists::some_of;
use crate::files::gguf::{GgufFile, Value};
use crate::{Error, Result};

/// Stem and number of parts of a name like `model-00002-of-00003.gguf`.
fn split_name(path: &Path) -> Option<(String, u16)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let count = count.parse().ok()?;
    let number: u16 = number.parse().ok()?;
    (1..=count).contains(&number).then(|| (stem.to_owned(), count))
}

fn part_path(path: &Path, stem: &str, number: u16, count: u16) -> PathBuf {
    path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"))
}

/// The paths of all parts of the set that a file belongs to, by its name; the file alone if it is
/// none.
pub(crate) fn part_paths(path: &Path) -> Vec<PathBuf> {
    match split_name(path) {
        Some((stem, count)) => {
            (1..=count).map(|number| part_path(path, &stem, number, count)).collect()
        }
        None => vec![path.to_path_buf()],
    }
}

/// The file, or all parts of the set that it belongs to, in order.
pub(crate) fn open_parts(path: &Path) -> Result<Vec<GgufFile>> {
    let file = GgufFile::open(path)?;
    let count = match file.metadata.get("split.count") {
        None | Some(Value::U16(0 | 1)) => return Ok(vec![file]),
        Some(Value::U16(count)) => *count,
        Some(other) => return Err(file.damaged(format!("split.count is {other:?}, not a u16"))),
    };
    let Some((stem, _)) = split_name(path).filter(|(_, named)| *named == count) else {
        return Err(file.damaged(format!(
            "one of {count} parts, but not named like NAME-00001-of-{count:05}.gguf"
        )));
    };
    let paths: Vec<PathBuf> =
        (1..=count).map(|number| part_path(path, &stem, number, count)).collect();
    let missing: Vec<String> = paths
        .iter()
        .filter(|path| !path.is_file())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        return Err(Error::ModelNotFound {
            message: format!(
                "{} is one of {count} parts, of which {} are missing: {}",
                path.display(),
                missing.len(),
                some_of(&missing)
            ),
            suggestion: "Download all parts into one directory".to_owned(),
        });
    }
    let mut parts = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let part = GgufFile::open(path)?;
        match part.metadata.get("split.no") {
            Some(Value::U16(no)) if usize::from(*no) == number => parts.push(part),
            other => return Err(part.damaged(format!("split.no is {other:?}, not {number}"))),
        }
    }
    Ok(parts)
}

/// The name of a model by that of its file, or of the set of parts that the file belongs to.
pub(crate) fn model_name(path: &Path) -> String {
    match split_name(path) {
        Some((stem, _)) => stem,
        None => path
            .file_stem()
            .map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned()),
    }
}
