use std::path::Path;

use serde_json::{Value, json};

use crate::arch::config_json::{ParsedConfig, parse};
use crate::{Error, Result};

/// A small Llama as transformers writes it, with more keys.
fn with(more: &Value) -> Result<ParsedConfig> {
    let mut root = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    });
    for (key, value) in more.as_object().unwrap() {
        root[key] = value.clone();
    }
    parse(&root.to_string(), Path::new("config.json"))
}

/// Keys that published models of these classes carry, beyond those that are read.
#[test]
fn published_configurations_pass() {
    for more in [
        // TinyLlama, Llama 1 to 3, Vicuna, Yi.
        json!({ "_name_or_path": "org/base", "attention_dropout": 0.1, "initializer_range": 0.02,
            "pad_token_id": 0, "pretraining_tp": 2, "use_cache": true, "max_sequence_length": 2048,
            "transformers_version": "4.35.0", "rope_scaling": null, "max_length": 4096 }),
        // SmolLM2.
        json!({ "is_llama_config": true, "rope_interleaved": false, "transformers.js_config": {
            "kv_cache_dtype": { "fp16": "float16" } }, "_attn_implementation_autoset": true }),
        // Trainers and runtimes.
        json!({ "unsloth_fixed": true, "unsloth_version": "2025.1", "neftune_noise_alpha": 5,
            "_flash_attn_2_enabled": true, "use_flash_attention": true, "gradient_checkpointing": true,
            "auto_map": { "AutoModelForCausalLM": "modeling.X" }, "tokenizer_class": "T",
            "task_specific_params": { "a": 1 }, "id2label": { "0": "A" }, "label2id": { "A": 0 },
            "resid_pdrop": 0.1, "hidden_dropout_prob": 0.1, "embd_pdrop": 0.0, "torchscript": true }),
        // What transformers wrote of every configuration once.
        json!({ "return_dict": true, "output_hidden_states": false, "is_encoder_decoder": false,
            "is_decoder": false, "top_k": 50, "top_p": 1.0, "temperature": 1.0, "num_beams": 1,
            "diversity_penalty": 0.0, "repetition_penalty": 1.0, "chunk_size_feed_forward": 0,
            "cross_attention_hidden_size": null, "tie_encoder_decoder": false, "bad_words_ids": null,
            "pruned_heads": {}, "prefix": null, "sep_token_id": null, "typical_p": 1.0 }),
        // Falcon 3, and values at which the keys of other models do nothing.
        json!({ "activation": "swiglu", "head_dim": 16 }),
        json!({ "logits_scaling": 1.0, "residual_multiplier": 1, "embedding_multiplier": 1.0,
            "is_causal": true, "use_qk_norm": false, "clip_qkv": null, "no_rope_layers": [1, 1],
            "final_logit_softcapping": null, "partial_rotary_factor": 1.0, "num_experts": 0 }),
        json!({ "layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "seq_length": 2048 }),
        json!({ "layer_types": ["full_attention", "full_attention"], "sliding_window": null,
            "max_window_layers": 28, "use_sliding_window": false, "dtype": "bfloat16" }),
    ] {
        let parsed = with(&more).unwrap_or_else(|error| panic!("{more}: {error}"));
        assert_eq!(parsed.warnings, [""; 0], "{more}");
    }
    // Qwen1.5 and Qwen2.5.
    let qwen = with(&json!({ "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "use_mrope": false, "sliding_window": 4096, "use_sliding_window": false,
        "max_window_layers": 21, "attention_bias": true, "qkv_bias": true }));
    assert_eq!(qwen.unwrap().config.sliding_window, None);
}

#[test]
fn keys_that_change_the_computation_are_refused_by_name() {
    for (key, value) in [
        ("attention_multiplier", json!(0.0078)),
        ("residual_multiplier", json!(0.22)),
        ("embedding_multiplier", json!(12.0)),
        ("logits_scaling", json!(8.0)),
        ("logit_scale", json!(0.0625)),
        ("use_qk_norm", json!(true)),
        ("qk_layernorm", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("rotary_pct", json!(0.25)),
        ("no_rope_layers", json!([1, 0])),
        ("final_logit_softcapping", json!(30.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("query_pre_attn_scalar", json!(224)),
        ("clip_qkv", json!(8.0)),
        ("use_bidirectional_attention", json!(true)),
        ("is_causal", json!(false)),
        ("use_rope", json!(false)),
        ("hidden_act", json!("gelu")),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("scale_depth", json!(1.4)),
        ("num_local_experts", json!(8)),
        ("quantization", json!({ "group_size": 64, "bits": 4 })),
        ("layer_types", json!(["sliding_attention", "full_attention"])),
        ("layer_norm_eps", json!(1e-3)),
        ("rope_interleaved", json!(true)),
        ("something_nobody_knows", json!("layernorm")),
        ("another_one", json!([1, 2])),
    ] {
        let error = with(&json!({ key: value })).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{key}: {error}");
        let text = error.to_string();
        let named = text.contains(key) || (key == "num_local_experts" && text.contains("experts"));
        assert!(named, "{key}: {text}");
    }
    let two = with(&json!({ "mystery_a": 1, "mystery_b": 2 })).unwrap_err().to_string();
    assert!(two.contains("mystery_a") && two.contains("mystery_b"), "{two}");
    for bias in ["attention_bias", "mlp_bias"] {
        let mistral = json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral",
            bias: true });
        assert!(with(&mistral).unwrap_err().to_string().contains(bias));
    }
    let other = json!({ "model_type": "granite" });
    assert!(with(&other).unwrap_err().to_string().contains("granite"));
}

#[test]
fn what_only_other_runtimes_read_is_named() {
    for (key, more) in [
        ("sliding_window", json!({ "sliding_window": 4096 })),
        ("dual_chunk_attention_config", json!({ "dual_chunk_attention_config": { "a": 1 } })),
        (
            "attn_factor",
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0,
            "attn_factor": 0.878, "original_max_position_embeddings": 512 } }),
        ),
    ] {
        let warnings = with(&more).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{key}");
        assert!(warnings[0].contains(key), "{warnings:?}");
    }
}

#[test]
fn the_text_part_of_other_models_is_read() {
    let text = json!({ "model_type": "mistral", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "sliding_window": null });
    let whole = |more: Value| {
        let mut root = json!({ "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3", "text_config": text, "vision_config": { "hidden_size": 8 },
            "image_token_index": 10, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
            "multimodal_projector_bias": false, "torch_dtype": "bfloat16" });
        for (key, value) in more.as_object().unwrap() {
            root[key] = value.clone();
        }
        parse(&root.to_string(), Path::new("config.json"))
    };
    let parsed = whole(json!({})).unwrap();
    assert!(parsed.nested);
    assert_eq!(parsed.config.class_name, "MistralForCausalLM");
    assert_eq!(parsed.config.torch_dtype, "bfloat16");
    assert!(!parsed.config.tie_word_embeddings);
    assert!(whole(json!({ "tie_word_embeddings": true })).unwrap().config.tie_word_embeddings);
    assert!(
        whole(json!({ "logits_scaling": 8 })).unwrap_err().to_string().contains("logits_scaling")
    );
    let inside = whole(json!({ "text_config": { "model_type": "ministral3" } })).unwrap_err();
    assert!(inside.to_string().contains("ministral3"), "{inside}");
}
