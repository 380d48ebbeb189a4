//! Weights as analysis needs them: decoded whole, and in the row order of GGUF files.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::checkpoint::hexadecimal;
use crate::source::{Architecture, LocalModel, Weight};
use crate::tensor::{RowOrder, StoredTensor};
use crate::{Error, Result};

/// All values of a matrix, `[rows, cols]` in Hugging Face row order.
pub(super) fn decode(tensor: &StoredTensor) -> Vec<f32> {
    let cols = tensor.cols();
    let mut values = vec![0.0; tensor.elements()];
    values
        .par_chunks_exact_mut(cols.max(1))
        .enumerate()
        .for_each(|(row, out)| tensor.read_rows(row..row + 1, out));
    values
}

/// A matrix of the model that is stored as numbers.
///
/// # Errors
/// [`Error::ValidationFailed`] if it is missing, [`Error::Unsupported`] if it is there as factors.
pub(super) fn stored<'m>(model: &'m LocalModel, name: &str) -> Result<&'m StoredTensor> {
    match model.weights.get(name) {
        Some(Weight::Stored(tensor)) => Ok(tensor),
        Some(_) => Err(Error::Unsupported {
            message: format!("{name} has no weights of its own that could be looked at"),
            suggestion: "Analyze the original model with its plain weights".into(),
        }),
        None => Err(Error::damaged(&model.path, format!("the tensor {name} is missing"))),
    }
}

/// How the rows of a matrix lie in a GGUF file of the model, from the Hugging Face order.
pub(super) fn gguf_order(model: &LocalModel, name: &str) -> RowOrder {
    let config = &model.config;
    let paired = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    match name {
        _ if !paired => RowOrder::Plain,
        n if n.ends_with("self_attn.q_proj.weight") => {
            RowOrder::RopePairs { heads: config.num_heads }
        }
        n if n.ends_with("self_attn.k_proj.weight") => {
            RowOrder::RopePairs { heads: config.num_kv_heads }
        }
        _ => RowOrder::Plain,
    }
}

/// SHA-256 of the configuration and of every weight: what a kept result must belong to. Of weights
/// that are not plain numbers, the files stand in with their sizes and times.
///
/// # Errors
/// [`Error::Io`] if those files cannot be looked at.
pub(super) fn content_hash(model: &LocalModel) -> Result<String> {
    let weights: Vec<_> = model.weights.iter().collect();
    let hashes: Vec<_> = weights
        .into_par_iter()
        .map(|(name, weight)| {
            let mut hash = Sha256::new();
            hash.update(format!("{name} {:?}", weight.shape()));
            if let Weight::Stored(tensor) = weight {
                hash.update(format!("{} {:?}", tensor.dtype.name(), tensor.row_order));
                hash.update(&tensor.bytes[..]);
            }
            hash.finalize()
        })
        .collect();
    let mut hash = Sha256::new();
    hash.update(&model.config_json);
    hashes.iter().for_each(|part| hash.update(part));
    if model.weights.values().any(|weight| !matches!(weight, Weight::Stored(_))) {
        for file in files(&model.path)? {
            let metadata = std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?;
            let modified = metadata.modified().ok();
            hash.update(format!("{} {} {modified:?}", file.display(), metadata.len()));
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}
