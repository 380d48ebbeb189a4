//! A Hugging Face directory: `config.json`, safetensors (one file or shards), tokenizer files.
//!
//! Everything is checked before a weight is read: the architecture, the set of shards, the headers,
//! names and shapes of all tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Value, json};

use super::catalog::{keep_expected, keep_head, some_of};
use super::packed::{self, Entry};
use super::{
    LocalModel, ModelFormat, Weight, chat_files, config_json, experts, present, text_names,
};
use crate::arch::tensors;
use crate::formats::input;
use crate::source::json as json_file;
use crate::tensor::{SharedBytes, StoredTensor, StoredType};
use crate::{Error, Result};

/// Caps on text files, far above the largest real ones.
pub(crate) const MAX_CONFIG: u64 = 16 << 20;
pub(crate) const MAX_TOKENIZER: u64 = 512 << 20;
pub(crate) const MAX_HEADER: usize = 100 << 20;

/// Refuses a model by its `config.json` alone, before its weights are there.
///
/// # Errors
/// [`Error::Unsupported`] with the architecture's name; [`Error::ValidationFailed`] for a file that
/// describes no possible model.
pub fn check_supported(config: &Path) -> Result<()> {
    let text = read_text(config, MAX_CONFIG)?
        .ok_or_else(|| Error::model_not_found(format!("{} does not exist", config.display())))?;
    config_json::parse(&text, config).map(|_| ())
}

/// Opens a directory.
///
/// # Errors
/// As [`super::open_local`].
pub fn open(directory: &Path) -> Result<LocalModel> {
    let config_path = directory.join("config.json");
    let Some(mut text) = read_text(&config_path, MAX_CONFIG)? else {
        return Err(without_config(directory));
    };
    let mut parsed = config_json::parse(&text, &config_path)?;
    if let Some(generation) =
        optional_text(directory, "generation_config.json", MAX_CONFIG, &mut parsed.warnings)?
    {
        merge_end_tokens(directory, &generation, &mut parsed, &mut text);
    }

    let quantization = parsed.quantization.as_ref();
    let mut left_out = Vec::new();
    let raw = read_raw(directory, &mut left_out, &mut parsed.warnings)?;
    let tensors = packed::assemble(raw, quantization, directory)?;
    let mut weights = IndexMap::with_capacity(tensors.len());
    let mut refused = BTreeMap::new();
    for (name, tensor) in tensors {
        match tensor {
            Entry::Plain(Ok(tensor)) => {
                weights.insert(name, Weight::Stored(tensor));
            }
            Entry::Packed(tensor) => {
                weights.insert(name, Weight::Packed(tensor));
            }
            Entry::Plain(Err(dtype)) => {
                refused.insert(name, dtype);
            }
        }
    }
    refuse_other_types(&refused, &parsed, directory)?;
    if keep_head(&weights, &mut parsed.config, &mut parsed.warnings) {
        set(&mut text, "tie_word_embeddings", json!(false));
    }
    let warnings = &mut parsed.warnings;
    experts::split(&mut weights, &parsed.config, directory)?;
    left_out.extend(keep_expected(&mut weights, &parsed.config, directory, warnings)?);
    if parsed.config.torch_dtype.is_empty() {
        parsed.config.torch_dtype = most_used_dtype(&weights);
    }
    if parsed.nested {
        // The weights have the names of the plain class now.
        text = config_json::write(&parsed.config);
    }

    let tokenizer_json =
        optional_text(directory, "tokenizer.json", MAX_TOKENIZER, &mut parsed.warnings)?;
    if tokenizer_json.is_none() {
        parsed.warnings.push(missing_tokenizer(directory));
    }
    Ok(LocalModel {
        name: model_name(directory),
        path: directory.to_path_buf(),
        format: ModelFormat::HuggingFace,
        config: parsed.config,
        config_json: text,
        tokenizer_json,
        tokenizer_config_json: tokenizer_config(directory, &mut parsed.warnings)?,
        weights,
        left_out,
        warnings: parsed.warnings,
    })
}

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

pub(crate) fn without_config(directory: &Path) -> Error {
    let names = file_names(directory);
    if names.contains(present::ADAPTER_CONFIG)
        && let Some(error) = present::adapter_instead(directory)
    {
        return error;
    }
    let with = |suffix: &str| {
        names.iter().filter(|name| name.ends_with(suffix)).map(String::as_str).collect::<Vec<_>>()
    };
    let suggestion = if !with(".gguf").is_empty() {
        format!("Give the path of one GGUF file: {}", some_of(&with(".gguf")))
    } else if !with(".littlebit").is_empty() {
        format!("Give the path of one .littlebit file: {}", some_of(&with(".littlebit")))
    } else if names.contains("params.json") {
        "This is the original layout of the weights; use the Hugging Face version of the model"
            .to_owned()
    } else {
        "Give a directory with config.json and model.safetensors, a GGUF file or a hub id"
            .to_owned()
    };
    Error::ModelNotFound {
        message: format!("no config.json in {}", directory.display()),
        suggestion,
    }
}

