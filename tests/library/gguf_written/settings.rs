//! Every setting of a `config.json` that changes what a model computes is written, multiplied in,
//! warned of or refused.

use llm_quantize::Error;
use llm_quantize::files::gguf::Value;
use llm_quantize::job::gguf::{GgufModel, SourceOptions, check_config, open};
use serde_json::{Value as Json, json};

use crate::directories::{self, DENSE, ROWS, config, dense, model, model_of, values};

type Modules<'a> = Vec<(&'a str, &'a [usize])>;

const GEMMA: [(&str, &[usize]); 2] =
    [("pre_feedforward_layernorm.weight", &[64]), ("post_feedforward_layernorm.weight", &[64])];
const HEAD_NORMS: [(&str, &[usize]); 2] =
    [("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])];

fn opened(config: &Json, tensors: &[(String, Vec<usize>)]) -> llm_quantize::Result<GgufModel> {
    let folder = tempfile::tempdir().unwrap();
    directories::write(folder.path(), config, tensors);
    let early = check_config(&folder.path().join("config.json"));
    let opened = open(folder.path(), &SourceOptions::default());
    // What the settings alone forbid is known before the weights are there.
    if let Err(error) = early {
        assert_eq!(opened.as_ref().unwrap_err().to_string(), error.to_string());
    }
    opened
}

fn refused(config: &Json, tensors: &[(String, Vec<usize>)], words: &str) {
    let error = opened(config, tensors).err().unwrap_or_else(|| panic!("accepted: {words}"));
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains(words), "{words}: {error}");
    assert!(!error.suggestion().is_empty());
}

#[expect(clippy::needless_pass_by_value, reason = "it is called with literals")]
fn llama(more: Json) -> Json {
    config("LlamaForCausalLM", "llama", &more)
}

fn read(model: &GgufModel, name: &str) -> Vec<f32> {
    let tensor = model.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut out = vec![0.0; tensor.elements()];
    tensor.read_rows(0..tensor.rows(), &mut out).unwrap();
    out
}

#[test]
fn unknown_settings_are_refused_by_name_and_ordinary_ones_are_not() {
    let whole = dense(true, &[]);
    for (key, value) in [
        ("use_qk_norm", json!(true)),
        ("residual_multiplier", json!(0.22)),
        ("clip_qkv", json!(8)),
        ("no_rope_layers", json!([1, 0])),
        ("quantization", json!({ "bits": 4, "group_size": 64 })),
        ("rope_interleaved", json!(true)),
        ("final_logit_softcapping", json!(30.0)),
        ("num_local_experts", json!(8)),
        ("attn_temperature_tuning", json!(4)),
    ] {
        let words = if key == "num_local_experts" { "mixture of experts" } else { key };
        refused(&llama(json!({ key: value })), &whole, words);
    }
    let ordinary = json!({
        "_name_or_path": "org/model", "transformers_version": "4.38.2", "use_cache": true,
        "attention_dropout": 0.1, "pretraining_tp": 2, "initializer_range": 0.02,
        "task_specific_params": { "x": 1 }, "auto_map": { "AutoConfig": "c.C" },
        "rope_interleaved": false, "rope_scaling": null, "is_llama_config": true,
        "max_window_layers": 21, "sliding_window": null, "unsloth_version": "2024.9",
        "output_router_logits": true, "clip_qkv": null, "residual_multiplier": 1.0,
        "id2label": { "0": "A" }, "pad_token_id": 3, "num_experts": 0, "logits_scaling": 1,
    });
    let model = opened(&llama(ordinary), &whole).unwrap();
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    let model = opened(&llama(json!({ "dual_chunk_attention_config": { "x": 1 } })), &whole);
    let warnings = model.unwrap().warnings;
    assert!(warnings[0].contains("dual_chunk_attention_config"), "{warnings:?}");
}

#[test]
fn a_model_by_the_class_of_a_relative_is_refused() {
    let whole = dense(true, &[]);
    refused(&config("LlamaForCausalLM", "ernie4_5", &json!({})), &whole, "ernie4_5");
    let types = json!({ "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64 });
    refused(&config("MistralForCausalLM", "mistral", &types), &whole, "Ministral");
    let all = json!({ "layer_types": ["full_attention", "full_attention"], "sliding_window": 64 });
    let model = opened(&config("MistralForCausalLM", "mistral", &all), &whole).unwrap();
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    refused(&llama(json!({ "layer_types": ["chunked_attention", "x"] })), &whole, "chunked");
}

#[test]
fn biases_are_written_if_the_configuration_has_them() {
    let attention: Modules = vec![
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
        ("self_attn.o_proj.bias", &[64]),
    ];
    let mlp: Modules = vec![
        ("mlp.gate_proj.bias", &[96]),
        ("mlp.up_proj.bias", &[96]),
        ("mlp.down_proj.bias", &[64]),
    ];
    let tensors = dense(true, &mlp);
    let model = opened(&llama(json!({ "mlp_bias": true })), &tensors).unwrap();
    for (gguf, hf) in [("ffn_gate", "gate"), ("ffn_up", "up"), ("ffn_down", "down")] {
        let expected = values(
            &format!("model.layers.1.mlp.{hf}_proj.bias"),
            if hf == "down" { 64 } else { 96 },
        );
        assert_eq!(read(&model, &format!("blk.1.{gguf}.bias")), expected, "{hf}");
    }
    refused(&llama(json!({})), &tensors, "`mlp_bias`");
    let tensors = dense(true, &attention);
    let model = opened(&llama(json!({ "attention_bias": true })), &tensors).unwrap();
    let expected = values("model.layers.0.self_attn.o_proj.bias", 64);
    assert_eq!(read(&model, "blk.0.attn_output.bias"), expected);
    refused(&llama(json!({})), &tensors, "`attention_bias`");
    let error = opened(&llama(json!({ "attention_bias": true })), &dense(true, &[])).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { .. }), "{error}");
    let other = config("MistralForCausalLM", "mistral", &json!({ "attention_bias": true }));
    refused(&other, &tensors, "`attention_bias`");
}

/// Weights of the directory with the head replaced by the embedding, or not.
fn tied(same: bool) -> GgufModel {
    let folder = tempfile::tempdir().unwrap();
    let config = llama(json!({ "tie_word_embeddings": true }));
    directories::write(folder.path(), &config, &dense(true, &[]));
    if same {
        // The head as F32 of the same values as the embedding has in F16.
        let path = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let head: Vec<u8> = values("model.embed_tokens.weight", ROWS * 64)
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let views = all.tensors().into_iter().map(|(name, view)| {
            if name == "lm_head.weight" {
                let dtype = safetensors::Dtype::F32;
                let view = safetensors::tensor::TensorView::new(dtype, vec![ROWS, 64], &head);
                (name, view.unwrap())
            } else {
                (name, view)
            }
        });
        safetensors::serialize_to_file(views, None, &folder.path().join("new")).unwrap();
        std::fs::rename(folder.path().join("new"), path).unwrap();
    }
    open(folder.path(), &SourceOptions::default()).unwrap()
}

#[test]
fn a_tied_head_is_dropped_only_if_it_is_the_embedding() {
    let model = tied(true);
    assert!(model.tensor("output.weight").is_none() && model.warnings.is_empty());
    let model = tied(false);
    assert_eq!(read(&model, "output.weight"), values("lm_head.weight", ROWS * 64));
    assert!(model.warnings.iter().any(|w| w.contains("lm_head.weight")), "{:?}", model.warnings);
}

fn key<'a>(model: &'a GgufModel, key: &str) -> Option<&'a Value> {
    model.metadata.get(&format!("{}.{key}", model.architecture))
}

