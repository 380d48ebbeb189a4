//! A GGUF file as a model: metadata into a configuration, tensors under their Hugging Face names in
//! the bytes of the file, the tokenizer rebuilt.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use indexmap::IndexMap;

use super::gguf_parts::{model_name, open_parts};
use super::{LocalModel, ModelFormat, gguf_ext, gguf_rope, gguf_variants};
use crate::arch::catalog::keep_expected;
use crate::arch::config::{LinearBiases, RopeConfig};
use crate::arch::family::Biases;
use crate::arch::tensors::{self, Edit, TensorSpec};
use crate::arch::{Family, ModelConfig, config_json, names};
use crate::base::SharedBytes;
use crate::base::lists::some_of;
use crate::codec::StoredType;
use crate::files::gguf::{GgufFile, Value};
use crate::tokenizer::gguf_tokenizer;
use crate::weight::{RowOrder, StoredTensor, Weight};
use crate::{Error, Result};

/// Opens a file, or all parts of a split one.
///
/// # Errors
/// As [`super::open_local`].
pub fn open(path: &Path) -> Result<LocalModel> {
    let parts = open_parts(path)?;
    let Some(first) = parts.first() else {
        return Err(Error::damaged(path, "no parts"));
    };
    if gguf_ext::is_gguf_ext(first)? {
        return gguf_ext::open(path)?.model();
    }
    let mut warnings = Vec::new();
    let family = family(first)?;
    let keys =
        Keys { file: first, prefix: first.text("general.architecture")?.unwrap_or_default() };
    gguf_variants::refuse(&keys, family)?;

    let mut tensors = IndexMap::new();
    for part in &parts {
        for name in part.tensors.keys() {
            if let Some(tensor) = part.tensor(name)?
                && tensors.insert(name.clone(), tensor).is_some()
            {
                return Err(part.damaged(format!("the tensor {name} is in two parts")));
            }
        }
    }
    let mut config = configuration(&keys, family, &tensors, &mut warnings)?;
    config.biases = biases(family, config.num_layers, &tensors, path)?;
    let mut weights = rename(tensors, &config, path)?;
    let left_out = keep_expected(&mut weights, &config, path, &mut warnings)?;
    let tokenizer = gguf_tokenizer::rebuild(first, config.max_positions, &mut warnings)?;
    Ok(LocalModel {
        name: model_name(path),
        path: path.to_path_buf(),
        format: ModelFormat::Gguf,
        config_json: config_json::write(&config),
        config,
        tokenizer_json: tokenizer.as_ref().map(|files| files.tokenizer_json.clone()),
        tokenizer_config_json: tokenizer.map(|files| files.tokenizer_config_json),
        weights,
        left_out,
        warnings,
    })
}

fn family(file: &GgufFile) -> Result<&'static Family> {
    let name = file
        .text("general.architecture")?
        .ok_or_else(|| file.damaged("general.architecture is missing"))?;
    if let Some(kind) = file.text("general.type")?
        && kind != "model"
    {
        return Err(config_json::unsupported(format!(
            "{} holds a \"{kind}\", not a model",
            file.path.display()
        )));
    }
    let experts = file.u32(&format!("{name}.expert_count"))?.is_some_and(|count| count > 0);
    gguf_variants::family(name, experts)
}

/// Metadata under the prefix of the architecture.
pub(super) struct Keys<'a> {
    pub(super) file: &'a GgufFile,
    pub(super) prefix: &'a str,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        self.file.damaged(format!("{} is missing", self.key(name)))
    }

    /// A size of at least 1 and at most `most`, if given. A list with one value per block is
    /// accepted when all are the same.
    pub(super) fn optional_size(&self, name: &str, most: u32) -> Result<Option<usize>> {
        let key = self.key(name);
        let value = match self.file.metadata.get(&key) {
            Some(Value::Array(list)) => {
                let values = list.integers().unwrap_or_default();
                match values.as_slice() {
                    [first, rest @ ..] if rest.iter().all(|value| value == first) => {
                        u32::try_from(*first).ok()
                    }
                    _ => {
                        return Err(config_json::unsupported(format!(
                            "{}: {key} differs between blocks",
                            self.file.path.display()
                        )));
                    }
                }
            }
            _ => match self.file.u32(&key)? {
                None => return Ok(None),
                value => value,
            },
        };
        match value {
            Some(value) if (1..=most).contains(&value) => Ok(Some(value as usize)),
            _ => Err(self.file.damaged(format!("{key} is not between 1 and {most}"))),
        }
    }

    fn size(&self, name: &str, most: u32) -> Result<usize> {
        self.optional_size(name, most)?.ok_or_else(|| self.missing(name))
    }

    /// A finite positive number, if given: the shortest decimal number that is this f32, which is
    /// what the model's author wrote.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        match self.file.f32(&key)? {
            None => Ok(None),
            Some(value) if value > 0.0 && value.is_finite() => {
                Ok(Some(value.to_string().parse().unwrap_or_else(|_| f64::from(value))))
            }
            Some(value) => Err(self.file.damaged(format!("{key} is {value}"))),
        }
    }
}

