//! GPTQ checkpoints: integers packed along the inputs.
//!
//! For a layer `[out, inputs]` with integers of `b` bits: `qweight` i32 `[inputs * b / 32, out]`, each
//! column a string of bits, lowest first (3-bit integers straddle words); `qzeros` i32
//! `[groups, out * b / 32]`, each row such a string; `scales` f16 `[groups, out]`; `g_idx` i32
//! `[inputs]`, the group of each input. Version 1 (`checkpoint_format` "gptq") stores zero points less
//! one, version 2 ("gptq_v2") as they are.
//! Sources: AutoGPTQ `qlinear_cuda_old.py`, GPTQModel `nn_modules/qlinear/__init__.py`.

use rayon::prelude::*;
use safetensors::Dtype;

use super::{Part, slot};
use crate::codec::affine::Grouped;
use crate::codec::affine::gptq::{Version, fits};
use crate::codec::affine::grouped::{bit_string, scale_bytes, transposed};
use crate::files::model_directory::TensorSlot;
use crate::{Error, Result};

/// The tensors of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedGptq {
    /// i32 `[inputs * bits / 32, out]`.
    pub qweight: Part,
    /// i32 `[groups, out * bits / 32]`.
    pub qzeros: Part,
    /// f16 `[groups, out]`.
    pub scales: Part,
    /// i32 `[inputs]`.
    pub g_idx: Part,
}

impl PackedGptq {
    /// The tensors in the order of [`slots`].
    #[must_use]
    pub(crate) fn parts(&self) -> [&Part; 4] {
        [&self.qweight, &self.qzeros, &self.scales, &self.g_idx]
    }
}

/// Names, types and shapes of the tensors of a layer `[out, inputs]`, known before its integers.
#[must_use]
pub(crate) fn slots(
    layer: &str,
    out: usize,
    inputs: usize,
    bits: u8,
    group: usize,
) -> Vec<TensorSlot> {
    let (bits, groups) = (usize::from(bits), inputs.div_ceil(group));
    vec![
        slot(layer, "qweight", Dtype::I32, vec![inputs * bits / 32, out]),
        slot(layer, "qzeros", Dtype::I32, vec![groups, out * bits / 32]),
        slot(layer, "scales", Dtype::F16, vec![groups, out]),
        slot(layer, "g_idx", Dtype::I32, vec![inputs]),
    ]
}

/// Packs a layer as version 1, which every reader takes.
///
/// # Errors
/// [`Error::UnsupportedConversion`] if the shape does not fill words or a zero point is 0, which
/// version 1 cannot store; [`Error::General`] if the layer is inconsistent.
pub(crate) fn pack(layer: &Grouped) -> Result<PackedGptq> {
    pack_as(layer, Version::V1)
}

/// Packs a layer.
///
/// # Errors
/// As [`pack`]; version 2 stores every zero point.
pub(crate) fn pack_as(layer: &Grouped, version: Version) -> Result<PackedGptq> {
    layer.check()?;
    let (out, inputs, bits) = (layer.out, layer.inputs, layer.bits);
    let needs = "rows and columns of integers must fill 32-bit words";
    layer.refuse_shape(fits(out, inputs, bits), "GPTQ", needs)?;
    let (words, groups) = (inputs * usize::from(bits) / 32, layer.groups());
    let offset = match version {
        Version::V1 => 1,
        Version::V2 => 0,
    };
    if layer.zeros.iter().any(|&zero| zero < offset) {
        return Err(Error::UnsupportedConversion(
            "a zero point is 0: version 1 of GPTQ checkpoints stores it less one and has no sign; \
             version 2 can hold it"
                .into(),
        ));
    }
    // 32 integers fill `bits` rows of words; the last block may have fewer.
    let mut qweight = vec![0u8; words * out * 4];
    let block_bytes = usize::from(bits) * out * 4;
    qweight.par_chunks_mut(block_bytes).enumerate().for_each(|(block, bytes)| {
        let from = block * 32;
        let to = inputs.min(from + 32);
        for row in 0..out {
            let values = &layer.q[row * inputs + from..row * inputs + to];
            let string = bit_string(values.iter().copied(), bits);
            for (at, word) in string.chunks_exact(4).enumerate() {
                let at = (at * out + row) * 4;
                bytes[at..at + 4].copy_from_slice(word);
            }
        }
    });
    let zeros = transposed(&layer.zeros, groups).map(|zero| zero - offset);
    let g_idx = (0..inputs).flat_map(|input| (layer.group_of(input) as i32).to_le_bytes());
    Ok(PackedGptq {
        qweight: Part::new("qweight", Dtype::I32, [words, out], qweight),
        qzeros: Part::new(
            "qzeros",
            Dtype::I32,
            [groups, out * usize::from(bits) / 32],
            bit_string(zeros, bits),
        ),
        scales: Part::new("scales", Dtype::F16, [groups, out], scale_bytes(&layer.scales, groups)),
        g_idx: Part {
            suffix: "g_idx",
            dtype: Dtype::I32,
            shape: vec![inputs],
            bytes: g_idx.collect(),
        },
    })
}
