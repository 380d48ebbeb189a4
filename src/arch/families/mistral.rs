//! Mistral: Llama with a sliding window. Ministral is the same with a window in some layers.

use crate::arch::Family;
use crate::arch::family::{Biases, Defaults, Windows};

/// The class that transformers makes of a Mistral whose layers differ.
pub(crate) const MINISTRAL: &str = "MinistralForCausalLM";

/// See the module.
pub static MISTRAL: Family = Family {
    name: "mistral",
    classes: &[("MistralForCausalLM", "mistral"), (MINISTRAL, "ministral")],
    defaults: Defaults { kv_heads: Some(8), max_positions: 4096 * 32, ..Defaults::LLAMA },
    windows: Windows::Stated { default: Some(4096), typed: true },
    biases: Biases::Never,
    ..Family::LLAMA
};
