//! [`GgufModel`] and how one is opened.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::tensor::GgufTensor;
use super::{from_gguf, hf};
use crate::files::detect::{self, PathKind};
use crate::files::gguf::Value;
use crate::files::present::instead_of_file;
use crate::{Error, Result};

/// A model as a GGUF file at full precision would hold it.
#[derive(Debug)]
pub struct GgufModel {
    /// Hub id, or the name of the directory or file without extension.
    pub name: String,
    /// llama.cpp's name of the architecture: `llama`, `qwen2`, …
    pub architecture: String,
    /// All metadata but that about the quantization (`general.file_type`,
    /// `general.quantization_version`, `quantize.*`), in file order.
    pub metadata: IndexMap<String, Value>,
    /// Tensors in the order in which llama-quantize writes them: those outside of the blocks, then
    /// block by block, each group by name.
    pub tensors: Vec<GgufTensor>,
    /// The counts that decide about mixes of types.
    pub shape: ModelShape,
    /// What the user should know about the source: guesses, things left out.
    pub warnings: Vec<String>,
    /// The element type that most bytes of the source have, in ggml's spelling (`BF16`, `Q4_K`).
    pub source_dtype: String,
    /// Bytes of all tensors as the source stores them.
    pub source_bytes: u64,
    /// The directory or file.
    pub path: PathBuf,
}

/// Counts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelShape {
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads of the first block.
    pub heads: usize,
    /// Key/value heads of the first block.
    pub kv_heads: usize,
    /// Experts; 0 for dense models.
    pub experts: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens of the vocabulary; 0 if the file has none.
    pub vocabulary: usize,
    /// Context length, tokens; 0 if the file does not say.
    pub context: u64,
}

/// What to do differently from the default when opening.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The pre-tokenizer (`tokenizer.ggml.pre`) to write instead of the one that is found.
    pub pre: Option<String>,
    /// Whether metadata may say where the model comes from and what made it.
    pub provenance: bool,
    /// Metadata to set, whatever the source says.
    pub override_kv: Vec<(String, Value)>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { pre: None, provenance: true, override_kv: Vec::new() }
    }
}

/// Opens a Hugging Face directory or a GGUF file (one file, or any part of a split one).
///
/// Of a GGUF file of any architecture all metadata is kept and all tensors are passed through.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is nothing at `path` or a part of the model is missing,
/// [`Error::Unsupported`] when it is a model of another kind, [`Error::ValidationFailed`] when a
/// file is damaged.
pub fn open(path: &Path, options: &SourceOptions) -> Result<GgufModel> {
    let mut model = match detect::path_kind(path)? {
        PathKind::Missing => {
            return Err(Error::model_not_found(format!("no model at {}", path.display())));
        }
        PathKind::Gguf => from_gguf::open(path, options)?,
        PathKind::Directory => hf::open(path, options)?,
        PathKind::LittleBit => return Err(in_factors(path)),
        PathKind::SafeTensors | PathKind::Unknown => {
            return Err(instead_of_file(path).unwrap_or_else(|| Error::Unsupported {
                message: format!("{} is no model that can become a GGUF file", path.display()),
                suggestion: "Give a Hugging Face directory, a hub id or a GGUF file".to_owned(),
            }));
        }
    };
    for (key, value) in &options.override_kv {
        if let Some(there) = model.metadata.insert(key.clone(), value.clone())
            && there.kind() != value.kind()
        {
            return Err(Error::InvalidArgument(format!(
                "--override-kv {key}: the model has a value of type {}, not {}, and programs that \
                 read the file want that type",
                there.kind().name(),
                value.kind().name()
            )));
        }
    }
    model.tensors.sort_by(|a, b| file_order(&a.name).cmp(&file_order(&b.name)));
    Ok(model)
}

/// The refusal of a file with binary factors, native or in GGUF.
pub(super) fn in_factors(path: &Path) -> Error {
    Error::UnsupportedConversion(format!(
        "{} holds binary factors: `littlebit convert {0} gguf-lossy` multiplies them out",
        path.display()
    ))
}

/// Where llama-quantize puts a tensor: block number (-1 outside of the blocks), then name.
fn file_order(name: &str) -> (i64, &[u8]) {
    let block = name.strip_prefix("blk.").map_or("", |rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        &rest[..digits]
    });
    (block.parse().unwrap_or(-1), name.as_bytes())
}

impl GgufModel {
    /// Number of values in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.elements() as u64).sum()
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// The type that most bytes have, and the number of all bytes.
pub(super) fn source_type(tensors: &[GgufTensor]) -> (String, u64) {
    let mut bytes: IndexMap<&str, u64> = IndexMap::new();
    for tensor in tensors {
        *bytes.entry(tensor.stored_type().name()).or_default() += tensor.source_bytes();
    }
    let total = bytes.values().sum();
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    (most.map_or("F32", |(name, _)| name).to_owned(), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of llama.cpp's `weight_name_comparer`, seen in files that llama-quantize wrote.
    #[test]
    fn tensors_are_ordered_as_llama_quantize_does() {
        let sorted = [
            "output.weight",
            "output_norm.weight",
            "rope_freqs.weight",
            "token_embd.weight",
            "blk.0.attn_k.bias",
            "blk.0.attn_k.weight",
            "blk.0.attn_norm.weight",
            "blk.2.ffn_up.weight",
            "blk.10.attn_k.weight",
        ];
        let mut names = sorted;
        names.reverse();
        names.sort_by(|a, b| file_order(a).cmp(&file_order(b)));
        assert_eq!(names, sorted);
    }
}
