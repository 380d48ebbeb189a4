//! Experts that a checkpoint holds in one tensor per kind, as matrices of their own.

use std::path::Path;

use indexmap::IndexMap;

use crate::arch::ModelConfig;
use crate::weight::StoredTensor;
use crate::weight::Weight;
use crate::{Error, Result};

/// Which part of each expert's rows, of how many equal ones.
type RowPart = (usize, usize);

/// Splits `experts.gate_up_proj`, `[experts, 2 · inner, hidden]`, and `experts.down_proj`,
/// `[experts, hidden, inner]`, of newer checkpoints into the tensors of each expert. They share the
/// bytes of the file.
///
/// # Errors
/// [`Error::ValidationFailed`] for another shape than the configuration implies.
pub(super) fn split(
    weights: &mut IndexMap<String, Weight>,
    config: &ModelConfig,
    path: &Path,
) -> Result<()> {
    let stored = |weight: &Weight| match weight {
        Weight::Stored(tensor) => Some(tensor.clone()),
        _ => None,
    };
    split_by(weights, config, path, stored, Weight::Stored)
}

/// The same for tensors that `stored` finds and `wrap` makes.
pub(crate) fn split_by<T>(
    weights: &mut IndexMap<String, T>,
    config: &ModelConfig,
    path: &Path,
    stored: impl Fn(&T) -> Option<StoredTensor>,
    wrap: impl Fn(StoredTensor) -> T,
) -> Result<()> {
    let (Some(names), Some(sizes)) = (config.family.experts, config.experts) else {
        return Ok(());
    };
    let Some([gate_up, down]) = names.packed else { return Ok(()) };
    let (inner, hidden) = (sizes.inner, config.hidden_size);
    for block in 0..config.num_layers {
        let prefix = format!("model.layers.{block}.{}.experts", names.module);
        let [gate, up, own_down] = names.names;
        let both = [(gate, [inner, hidden], (0, 2)), (up, [inner, hidden], (1, 2))];
        let one = [(own_down, [hidden, inner], (0, 1))];
        for (packed, parts) in [(gate_up, &both[..]), (down, &one[..])] {
            let name = format!("{prefix}.{packed}");
            let found = [name.clone(), format!("{name}.weight")];
            let Some((found, tensor)) =
                found.iter().find_map(|name| Some((name, stored(weights.get(name)?)?)))
            else {
                continue;
            };
            weights.swap_remove(found);
            for &(kind, shape, part) in parts {
                let whole = [sizes.count, part.1 * shape[0], shape[1]];
                if tensor.shape != whole {
                    return Err(Error::damaged(
                        path,
                        format!(
                            "{name} has shape {:?}, the configuration says {whole:?}",
                            tensor.shape
                        ),
                    ));
                }
                let slices = slices(&tensor, part, shape)
                    .ok_or_else(|| Error::damaged(path, format!("{name} is too short")))?;
                for (expert, slice) in slices.into_iter().enumerate() {
                    let name = format!("{prefix}.{expert}.{kind}.weight");
                    weights.insert(name, wrap(slice));
                }
            }
        }
    }
    Ok(())
}

/// One slice per expert: part `part.0` of the `part.1` equal parts of its rows.
fn slices(tensor: &StoredTensor, part: RowPart, shape: [usize; 2]) -> Option<Vec<StoredTensor>> {
    let bytes = tensor.dtype.byte_length(&shape)?;
    (0..tensor.shape[0])
        .map(|expert| {
            let from = (expert * part.1 + part.0) * bytes;
            let slice = tensor.bytes.slice(from..from + bytes)?;
            StoredTensor::new(shape.to_vec(), tensor.dtype, slice).ok()
        })
        .collect()
}
