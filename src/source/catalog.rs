//! The tensors that a model of a given shape has, and the check that a file has just these.

use std::path::Path;

use indexmap::IndexMap;

use super::Weight;
use super::config::{Architecture, AttentionBiases, BLOCK_LINEARS, ModelConfig};
use crate::{Error, Result};

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
pub fn expected_tensors(config: &ModelConfig, biases: AttentionBiases) -> Vec<ExpectedTensor> {
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
            let has_bias = match linear {
                "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => biases.qkv,
                "self_attn.o_proj" => biases.output,
                _ => false,
            };
            if has_bias {
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
/// unless they are known to carry nothing (rotary tables, a copy of a tied head).
///
/// # Errors
/// [`Error::ModelNotFound`] naming what is missing, [`Error::ValidationFailed`] naming the first
/// tensor of another shape.
pub fn keep_expected(
    weights: &mut IndexMap<String, Weight>,
    config: &ModelConfig,
    biases: AttentionBiases,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let expected: IndexMap<String, Vec<usize>> = expected_tensors(config, biases)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect();
    let missing: Vec<&str> =
        expected.keys().map(String::as_str).filter(|name| !weights.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(Error::ModelNotFound {
            message: format!(
                "{} lacks {} of the {} tensors of a {}: {}",
                path.display(),
                missing.len(),
                expected.len(),
                config.class_name,
                some_of(&missing)
            ),
            suggestion: "Download the model again; check that config.json belongs to the weights"
                .to_owned(),
        });
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
    let extra: Vec<&str> = weights
        .keys()
        .map(String::as_str)
        .filter(|name| !expected.contains_key(*name) && !carries_nothing(name))
        .collect();
    if !extra.is_empty() {
        warnings.push(format!(
            "{} tensors are not part of a {} and are left out: {}",
            extra.len(),
            config.class_name,
            some_of(&extra)
        ));
    }
    weights.retain(|name, _| expected.contains_key(name));
    Ok(())
}

fn carries_nothing(name: &str) -> bool {
    name == "lm_head.weight"
        || name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".attn.masked_bias")
}

/// The first few names and how many more there are.
pub(crate) fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
