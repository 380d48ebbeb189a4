//! Qwen2 and 2.5 (biases on q, k and v), Qwen3 (norms of heads), and their mixtures of experts.

use serde_json::{Value, json};

use crate::Result;
use crate::arch::Family;
use crate::arch::config::{ExpertSizes, ModelConfig};
use crate::arch::config_json::{Fields, MAX_COUNT, MAX_WIDTH, unsupported};
use crate::arch::family::{Biases, Defaults, ExpertNames, Windows};

/// Qwen2 and Qwen2.5.
pub static QWEN2: Family = Family {
    name: "qwen2",
    classes: &[("Qwen2ForCausalLM", "qwen2")],
    gguf: "qwen2",
    keys: &["use_sliding_window", "qkv_bias"],
    defaults: Defaults { kv_heads: Some(32), max_positions: 32_768, ..Defaults::LLAMA },
    windows: Windows::Switched { typed: true },
    biases: Biases::Qkv,
    ..Family::LLAMA
};

/// Qwen3.
pub static QWEN3: Family = Family {
    name: "qwen3",
    classes: &[("Qwen3ForCausalLM", "qwen3")],
    gguf: "qwen3",
    keys: &["use_sliding_window"],
    defaults: Defaults {
        kv_heads: Some(32),
        head_dim: Some(128),
        max_positions: 32_768,
        ..Defaults::LLAMA
    },
    windows: Windows::Switched { typed: true },
    biases: Biases::Attention,
    head_norms: true,
    write: |config, root| root["attention_bias"] = json!(config.biases.qkv),
    ..Family::LLAMA
};

const EXPERTS: ExpertNames = ExpertNames {
    module: "mlp",
    names: ["gate_proj", "up_proj", "down_proj"],
    packed: Some(["gate_up_proj", "down_proj"]),
};

/// Qwen1.5-MoE and Qwen2-MoE: experts, and one that every token uses.
pub(super) static QWEN2_MOE: Family = Family {
    name: "qwen2moe",
    classes: &[("Qwen2MoeForCausalLM", "qwen2_moe")],
    gguf: "qwen2moe",
    keys: &[
        "use_sliding_window",
        "qkv_bias",
        "decoder_sparse_step",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts_per_tok",
        "shared_expert_intermediate_size",
    ],
    defaults: Defaults { kv_heads: Some(16), max_positions: 32_768, ..Defaults::LLAMA },
    experts: Some(EXPERTS),
    read: |fields, config| {
        if !fields.flag("qkv_bias", true)? {
            return Err(unsupported(format!("{} without `qkv_bias`", config.class_name)));
        }
        let mut experts = experts(fields, config, (60, 4))?;
        experts.shared = Some(fields.size("shared_expert_intermediate_size", MAX_WIDTH)?);
        config.experts = Some(experts);
        Ok(())
    },
    write: write_experts,
    ..QWEN2_BASE
};

const QWEN2_BASE: Family =
    Family { windows: Windows::Switched { typed: true }, biases: Biases::Qkv, ..Family::LLAMA };

/// Qwen3-MoE.
pub(super) static QWEN3_MOE: Family = Family {
    name: "qwen3moe",
    classes: &[("Qwen3MoeForCausalLM", "qwen3_moe")],
    gguf: "qwen3moe",
    keys: &[
        "use_sliding_window",
        "decoder_sparse_step",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts_per_tok",
    ],
    defaults: Defaults {
        kv_heads: Some(4),
        intermediate: Some(6144),
        max_positions: 32_768,
        ..Defaults::LLAMA
    },
    windows: Windows::Switched { typed: false },
    biases: Biases::Attention,
    head_norms: true,
    experts: Some(EXPERTS),
    read: |fields, config| {
        config.experts = Some(experts(fields, config, (128, 8))?);
        Ok(())
    },
    write: |config, root| {
        root["attention_bias"] = json!(config.biases.qkv);
        write_experts(config, root);
    },
    ..Family::LLAMA
};

/// Sizes of the experts; `defaults` are their number and how many a token uses.
fn experts(fields: &Fields, config: &ModelConfig, defaults: (usize, usize)) -> Result<ExpertSizes> {
    let dense = fields.get("mlp_only_layers").and_then(Value::as_array);
    let step = fields.optional_size("decoder_sparse_step", MAX_COUNT)?;
    if dense.is_some_and(|list| !list.is_empty()) || step.is_some_and(|step| step > 1) {
        return Err(unsupported(format!("{} with layers without experts", config.class_name)));
    }
    let count = match fields.optional_size("num_local_experts", MAX_COUNT)? {
        None => fields.optional_size("num_experts", MAX_COUNT)?,
        count => count,
    };
    Ok(ExpertSizes {
        count: count.unwrap_or(defaults.0),
        used: fields.optional_size("num_experts_per_tok", MAX_COUNT)?.unwrap_or(defaults.1),
        inner: fields.size("moe_intermediate_size", MAX_WIDTH)?,
        shared: None,
        normalized: fields.flag("norm_topk_prob", false)?,
    })
}

fn write_experts(config: &ModelConfig, root: &mut Value) {
    let Some(experts) = config.experts else { return };
    root["num_experts"] = json!(experts.count);
    root["num_experts_per_tok"] = json!(experts.used);
    root["moe_intermediate_size"] = json!(experts.inner);
    root["norm_topk_prob"] = json!(experts.normalized);
    root["decoder_sparse_step"] = json!(1);
    root["mlp_only_layers"] = json!([]);
    if let Some(shared) = experts.shared {
        root["shared_expert_intermediate_size"] = json!(shared);
    }
}