fn gemma_2(more: &Json) -> Json {
    let mut all = json!({ "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 1024, "query_pre_attn_scalar": 16 });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    config("Gemma2ForCausalLM", "gemma2", &all)
}

#[test]
fn gemma_2_as_its_configuration_says() {
    let tensors = dense(false, &GEMMA);
    let model = opened(&gemma_2(&json!({})), &tensors).unwrap();
    assert_eq!(key(&model, "attn_logit_softcapping"), Some(&50.0f32.into()));
    assert_eq!(key(&model, "final_logit_softcapping"), Some(&30.0f32.into()));
    let q = values("model.layers.1.self_attn.q_proj.weight", 64 * 64);
    assert_eq!(read(&model, "blk.1.attn_q.weight"), q);
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);

    // No caps: such that x and c·tanh(x / c) are the same for the numbers that occur.
    let none = json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null });
    let model = opened(&gemma_2(&none), &tensors).unwrap();
    for (name, x) in [("attn_logit_softcapping", 30.0f64), ("final_logit_softcapping", 300.0)] {
        let Some(Value::F32(cap)) = key(&model, name) else { panic!("no {name}") };
        let capped = f64::from(*cap) * (x / f64::from(*cap)).tanh();
        assert!((capped - x).abs() < 1e-4, "{name}: {x} becomes {capped}");
        assert!(model.warnings.iter().any(|w| w.contains(name)), "{:?}", model.warnings);
    }

    // llama.cpp divides by the root of the width of a head, 4; the model wants 8.
    let model = opened(&gemma_2(&json!({ "query_pre_attn_scalar": 64 })), &tensors).unwrap();
    let half: Vec<f32> = q.iter().map(|v| v / 2.0).collect();
    assert_eq!(read(&model, "blk.1.attn_q.weight"), half);

    let other = json!({ "layer_types": ["full_attention", "sliding_attention"] });
    refused(&gemma_2(&other), &tensors, "`layer_types`");
    let usual = json!({ "layer_types": ["sliding_attention", "full_attention"] });
    assert!(opened(&gemma_2(&usual), &tensors).is_ok());
    // Without a limit within the context it does not matter which layers have none.
    let wide = json!({ "layer_types": ["full_attention", "full_attention"] });
    let model = opened(&gemma_2(&wide), &tensors).unwrap();
    assert_eq!(key(&model, "attention.sliding_window"), Some(&4096u32.into()));
    let both = json!({ "use_bidirectional_attention": true });
    refused(&gemma_2(&both), &tensors, "`use_bidirectional_attention`");
    refused(&gemma_2(&json!({ "hidden_activation": "relu" })), &tensors, "\"relu\"");
    refused(&gemma_2(&json!({ "attention_bias": true })), &tensors, "`attention_bias`");

    // llama.cpp loads no Gemma 2 with a head of its own.
    let untied = gemma_2(&json!({ "tie_word_embeddings": false }));
    refused(&untied, &dense(true, &GEMMA), "lm_head.weight");
    assert!(opened(&untied, &tensors).is_err());
}

