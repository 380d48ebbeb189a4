//! Mixtral (arXiv 2401.04088): Mistral with eight MLPs per block, of which each token uses two.

use serde_json::json;

use crate::arch::Family;
use crate::arch::config::ExpertSizes;
use crate::arch::config_json::{Fields, MAX_COUNT};
use crate::arch::family::{Biases, Defaults, ExpertNames, Windows};

/// See the module.
pub(super) static MIXTRAL: Family = Family {
    name: "mixtral",
    classes: &[("MixtralForCausalLM", "mixtral")],
    keys: &["num_experts_per_tok"],
    defaults: Defaults {
        kv_heads: Some(8),
        max_positions: 4096 * 32,
        epsilon: 1e-5,
        theta: 1e6,
        ..Defaults::LLAMA
    },
    windows: Windows::Stated { default: None, typed: false },
    biases: Biases::Never,
    experts: Some(ExpertNames {
        module: "block_sparse_moe",
        names: ["w1", "w3", "w2"],
        packed: None,
    }),
    read: |fields: &Fields, config| {
        config.experts = Some(ExpertSizes {
            count: fields.optional_size("num_local_experts", MAX_COUNT)?.unwrap_or(8),
            used: fields.optional_size("num_experts_per_tok", MAX_COUNT)?.unwrap_or(2),
            inner: config.intermediate_size,
            shared: None,
            normalized: true,
        });
        Ok(())
    },
    write: |config, root| {
        if let Some(experts) = config.experts {
            root["num_local_experts"] = json!(experts.count);
            root["num_experts_per_tok"] = json!(experts.used);
        }
    },
    ..Family::LLAMA
};
