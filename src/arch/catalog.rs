//! The tensors that a model of a given shape has, and the check that a file has just these.

use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::config::{Architecture, BLOCK_LINEARS, LinearBiases, ModelConfig};
use crate::base::lists::some_of;
use crate::files::present::missing_tensors;
use crate::weight::Weight;
use crate::{Error, Result};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A tensor that must be there: Hugging Face name and shape, `[out, in]` for matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// `model.layers.0.mlp.up_proj.weight`
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// All tensors of a model, embedding first, head last.
#[must_use]
pub fn expected_tensors(config: &ModelConfig, biases: LinearBiases) -> Vec<ExpectedTensor> {
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        list.push(ExpectedTensor { name, shape: shape.to_vec() });
    };
    let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
    add("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden]);
    for block in 0..config.num_layers {
        let prefix = format!("model.layers.{block}");
        add(format!("{prefix}.input_layernorm.weight"), &[hidden]);
        for linear in BLOCK_LINEARS {
            let (out, inputs) = config.linear_shape(linear);
            add(format!("{prefix}.{linear}.weight"), &[out, inputs]);
            if biases.has(linear) {
                add(format!("{prefix}.{linear}.bias"), &[out]);
            }
        }
        if config.architecture == Architecture::Qwen3 {
            add(format!("{prefix}.self_attn.q_norm.weight"), &[config.head_dim]);
            add(format!("{prefix}.self_attn.k_norm.weight"), &[config.head_dim]);
        }
        add(format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
    }
    add("model.norm.weight".to_owned(), &[hidden]);
    if !config.tie_word_embeddings {
        add("lm_head.weight".to_owned(), &[vocabulary, hidden]);
    }
    list
}

/// Reduces `weights` to the tensors that the model has. Others are dropped; a warning names them,
/// unless they are known to carry nothing (rotary tables, a copy of a tied head). Returns the names
/// in the warning.
///
/// # Errors
/// [`Error::ModelNotFound`] naming what is missing, [`Error::ValidationFailed`] naming the first
/// tensor of another shape, [`Error::Unsupported`] for more tensors of the blocks, the norm, the
/// embedding or the head than a model of this configuration has.
pub fn keep_expected(
    weights: &mut IndexMap<String, Weight>,
    config: &ModelConfig,
    biases: LinearBiases,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>> {
    let expected: IndexMap<String, Vec<usize>> = expected_tensors(config, biases)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect();
    let missing: Vec<&str> =
        expected.keys().map(String::as_str).filter(|name| !weights.contains_key(*name)).collect();
    let extra: Vec<&str> = weights
        .keys()
        .map(String::as_str)
        .filter(|name| !expected.contains_key(*name) && !carries_nothing(name))
        .collect();
    if !missing.is_empty() {
        let of = Some(expected.len());
        return Err(missing_tensors(path, &config.class_name, (&missing, of), &extra));
    }
    for (name, shape) in &expected {
        if let Some(weight) = weights.get(name)
            && weight.shape() != *shape
        {
            return Err(Error::damaged(
                path,
                format!("{name} has shape {:?}, the configuration says {shape:?}", weight.shape()),
            ));
        }
    }
    let computing: Vec<&str> = extra.iter().copied().filter(|name| is_of_the_model(name)).collect();
    if !computing.is_empty() {
        return Err(Error::Unsupported {
            message: format!(
                "{} has {} tensors that a {} does not have, and that would change what it computes: {}",
                path.display(),
                computing.len(),
                config.class_name,
                some_of(&computing)
            ),
            suggestion: "Check that config.json belongs to these weights (`attention_bias`, \
                         `mlp_bias`, `num_hidden_layers`)"
                .to_owned(),
        });
    }
    if !extra.is_empty() {
        warnings.push(format!(
            "{} tensors are not part of a {} and are left out: {}",
            extra.len(),
            config.class_name,
            some_of(&extra)
        ));
    }
    let left_out = extra.into_iter().map(str::to_owned).collect();
    weights.retain(|name, _| expected.contains_key(name));
    Ok(left_out)
}

/// Keeps a head that is not the embedding, whatever the configuration says: it unties the two if
/// their values differ, as transformers does, and says so. Whether it did.
pub fn keep_head(
    weights: &IndexMap<String, Weight>,
    config: &mut ModelConfig,
    warnings: &mut Vec<String>,
) -> bool {
    if !config.tie_word_embeddings {
        return false;
    }
    let (Some(head), Some(embedding)) = (weights.get(HEAD), weights.get(EMBEDDING)) else {
        return false;
    };
    if same_values(head, embedding) {
        return false;
    }
    config.tie_word_embeddings = false;
    warnings.push(format!(
        "config.json says `tie_word_embeddings`, but {HEAD} has other values than the embedding: the \
         head is kept as it is"
    ));
    true
}

/// Whether two matrices hold the same numbers.
fn same_values(a: &Weight, b: &Weight) -> bool {
    if let (Weight::Stored(a), Weight::Stored(b)) = (a, b)
        && (a.dtype, &a.shape) == (b.dtype, &b.shape)
        && a.bytes[..] == b.bytes[..]
    {
        return true;
    }
    let cols = a.cols();
    let equal = |row: usize| {
        let (mut x, mut y) = (vec![0.0f32; cols], vec![0.0f32; cols]);
        a.read_rows(row..row + 1, &mut x);
        b.read_rows(row..row + 1, &mut y);
        x == y
    };
    a.shape() == b.shape() && (0..a.rows()).into_par_iter().all(equal)
}

/// Whether leaving a tensor out would change what the model computes: it is of a block, of the
/// embedding, of the final norm or of the head.
#[must_use]
pub(crate) fn is_of_the_model(name: &str) -> bool {
    name.starts_with("model.") || name.starts_with("lm_head.")
}

fn carries_nothing(name: &str) -> bool {
    name == HEAD || name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias")
}
