//! Seed-OSS: Llama with biases on q, k and v, and a switch of its own for that of o.

use serde_json::json;

use crate::arch::Family;
use crate::arch::config::LinearBiases;
use crate::arch::family::{Biases, Defaults};
use crate::arch::spec::{BlockNorms, NormSlot};

/// See the module.
pub(super) static SEED_OSS: Family = Family {
    name: "seed_oss",
    classes: &[("SeedOssForCausalLM", "seed_oss")],
    gguf: "seed_oss",
    keys: &["attention_out_bias"],
    defaults: Defaults {
        kv_heads: Some(8),
        head_dim: Some(128),
        max_positions: 524_288,
        ..Defaults::LLAMA
    },
    biases: Biases::AttentionAndMlp,
    norms: BlockNorms {
        before_mlp: NormSlot { name: "post_attention_layernorm", gguf: "post_attention_norm" },
        ..BlockNorms::PRE
    },
    read: |fields, config| {
        config.biases = LinearBiases {
            qkv: fields.flag("attention_bias", true)?,
            output: fields.flag("attention_out_bias", false)?,
            mlp: config.biases.mlp,
        };
        Ok(())
    },
    write: |config, root| {
        root["attention_bias"] = json!(config.biases.qkv);
        root["attention_out_bias"] = json!(config.biases.output);
        root["mlp_bias"] = json!(config.biases.mlp);
    },
    ..Family::LLAMA
};
