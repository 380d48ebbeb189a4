//! What the output matrix receives, for an estimate of its loss that no model has to run for
//! ([`weight::loss_by_logits`](crate::job::profile::weight::loss_by_logits)).

use crate::Result;
use crate::arch::role::{Role, role};
use crate::job::gguf::model::GgufModel;
use crate::job::gguf::tensor::GgufTensor;

/// The norm in front of the output matrix.
const NORM: &str = "output_norm.weight";

/// The tensor that gives the logits: the output matrix, or the embeddings where there is none.
fn head(model: &GgufModel) -> Option<&GgufTensor> {
    let find = |wanted| model.tensors.iter().find(|tensor| role(&tensor.name) == wanted);
    let embedding = || model.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    find(Role::Output).or_else(embedding)
}

/// Name of the output matrix and mean squares of its input channels, `[cols]`: a normed vector has a
/// mean square of 1, so that of a channel is the square of the norm's gain. None where the model has
/// no such norm or scales its logits.
pub(super) fn inputs_of_head(model: &GgufModel) -> Result<Option<(&str, Vec<f32>)>> {
    let scaled = model.metadata.keys().any(|key| key.ends_with(".logit_scale"));
    let norm = model.tensors.iter().find(|tensor| tensor.name == NORM);
    let (Some(head), Some(norm), false) = (head(model), norm, scaled) else { return Ok(None) };
    if norm.rows() != 1 || norm.cols() != head.cols() {
        return Ok(None);
    }
    let mut gains = vec![0.0; norm.cols()];
    norm.read_rows(0..1, &mut gains)?;
    for gain in &mut gains {
        *gain *= *gain;
    }
    Ok(Some((&head.name, gains)))
}
