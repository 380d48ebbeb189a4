//! The families that differ from Llama in more than sizes.

use serde_json::{Value, json};

use super::{parsed, write};

/// Families with experts, two kinds of rotations, soft caps: `[model as transformers 4 spells it, what
/// transformers 5 says instead]`.
fn other_families() -> Vec<[Value; 2]> {
    let sizes = json!({
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 1024, "eos_token_id": [1, 7],
    });
    let model = |class: &str, kind: &str, more: Value| {
        let mut all = sizes.clone();
        all["architectures"] = json!([class]);
        all["model_type"] = json!(kind);
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let gemma2 = model(
        "Gemma2ForCausalLM",
        "gemma2",
        json!({
            "query_pre_attn_scalar": 144, "attn_logit_softcapping": null, "sliding_window": 64,
            "final_logit_softcapping": 20.0, "hidden_activation": "gelu_pytorch_tanh",
        }),
    );
    let gemma3 = model(
        "Gemma3ForCausalLM",
        "gemma3_text",
        json!({
            "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3,
            "rope_scaling": { "rope_type": "linear", "factor": 8.0 }, "sliding_window": 64,
        }),
    );
    let gemma3_new = json!({
        "rope_theta": null, "rope_local_base_freq": null, "rope_scaling": null,
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
        },
        "sliding_window_pattern": null,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
            "sliding_attention", "sliding_attention", "full_attention"],
    });
    let long = json!({ "type": "longrope", "short_factor": vec![1.0; 6],
        "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5] });
    let phi = model(
        "Phi3ForCausalLM",
        "phi3",
        json!({
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": 256,
            "rope_scaling": long, "sliding_window": 300,
        }),
    );
    let mut phi_new = long.clone();
    phi_new["partial_rotary_factor"] = json!(0.75);
    phi_new["rope_theta"] = json!(1e4);
    let mixtral =
        model("MixtralForCausalLM", "mixtral", json!({ "num_local_experts": 4, "head_dim": 16 }));
    let qwen2 = model(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        json!({
            "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 96,
        }),
    );
    let qwen3 = model(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        json!({
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
            "norm_topk_prob": true, "attention_bias": true,
        }),
    );
    let seed = model("SeedOssForCausalLM", "seed_oss", json!({ "attention_out_bias": true }));
    let plain = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e4 } });
    vec![
        [gemma2, plain.clone()],
        [gemma3, gemma3_new],
        [phi, json!({ "rope_scaling": null, "rope_parameters": phi_new })],
        [mixtral, json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 } })],
        [qwen2, plain.clone()],
        [qwen3, plain.clone()],
        [seed, plain],
    ]
}

#[test]
fn other_families_mean_the_same_in_both_spellings_and_are_written_as_they_are_read() {
    for [old, change] in other_families() {
        let kind = old["model_type"].clone();
        let case = parsed(&old.to_string()).unwrap();
        assert_eq!(case.warnings, [""; 0], "{kind}");
        let mut new = old.clone();
        for (key, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(new.as_object_mut().unwrap().shift_remove(key)),
                value => new[key] = value.clone(),
            }
        }
        assert_eq!(parsed(&new.to_string()).unwrap(), case, "{kind}");
        let text = write(&case.config);
        assert_eq!(parsed(&text).unwrap(), case, "{text}");
    }
}

#[test]
fn more_experts_than_memory_could_list_are_refused() {
    let [mixtral, _] = other_families().swap_remove(3);
    let mut all = mixtral.clone();
    all["num_hidden_layers"] = json!(65_536);
    all["num_local_experts"] = json!(65_536);
    let error = parsed(&all.to_string()).unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
    assert!(error.to_string().contains("4294967296 experts"), "{error}");
    let mut many = mixtral;
    many["num_local_experts"] = json!(512);
    assert!(parsed(&many.to_string()).is_ok());
}
