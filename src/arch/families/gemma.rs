//! Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786): norms before and behind both halves
//! of a block, GELU, scaled embeddings, windows in most layers.

use serde_json::{Value, json};

use crate::Result;
use crate::arch::Family;
use crate::arch::config::ModelConfig;
use crate::arch::config_json::{Fields, unsupported};
use crate::arch::family::{Biases, Defaults, Windows};
use crate::arch::spec::{Activation, BlockNorms};

const GEMMA: Family = Family {
    biases: Biases::Attention,
    norms: BlockNorms::AROUND,
    norm_plus_one: true,
    activation: Activation::GeluTanh,
    scaled_embedding: true,
    ..Family::LLAMA
};

const DEFAULTS: Defaults = Defaults {
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    tied: true,
    ..Defaults::LLAMA
};

/// Gemma 2: soft caps on scores and logits, a window in every other layer from the first on.
pub(super) static GEMMA2: Family = Family {
    name: "gemma2",
    classes: &[("Gemma2ForCausalLM", "gemma2")],
    gguf: "gemma2",
    keys: &[
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
    ],
    defaults: Defaults { max_positions: 8192, ..DEFAULTS },
    windows: Windows::Periodic { period: 2, keys: &[] },
    read: |fields, config| {
        read_scale(fields, config)?;
        config.attention_soft_cap = cap(fields, "attn_logit_softcapping", Some(50.0))?;
        config.logit_soft_cap = cap(fields, "final_logit_softcapping", Some(30.0))?;
        Ok(())
    },
    write: |config, root| {
        write_scale(config, root);
        root["attn_logit_softcapping"] = json!(config.attention_soft_cap);
        root["final_logit_softcapping"] = json!(config.logit_soft_cap);
    },
    ..GEMMA
};

/// Gemma 3: norms of heads, a window in all but every sixth layer, and rotations of its own there.
pub(super) static GEMMA3: Family = Family {
    name: "gemma3",
    classes: &[("Gemma3ForCausalLM", "gemma3_text")],
    gguf: "gemma3",
    keys: &[
        "_sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window_pattern",
    ],
    defaults: Defaults { max_positions: 131_072, theta: 1e6, ..DEFAULTS },
    windows: Windows::Periodic {
        period: 6,
        keys: &["sliding_window_pattern", "_sliding_window_pattern"],
    },
    head_norms: true,
    window_rope: true,
    read: |fields, config| {
        read_scale(fields, config)?;
        config.logit_soft_cap = cap(fields, "final_logit_softcapping", None)?;
        if cap(fields, "attn_logit_softcapping", None)?.is_some() {
            return Err(unsupported(format!(
                "{} with `attn_logit_softcapping`",
                config.class_name
            )));
        }
        Ok(())
    },
    write: |config, root| {
        write_scale(config, root);
        root["final_logit_softcapping"] = json!(config.logit_soft_cap);
    },
    ..GEMMA
};

/// A soft cap: the class's own one if the key is missing, none if it is null.
fn cap(fields: &Fields, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if fields.get(key).is_none() { Ok(default) } else { fields.positive(key) }
}

fn read_scale(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    config.query_pre_attn_scalar = Some(fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0));
    Ok(())
}

fn write_scale(config: &ModelConfig, root: &mut Value) {
    root["hidden_activation"] = json!("gelu_pytorch_tanh");
    root["attention_bias"] = json!(config.biases.qkv);
    root["query_pre_attn_scalar"] = json!(config.query_pre_attn_scalar);
}
