//! Where models come from: a local directory, a GGUF file, a `.littlebit` file or the hub, all
//! opened into one [`LocalModel`].

pub mod catalog;
mod charsmap;
pub mod chat;
pub(crate) mod chat_files;
mod chat_functions;
mod chat_size;
pub mod config;
pub mod config_json;
mod config_rope;
pub(crate) mod experts;
pub mod gguf;
mod gguf_parts;
mod gguf_rope;
mod gguf_tokenizer;
pub mod hf;
pub mod hub;
pub(crate) mod identity;
pub(crate) mod json;
pub mod names;
pub(crate) mod packed;
pub(crate) mod pre_tokenizers;
pub(crate) mod present;
pub mod survey;
mod text_names;
mod text_pieces;
pub mod tokenizer;
pub(crate) mod tokenizer_library;
mod tokenizer_rules;

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

pub use config::ModelConfig;

use crate::formats::detect::{self, PathKind};
use crate::formats::littlebit;
use crate::formats::packed::PackedTensor;
use crate::littlebit::factor::FactorizedLinear;
use crate::tensor::StoredTensor;
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

/// A tensor of a model: as stored, in factors, or in packed integers.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain or block-quantized values.
    Stored(StoredTensor),
    /// A linear layer's weight as binary factors.
    Factorized(FactorizedLinear),
    /// A linear layer's weight in the packed integers of a GPTQ, AWQ or W8A8 checkpoint.
    Packed(PackedTensor),
}

impl Weight {
    /// Dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Stored(tensor) => tensor.shape.clone(),
            Self::Factorized(linear) => vec![linear.out_features, linear.in_features],
            Self::Packed(tensor) => vec![tensor.rows(), tensor.cols()],
        }
    }

    /// Number of values that it stands for.
    #[must_use]
    pub fn elements(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.elements(),
            Self::Factorized(linear) => linear.out_features * linear.in_features,
            Self::Packed(tensor) => tensor.rows() * tensor.cols(),
        }
    }

    /// Rows: the product of all dimensions but the last. A vector is one row.
    #[must_use]
    pub fn rows(&self) -> usize {
        let shape = self.shape();
        shape[..shape.len().saturating_sub(1)].iter().product()
    }

    /// Columns: the last dimension.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(0)
    }

    /// Decodes `rows`, in Hugging Face order, into `out`, which is `[rows.len(), cols]`.
    ///
    /// # Panics
    /// If `out` has another length or the range is outside of the tensor.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Factorized(linear) => linear.reconstruct_rows(rows, out),
            Self::Packed(tensor) => tensor.read_rows(rows, out),
            Self::Stored(tensor) => tensor.read_rows(rows, out),
        }
    }

    /// The type it is stored in: `Q4_K`, `BF16`, `GPTQ 4-bit g128`, `binary factors`.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self {
            Self::Stored(tensor) => tensor.dtype.name().to_owned(),
            Self::Factorized(_) => "binary factors".to_owned(),
            Self::Packed(tensor) => tensor.type_name(),
        }
    }

    /// Gives the mapped pages back to the system; they are read again when needed.
    pub fn release(&self) {
        match self {
            Self::Stored(tensor) => tensor.bytes.release(),
            Self::Packed(tensor) => tensor.release(),
            Self::Factorized(linear) => {
                for path in &linear.paths {
                    path.left.bytes.release();
                    path.right.bytes.release();
                }
            }
        }
    }

    /// Bytes that it takes: block scales, and the scales of factors, included.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.bytes.len(),
            Self::Factorized(linear) => (linear.bits() / 8) as usize,
            Self::Packed(tensor) => tensor.stored_bytes(),
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
    /// the tensors of [`crate::arch::tensors::of_model`].
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
