//! Puts the tensors of packed layers together: `NAME.qweight` and what belongs to it becomes
//! `NAME.weight`.
//!
//! Bits and groups come from the shapes of the tensors, which also hold where a checkpoint overrides
//! them layer by layer; the configuration says the layout.

use std::path::Path;

use indexmap::IndexMap;
use safetensors::Dtype;

use super::config::QuantizationConfig;
use crate::codec::affine::gptq;
use crate::files::safetensors::{RawTensor, ShardTensor};
use crate::weight::{PackedTensor, Scales};
use crate::{Error, Result};

/// A tensor of a checkpoint, layers put together.
#[derive(Debug)]
pub(crate) enum Entry {
    /// As it is in the file, or the name of a type that is no type of weights.
    Plain(ShardTensor),
    /// The weight of a packed layer.
    Packed(PackedTensor),
}

/// Puts layers together; each takes the place of the first of its tensors.
///
/// # Errors
/// [`Error::ValidationFailed`] naming the layer whose tensors do not fit together.
pub(crate) fn assemble(
    mut tensors: IndexMap<String, RawTensor>,
    config: Option<&QuantizationConfig>,
    path: &Path,
) -> Result<IndexMap<String, Entry>> {
    let mut entries = IndexMap::with_capacity(tensors.len());
    let names: Vec<String> = tensors.keys().cloned().collect();
    for name in names {
        // Taken already, as a part of a layer before.
        if !tensors.contains_key(&name) {
            continue;
        }
        let layer = match config {
            Some(QuantizationConfig::Gptq(_) | QuantizationConfig::Awq(_)) => {
                [".qweight", ".qzeros", ".scales", ".g_idx"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .filter(|layer| tensors.contains_key(&format!("{layer}.qweight")))
            }
            Some(QuantizationConfig::W8A8(_)) => [".weight", ".weight_scale"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|layer| {
                    let integers = tensors.get(&format!("{layer}.weight"));
                    integers.is_some_and(|tensor| tensor.dtype == Dtype::I8)
                }),
            None => None,
        };
        let (Some(layer), Some(config)) = (layer, config) else {
            if let Some(tensor) = tensors.swap_remove(&name) {
                entries.insert(name, Entry::Plain(tensor.stored()?));
            }
            continue;
        };
        let parts = Parts { layer, tensors: &mut tensors };
        let packed = packed(parts, config)
            .map_err(|error| Error::damaged(path, format!("{layer}: {error}")))?;
        entries.insert(format!("{layer}.weight"), Entry::Packed(packed));
    }
    Ok(entries)
}

/// The tensors of one layer, taken out of those of the checkpoint.
struct Parts<'a> {
    layer: &'a str,
    tensors: &'a mut IndexMap<String, RawTensor>,
}

impl Parts<'_> {
    fn optional(&mut self, suffix: &str) -> Option<RawTensor> {
        self.tensors.swap_remove(&format!("{}.{suffix}", self.layer))
    }

    /// A tensor that must be there, of that type.
    fn take(&mut self, suffix: &str, dtype: Dtype) -> Result<RawTensor> {
        match self.optional(suffix) {
            Some(tensor) if tensor.dtype == dtype => Ok(tensor),
            Some(tensor) => {
                Err(Error::General(format!("{suffix} has type {}, not {dtype}", tensor.dtype)))
            }
            None => Err(Error::General(format!("there is no {suffix}"))),
        }
    }

    fn scales(&mut self, suffix: &str) -> Result<(Scales, Vec<usize>)> {
        let tensor =
            self.optional(suffix).ok_or_else(|| Error::General(format!("there is no {suffix}")))?;
        Ok((Scales { dtype: tensor.dtype, bytes: tensor.bytes }, tensor.shape))
    }
}

fn matrix(tensor: &RawTensor, name: &str) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(tensor.shape.as_slice())
        .map_err(|_| Error::General(format!("{name} has shape {:?}", tensor.shape)))
}

/// The group that makes so many groups of so many inputs, the configuration's where it does.
fn group_of(inputs: usize, groups: usize, configured: Option<usize>) -> Result<usize> {
    if let Some(group) = configured.filter(|&group| inputs.div_ceil(group) == groups) {
        return Ok(group);
    }
    if groups > 0 && inputs.is_multiple_of(groups) {
        return Ok(inputs / groups);
    }
    Err(Error::General(format!("{groups} rows of scales for {inputs} inputs")))
}

fn packed(mut parts: Parts<'_>, config: &QuantizationConfig) -> Result<PackedTensor> {
    match config {
        QuantizationConfig::Gptq(config) => {
            let weight = parts.take("qweight", Dtype::I32)?;
            let zeros = parts.take("qzeros", Dtype::I32)?;
            let (scales, shape) = parts.scales("scales")?;
            let g_idx = match parts.optional("g_idx") {
                Some(tensor) if matches!(tensor.dtype, Dtype::I32 | Dtype::U32) => Some(tensor),
                Some(tensor) => {
                    return Err(Error::General(format!("g_idx has type {}", tensor.dtype)));
                }
                None => None,
            };
            let [words, out] = matrix(&weight, "qweight")?;
            let inputs = match &g_idx {
                Some(tensor) => tensor.shape.iter().product(),
                None => words * 32 / usize::from(config.bits),
            };
            let bits = (words * 32).checked_div(inputs).unwrap_or(0) as u8;
            if !gptq::fits(out, inputs, bits) || words * 32 != inputs * usize::from(bits) {
                return Err(Error::General(format!("{words} rows of words for {inputs} inputs")));
            }
            let group = group_of(inputs, shape.first().copied().unwrap_or(0), config.group)?;
            let g_idx = g_idx.map(|tensor| tensor.bytes);
            PackedTensor::gptq(
                [out, inputs],
                (bits, group),
                config.version,
                (weight.bytes, zeros.bytes, scales),
                g_idx.as_ref(),
            )
        }
        QuantizationConfig::Awq(config) => {
            let weight = parts.take("qweight", Dtype::I32)?;
            let zeros = parts.take("qzeros", Dtype::I32)?;
            let (scales, shape) = parts.scales("scales")?;
            let [inputs, words] = matrix(&weight, "qweight")?;
            let group = group_of(inputs, shape.first().copied().unwrap_or(0), config.group)?;
            PackedTensor::awq([words * 8, inputs], group, (weight.bytes, zeros.bytes, scales))
        }
        QuantizationConfig::W8A8(_) => {
            let weight = parts.take("weight", Dtype::I8)?;
            let (scales, _) = parts.scales("weight_scale")?;
            PackedTensor::w8a8(matrix(&weight, "weight")?, weight.bytes, scales)
        }
    }
}
