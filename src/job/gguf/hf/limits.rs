//! What llama.cpp's graphs compute, against what a model asks for: where the two differ, the model is
//! refused.
//!
//! The graphs are those of llama.cpp's `src/models/*.cpp`.

use std::collections::BTreeSet;

use crate::arch::ModelConfig;
use crate::arch::config::RopeScaling;
use crate::arch::families::{ALL, MINISTRAL};
use crate::{Error, Result};

/// The kinds of graphs, by what they do with windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Graph {
    /// A window in every other layer, and soft caps: Gemma 2.
    Alternating,
    /// A window in all but the last layer of each period, which has rotations of its own: Gemma 3.
    Periodic,
    /// Every layer sees everything.
    Unlimited {
        /// Whether the file states the window all the same.
        states_window: bool,
    },
}

impl Graph {
    pub(super) fn of(config: &ModelConfig) -> Self {
        match config.family.gguf {
            "gemma2" => Self::Alternating,
            "gemma3" => Self::Periodic,
            other => Self::Unlimited { states_window: other == "phi3" },
        }
    }
}

/// An [`Error::Unsupported`] that lists what is supported.
pub(super) fn unsupported(message: String) -> Error {
    let classes = ALL.iter().flat_map(|family| family.classes);
    let names: BTreeSet<&str> = classes
        .map(|(name, _)| *name)
        .filter(|name| !matches!(*name, "LLaMAForCausalLM" | "Phi4ForCausalLM"))
        .collect();
    Error::Unsupported {
        message,
        suggestion: format!(
            "Supported: {}; or any architecture as a GGUF file at full precision",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Refuses what llama.cpp's graph of the architecture does not compute.
pub(super) fn check(config: &ModelConfig) -> Result<()> {
    let with = |what: &str| Err(unsupported(format!("{} with {what}", config.class_name)));
    let paired = config.family.has_rope_pairs();
    if config.biases.output && !paired {
        return with("`attention_bias`");
    }
    if let Some(experts) = config.experts
        && !paired
        && experts.normalized != experts.shared.is_none()
    {
        // There is one rule per architecture, and no key for another.
        return with(&format!("`norm_topk_prob` {}", experts.normalized));
    }
    let window = config.sliding_window.as_ref();
    if config.class_name == MINISTRAL && window.is_some_and(|window| window.layers.contains(&false))
    {
        return with("`layer_types` of two kinds (Ministral)");
    }
    if config.family.fused && config.head_dim * config.num_heads != config.hidden_size {
        return with(&format!("`head_dim` {}", config.head_dim));
    }
    if config.window_rope.as_ref().is_some_and(|rope| rope.scaling != RopeScaling::None) {
        return with("rotary scaling of layers with a window");
    }
    Ok(())
}

/// What queries are multiplied with so that the scale that llama.cpp's graph has for them makes that
/// of the model. Gemma states its own; llama.cpp takes the width of a head, and in the models of 27B
/// parameters, which it knows by their number of layers, the share of the width.
pub(super) fn query_scale(config: &ModelConfig) -> f32 {
    let Some(stated) = config.query_pre_attn_scalar else { return 1.0 };
    let layers_of_27b = if config.family.gguf == "gemma2" { 46 } else { 62 };
    let of_llama = if config.num_layers == layers_of_27b {
        config.hidden_size / config.num_heads
    } else {
        config.head_dim
    };
    (of_llama as f64 / stated).sqrt() as f32
}