pub(super) const MAX_WIDTH: u32 = 1 << 24;
pub(super) const MAX_COUNT: u32 = 1 << 16;

fn configuration(
    keys: &Keys,
    family: &'static Family,
    tensors: &IndexMap<String, StoredTensor>,
    warnings: &mut Vec<String>,
) -> Result<ModelConfig> {
    let file = keys.file;
    let hidden_size = keys.size("embedding_length", MAX_WIDTH)?;
    let num_heads = keys.size("attention.head_count", MAX_COUNT)?;
    let num_kv_heads =
        keys.optional_size("attention.head_count_kv", MAX_COUNT)?.unwrap_or(num_heads);
    let head_dim = match keys.optional_size("attention.key_length", MAX_COUNT)? {
        Some(length) => length,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => return Err(file.damaged("the width is no multiple of the number of heads")),
    };
    if !num_heads.is_multiple_of(num_kv_heads) || !head_dim.is_multiple_of(2) {
        return Err(file.damaged(format!(
            "{num_heads} heads of width {head_dim} with {num_kv_heads} key/value heads"
        )));
    }
    let rotating = keys.optional_size("rope.dimension_count", MAX_COUNT)?;
    let width = rotating.filter(|width| family.partial_rope && *width < head_dim);
    let values = keys.optional_size("attention.value_length", MAX_COUNT)?;
    for (length, what) in [
        (values, "values of another width than keys"),
        (rotating.filter(|_| width.is_none()), "rotary positions on a part of each head"),
    ] {
        if length.is_some_and(|length| length != head_dim) {
            return Err(config_json::unsupported(format!(
                "architecture {} with {what} is not supported",
                keys.prefix
            )));
        }
    }
    let embedding = tensors
        .get("token_embd.weight")
        .ok_or_else(|| file.damaged("token_embd.weight is missing"))?;
    let max_positions = keys.size("context_length", u32::MAX)?;
    let mut config = ModelConfig {
        hidden_size,
        intermediate_size: keys.size("feed_forward_length", MAX_WIDTH)?,
        num_layers: keys.size("block_count", MAX_COUNT)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: embedding.rows(),
        max_positions,
        rms_norm_eps: keys
            .positive("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?,
        rope: RopeConfig {
            theta: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: gguf_rope::scaling(keys, tensors, width.unwrap_or(head_dim), max_positions)?,
            width,
        },
        tie_word_embeddings: !tensors.contains_key("output.weight"),
        torch_dtype: dtype(tensors).to_owned(),
        bos_token_id: gguf_tokenizer::bos_token(file)?,
        eos_token_ids: gguf_tokenizer::end_tokens(file)?,
        ..ModelConfig::base(family)
    };
    gguf_variants::read(keys, &mut config, warnings)?;
    Ok(config)
}

/// The element type that a checkpoint with these weights would state.
fn dtype(tensors: &IndexMap<String, StoredTensor>) -> &'static str {
    let matrices = || tensors.values().filter(|tensor| tensor.shape.len() > 1);
    if matrices().all(|tensor| tensor.dtype == StoredType::F32) {
        "float32"
    } else if matrices().any(|tensor| tensor.dtype == StoredType::BF16) {
        "bfloat16"
    } else {
        "float16"
    }
}

/// Which linear layers have biases: those of a kind in all blocks or in none.
fn biases(
    family: &Family,
    layers: usize,
    tensors: &IndexMap<String, StoredTensor>,
    path: &Path,
) -> Result<LinearBiases> {
    let all_or_none = |modules: &[&str]| {
        let found = (0..layers)
            .flat_map(|block| {
                modules.iter().map(move |module| format!("blk.{block}.{module}.bias"))
            })
            .filter(|name| tensors.contains_key(name))
            .count();
        (found == 0 || found == layers * modules.len()).then_some(found > 0)
    };
    let found = [
        all_or_none(&["attn_q", "attn_k", "attn_v"]),
        all_or_none(&["attn_output"]),
        all_or_none(&["ffn_gate", "ffn_up", "ffn_down"]),
    ];
    let partial = || {
        config_json::unsupported(format!(
            "{}: biases on a part of the linear layers",
            path.display()
        ))
    };
    let [Some(qkv), Some(output), Some(mlp)] = found else { return Err(partial()) };
    let fits = match family.biases {
        Biases::Qkv => !output && !mlp,
        Biases::Never => !qkv && !output && !mlp,
        // The configuration has one switch for all four of the attention.
        Biases::AttentionAndMlp => qkv == output || family.keys.contains(&"attention_out_bias"),
        Biases::Attention => qkv == output && !mlp,
    };
    if !fits {
        return Err(partial());
    }
    let qkv = qkv || family.biases == Biases::Qkv;
    Ok(LinearBiases { qkv, output, mlp })
}

