use super::*;
use crate::arch::config::{RopeConfig, RopeScaling, SlidingWindow};
use crate::files::packed::AwqConfig;

mod families;

fn parsed(text: &str) -> Result<ParsedConfig> {
    parse(text, Path::new("config.json"))
}

/// The text with some keys replaced (null removes).
fn with(text: &str, changes: &Value) -> String {
    let mut root: Value = serde_json::from_str(text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        root[key] = value.clone();
    }
    root.to_string()
}

fn without(text: &str, key: &str) -> String {
    let mut root: Value = serde_json::from_str(text).unwrap();
    root.as_object_mut().unwrap().shift_remove(key);
    root.to_string()
}

/// Llama-3.1-8B-Instruct, as published (transformers 4.43).
const LLAMA31: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 128256 }"#;

/// Qwen2.5-0.5B, as published (transformers 4.40).
const QWEN25: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
  "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
  "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
  "use_sliding_window": false, "vocab_size": 151936 }"#;

/// Qwen3-0.6B, as transformers 5 writes it.
const QWEN3: &str = r#"{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
  "layer_types": ["full_attention", "full_attention"], "max_position_embeddings": 40960,
  "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
  "num_hidden_layers": 2, "num_key_value_heads": 8, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": null,
  "tie_word_embeddings": true, "transformers_version": "5.0.0", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936 }"#;

/// Mistral-7B-v0.1, as published.
const MISTRAL: &str = r#"{
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000 }"#;

#[test]
fn reads_llama_3_1() {
    let ParsedConfig { config, warnings, .. } = parsed(LLAMA31).unwrap();
    assert_eq!(
        config,
        ModelConfig {
            class_name: "LlamaForCausalLM".into(),
            hidden_size: 4096,
            intermediate_size: 14336,
            num_layers: 32,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            max_positions: 131_072,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_context: 8192
                },
                width: None,
            },
            tie_word_embeddings: false,
            torch_dtype: "bfloat16".into(),
            bos_token_id: Some(128_000),
            eos_token_ids: vec![128_001, 128_008, 128_009],
            ..ModelConfig::base(&crate::arch::families::LLAMA)
        }
    );
    assert_eq!(config.biases, LinearBiases::default());
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn both_spellings_mean_the_same() {
    let old = with(
        &without(&without(QWEN3, "rope_parameters"), "dtype"),
        &json!({ "rope_theta": 1e6, "torch_dtype": "bfloat16", "rope_scaling": null }),
    );
    assert_eq!(parsed(&old).unwrap(), parsed(QWEN3).unwrap());

    let new = with(
        &without(&without(&without(LLAMA31, "rope_scaling"), "rope_theta"), "torch_dtype"),
        &json!({ "dtype": "bfloat16", "rope_parameters": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
            "rope_theta": 500_000.0 } }),
    );
    assert_eq!(parsed(&new).unwrap(), parsed(LLAMA31).unwrap());

    let per_layer = with(
        QWEN3,
        &json!({ "rope_parameters": { "full_attention":
            { "rope_theta": 1_000_000, "rope_type": "default" } } }),
    );
    assert_eq!(parsed(&per_layer).unwrap(), parsed(QWEN3).unwrap());

    let inner: Value = serde_json::from_str(QWEN3).unwrap();
    let nested = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "text_config": inner
    });
    let flat = ParsedConfig { nested: true, ..parsed(QWEN3).unwrap() };
    assert_eq!(parsed(&nested.to_string()).unwrap(), flat);
}

