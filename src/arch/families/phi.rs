//! Phi-3, 3.5 and 4: q, k and v in one matrix, gate and up in another, rotations of a part of each
//! head, and factors for long texts.

use crate::arch::Family;
use crate::arch::family::{Biases, Defaults, Windows};

/// See the module.
pub(super) static PHI3: Family = Family {
    name: "phi3",
    classes: &[("Phi3ForCausalLM", "phi3"), ("Phi4ForCausalLM", "phi3")],
    gguf: "phi3",
    defaults: Defaults {
        max_positions: 4096,
        original_positions: Some(4096),
        epsilon: 1e-5,
        ..Defaults::LLAMA
    },
    windows: Windows::Stated { default: None, typed: false },
    biases: Biases::Never,
    fused: true,
    partial_rope: true,
    ..Family::LLAMA
};
