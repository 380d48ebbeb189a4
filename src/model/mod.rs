//! Models on this machine: a directory, a GGUF file or a `.littlebit` file, all opened into one
//! [`LocalModel`].

pub mod companions;
pub(crate) mod experts;
pub mod gguf;
pub(crate) mod gguf_ext;
pub(crate) mod gguf_parts;
mod gguf_rope;
mod gguf_variants;
pub mod hf;
pub(crate) mod identity;
pub mod littlebit;
pub(crate) mod littlebit_info;
pub(crate) mod survey;
mod text_names;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::arch::ModelConfig;
use crate::files::detect::{self, PathKind};
use crate::files::present;
use crate::tokenizer::Tokenizer;
use crate::weight::{PackedTensor, Weight};
use crate::{Error, Result};

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

impl ModelFormat {
    /// `huggingface`, `gguf` or `littlebit`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HuggingFace => "huggingface",
            Self::Gguf => "gguf",
            Self::LittleBit => "littlebit",
        }
    }
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
    /// `config.json` as text: the file's own (with the end tokens of `generation_config.json`), or
    /// one made from GGUF metadata.
    pub config_json: String,
    /// `tokenizer.json` as text, if there is a tokenizer.
    pub tokenizer_json: Option<String>,
    /// `tokenizer_config.json` as text (with `chat_template`), if any.
    pub tokenizer_config_json: Option<String>,
    /// Weights by Hugging Face name (`model.layers.0.mlp.up_proj.weight`), in file order: exactly
    /// the tensors of [`of_model`](crate::arch::tensors::of_model).
    pub weights: IndexMap<String, Weight>,
    /// Tensors of the source that are none of the model's, by their names there.
    pub left_out: Vec<String>,
    /// What the user should know about the source: guesses, things left out.
    pub warnings: Vec<String>,
}

impl LocalModel {
    /// The first of the weights that are packed integers, if any are: how the checkpoint is packed.
    #[must_use]
    pub fn packed(&self) -> Option<&PackedTensor> {
        self.weights.values().find_map(|weight| match weight {
            Weight::Packed(tensor) => Some(tensor),
            _ => None,
        })
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] if the model has none, [`Error::ValidationFailed`] if it is
    /// damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let json = self.tokenizer_json.as_deref().ok_or_else(|| Error::ModelNotFound {
            message: format!("{} has no tokenizer.json", self.path.display()),
            suggestion: "Put the model's tokenizer.json beside its weights".to_owned(),
        })?;
        let tokenizer =
            Tokenizer::from_json(json, self.tokenizer_config_json.as_deref(), &self.path)?;
        let config = &self.config;
        Ok(tokenizer.with_model_tokens(config.bos_token_id, &config.eos_token_ids))
    }

    /// Number of parameters: a tied head counts once.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.weights.values().map(|weight| weight.elements() as u64).sum()
    }

    /// Bytes of all weights as they are stored.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.values().map(|weight| weight.stored_bytes() as u64).sum()
    }
}

/// Opens a model on this machine: a Hugging Face directory, a GGUF file or a `.littlebit` file,
/// told apart by their contents.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is nothing at `path` or a part of the model is missing,
/// [`Error::Unsupported`] when it is a model of another kind, [`Error::ValidationFailed`] when a
/// file is damaged.
pub fn open_local(path: &Path) -> Result<LocalModel> {
    match detect::path_kind(path)? {
        PathKind::Missing => Err(Error::model_not_found(format!("no model at {}", path.display()))),
        PathKind::Directory => hf::open(path),
        PathKind::Gguf => gguf::open(path),
        PathKind::LittleBit => littlebit::open_model(path),
        PathKind::SafeTensors => Err(Error::Unsupported {
            message: format!("{} holds weights without a configuration", path.display()),
            suggestion: "Give the directory with config.json and the weights".to_owned(),
        }),
        PathKind::Unknown => Err(present::instead_of_file(path).unwrap_or(Error::Unsupported {
            message: format!(
                "{} is neither a model directory nor a GGUF or .littlebit file",
                path.display()
            ),
            suggestion: "Give a Hugging Face directory, a GGUF file, a .littlebit file or a hub id"
                .to_owned(),
        })),
    }
}
