//! A GGUF file of any architecture as it is: metadata copied, tensors passed through.

use std::path::Path;

use indexmap::IndexMap;

use super::model::{GgufModel, ModelShape, SourceOptions, in_factors, source_type};
use super::tensor::GgufTensor;
use crate::files::gguf::{GgufFile, Value};
use crate::model::gguf_ext;
use crate::model::gguf_parts::{model_name, open_parts};
use crate::{Error, Result};

/// Metadata about the container and the quantization, which the new file has of its own.
fn is_of_the_file(key: &str) -> bool {
    matches!(key, "general.file_type" | "general.quantization_version")
        || key.starts_with("quantize.")
        || key.starts_with("split.")
}

/// Opens a file, or all parts of a split one.
pub(super) fn open(path: &Path, options: &SourceOptions) -> Result<GgufModel> {
    let parts = open_parts(path)?;
    let Some(first) = parts.first() else {
        return Err(Error::damaged(path, "no parts"));
    };
    if gguf_ext::is_gguf_ext(first)? {
        return Err(in_factors(path));
    }
    let architecture = architecture(first)?;
    let mut metadata: IndexMap<String, Value> = first
        .metadata
        .iter()
        .filter(|(key, _)| !is_of_the_file(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut warnings = Vec::new();
    if let Some(pre) = &options.pre {
        set_pre(&mut metadata, pre, &mut warnings);
    }
    let mut tensors: IndexMap<String, GgufTensor> = IndexMap::new();
    for part in &parts {
        for name in part.tensors.keys() {
            if let Some(tensor) = part.tensor(name)?
                && tensors.insert(name.clone(), GgufTensor::new(name, tensor)).is_some()
            {
                return Err(part.damaged(format!("the tensor {name} is in two parts")));
            }
        }
    }
    check_count(first, tensors.len())?;
    let tensors: Vec<GgufTensor> = tensors.into_values().collect();
    let (source_dtype, source_bytes) = source_type(&tensors);
    Ok(GgufModel {
        name: model_name(path),
        shape: shape(first, &architecture, &tensors),
        architecture,
        metadata,
        tensors,
        warnings,
        source_dtype,
        source_bytes,
        path: path.to_path_buf(),
    })
}

fn architecture(file: &GgufFile) -> Result<String> {
    let kind = file.text("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(Error::Unsupported {
            message: format!("{} holds a \"{kind}\", not a model", file.path.display()),
            suggestion: "Give the GGUF file of a model".to_owned(),
        });
    }
    let name = file.text("general.architecture")?;
    name.map(str::to_owned).ok_or_else(|| file.damaged("general.architecture is missing"))
}

fn check_count(file: &GgufFile, found: usize) -> Result<()> {
    match file.metadata.get("split.tensors.count").and_then(Value::as_u64) {
        Some(count) if count != found as u64 => Err(file
            .damaged(format!("split.tensors.count says {count} tensors, the parts have {found}"))),
        _ => Ok(()),
    }
}

fn set_pre(metadata: &mut IndexMap<String, Value>, pre: &str, warnings: &mut Vec<String>) {
    let key = "tokenizer.ggml.pre";
    warnings.extend(super::hf::doubt_about_pre(pre));
    let before = metadata.insert(key.to_owned(), Value::from(pre));
    if let Some(before) = before.as_ref().and_then(Value::as_str).filter(|before| *before != pre) {
        warnings.push(format!("{key} was \"{before}\" in the source and becomes \"{pre}\""));
    }
}

/// A number that is the same for all blocks, or that of the first block.
fn number(file: &GgufFile, architecture: &str, name: &str) -> Option<u64> {
    match file.metadata.get(&format!("{architecture}.{name}"))? {
        Value::Array(list) => u64::try_from(*list.integers()?.first()?).ok(),
        value => value.as_u64(),
    }
}

fn shape(file: &GgufFile, architecture: &str, tensors: &[GgufTensor]) -> ModelShape {
    let number = |name: &str| number(file, architecture, name).unwrap_or(0);
    let heads = number("attention.head_count") as usize;
    let kv_heads = match number("attention.head_count_kv") as usize {
        0 => heads,
        count => count,
    };
    let embedding = tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    ModelShape {
        layers: number("block_count") as usize,
        heads,
        kv_heads,
        experts: number("expert_count") as usize,
        hidden: number("embedding_length") as usize,
        vocabulary: embedding.map_or(0, GgufTensor::rows),
        context: number("context_length"),
    }
}
