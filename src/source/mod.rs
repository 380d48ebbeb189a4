//! Where models come from: a local directory, a GGUF file, a `.littlebit` file or the hub, all
//! opened into one [`LocalModel`].

pub mod config;

use std::path::PathBuf;

use indexmap::IndexMap;

pub use config::{Architecture, ModelConfig};

use crate::littlebit::factor::FactorizedLinear;
use crate::tensor::StoredTensor;

/// What kind of file a model was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFormat {
    /// A Hugging Face directory with safetensors.
    HuggingFace,
    /// A GGUF file.
    Gguf,
    /// A `.littlebit` file.
    LittleBit,
}

/// A tensor of a model: as stored, or in factors.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain or block-quantized values.
    Stored(StoredTensor),
    /// A linear layer's weight as binary factors.
    Factorized(FactorizedLinear),
}

/// An opened model. Weights stay in their mapped files until somebody reads them.
#[derive(Debug)]
pub struct LocalModel {
    /// Hub id, or the name of the directory or file without extension.
    pub name: String,
    /// The directory or file.
    pub path: PathBuf,
    /// What it was read from.
    pub format: ModelFormat,
    /// Shape and hyper-parameters.
    pub config: ModelConfig,
    /// `config.json` as text: the file's own, or one made from GGUF metadata.
    pub config_json: String,
    /// `tokenizer.json` as text, if there is a tokenizer.
    pub tokenizer_json: Option<String>,
    /// `tokenizer_config.json` as text (with `chat_template`), if any.
    pub tokenizer_config_json: Option<String>,
    /// Weights by Hugging Face name (`model.layers.0.mlp.up_proj.weight`), in file order.
    pub weights: IndexMap<String, Weight>,
}
