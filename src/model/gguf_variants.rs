//! What a GGUF file says about one architecture and not about others: experts, soft caps, windows. The
//! meaning is that of llama.cpp's graphs (`src/models/*.cpp`).

use super::gguf::{Keys, MAX_COUNT, MAX_WIDTH};
use crate::arch::config::{ExpertSizes, SlidingWindow};
use crate::arch::families::ALL;
use crate::arch::family::Windows;
use crate::arch::{Family, ModelConfig, config_json};
use crate::files::gguf::Value;
use crate::{Error, Result};

/// The family of an architecture: of those that share it the first with or without experts.
pub(super) fn family(architecture: &str, experts: bool) -> Result<&'static Family> {
    let mut of_that = ALL.iter().filter(|family| family.gguf == architecture);
    if let Some(family) = of_that.clone().find(|family| family.experts.is_some() == experts) {
        return Ok(family);
    }
    let message = match of_that.next() {
        Some(_) => {
            format!("architecture {architecture} with a mixture of experts is not supported")
        }
        None => format!("architecture {architecture} is not supported"),
    };
    Err(config_json::unsupported(message))
}

/// Settings under the architecture's prefix that are read, or change nothing for a text.
const KNOWN_KEYS: [&str; 31] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "tensor_data_layout",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    // What embeddings are made of, and what only another architecture reads.
    "pooling_type",
    "classifier.output_labels",
    "attention.layer_norm_epsilon",
    "rope.dimension_sections",
    "training.type",
    "training.file_version",
    "training.iteration_count",
    "training.epoch_count",
];

/// The same for mixtures of experts.
const EXPERT_KEYS: [&str; 3] = ["expert_count", "expert_used_count", "expert_feed_forward_length"];

/// Whether a key is read for a family.
fn is_known(family: &Family, name: &str) -> bool {
    let periodic = matches!(family.windows, Windows::Periodic { .. });
    KNOWN_KEYS.contains(&name)
        || match name {
            // Ignored where the graph has no windows, which is said.
            "attention.sliding_window" => true,
            "attention.sliding_window_pattern" | "rope.freq_base_swa" => family.window_rope,
            "final_logit_softcapping" => periodic,
            "attn_logit_softcapping" => periodic && !family.window_rope,
            "expert_shared_feed_forward_length" => family.experts.is_some(),
            _ => family.experts.is_some() && EXPERT_KEYS.contains(&name),
        }
}

/// Refuses settings that are not read and are neither false nor 0: they may change what the model
/// computes.
pub(super) fn refuse(keys: &Keys, family: &Family) -> Result<()> {
    for (key, value) in &keys.file.metadata {
        let Some(name) = key.strip_prefix(keys.prefix).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        let neutral = match (name, value) {
            // Without a mask every token sees those after it.
            ("attention.causal", value) => *value == Value::Bool(true),
            (_, Value::Bool(false)) => true,
            (_, value) => {
                value.as_u64() == Some(0) || matches!(value, Value::F32(zero) if *zero == 0.0)
            }
        };
        if !is_known(family, name) && !neutral {
            return Err(Error::Unsupported {
                message: format!(
                    "{}: {key} may change what the model computes, and is not supported",
                    keys.file.path.display()
                ),
                suggestion: "Use a model of another architecture, or one without that setting"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Completes a configuration by what only its architecture has.
pub(super) fn read(
    keys: &Keys,
    config: &mut ModelConfig,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let family = config.family;
    if family.experts.is_some() {
        config.experts = Some(experts(keys, config)?);
        if let Some(count) = config.too_many_experts() {
            return Err(keys.file.damaged(format!("{count} experts in all blocks together")));
        }
    }
    let size = keys.optional_size("attention.sliding_window", u32::MAX);
    let size =
        if keys.file.u32(&keys.key("attention.sliding_window"))? == Some(0) { None } else { size? };
    let Windows::Periodic { period, .. } = family.windows else {
        if size.is_some_and(|size| size < config.max_positions) {
            warnings.push(format!(
                "{} has a sliding window, which llama.cpp ignores for architecture {}; so does \
                 this tool",
                keys.file.path.display(),
                keys.prefix
            ));
        }
        return Ok(());
    };
    if let Some(size) = size {
        let key = "attention.sliding_window_pattern";
        let stated = keys.file.u32(&keys.key(key))?.map(|period| period as usize);
        let period = stated.filter(|_| family.window_rope).unwrap_or(period);
        let limited = |layer: usize| period == 0 || !(layer + 1).is_multiple_of(period);
        let layers = (0..config.num_layers).map(limited).collect();
        config.sliding_window = Some(SlidingWindow { size, layers });
    }
    if let Some(window) = &mut config.window_rope {
        window.theta = keys.positive("rope.freq_base_swa")?.unwrap_or(window.theta);
    }
    config.attention_soft_cap = keys.positive("attn_logit_softcapping")?;
    config.logit_soft_cap = keys.positive("final_logit_softcapping")?;
    // The scale of the queries is the width of a head, but in the models of 27B parameters.
    let layers_of_27b = if family.window_rope { 62 } else { 46 };
    let of_queries = if config.num_layers == layers_of_27b {
        config.hidden_size / config.num_heads
    } else {
        config.head_dim
    };
    config.query_pre_attn_scalar = Some(of_queries as f64);
    Ok(())
}

fn experts(keys: &Keys, config: &ModelConfig) -> Result<ExpertSizes> {
    let needed = |name: &str, most: u32| -> Result<usize> {
        keys.optional_size(name, most)?.ok_or_else(|| keys.missing(name))
    };
    let own = keys.optional_size("expert_feed_forward_length", MAX_WIDTH)?;
    let shared = keys.optional_size("expert_shared_feed_forward_length", MAX_WIDTH)?;
    Ok(ExpertSizes {
        count: needed("expert_count", MAX_COUNT)?,
        used: needed("expert_used_count", MAX_COUNT)?,
        inner: own.unwrap_or(config.intermediate_size),
        shared,
        // The rule of llama.cpp's graphs.
        normalized: shared.is_none(),
    })
}