fn gemma_3(layers: usize, more: &Json) -> llm_quantize::Result<GgufModel> {
    let mut all = json!({ "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512, "query_pre_attn_scalar": 16, "num_hidden_layers": layers });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    let tensors = model_of(layers, false, &[&DENSE[..], &GEMMA, &HEAD_NORMS].concat());
    opened(&config("Gemma3ForCausalLM", "gemma3_text", &all), &tensors)
}

#[test]
fn gemma_3_as_its_configuration_says() {
    let pattern = "attention.sliding_window_pattern";
    let types = |kinds: &str| -> Json {
        let name = |kind| if kind == 's' { "sliding_attention" } else { "full_attention" };
        json!({ "layer_types": kinds.chars().map(name).collect::<Vec<_>>() })
    };
    for (kinds, period) in [
        ("sssssfss", None),
        ("sssss", None),
        ("sfsf", Some(2u32)),
        ("ssfssfs", Some(3)),
        ("ssssssss", Some(0)),
    ] {
        let model = gemma_3(kinds.len(), &types(kinds)).unwrap();
        assert_eq!(key(&model, pattern), period.map(Value::from).as_ref(), "{kinds}");
        assert_eq!(key(&model, "attention.sliding_window"), Some(&512u32.into()));
    }
    let model = gemma_3(4, &json!({ "sliding_window_pattern": 2 })).unwrap();
    assert_eq!(key(&model, pattern), Some(&2u32.into()));
    let model = gemma_3(2, &types("ff")).unwrap();
    assert_eq!(key(&model, "attention.sliding_window"), None);
    for kinds in ["fsfs", "ssfff", "sffs"] {
        let error = gemma_3(kinds.len(), &types(kinds)).expect_err(kinds);
        assert!(error.to_string().contains("`layer_types`"), "{error}");
    }

    // 1 + w, halved: the model divides by 8, llama.cpp by 4.
    let model = gemma_3(2, &json!({ "query_pre_attn_scalar": 64 })).unwrap();
    let norm = |module: &str| values(&format!("model.layers.1.self_attn.{module}.weight"), 16);
    let half: Vec<f32> = norm("q_norm").iter().map(|v| (v + 1.0) / 2.0).collect();
    assert_eq!(read(&model, "blk.1.attn_q_norm.weight"), half);
    let keys: Vec<f32> = norm("k_norm").iter().map(|v| v + 1.0).collect();
    assert_eq!(read(&model, "blk.1.attn_k_norm.weight"), keys);

    let model = gemma_3(2, &json!({ "final_logit_softcapping": 25.0 })).unwrap();
    assert_eq!(key(&model, "final_logit_softcapping"), Some(&25.0f32.into()));
    for more in [
        json!({ "use_bidirectional_attention": true }),
        json!({ "attn_logit_softcapping": 50.0 }),
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2.0 } }),
        json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e6 },
            "sliding_attention": { "rope_type": "linear", "factor": 2.0 } } }),
    ] {
        let error = gemma_3(2, &more).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{more}: {error}");
    }
}