#[test]
fn classes_differ_in_biases_heads_and_windows() {
    let qwen2 = parsed(QWEN25).unwrap();
    assert_eq!(qwen2.config.biases, LinearBiases { qkv: true, ..LinearBiases::default() });
    assert_eq!(qwen2.config.head_dim, 64);
    assert_eq!(qwen2.config.sliding_window, None);
    assert!(qwen2.config.tie_word_embeddings);

    let windowed = parsed(&with(
        QWEN25,
        &json!({ "use_sliding_window": true, "max_window_layers": 21, "sliding_window": 512 }),
    ));
    assert_eq!(
        windowed.unwrap().config.sliding_window,
        Some(SlidingWindow::from_layer(512, 21, 24))
    );
    // No layer at or after `max_window_layers`: no window.
    let beyond = parsed(&with(QWEN25, &json!({ "use_sliding_window": true })));
    assert_eq!(beyond.unwrap().config.sliding_window, None);

    let typed = |types: Value| {
        parsed(&with(
            QWEN3,
            &json!({ "use_sliding_window": true, "sliding_window": 64, "layer_types": types }),
        ))
    };
    assert_eq!(
        typed(json!(["full_attention", "sliding_attention"])).unwrap().config.sliding_window,
        Some(SlidingWindow { size: 64, layers: vec![false, true] })
    );
    assert_eq!(
        typed(json!(["sliding_attention", "full_attention"])).unwrap().config.sliding_window,
        Some(SlidingWindow { size: 64, layers: vec![true, false] })
    );
    let linear = typed(json!(["linear_attention", "full_attention"])).unwrap_err();
    assert!(linear.to_string().contains("linear_attention"), "{linear}");
    assert_eq!(typed(json!(["full_attention"])).unwrap_err().exit_code(), 6);

    assert_eq!(parsed(QWEN3).unwrap().config.head_dim, 128);
    assert_eq!(parsed(&without(QWEN3, "head_dim")).unwrap().config.head_dim, 128);
    let biased = parsed(&with(QWEN3, &json!({ "attention_bias": true }))).unwrap();
    assert_eq!(biased.config.biases, LinearBiases { qkv: true, output: true, mlp: false });

    let window = |text: &str| parsed(text).unwrap().config.sliding_window;
    let all = Some(SlidingWindow::from_layer(4096, 0, 32));
    assert_eq!(window(MISTRAL), all);
    assert_eq!(window(&without(MISTRAL, "sliding_window")), all);
    assert_eq!(window(&with(MISTRAL, &json!({ "sliding_window": null }))), None);
}

#[test]
fn missing_keys_have_the_defaults_of_the_class() {
    let bare = |model_type: &str| {
        parsed(&format!(
            r#"{{"model_type": "{model_type}", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 100}}"#
        ))
        .unwrap()
        .config
    };
    let llama = bare("llama");
    assert_eq!((llama.num_kv_heads, llama.head_dim, llama.max_positions), (32, 2, 2048));
    assert_eq!(llama.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None, width: None });
    assert!(!llama.tie_word_embeddings);
    assert!(llama.eos_token_ids.is_empty());
    assert_eq!(llama.torch_dtype, "");
    let mistral = bare("mistral");
    assert_eq!((mistral.num_kv_heads, mistral.max_positions), (8, 131_072));
    let qwen3 = bare("qwen3");
    assert_eq!((qwen3.head_dim, qwen3.max_positions), (128, 32_768));
}

