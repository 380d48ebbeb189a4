//! Tensors of a checkpoint under their GGUF names: checked against the configuration, with the edits
//! that the architecture wants applied when they are read.

use std::path::Path;

use indexmap::IndexMap;

use super::limits::{self, Graph, unsupported};
use crate::arch::ModelConfig;
use crate::arch::tensors::{self, EMBEDDING, Edit, HEAD};
use crate::base::lists::some_of;
use crate::files::present::missing_tensors;
use crate::files::safetensors::ShardTensor;
use crate::job::gguf::tensor::{GgufTensor, Rows};
use crate::model::experts;
use crate::weight::StoredTensor;
use crate::{Error, Result};

/// The tensors of a checkpoint, from which they are taken one by one.
struct Checkpoint<'a> {
    directory: &'a Path,
    class: &'a str,
    tensors: IndexMap<String, ShardTensor>,
    missing: Vec<String>,
}

/// All tensors of the model but those that come from the configuration, and the number of rows of
/// the embedding.
pub(super) fn collect(
    directory: &Path,
    config: &ModelConfig,
    mut tensors: IndexMap<String, ShardTensor>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<GgufTensor>, usize)> {
    let stored = |tensor: &ShardTensor| tensor.as_ref().ok().cloned();
    experts::split_by(&mut tensors, config, directory, stored, Ok)?;
    let class = config.class_name.as_str();
    let mut checkpoint = Checkpoint { directory, class, tensors, missing: Vec::new() };
    let mut list: Vec<GgufTensor> = Vec::new();

    let embedding = checkpoint.take(EMBEDDING, None)?;
    let rows = embedding.as_ref().map_or(0, StoredTensor::rows);
    if let Some(embedding) = embedding {
        checkpoint.check(&embedding, EMBEDDING, &[rows, config.hidden_size])?;
        list.push(GgufTensor::new("token_embd.weight", embedding));
    }
    let mut stacks: IndexMap<String, (usize, Vec<StoredTensor>)> = IndexMap::new();
    for tensor in tensors::of_model(config) {
        if matches!(tensor.name.as_str(), EMBEDDING | HEAD) {
            continue;
        }
        let found = if is_optional(&tensor.name, config) {
            checkpoint.take_optional(&tensor.name, Some(&tensor.shape))?
        } else {
            checkpoint.take(&tensor.name, Some(&tensor.shape))?
        };
        if tensor.is_stacked() {
            let (asked, parts) = stacks.entry(tensor.gguf).or_default();
            *asked += 1;
            parts.extend(found);
        } else if let Some(found) = found {
            list.push(edited(tensor.gguf, found, tensor.edit, config));
        }
    }
    for (name, (asked, parts)) in stacks {
        // One that is missing is named below.
        if parts.len() == asked {
            list.push(GgufTensor::stack(name, parts)?);
        }
    }
    // Without an embedding there is nothing to compare the head with; that one is named as missing.
    let head_shape = [rows, config.hidden_size];
    let head_shape = (rows > 0).then_some(&head_shape[..]);
    if let Some(head) = checkpoint.head(config, head_shape, &list, warnings)? {
        list.push(GgufTensor::new("output.weight", head));
    }
    checkpoint.finish(warnings)?;
    Ok((list, rows))
}

/// Whether a tensor that is missing is zero: the bias behind the attention.
fn is_optional(name: &str, config: &ModelConfig) -> bool {
    config.biases.output && name.ends_with(".o_proj.bias")
}