fn phi_3(more: &Json) -> llm_quantize::Result<GgufModel> {
    let modules: Modules = vec![
        ("input_layernorm.weight", &[64]),
        ("self_attn.qkv_proj.weight", &[128, 64]),
        ("self_attn.o_proj.weight", &[64, 64]),
        ("post_attention_layernorm.weight", &[64]),
        ("mlp.gate_up_proj.weight", &[192, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    opened(&config("Phi3ForCausalLM", "phi3", more), &model(true, &modules))
}

#[test]
fn phi_3_as_its_configuration_says() {
    let scaling = |kind: &str| json!({ "type": kind, "short_factor": vec![1.0; 8], "long_factor": vec![4.0; 8] });
    let mut given = scaling("longrope");
    given["attention_factor"] = json!(1.4);
    let more = json!({ "original_max_position_embeddings": 1024, "rope_scaling": given });
    let model = phi_3(&more).unwrap();
    assert_eq!(key(&model, "rope.scaling.attn_factor"), Some(&1.4f32.into()));
    // "yarn" is an old name of the same: sqrt(1 + ln 4 / ln 1024).
    let more = json!({ "original_max_position_embeddings": 1024, "rope_scaling": scaling("yarn") });
    let model = phi_3(&more).unwrap();
    assert_eq!(key(&model, "rope.scaling.attn_factor"), Some(&1.095_445_1f32.into()));
    let model = phi_3(&json!({ "sliding_window": 2047 })).unwrap();
    assert!(model.warnings[0].contains("2047 tokens in all layers"), "{:?}", model.warnings);
    for kind in ["linear", "llama3", "dynamic"] {
        let more = json!({ "rope_scaling": { "type": kind, "factor": 2.0 } });
        assert!(matches!(phi_3(&more), Err(Error::Unsupported { .. })), "{kind}");
    }
}

#[test]
fn rotary_settings_are_accounted_for() {
    let whole = dense(true, &[]);
    let scaled = |more: Json| {
        let mut scaling = json!({ "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 1024 });
        for (key, value) in more.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        json!({ "rope_scaling": scaling })
    };
    let usual = opened(&llama(scaled(json!({}))), &whole).unwrap();
    assert_eq!(key(&usual, "rope.scaling.type"), Some(&"yarn".into()));
    // Zero stands for none.
    let zero = opened(&llama(scaled(json!({ "mscale": 1, "mscale_all_dim": 0 }))), &whole).unwrap();
    // Names are those of the folders.
    let of_model = |model: &GgufModel| -> Vec<(String, Value)> {
        let entries = model.metadata.iter().filter(|(key, _)| key.starts_with("llama."));
        entries.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    assert_eq!(of_model(&zero), of_model(&usual));

    // Without whole bounds the file holds each frequency's divisor: by the formula of the paper, with
    // c(r) = 16 ln(1024 / 2πr) / (2 ln 10000) between r = 32 and r = 1.
    let model = opened(&llama(scaled(json!({ "truncate": false }))), &whole).unwrap();
    assert_eq!(key(&model, "rope.scaling.type"), None);
    assert_eq!(key(&model, "rope.scaling.attn_factor"), Some(&1.138_629_4f32.into()));
    let bound =
        |r: f64| 16.0 * (1024.0 / (std::f64::consts::TAU * r)).ln() / (2.0 * 10_000f64.ln());
    let (low, high) = (bound(32.0), bound(1.0));
    for (i, factor) in read(&model, "rope_freqs.weight").iter().enumerate() {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / (ramp / 4.0 + 1.0 - ramp);
        assert!((f64::from(*factor) - expected).abs() < 1e-6, "{i}: {factor} and {expected}");
    }
    let biases: Modules = vec![
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
    ];
    let qwen = |more: &Json| config("Qwen2ForCausalLM", "qwen2", more);
    refused(
        &qwen(&scaled(json!({ "truncate": false }))),
        &dense(true, &biases),
        "`truncate` false",
    );
    let llama3 = json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0 } });
    refused(&qwen(&llama3), &dense(true, &biases), "\"llama3\"");

    let long = json!({ "rope_scaling": { "rope_type": "longrope", "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8] } });
    let model = opened(&llama(long), &whole).unwrap();
    assert_eq!(key(&model, "rope.scaling.type"), Some(&"longrope".into()));
    assert_eq!(key(&model, "rope.scaling.original_context_length"), Some(&1024u32.into()));
    assert_eq!(read(&model, "rope_factors_long.weight"), [2.0; 8]);
    assert_eq!(read(&model, "rope_factors_short.weight"), [1.0; 8]);
}