#[test]
fn rope_scalings() {
    let scaling = |value: Value| {
        parsed(&with(LLAMA31, &json!({ "rope_scaling": value }))).map(|p| p.config.rope.scaling)
    };
    assert_eq!(
        scaling(json!({ "type": "linear", "factor": 2 })).unwrap(),
        RopeScaling::Linear { factor: 2.0 }
    );
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "beta_fast": 16,
        "original_max_position_embeddings": 32768, "mscale": 0.707, "mscale_all_dim": 0.707 });
    assert_eq!(
        scaling(yarn).unwrap(),
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32_768,
            beta_fast: 16.0,
            beta_slow: 1.0,
            attention_factor: Some(1.0),
            truncate: true,
        }
    );
    let dynamic = with(LLAMA31, &json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }));
    let dynamic = parsed(&dynamic).unwrap();
    assert_eq!(
        dynamic.config.rope.scaling,
        RopeScaling::Dynamic { factor: 2.0, original_context: 131_072 }
    );
    let factors = vec![1.5f32; 64];
    let longrope = json!({ "rope_type": "longrope", "attention_factor": 1.0,
        "short_factor": factors, "long_factor": factors });
    assert_eq!(scaling(longrope).unwrap(), RopeScaling::Factors(factors));

    for unsupported in [
        json!({ "rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1 }),
        json!({ "rope_type": "mrope" }),
        json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }),
    ] {
        assert_eq!(scaling(unsupported.clone()).unwrap_err().exit_code(), 1, "{unsupported}");
    }
    for damaged in [
        json!({ "rope_type": "linear" }),
        json!({ "rope_type": "linear", "factor": 0 }),
        json!({ "rope_type": "linear", "factor": "4" }),
        json!({ "rope_type": 3 }),
        json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0] }),
        json!([1, 2]),
    ] {
        assert_eq!(scaling(damaged.clone()).unwrap_err().exit_code(), 6, "{damaged}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    for (class, model_type) in [
        ("MambaForCausalLM", "mamba"),
        ("GPT2LMHeadModel", "gpt2"),
        ("Gemma3nForConditionalGeneration", "gemma3n"),
        ("PhimoeForCausalLM", "phimoe"),
        ("LlamaModel", "llama"),
        ("LlamaForSequenceClassification", "llama"),
    ] {
        let text = json!({ "architectures": [class], "model_type": model_type }).to_string();
        let error = parsed(&text).unwrap_err();
        assert_eq!((error.exit_code(), error.type_name()), (1, "UnsupportedModelError"));
        assert!(error.to_string().contains(class), "{error}");
        for supported in ["llama", "mistral", "qwen2", "qwen3"] {
            assert!(error.suggestion().contains(supported));
        }
    }
    let error = parsed(r#"{"model_type": "mamba"}"#).unwrap_err();
    assert!(error.to_string().contains("mamba"), "{error}");
    for change in [
        json!({ "hidden_act": "gelu" }),
        json!({ "num_local_experts": 8 }),
        json!({ "quantization_config": { "quant_method": "awq", "bits": 3 } }),
        json!({ "quantization_config": { "quant_method": "awq", "bits": 4, "version": "gemv" } }),
        json!({ "quantization_config": { "quant_method": "gptq", "bits": 5 } }),
        json!({ "quantization_config": { "quant_method": "gptq", "bits": 4, "lm_head": true } }),
        json!({ "quantization_config": { "quant_method": "fp8" } }),
        json!({ "quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized"
        } }),
    ] {
        assert_eq!(parsed(&with(LLAMA31, &change)).unwrap_err().exit_code(), 1, "{change}");
    }
    let other = json!({ "quantization_config": { "quant_method": "bitsandbytes" } });
    assert!(parsed(&with(LLAMA31, &other)).unwrap_err().to_string().contains("bitsandbytes"));
}

/// As the formats' own programs write them (AutoGPTQ 0.7, GPTQModel, AutoAWQ 0.2, llm-compressor).
#[test]
fn packed_checkpoints_say_how() {
    use crate::codec::affine::gptq::Version;
    use crate::files::packed::QuantizationConfig;
    let read = |value: Value| {
        let config = with(LLAMA31, &json!({ "quantization_config": value }));
        parsed(&config).unwrap().quantization.unwrap()
    };
    let gptq = json!({
        "bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": true, "sym": true,
        "true_sequential": true, "model_name_or_path": null, "quant_method": "gptq"
    });
    let QuantizationConfig::Gptq(config) = read(gptq) else { panic!() };
    assert_eq!((config.bits, config.group, config.version), (4, Some(128), Version::V1));
    assert!(config.desc_act && config.symmetric);
    let gptq = json!({
        "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2", "quant_method": "gptq",
        "sym": false, "dynamic": { "-:.*down.*": {} }, "pack_dtype": "int32", "lm_head": false
    });
    let QuantizationConfig::Gptq(config) = read(gptq) else { panic!() };
    assert_eq!((config.bits, config.group, config.version), (8, None, Version::V2));
    assert!(!config.symmetric && config.dynamic.len() == 1);
    let awq = json!({
        "bits": 4, "group_size": 64, "modules_to_not_convert": ["gate"], "quant_method": "awq",
        "version": "gemm", "zero_point": true
    });
    let QuantizationConfig::Awq(config) = read(awq) else { panic!() };
    assert_eq!((config.group, config.not_converted.len()), (Some(64), 1));
    let w8a8 = json!({
        "config_groups": { "group_0": {
            "input_activations": {
                "actorder": null, "block_structure": null, "dynamic": true, "group_size": null,
                "num_bits": 8, "observer": null, "strategy": "token", "symmetric": true, "type": "int"
            },
            "output_activations": null, "targets": ["Linear"],
            "weights": {
                "actorder": null, "dynamic": false, "group_size": null, "num_bits": 8,
                "observer": "minmax", "strategy": "channel", "symmetric": true, "type": "int"
            }
        } },
        "format": "int-quantized", "ignore": ["lm_head"], "kv_cache_scheme": null,
        "quant_method": "compressed-tensors", "quantization_status": "compressed"
    });
    let QuantizationConfig::W8A8(config) = read(w8a8) else { panic!() };
    assert_eq!(config.ignore, ["lm_head"]);
    // What is written is read back the same.
    for config in [
        QuantizationConfig::W8A8(config),
        QuantizationConfig::Awq(AwqConfig {
            group: None,
            not_converted: vec!["lm_head".to_owned()],
        }),
    ] {
        assert_eq!(read(config.to_json()), config);
    }
}