fn file_names(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Adds the end tokens that only `generation_config.json` names, to the configuration and to its
/// text, so that files made from this model end their generations as well.
fn merge_end_tokens(
    directory: &Path,
    generation: &str,
    parsed: &mut config_json::ParsedConfig,
    text: &mut String,
) {
    let path = directory.join("generation_config.json");
    let more = match config_json::generation_end_tokens(generation, &path) {
        Ok(more) => more,
        Err(error) => {
            parsed.warnings.push(format!("{error}; the file is left out"));
            return;
        }
    };
    let ids = &mut parsed.config.eos_token_ids;
    let before = ids.len();
    for id in more {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.len() > before {
        set(text, "eos_token_id", json!(ids));
    }
}

/// Sets a key in the text of a configuration.
fn set(text: &mut String, key: &str, value: Value) {
    if let Ok(Value::Object(mut root)) = json_file::read(text) {
        root.insert(key.to_owned(), value);
        *text = json_file::write(&Value::Object(root));
    }
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

/// All tensors of the text model by the names of its plain class, in file order, whatever their
/// types. Warnings say what is left out and what lies beside the weights.
pub(crate) fn read_raw(
    directory: &Path,
    left_out: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, RawTensor>> {
    warnings.extend(present::adapter_beside(directory));
    text_names::plain(read_all(directory)?, directory, left_out, warnings)
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

/// Expected tensors of other types are refused by name; others do not matter.
fn refuse_other_types(
    refused: &BTreeMap<String, String>,
    parsed: &config_json::ParsedConfig,
    directory: &Path,
) -> Result<()> {
    let expected = tensors::of_model(&parsed.config);
    let Some((name, dtype)) =
        expected.iter().find_map(|tensor| refused.get_key_value(&tensor.name))
    else {
        return Ok(());
    };
    Err(Error::Unsupported {
        message: format!("{name} in {} has element type {dtype}", directory.display()),
        suggestion: "Weights must be F32, F16 or BF16: use the original checkpoint".to_owned(),
    })
}

pub(crate) fn most_used_dtype(weights: &IndexMap<String, Weight>) -> String {
    let mut bytes: BTreeMap<&str, usize> = BTreeMap::new();
    for weight in weights.values() {
        if let Weight::Stored(tensor) = weight {
            let name = match tensor.dtype {
                StoredType::F32 => "float32",
                StoredType::BF16 => "bfloat16",
                _ => "float16",
            };
            *bytes.entry(name).or_default() += tensor.bytes.len();
        }
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("float32", |(name, _)| name).to_owned()
}

fn missing_tokenizer(directory: &Path) -> String {
    let other =
        ["tokenizer.model", "vocab.json"].into_iter().find(|name| directory.join(name).is_file());
    match other {
        Some(other) => format!(
            "no tokenizer.json in {} ({other} alone is not read): text cannot be processed",
            directory.display()
        ),
        None => {
            format!("no tokenizer.json in {}: text cannot be processed", directory.display())
        }
    }
}

/// `tokenizer_config.json` with the chat templates in it, wherever the model keeps them.
fn tokenizer_config(directory: &Path, warnings: &mut Vec<String>) -> Result<Option<String>> {
    let text = optional_text(directory, "tokenizer_config.json", MAX_CONFIG, warnings)?;
    let mut root = match text.as_deref().map(json_file::read) {
        Some(Ok(Value::Object(root))) => root,
        None => serde_json::Map::new(),
        Some(_) => {
            warnings.push(format!(
                "{}: not a JSON object; the file is left out",
                directory.join("tokenizer_config.json").display()
            ));
            serde_json::Map::new()
        }
    };
    let field = root.get("chat_template").filter(|field| !field.is_null());
    let templates = chat_files::templates(directory, field, warnings)?;
    if templates.as_ref() != field
        && let Some(templates) = templates
    {
        root.insert("chat_template".to_owned(), templates);
        return Ok(Some(json_file::write(&Value::Object(root))));
    }
    Ok(if root.is_empty() { None } else { text })
}

/// `org/name` for a snapshot in the hub's cache, else the directory's own name.
pub(crate) fn model_name(directory: &Path) -> String {
    let full = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let cached = full.components().rev().find_map(|part| {
        let repository = part.as_os_str().to_str()?.strip_prefix("models--")?;
        Some(repository.replacen("--", "/", 1))
    });
    cached
        .or_else(|| full.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "model".to_owned())
}
