//! Tensors of a checkpoint under their GGUF names: checked against the configuration, with the edits
//! that the architecture wants applied when they are read.

use std::path::Path;

use indexmap::IndexMap;

use super::architectures::{Bias, Class, Edit, ExpertModule, Kind, Module, unsupported};
use super::sizes::Sizes;
use crate::base::lists::some_of;
use crate::files::present::missing_tensors;
use crate::files::safetensors::ShardTensor;
use crate::job::gguf::tensor::{GgufTensor, Rows};
use crate::weight::StoredTensor;
use crate::{Error, Result};

/// The tensors of a checkpoint, from which they are taken one by one.
struct Checkpoint<'a> {
    directory: &'a Path,
    class: Class,
    tensors: IndexMap<String, ShardTensor>,
    missing: Vec<String>,
}

/// All tensors of the model but those that come from the configuration, and the number of rows of
/// the embedding.
pub(super) fn collect(
    directory: &Path,
    class: Class,
    sizes: &Sizes,
    tied: bool,
    tensors: IndexMap<String, ShardTensor>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<GgufTensor>, usize)> {
    let mut checkpoint = Checkpoint { directory, class, tensors, missing: Vec::new() };
    let mut list = Vec::new();

    let embedding = checkpoint.take("model.embed_tokens.weight", None)?;
    let rows = embedding.as_ref().map_or(0, StoredTensor::rows);
    if let Some(embedding) = embedding {
        checkpoint.check(&embedding, "model.embed_tokens.weight", &[rows, sizes.hidden])?;
        list.push(GgufTensor::new("token_embd.weight", embedding));
    }
    if let Some(norm) = checkpoint.take("model.norm.weight", Some(&[sizes.hidden]))? {
        list.push(edited("output_norm.weight", norm, class.kind.norm_edit(), sizes));
    }
    // Without an embedding there is nothing to compare the head with; that one is named as missing.
    let head_shape = [rows, sizes.hidden];
    let head_shape = (rows > 0).then_some(&head_shape[..]);
    if let Some(head) = checkpoint.head(tied, head_shape, &list, warnings)? {
        list.push(GgufTensor::new("output.weight", head));
    }
    let (modules, experts) = (class.kind.modules(sizes.biases), class.kind.experts());
    for block in 0..sizes.layers {
        for module in &modules {
            checkpoint.module(block, module, sizes, &mut list)?;
        }
        for module in &experts {
            list.extend(checkpoint.experts(block, module, sizes)?);
        }
    }
    checkpoint.finish(warnings)?;
    Ok((list, rows))
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
        tied: bool,
        shape: Option<&[usize]>,
        list: &[GgufTensor],
        warnings: &mut Vec<String>,
    ) -> Result<Option<StoredTensor>> {
        const HEAD: &str = "lm_head.weight";
        let found = if tied { self.take_optional(HEAD, shape)? } else { self.take(HEAD, shape)? };
        let fixed = self.class.kind == Kind::Gemma2;
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
                self.class.name
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

    fn module(
        &mut self,
        block: usize,
        module: &Module,
        sizes: &Sizes,
        list: &mut Vec<GgufTensor>,
    ) -> Result<()> {
        let name = format!("model.layers.{block}.{}", module.hf);
        let gguf = format!("blk.{block}.{}", module.gguf);
        let out = sizes.get(module.out);
        let shape: Vec<usize> = match module.inputs {
            None => vec![out],
            Some(inputs) => vec![out, sizes.get(inputs)],
        };
        if let Some(weight) = self.take(&format!("{name}.weight"), Some(&shape))? {
            list.push(edited(format!("{gguf}.weight"), weight, module.edit, sizes));
        }
        let bias_name = format!("{name}.bias");
        let bias = match module.bias {
            Bias::None => None,
            Bias::Optional => self.take_optional(&bias_name, Some(&[out]))?,
            Bias::Required => self.take(&bias_name, Some(&[out]))?,
        };
        if let Some(bias) = bias {
            list.push(edited(format!("{gguf}.bias"), bias, module.edit, sizes));
        }
        Ok(())
    }

    /// The matrices of all experts as one tensor, whichever way the checkpoint holds them.
    fn experts(
        &mut self,
        block: usize,
        module: &ExpertModule,
        sizes: &Sizes,
    ) -> Result<Option<GgufTensor>> {
        let prefix = format!("model.layers.{block}.{}", module.before);
        let gguf = format!("blk.{block}.{}.weight", module.gguf);
        let shape = [sizes.get(module.out), sizes.get(module.inputs)];
        if let Some(fused) = module.fused {
            let name = format!("{prefix}.{}", fused.hf);
            // Another part may still need it.
            let names = [name.clone(), format!("{name}.weight")];
            if let Some(Ok(tensor)) = names.iter().find_map(|name| self.tensors.get(name)) {
                let tensor = tensor.clone();
                let whole = [sizes.experts, fused.part.1 * shape[0], shape[1]];
                self.check(&tensor, &name, &whole)?;
                if fused.part.0 + 1 == fused.part.1 {
                    names.iter().for_each(|name| drop(self.tensors.swap_remove(name)));
                }
                let slices = slices(&tensor, fused.part, shape).ok_or_else(|| {
                    Error::damaged(self.directory, format!("{name} is too short"))
                })?;
                return GgufTensor::stack(gguf, slices).map(Some);
            }
        }
        let mut parts = Vec::with_capacity(sizes.experts);
        for expert in 0..sizes.experts {
            let name = format!("{prefix}.{expert}.{}.weight", module.after);
            parts.extend(self.take(&name, Some(&shape))?);
        }
        if parts.len() < sizes.experts {
            return Ok(None);
        }
        GgufTensor::stack(gguf, parts).map(Some)
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
            return Err(missing_tensors(self.directory, self.class.name, (&missing, None), &left));
        }
        if left.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{} tensors that a {} of llama.cpp does not have: {}",
            left.len(),
            self.class.name,
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

/// One slice per expert: part `part.0` of the `part.1` equal parts of its rows.
fn slices(
    tensor: &StoredTensor,
    part: (usize, usize),
    shape: [usize; 2],
) -> Option<Vec<StoredTensor>> {
    let bytes = StoredTensor::byte_length(&shape, tensor.dtype)?;
    (0..tensor.shape[0])
        .map(|expert| {
            let from = (expert * part.1 + part.0) * bytes;
            let slice = tensor.bytes.slice(from..from + bytes)?;
            StoredTensor::new(shape.to_vec(), tensor.dtype, slice).ok()
        })
        .collect()
}

/// The tensor with its edit, and as F32 if llama.cpp wants it so: vectors, norms and the gates of
/// mixtures.
fn edited(name: impl Into<String>, tensor: StoredTensor, edit: Edit, sizes: &Sizes) -> GgufTensor {
    let mut tensor = GgufTensor::new(name, tensor);
    let small = tensor.shape.len() < 2
        || tensor.name.ends_with("_norm.weight")
        || tensor.name.contains(".ffn_gate_inp");
    if small {
        tensor = tensor.in_f32();
    }
    match edit {
        Edit::None => tensor,
        Edit::QueryPairs => tensor.with_rows(Rows::RopePairs { heads: sizes.heads }),
        Edit::KeyPairs => tensor.with_rows(Rows::RopePairs { heads: sizes.kv_heads }),
        Edit::PlusOne => tensor.plus(1.0),
        Edit::QueryScale => tensor.times(sizes.query_scale),
        Edit::PlusOneQueryScale => tensor.plus(1.0).times(sizes.query_scale),
    }
}
