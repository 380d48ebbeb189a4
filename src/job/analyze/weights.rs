//! Weights as analysis needs them: decoded whole, and in the row order of GGUF files.

use rayon::prelude::*;

use crate::arch::spec::Role;
use crate::arch::tensors::linear_of_block;
use crate::model::LocalModel;
use crate::weight::{RowOrder, StoredTensor, Weight};
use crate::{Error, Result};

/// All values of a matrix, `[rows, cols]` in Hugging Face row order.
pub(super) fn decode(tensor: &StoredTensor) -> Vec<f32> {
    let cols = tensor.cols();
    let mut values = vec![0.0; tensor.elements()];
    values
        .par_chunks_exact_mut(cols.max(1))
        .enumerate()
        .for_each(|(row, out)| tensor.read_rows(row..row + 1, out));
    values
}

/// A matrix of the model that is stored as numbers.
///
/// # Errors
/// [`Error::ValidationFailed`] if it is missing, [`Error::Unsupported`] if it is there as factors.
pub(super) fn stored<'m>(model: &'m LocalModel, name: &str) -> Result<&'m StoredTensor> {
    match model.weights.get(name) {
        Some(Weight::Stored(tensor)) => Ok(tensor),
        Some(_) => Err(Error::Unsupported {
            message: format!("{name} has no weights of its own that could be looked at"),
            suggestion: "Analyze the original model with its plain weights".into(),
        }),
        None => Err(Error::damaged(&model.path, format!("the tensor {name} is missing"))),
    }
}

/// How the rows of a matrix lie in a GGUF file of the model, from the Hugging Face order.
pub(super) fn gguf_order(model: &LocalModel, name: &str) -> RowOrder {
    let config = &model.config;
    let Some((block, module)) = linear_of_block(name).filter(|_| config.family.has_rope_pairs())
    else {
        return RowOrder::Plain;
    };
    let slots = config.slots(block);
    match slots.iter().find(|slot| slot.name == module).map(|slot| slot.role) {
        Some(Role::Query) => RowOrder::RopePairs { heads: config.num_heads },
        Some(Role::Key) => RowOrder::RopePairs { heads: config.num_kv_heads },
        _ => RowOrder::Plain,
    }
}
