//! The weights of a Hugging Face directory: one safetensors file or shards, as they lie there.
//!
//! The set of shards and every header are checked before a weight is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::present;
use super::texts::{MAX_TOKENIZER, read_text};
use crate::base::lists::some_of;
use crate::base::{SharedBytes, json as json_file};
use crate::codec::StoredType;
use crate::weight::StoredTensor;
use crate::{Error, Result};

pub(crate) const MAX_HEADER: usize = 100 << 20;

pub(crate) fn file_names(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The weight files, all of them present.
pub(crate) fn shards(directory: &Path) -> Result<Vec<PathBuf>> {
    let single = directory.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    if single.is_dir()
        && let Some(error) = present::instead_of_file(&single)
    {
        return Err(error);
    }
    let index_path = directory.join("model.safetensors.index.json");
    if let Some(index) = read_text(&index_path, MAX_TOKENIZER)? {
        let files = indexed_files(&index, &index_path)?;
        return present(directory, files.iter().map(String::as_str));
    }
    let names = file_names(directory);
    let is_model = |name: &&str| name.ends_with(".safetensors") && !present::is_adapter_file(name);
    let safetensors: Vec<&str> = names.iter().map(String::as_str).filter(is_model).collect();
    match safetensors.as_slice() {
        [] => Err(without_weights(directory, &names)),
        [one] if shard_number(one).is_none() => Ok(vec![directory.join(one)]),
        several => {
            // Shards without an index: their names say how many there must be.
            let numbered = several.iter().find_map(|name| shard_number(name));
            let Some((stem, count, digits)) = numbered else {
                return Err(Error::ModelNotFound {
                    message: format!(
                        "{} has several weight files and no model.safetensors.index.json: {}",
                        directory.display(),
                        some_of(several)
                    ),
                    suggestion: "Download the model again".to_owned(),
                });
            };
            let all: Vec<String> = (1..=count)
                .map(|number| format!("{stem}-{number:0digits$}-of-{count:0digits$}.safetensors"))
                .collect();
            present(directory, all.iter().map(String::as_str))
        }
    }
}

/// Stem, number of shards and digits of a name like `model-00001-of-00003.safetensors`.
fn shard_number(name: &str) -> Option<(&str, usize, usize)> {
    const MOST: usize = 10_000;
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let (count, digits) = (count.parse().ok()?, count.len());
    let number: usize = number.parse().ok()?;
    (1..=count).contains(&number).then_some(())?;
    (count <= MOST).then_some((stem, count, digits))
}

/// The files that an index names, in order.
fn indexed_files(index: &str, path: &Path) -> Result<BTreeSet<String>> {
    let index: Value =
        json_file::read(index).map_err(|e| Error::damaged(path, format!("not valid JSON: {e}")))?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(Error::damaged(path, "no `weight_map`"));
    };
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            // Nothing outside the directory may be opened.
            Some(file) if Path::new(file).file_name().is_some_and(|name| name == file) => {
                files.insert(file.to_owned());
            }
            _ => {
                return Err(Error::damaged(
                    path,
                    format!("tensor {tensor} is in {file}, which is not the name of a file"),
                ));
            }
        }
    }
    Ok(files)
}

fn present<'a>(directory: &Path, files: impl Iterator<Item = &'a str>) -> Result<Vec<PathBuf>> {
    let files: Vec<&str> = files.collect();
    let missing: Vec<&str> =
        files.iter().copied().filter(|name| !directory.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(files.iter().map(|name| directory.join(name)).collect());
    }
    Err(Error::ModelNotFound {
        message: format!(
            "{} lacks {} of {} weight files: {}",
            directory.display(),
            missing.len(),
            files.len(),
            some_of(&missing)
        ),
        suggestion: "Download the missing files".to_owned(),
    })
}

fn without_weights(directory: &Path, names: &BTreeSet<String>) -> Error {
    let pickled = |name: &&str| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        matches!(extension, Some("bin" | "pth" | "pt")) && *name != "training_args.bin"
    };
    let pickles: Vec<&str> = names.iter().map(String::as_str).filter(pickled).collect();
    if names.contains(present::ADAPTER_CONFIG)
        && let Some(error) = present::adapter_instead(directory)
    {
        return error;
    }
    if pickles.is_empty() {
        return Error::model_not_found(format!(
            "{} has a config.json and no weights (*.safetensors)",
            directory.display()
        ));
    }
    Error::Unsupported {
        message: format!(
            "{} has its weights only as Python pickles: {}",
            directory.display(),
            some_of(&pickles)
        ),
        suggestion: "Use a version of the model with safetensors; pickles can run code when opened"
            .to_owned(),
    }
}

/// All tensors of a directory by their own names, in file order, whatever their types.
pub(crate) fn read_all(directory: &Path) -> Result<IndexMap<String, RawTensor>> {
    let mut tensors = IndexMap::new();
    for shard in shards(directory)? {
        read_shard(&shard, &mut tensors)?;
    }
    Ok(tensors)
}

/// A tensor of a safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct RawTensor {
    /// Element type.
    pub(crate) dtype: Dtype,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Contents.
    pub(crate) bytes: SharedBytes,
}

/// A tensor that can be read, or the name of its type.
pub(crate) type ShardTensor = std::result::Result<StoredTensor, String>;

impl RawTensor {
    /// The values, if they are of a type of weights.
    pub(crate) fn stored(self) -> Result<ShardTensor> {
        let dtype = match self.dtype {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::BF16,
            other => return Ok(Err(other.to_string())),
        };
        if self.shape.is_empty() {
            return Ok(Err("scalar".to_owned()));
        }
        StoredTensor::new(self.shape, dtype, self.bytes).map(Ok)
    }
}

/// Maps a file and adds its tensors, in the order of their data.
fn read_shard(path: &Path, tensors: &mut IndexMap<String, RawTensor>) -> Result<()> {
    let bytes = SharedBytes::map(path)?;
    // What is something else says so; what is a damaged file says where.
    let damaged = |message: String| {
        present::instead_of_file(path).unwrap_or_else(|| Error::damaged(path, message))
    };
    let length = bytes
        .split_first_chunk::<8>()
        .and_then(|(length, _)| usize::try_from(u64::from_le_bytes(*length)).ok())
        .ok_or_else(|| damaged("too short for a safetensors file".to_owned()))?;
    if length > MAX_HEADER {
        return Err(damaged(format!("a header of {length} bytes")));
    }
    let header = bytes.get(8..8 + length).ok_or_else(|| {
        damaged(format!("the header of {length} bytes does not fit into the file; truncated?"))
    })?;
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|e| damaged(format!("not a safetensors header: {e}")))?;
    let start = 8 + length;
    let expected = start.checked_add(metadata.data_len());
    if expected != Some(bytes.len()) {
        return Err(damaged(format!(
            "{} bytes long, but the header describes {}; truncated?",
            bytes.len(),
            expected.map_or_else(|| "more than fits".to_owned(), |n| n.to_string())
        )));
    }
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let (from, to) = info.data_offsets;
        let data = bytes
            .slice(start + from..start + to)
            .ok_or_else(|| damaged(format!("the data of {name} is outside the file")))?;
        let tensor = RawTensor { dtype: info.dtype, shape: info.shape.clone(), bytes: data };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(damaged(format!("{name} is also in another file")));
        }
    }
    Ok(())
}