#[test]
fn damaged_values_are_named() {
    for (change, word) in [
        (json!({ "hidden_size": 0 }), "hidden_size"),
        (json!({ "hidden_size": -1 }), "hidden_size"),
        (json!({ "hidden_size": "4096" }), "hidden_size"),
        (json!({ "hidden_size": 1u64 << 60 }), "hidden_size"),
        (json!({ "hidden_size": 4097 }), "head_dim"),
        (json!({ "head_dim": 33 }), "odd"),
        (json!({ "num_key_value_heads": 5 }), "num_key_value_heads"),
        (json!({ "num_attention_heads": null }), "num_attention_heads"),
        (json!({ "rms_norm_eps": 0 }), "rms_norm_eps"),
        (json!({ "eos_token_id": [1, "x"] }), "eos_token_id"),
        (json!({ "eos_token_id": 1.5 }), "eos_token_id"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings"),
    ] {
        let error = parsed(&with(LLAMA31, &change)).unwrap_err();
        assert_eq!(error.exit_code(), 6, "{change}: {error}");
        assert!(error.to_string().contains(word), "{change}: {error}");
    }
    for text in ["", "[]", "{", "{}", "{\"architectures\": []}"] {
        assert_eq!(parsed(text).unwrap_err().exit_code(), 6, "{text}");
    }
    assert_eq!(
        parsed(&with(LLAMA31, &json!({ "eos_token_id": -1 }))).unwrap().config.eos_token_ids,
        [0u32; 0]
    );
}

#[test]
fn what_is_written_reads_back() {
    let mut cases: Vec<ParsedConfig> =
        [LLAMA31, QWEN25, QWEN3, MISTRAL].iter().map(|text| parsed(text).unwrap()).collect();
    let mut factors = cases[0].clone();
    factors.config.rope.scaling =
        RopeScaling::Factors((0..64).map(|i| 1.0 + i as f32 / 7.0).collect());
    factors.config.biases = LinearBiases { qkv: true, output: true, mlp: false };
    cases.push(factors);
    let mut yarn = cases[1].clone();
    yarn.config.sliding_window = Some(SlidingWindow::from_layer(77, 3, 24));
    yarn.config.rope.scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: Some(1.25),
        truncate: false,
    };
    cases.push(yarn);
    let mut windows = cases[2].clone();
    windows.config.sliding_window = Some(SlidingWindow { size: 64, layers: vec![true, false] });
    cases.push(windows);
    let mut ministral = cases[3].clone();
    ministral.config.class_name = "MinistralForCausalLM".into();
    ministral.config.sliding_window =
        Some(SlidingWindow { size: 64, layers: (0..32).map(|layer| layer % 4 != 3).collect() });
    cases.push(ministral);
    let mut long = cases[0].clone();
    long.config.biases.mlp = true;
    long.config.rope.scaling = RopeScaling::LongRope {
        short: vec![1.0; 64],
        long: (0..64).map(|i| 1.0 + i as f32 / 3.0).collect(),
        original_context: 4096,
        attention_factor: 1.19,
    };
    cases.push(long);
    let mut dynamic = cases[0].clone();
    dynamic.config.rope.scaling =
        RopeScaling::Dynamic { factor: 2.0, original_context: dynamic.config.max_positions };
    cases.push(dynamic);
    for case in cases {
        let text = write(&case.config);
        assert_eq!(parsed(&text).unwrap(), case, "{text}");
    }
}

#[test]
fn end_tokens_of_generation_config() {
    let path = Path::new("generation_config.json");
    assert_eq!(generation_end_tokens(r#"{"eos_token_id": [5, 6]}"#, path).unwrap(), [5, 6]);
    assert_eq!(generation_end_tokens(r#"{"eos_token_id": 7}"#, path).unwrap(), [7]);
    assert!(generation_end_tokens("{}", path).unwrap().is_empty());
    assert!(generation_end_tokens("[]", path).is_err());
}
