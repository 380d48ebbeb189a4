//! The files that a model brings along into a directory, besides its weights.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{LocalModel, ModelFormat};
use crate::base::{input, json as json_file};
use crate::files::chat_files::{MORE_TEMPLATES, more_files};
use crate::files::gguf::{GgufFile, Value as GgufValue};
use crate::files::model_directory::{COPIED, SideFile};
use crate::files::texts::{MAX_CONFIG, MAX_TOKENIZER, read_text};
use crate::{Error, Result};

/// The files that a model brings along: tokenizer, generation settings, licence. Those of a directory
/// are copied byte by byte; those of a GGUF file are the ones rebuilt from its metadata.
///
/// # Errors
/// [`Error::Io`]; [`Error::ValidationFailed`] for files of absurd size.
pub fn companions(model: &LocalModel) -> Result<Vec<SideFile>> {
    let mut files = Vec::new();
    if model.format == ModelFormat::HuggingFace {
        for name in COPIED {
            let path = model.path.join(name);
            let bytes = match input::read(&path, MAX_TOKENIZER) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return Err(Error::damaged(&path, error.to_string()));
                }
                Err(error) => return Err(Error::io(&path, error)),
            };
            files.push(SideFile { name: name.to_owned(), bytes });
        }
        for path in more_files(&model.path) {
            let Some(name) = path.file_name() else { continue };
            let name = format!("{MORE_TEMPLATES}/{}", name.to_string_lossy());
            if let Some(text) = read_text(&path, MAX_CONFIG)? {
                files.push(SideFile::text(&name, text));
            }
        }
        return Ok(files);
    }
    let config = &model.config;
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
    });
    if model.format == ModelFormat::Gguf {
        sampling(&model.path, &mut generation)?;
    }
    files.push(SideFile::text("generation_config.json", format!("{generation:#}\n")));
    if let Some(text) = &model.tokenizer_json {
        files.push(SideFile::text("tokenizer.json", text.clone()));
    }
    if let Some(text) = &model.tokenizer_config_json {
        files.push(SideFile::text("tokenizer_config.json", text.clone()));
    }
    Ok(files)
}

/// The sampling that a GGUF file recommends (`general.sampling.*`), as generation settings.
fn sampling(path: &Path, generation: &mut Value) -> Result<()> {
    let file = GgufFile::open(path)?;
    let mut found = false;
    for (name, key) in [
        ("temp", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_repeat", "repetition_penalty"),
    ] {
        let value = match file.metadata.get(&format!("general.sampling.{name}")) {
            Some(GgufValue::I32(number)) => json!(number),
            // The shortest decimal of the f32, not that of the f64 beside it.
            Some(GgufValue::F32(number)) => {
                number.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
            }
            _ => continue,
        };
        generation[key] = value;
        found = true;
    }
    if found {
        generation["do_sample"] = json!(true);
    }
    Ok(())
}

/// A model's `config.json` with this `quantization_config` (or without one) and element type of what
/// is not packed (`float16`, `bfloat16` or `float32`).
///
/// # Errors
/// [`Error::ValidationFailed`] if the model's file is no JSON object.
pub fn config_with(
    model: &LocalModel,
    quantization: Option<&Value>,
    dtype: Option<&str>,
) -> Result<String> {
    let path = config_path(model);
    let text = match model.format {
        ModelFormat::HuggingFace => read_text(&path, MAX_CONFIG)?,
        _ => None,
    };
    let parsed = |text: &str| match json_file::read(text) {
        Ok(Value::Object(root)) => Ok(root),
        _ => Err(Error::damaged(&path, "not a JSON object")),
    };
    let mut root = match text.as_deref().map(parsed).transpose()? {
        // The weights of a model's text part have the names of the plain class.
        Some(root) if !root.contains_key("text_config") => root,
        _ => parsed(&model.config_json)?,
    };
    root.shift_remove("quantization_config");
    let tied = root.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    if tied != model.config.tie_word_embeddings {
        root.insert("tie_word_embeddings".to_owned(), json!(model.config.tie_word_embeddings));
    }
    if let Some(dtype) = dtype {
        set_dtype(&mut root, dtype);
    }
    if let Some(quantization) = quantization {
        root.insert("quantization_config".to_owned(), quantization.clone());
    }
    Ok(json_file::write(&Value::Object(root)))
}

/// Sets the element type under the key that is there; under the one that every version of transformers
/// reads if there is none.
fn set_dtype(root: &mut Map<String, Value>, dtype: &str) {
    let key = if root.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    root.insert(key.to_owned(), json!(dtype));
}

fn config_path(model: &LocalModel) -> std::path::PathBuf {
    match model.format {
        ModelFormat::HuggingFace => model.path.join("config.json"),
        _ => Path::new(&model.path).to_path_buf(),
    }
}