/// Tensors under their Hugging Face names, q and k of the llama architecture in its row order.
fn rename(
    stored: IndexMap<String, StoredTensor>,
    config: &ModelConfig,
    path: &Path,
) -> Result<IndexMap<String, Weight>> {
    let mut weights = IndexMap::with_capacity(stored.len());
    let mut unknown = Vec::new();
    let mut specs: HashMap<String, Vec<TensorSpec>> = HashMap::new();
    let mut expected = HashSet::new();
    for tensor in tensors::of_model(config) {
        expected.insert(tensor.name.clone());
        specs.entry(tensor.gguf.clone()).or_default().push(tensor);
    }
    for (gguf, tensor) in stored {
        if gguf_rope::is_factors(&gguf) {
            continue;
        }
        if tensor.dtype.is_copied() {
            return Err(config_json::unsupported(format!(
                "{gguf} has type {}, which can be copied but not computed with",
                tensor.dtype.name()
            )));
        }
        let unexpected = || Error::damaged(path, format!("{gguf} has an unexpected shape"));
        match specs.get(&gguf).map(Vec::as_slice) {
            Some([one]) => {
                let tensor = edited(tensor, one, config).ok_or_else(unexpected)?;
                weights.insert(one.name.clone(), Weight::Stored(tensor));
            }
            Some(experts) => {
                for (slice, spec) in unstacked(&tensor, experts).ok_or_else(unexpected)? {
                    weights.insert(spec.name.clone(), Weight::Stored(slice));
                }
            }
            // Those that it has too many are named later.
            None => match names::to_hugging_face(&gguf) {
                Some(name) if !expected.contains(&name) => {
                    weights.insert(name, Weight::Stored(tensor));
                }
                _ => unknown.push(gguf),
            },
        }
    }
    if !unknown.is_empty() {
        let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
        return Err(config_json::unsupported(format!(
            "{} has {} tensors that a {} does not have: {}",
            path.display(),
            unknown.len(),
            config.class_name,
            some_of(&unknown)
        )));
    }
    Ok(weights)
}

/// A tensor as Hugging Face checkpoints have it: what was done to its values is undone.
fn edited(
    mut tensor: StoredTensor,
    spec: &TensorSpec,
    config: &ModelConfig,
) -> Option<StoredTensor> {
    // Dimensions of 1 in front are not counted there.
    if let [1, width] = *spec.shape.as_slice()
        && tensor.shape == [width]
    {
        tensor.shape.clone_from(&spec.shape);
    }
    match spec.edit {
        Edit::None => Some(tensor),
        Edit::Pairs { heads } => in_pairs(tensor, heads, config.head_dim),
        Edit::PlusOne => {
            let values = tensor.to_f32();
            let bytes = values.iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect();
            let bytes = SharedBytes::from_vec(bytes);
            StoredTensor::new(tensor.shape, StoredType::F32, bytes).ok()
        }
    }
}

/// The matrices of all experts, in their order; they share the bytes of the file.
fn unstacked<'s>(
    tensor: &StoredTensor,
    specs: &'s [TensorSpec],
) -> Option<Vec<(StoredTensor, &'s TensorSpec)>> {
    let shape = &specs.first()?.shape;
    let bytes = tensor.dtype.byte_length(shape)?;
    if tensor.shape.first() != Some(&specs.len()) || tensor.shape.get(1..)? != shape.as_slice() {
        return None;
    }
    specs
        .iter()
        .enumerate()
        .map(|(expert, spec)| {
            let slice = tensor.bytes.slice(expert * bytes..(expert + 1) * bytes)?;
            Some((StoredTensor::new(shape.clone(), tensor.dtype, slice).ok()?, spec))
        })
        .collect()
}

/// llama.cpp's converter reorders the rows of q and k. A matrix keeps its bytes and says so; a
/// bias, being small, is put back in order.
fn in_pairs(mut tensor: StoredTensor, heads: usize, head_dim: usize) -> Option<StoredTensor> {
    let order = RowOrder::RopePairs { heads };
    let rows = heads * head_dim;
    match *tensor.shape.as_slice() {
        [out, _] if out == rows => {
            tensor.row_order = order;
            Some(tensor)
        }
        [out] if out == rows => {
            let values = tensor.to_f32();
            let bytes =
                (0..rows).flat_map(|row| values[order.file_row(row, rows)].to_le_bytes()).collect();
            StoredTensor::new(vec![rows], StoredType::F32, SharedBytes::from_vec(bytes)).ok()
        }
        _ => None,
    }
}
