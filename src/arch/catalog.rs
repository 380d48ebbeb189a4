//! The check that a file has just the tensors that a model of its shape has.

use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::config::ModelConfig;
use crate::arch::tensors::{self, EMBEDDING, HEAD};
use crate::base::lists::some_of;
use crate::files::present::missing_tensors;
use crate::weight::Weight;
use crate::{Error, Result};

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
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>> {
    let expected: IndexMap<String, Vec<usize>> =
        tensors::of_model(config).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
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
