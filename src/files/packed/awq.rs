//! AWQ checkpoints in the GEMM layout: 4-bit integers packed along the outputs, in an order of their
//! own.
//!
//! For a layer `[out, inputs]`: `qweight` i32 `[inputs, out / 8]`, `qzeros` i32 `[groups, out / 8]`,
//! `scales` f16 `[groups, out]`. Nibble `i` (bits `4i` to `4i + 3`) of word `c` belongs to output
//! `8c + ORDER[i]`. Source: AutoAWQ `modules/linear/gemm.py`, `utils/packing_utils.py`.

use rayon::prelude::*;
use safetensors::Dtype;

use super::{Part, slot};
use crate::Result;
use crate::codec::affine::Grouped;
use crate::codec::affine::awq::{ORDER, fits};
use crate::codec::affine::grouped::scale_bytes;
use crate::files::model_directory::TensorSlot;

/// The tensors of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedAwq {
    /// i32 `[inputs, out / 8]`.
    pub qweight: Part,
    /// i32 `[groups, out / 8]`.
    pub qzeros: Part,
    /// f16 `[groups, out]`.
    pub scales: Part,
}

impl PackedAwq {
    /// The tensors in the order of [`slots`].
    #[must_use]
    pub(crate) fn parts(&self) -> [&Part; 3] {
        [&self.qweight, &self.qzeros, &self.scales]
    }
}

/// Names, types and shapes of the tensors of a layer `[out, inputs]`, known before its integers.
#[must_use]
pub(crate) fn slots(layer: &str, out: usize, inputs: usize, group: usize) -> Vec<TensorSlot> {
    let groups = inputs.div_ceil(group);
    vec![
        slot(layer, "qweight", Dtype::I32, vec![inputs, out / 8]),
        slot(layer, "qzeros", Dtype::I32, vec![groups, out / 8]),
        slot(layer, "scales", Dtype::F16, vec![groups, out]),
    ]
}

/// Packs a layer.
///
/// # Errors
/// [`Error::UnsupportedConversion`] if it has other bits than 4, another order of groups, or a shape
/// that does not fill words and groups; [`Error::General`] if it is inconsistent.
pub(crate) fn pack(layer: &Grouped) -> Result<PackedAwq> {
    layer.check()?;
    let (out, inputs, groups) = (layer.out, layer.inputs, layer.groups());
    layer.refuse_shape(layer.bits == 4, "AWQ", "it has 4 bits only")?;
    layer.refuse_shape(layer.group_of.is_none(), "AWQ", "its groups are neighbouring inputs")?;
    let needs = "outputs must be a multiple of 8, inputs one of the group";
    layer.refuse_shape(fits(out, inputs, layer.group), "AWQ", needs)?;
    Ok(PackedAwq {
        qweight: Part::new(
            "qweight",
            Dtype::I32,
            [inputs, out / 8],
            nibbles(&layer.q, out, inputs),
        ),
        qzeros: Part::new(
            "qzeros",
            Dtype::I32,
            [groups, out / 8],
            nibbles(&layer.zeros, out, groups),
        ),
        scales: Part::new("scales", Dtype::F16, [groups, out], scale_bytes(&layer.scales, groups)),
    })
}

/// Values `[out, columns]` as words `[columns, out / 8]`.
fn nibbles(values: &[u8], out: usize, columns: usize) -> Vec<u8> {
    let mut bytes = vec![0; columns * out / 2];
    bytes.par_chunks_exact_mut(out / 2).enumerate().for_each(|(column, bytes)| {
        for (at, bytes) in bytes.chunks_exact_mut(4).enumerate() {
            let word = ORDER.iter().enumerate().fold(0u32, |word, (nibble, row)| {
                word | u32::from(values[(at * 8 + row) * columns + column]) << (4 * nibble)
            });
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    });
    bytes
}
