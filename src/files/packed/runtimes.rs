//! Which runtimes load a packed checkpoint, and how fast: the conditions of vLLM's kernels.
//!
//! Sources: vLLM `model_executor/layers/quantization/{gptq_marlin,awq_marlin}.py`,
//! `quantization/utils/marlin_utils.py`, `compressed_tensors/schemes/compressed_tensors_w8a8_int8.py`.

use crate::weight::{PackedKind, PackedTensor};

/// Outputs and inputs of a layer that Marlin's tiles divide.
const TILE_OUT: usize = 64;
const TILE_INPUTS: usize = 128;
/// Groups that Marlin takes, besides whole rows.
const GROUPS: [usize; 3] = [32, 64, 128];
/// Most GPUs that are considered.
const MOST_GPUS: usize = 64;

/// Facts about a checkpoint, gathered layer by layer.
#[derive(Debug, Default)]
pub(crate) struct Runtimes {
    kind: Option<PackedKind>,
    obstacles: Vec<String>,
    /// Out, inputs and groups of every shape, and whether it is cut along its inputs.
    shapes: Vec<(usize, usize, usize, bool)>,
    heads: (usize, usize),
}

impl Runtimes {
    /// For a model with that many query and key/value heads.
    #[must_use]
    pub(crate) fn new(heads: usize, kv_heads: usize) -> Self {
        Self { heads: (heads, kv_heads), ..Self::default() }
    }

    /// Takes a layer into account; `name` is that of its weight. Reads its zero points.
    pub(crate) fn add(&mut self, name: &str, layer: &PackedTensor) {
        self.kind = Some(layer.kind());
        let by_inputs = name.contains("o_proj") || name.contains("down_proj");
        let shape = (layer.rows(), layer.cols(), layer.groups(), by_inputs);
        if !self.shapes.contains(&shape) {
            self.shapes.push(shape);
        }
        let mut note = |obstacle: String| {
            if !self.obstacles.contains(&obstacle) {
                self.obstacles.push(obstacle);
            }
        };
        if layer.kind() == PackedKind::W8A8 {
            return;
        }
        if let PackedKind::Gptq(_) = layer.kind() {
            if !matches!(layer.bits(), 4 | 8) {
                note(format!("{} bits", layer.bits()));
            }
            if !layer.is_symmetric() {
                note("zero points that are not in the middle".to_owned());
            }
        }
        if layer.groups() > 1 && !GROUPS.contains(&layer.group()) {
            note(format!("groups of {}", layer.group()));
        }
        if !layer.rows().is_multiple_of(TILE_OUT) || !layer.cols().is_multiple_of(TILE_INPUTS) {
            note(format!("layers of {} x {}", layer.rows(), layer.cols()));
        }
    }

    /// The most GPUs that tensors can be split over: heads, tiles and groups must divide.
    fn most_gpus(&self) -> usize {
        let divides = |n: usize| {
            self.heads.0.is_multiple_of(n)
                && (self.heads.1.is_multiple_of(n) || n.is_multiple_of(self.heads.1.max(1)))
                && self.shapes.iter().all(|&(out, inputs, groups, by_inputs)| {
                    if by_inputs {
                        (groups == 1 || groups.is_multiple_of(n))
                            && inputs.is_multiple_of(n)
                            && (inputs / n).is_multiple_of(TILE_INPUTS)
                    } else {
                        out.is_multiple_of(n) && (out / n).is_multiple_of(TILE_OUT)
                    }
                })
        };
        (1..=MOST_GPUS).rev().find(|&n| divides(n)).unwrap_or(1)
    }

    /// One line for each runtime.
    #[must_use]
    pub(crate) fn describe(&self) -> Vec<String> {
        let vllm = match self.kind {
            None => return Vec::new(),
            Some(PackedKind::W8A8) => {
                "vLLM (int8 kernels, compute capability 7.5 or later)".to_owned()
            }
            Some(_) if self.obstacles.is_empty() => {
                format!("vLLM with Marlin kernels, on up to {} GPUs", self.most_gpus())
            }
            Some(_) => {
                format!("vLLM without Marlin, slower ({})", self.obstacles.join(", "))
            }
        };
        let transformers = match self.kind {
            Some(PackedKind::Gptq(_)) => "transformers with GPTQModel",
            Some(PackedKind::Awq) => "transformers with GPTQModel or AutoAWQ",
            _ => "transformers with compressed-tensors",
        };
        vec![vllm, transformers.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::codec::affine::Grouped;
    use crate::codec::affine::gptq::Version;
    use crate::files::packed::gptq;
    use crate::weight::Scales;
    use half::f16;

    fn layer(out: usize, inputs: usize, group: usize, bits: u8, zero: u8) -> PackedTensor {
        let groups = inputs / group;
        let layer = Grouped {
            out,
            inputs,
            group,
            bits,
            q: vec![1; out * inputs],
            scales: vec![f16::ONE; out * groups],
            zeros: vec![zero; out * groups],
            group_of: None,
        };
        let packed = gptq::pack(&layer).unwrap();
        let scales = Scales { dtype: Dtype::F16, bytes: packed.scales.shared() };
        let parts = (packed.qweight.shared(), packed.qzeros.shared(), scales);
        PackedTensor::gptq([out, inputs], (bits, group), Version::V1, parts, None).unwrap()
    }

    #[test]
    fn conditions_are_those_of_the_kernels() {
        let line = |name: &str, layer: &PackedTensor| {
            let mut runtimes = Runtimes::new(8, 4);
            runtimes.add(name, layer);
            runtimes.describe().remove(0)
        };
        // 512 inputs in groups of 128 split over 4 GPUs at most; outputs of 512 over 8.
        assert!(line("mlp.down_proj.weight", &layer(64, 512, 128, 4, 8)).contains("up to 4 GPUs"));
        assert!(line("mlp.up_proj.weight", &layer(512, 128, 128, 4, 8)).contains("up to 8 GPUs"));
        for (bad, word) in [
            (layer(64, 128, 128, 4, 7), "zero points"),
            (layer(64, 128, 32, 3, 4), "3 bits"),
            (layer(64, 128, 16, 4, 8), "groups of 16"),
            (layer(96, 128, 32, 4, 8), "96 x 128"),
        ] {
            let text = line("mlp.up_proj.weight", &bad);
            assert!(text.contains("without Marlin") && text.contains(word), "{text}");
        }
    }
}