impl Checkpoint<'_> {
    /// Takes a tensor that must be there; notes it as missing otherwise.
    fn take(&mut self, name: &str, shape: Option<&[usize]>) -> Result<Option<StoredTensor>> {
        let tensor = self.take_optional(name, shape)?;
        if tensor.is_none() {
            self.missing.push(name.to_owned());
        }
        Ok(tensor)
    }

    fn take_optional(
        &mut self,
        name: &str,
        shape: Option<&[usize]>,
    ) -> Result<Option<StoredTensor>> {
        let tensor = match self.tensors.swap_remove(name) {
            None => return Ok(None),
            Some(Ok(tensor)) => tensor,
            Some(Err(dtype)) => {
                return Err(Error::Unsupported {
                    message: format!(
                        "{name} in {} has element type {dtype}",
                        self.directory.display()
                    ),
                    suggestion: "Weights must be F32, F16 or BF16: use the original checkpoint"
                        .to_owned(),
                });
            }
        };
        if let Some(shape) = shape {
            self.check(&tensor, name, shape)?;
        }
        Ok(Some(tensor))
    }

    /// The head to write. One that the configuration calls tied may still be there: it is dropped if
    /// it is the embedding, and counts if it has other values, as in transformers.
    fn head(
        &mut self,
        config: &ModelConfig,
        shape: Option<&[usize]>,
        list: &[GgufTensor],
        warnings: &mut Vec<String>,
    ) -> Result<Option<StoredTensor>> {
        let tied = config.tie_word_embeddings;
        let found = if tied { self.take_optional(HEAD, shape)? } else { self.take(HEAD, shape)? };
        let fixed = Graph::of(config) == Graph::Alternating;
        let Some(head) = found else { return Ok(None) };
        if !tied && !fixed {
            return Ok(Some(head));
        }
        let embedding = list.iter().find(|tensor| tensor.name == "token_embd.weight");
        if embedding.is_some_and(|embedding| embedding.has_values_of(&head)) {
            return Ok(None);
        }
        if fixed {
            return Err(unsupported(format!(
                "{} with a head ({HEAD}) that is not the embedding",
                self.class
            )));
        }
        warnings.push(format!(
            "{HEAD} has other values than the embedding, although config.json says \
             `tie_word_embeddings`: it is written as a head of its own"
        ));
        Ok(Some(head))
    }

    fn check(&self, tensor: &StoredTensor, name: &str, shape: &[usize]) -> Result<()> {
        if tensor.shape == shape {
            return Ok(());
        }
        let message =
            format!("{name} has shape {:?}, the configuration says {shape:?}", tensor.shape);
        Err(Error::damaged(self.directory, message))
    }

    /// Refuses what is missing and what would be lost.
    fn finish(self, warnings: &mut Vec<String>) -> Result<()> {
        let carries_nothing = |name: &str| {
            [".rotary_emb.inv_freq", ".attention.bias", ".masked_bias"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        let left: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|name| !carries_nothing(name)).collect();
        if !self.missing.is_empty() {
            let missing: Vec<&str> = self.missing.iter().map(String::as_str).collect();
            return Err(missing_tensors(self.directory, self.class, (&missing, None), &left));
        }
        if left.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{} tensors that a {} of llama.cpp does not have: {}",
            left.len(),
            self.class,
            some_of(&left)
        );
        if let Some(key) = switched_off(&left) {
            return Err(Error::Unsupported {
                message: format!(
                    "{} has {} biases that config.json does not switch on (`{key}`): {}",
                    self.directory.display(),
                    left.len(),
                    some_of(&left)
                ),
                suggestion: format!(
                    "If the model was trained with them, set `{key}` to true in config.json; \
                     otherwise remove them from the weights"
                ),
            });
        }
        if left.iter().any(|name| is_of_the_model(name)) {
            return Err(unsupported(format!("{} has {what}", self.directory.display())));
        }
        warnings.push(format!("{what}; they are left out"));
        Ok(())
    }
}

/// The key that would switch on all of these tensors, if they are biases of a Llama.
fn switched_off(left: &[&str]) -> Option<&'static str> {
    let all =
        |part: &str| left.iter().all(|name| name.contains(part) && name.ends_with("_proj.bias"));
    [(".self_attn.", "attention_bias"), (".mlp.", "mlp_bias")]
        .into_iter()
        .find_map(|(part, key)| all(part).then_some(key))
}

/// Whether leaving a tensor out would change what the model computes.
fn is_of_the_model(name: &str) -> bool {
    name.starts_with("model.layers.") || name == "lm_head.bias"
}

/// The tensor with its edit, and as F32 if llama.cpp wants it so: vectors, norms and the gates of
/// mixtures.
fn edited(
    name: impl Into<String>,
    tensor: StoredTensor,
    edit: Edit,
    config: &ModelConfig,
) -> GgufTensor {
    let mut tensor = GgufTensor::new(name, tensor);
    let small = tensor.shape.len() < 2
        || tensor.name.ends_with("_norm.weight")
        || tensor.name.contains(".ffn_gate_inp");
    if small {
        tensor = tensor.in_f32();
    }
    tensor = match edit {
        Edit::None => tensor,
        Edit::Pairs { heads } => tensor.with_rows(Rows::RopePairs { heads }),
        Edit::PlusOne => tensor.plus(1.0),
    };
    let scaled = if config.family.head_norms { ".attn_q_norm.weight" } else { ".attn_q.weight" };
    let biased = !config.family.head_norms && tensor.name.ends_with(".attn_q.bias");
    if config.query_pre_attn_scalar.is_some() && (tensor.name.ends_with(scaled) || biased) {
        tensor = tensor.times(limits::query_scale(config));
    }
    tensor
}
