//! Metadata and tensors of every class, against lists written out by hand.

use std::path::Path;

use indexmap::IndexMap;
use llm_quantize::Error;
use llm_quantize::codec::StoredType;
use llm_quantize::files::gguf::Value;
use llm_quantize::job::gguf::{GgufModel, SourceOptions, open};
use serde_json::json;

use crate::directories::{self, ROWS, config, dense, model, values};

fn open_directory(
    config: &serde_json::Value,
    tensors: &[(String, Vec<usize>)],
) -> (tempfile::TempDir, llm_quantize::Result<GgufModel>) {
    let folder = tempfile::tempdir().unwrap();
    directories::write(folder.path(), config, tensors);
    let model = open(folder.path(), &SourceOptions::default());
    (folder, model)
}

/// The keys under the prefix of the architecture: these and no others.
fn check_metadata(model: &GgufModel, prefix: &str, expected: &[(&str, Value)]) {
    assert_eq!(model.architecture, prefix);
    let mut got: Vec<(&str, &Value)> = model
        .metadata
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.strip_prefix('.')?, value)))
        .collect();
    got.sort_by_key(|(key, _)| *key);
    let mut expected: Vec<(&str, &Value)> = expected.iter().map(|(k, v)| (*k, v)).collect();
    expected.sort_by_key(|(key, _)| *key);
    assert_eq!(got, expected);
}

/// The tensors: these and no others, in the order of llama-quantize.
fn check_tensors(model: &GgufModel, outer: &[(&str, &[usize])], block: &[(&str, &[usize])]) {
    let mut expected: Vec<(String, Vec<usize>)> =
        outer.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    expected.sort();
    for number in 0..2 {
        let mut names: Vec<(String, Vec<usize>)> = block
            .iter()
            .map(|(name, shape)| (format!("blk.{number}.{name}"), shape.to_vec()))
            .collect();
        names.sort();
        expected.extend(names);
    }
    let got: Vec<(String, Vec<usize>)> =
        model.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert_eq!(got, expected);
    for tensor in &model.tensors {
        // Vectors and the gates of mixtures are F32 in every file.
        let small = tensor.shape.len() == 1 || tensor.name.ends_with("ffn_gate_inp.weight");
        let expected = if small { StoredType::F32 } else { StoredType::F16 };
        assert_eq!(tensor.source_type, expected, "{}", tensor.name);
        let bytes = tensor.raw_rows(0..tensor.rows()).unwrap();
        assert_eq!(Some(bytes.len()), expected.byte_length(&tensor.shape));
    }
}

fn read(model: &GgufModel, name: &str) -> Vec<f32> {
    let tensor = model.tensor(name).unwrap();
    let mut out = vec![0.0; tensor.elements()];
    tensor.read_rows(0..tensor.rows(), &mut out).unwrap();
    out
}

/// What every class says about itself.
fn common() -> Vec<(&'static str, Value)> {
    vec![
        ("block_count", 2u32.into()),
        ("context_length", 4096u32.into()),
        ("embedding_length", 64u32.into()),
        ("feed_forward_length", 96u32.into()),
        ("attention.head_count", 4u32.into()),
        ("attention.head_count_kv", 2u32.into()),
        ("attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        ("rope.freq_base", 10_000.0f32.into()),
    ]
}

fn with(more: &[(&'static str, Value)]) -> Vec<(&'static str, Value)> {
    let mut map: IndexMap<&'static str, Value> = common().into_iter().collect();
    map.extend(more.iter().cloned());
    map.into_iter().collect()
}

const LLAMA_BLOCK: [(&str, &[usize]); 9] = [
    ("attn_norm.weight", &[64]),
    ("attn_q.weight", &[64, 64]),
    ("attn_k.weight", &[32, 64]),
    ("attn_v.weight", &[32, 64]),
    ("attn_output.weight", &[64, 64]),
    ("ffn_norm.weight", &[64]),
    ("ffn_gate.weight", &[96, 64]),
    ("ffn_up.weight", &[96, 64]),
    ("ffn_down.weight", &[64, 96]),
];

const OUTER: [(&str, &[usize]); 3] = [
    ("token_embd.weight", &[ROWS, 64]),
    ("output_norm.weight", &[64]),
    ("output.weight", &[ROWS, 64]),
];

/// Rows of a matrix in the order that the converter gives q and k: halves of a head interleaved.
fn in_pairs(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let dim = rows / heads;
    let mut out = Vec::new();
    for head in 0..heads {
        for pair in 0..dim / 2 {
            for half in 0..2 {
                let row = head * dim + half * (dim / 2) + pair;
                out.extend_from_slice(&values[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

#[test]
fn llama_and_mistral() {
    type Biases = [(&'static str, &'static [usize]); 3];
    let hf: Biases = [
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
    ];
    let gguf: Biases = [("attn_q.bias", &[64]), ("attn_k.bias", &[32]), ("attn_v.bias", &[32])];
    for (class, model_type, more, biases) in [
        ("LlamaForCausalLM", "llama", json!({ "attention_bias": true }), 3),
        ("MistralForCausalLM", "mistral", json!({ "sliding_window": null }), 0),
    ] {
        let config = config(class, model_type, &more);
        let (_folder, model) = open_directory(&config, &dense(true, &hf[..biases]));
        let model = model.unwrap();
        check_metadata(
            &model,
            "llama",
            &with(&[("vocab_size", (ROWS as u32).into()), ("rope.dimension_count", 16u32.into())]),
        );
        let block = [&LLAMA_BLOCK[..], &gguf[..biases]].concat();
        check_tensors(&model, &OUTER, &block);
        let q = values("model.layers.1.self_attn.q_proj.weight", 64 * 64);
        assert_eq!(read(&model, "blk.1.attn_q.weight"), in_pairs(&q, 4, 64));
        let k = values("model.layers.0.self_attn.k_proj.weight", 32 * 64);
        assert_eq!(read(&model, "blk.0.attn_k.weight"), in_pairs(&k, 2, 64));
        if biases > 0 {
            let bias = values("model.layers.0.self_attn.k_proj.bias", 32);
            assert_eq!(read(&model, "blk.0.attn_k.bias"), in_pairs(&bias, 2, 1));
        }
        let v = values("model.layers.0.self_attn.v_proj.weight", 32 * 64);
        assert_eq!(read(&model, "blk.0.attn_v.weight"), v);
        assert_eq!((model.shape.layers, model.shape.heads, model.shape.kv_heads), (2, 4, 2));
        assert_eq!((model.shape.experts, model.shape.vocabulary), (0, ROWS));
        assert_eq!(model.source_dtype, "F16");
        let bytes: usize = model.tensors.iter().map(|t| t.elements() * 2).sum();
        assert_eq!(model.source_bytes, bytes as u64);
    }
}

#[test]
fn llama_3_has_its_factors_in_a_tensor() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old = json!({
        "rope_theta": 500_000.0, "rope_scaling": scaling, "tie_word_embeddings": true,
        "head_dim": 32
    });
    let new = json!({
        "rope_parameters": parameters, "tie_word_embeddings": true, "head_dim": 32
    });
    for more in [old, new] {
        let config = config("LlamaForCausalLM", "llama", &more);
        let mut tensors = dense(false, &[]);
        for (name, shape) in &mut tensors {
            match name.rsplit('.').nth(1).unwrap() {
                "q_proj" => *shape = vec![128, 64],
                "k_proj" | "v_proj" => *shape = vec![64, 64],
                "o_proj" => *shape = vec![64, 128],
                _ => {}
            }
        }
        let (_folder, model) = open_directory(&config, &tensors);
        let model = model.unwrap();
        check_metadata(
            &model,
            "llama",
            &with(&[
                ("vocab_size", (ROWS as u32).into()),
                ("rope.dimension_count", 32u32.into()),
                ("rope.freq_base", 500_000.0f32.into()),
                ("attention.key_length", 32u32.into()),
                ("attention.value_length", 32u32.into()),
            ]),
        );
        assert!(model.tensor("output.weight").is_none());
        let factors = read(&model, "rope_freqs.weight");
        assert_eq!(factors.len(), 16);
        for (i, factor) in factors.iter().enumerate() {
            // The published formula, in f64.
            let wavelength = 2.0 * std::f64::consts::PI * 500_000f64.powf(2.0 * i as f64 / 32.0);
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            let expected = if wavelength < 2048.0 {
                1.0
            } else if wavelength > 8192.0 {
                32.0
            } else {
                1.0 / ((1.0 - smooth) / 32.0 + smooth)
            };
            assert!((f64::from(*factor) / expected - 1.0).abs() < 1e-5, "{i}: {factor}");
        }
        assert_eq!([factors[0], factors[15]].map(f32::to_bits), [1.0f32, 32.0].map(f32::to_bits));
    }
}

#[test]
fn scaled_positions_are_written_as_the_loader_reads_them() {
    let parameters = |scaling: serde_json::Value| {
        let config = config("Qwen2ForCausalLM", "qwen2", &json!({ "rope_scaling": scaling }));
        let (_folder, model) = open_directory(&config, &qwen2_tensors());
        model.unwrap()
    };
    check_metadata(
        &parameters(json!({ "type": "linear", "factor": 2.5 })),
        "qwen2",
        &with(&[("rope.scaling.type", "linear".into()), ("rope.scaling.factor", 2.5f32.into())]),
    );
    let yarn = parameters(json!({
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32,
        "attention_factor": 1.138_629_436_111_989 * 1.5
    }));
    check_metadata(
        &yarn,
        "qwen2",
        &with(&[
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", 4.0f32.into()),
            ("rope.scaling.original_context_length", 1024u32.into()),
            // On top of 0.1 ln 4 + 1, which llama.cpp applies itself.
            ("rope.scaling.attn_factor", 1.5f32.into()),
        ]),
    );
    let model = parameters(json!({ "type": "dynamic", "factor": 4.0 }));
    check_metadata(&model, "qwen2", &common());
    assert!(model.warnings.iter().any(|w| w.contains("\"dynamic\"")), "{:?}", model.warnings);
}

fn qwen2_tensors() -> Vec<(String, Vec<usize>)> {
    dense(
        true,
        &[
            ("self_attn.q_proj.bias", &[64]),
            ("self_attn.k_proj.bias", &[32]),
            ("self_attn.v_proj.bias", &[32]),
        ],
    )
}

#[test]
fn qwen2_and_qwen3() {
    let config = directories::config("Qwen2ForCausalLM", "qwen2", &json!({}));
    let (_folder, model) = open_directory(&config, &qwen2_tensors());
    let model = model.unwrap();
    check_metadata(&model, "qwen2", &common());
    let biases: [(&str, &[usize]); 3] =
        [("attn_q.bias", &[64]), ("attn_k.bias", &[32]), ("attn_v.bias", &[32])];
    check_tensors(&model, &OUTER, &[&LLAMA_BLOCK[..], &biases].concat());
    let q = values("model.layers.0.self_attn.q_proj.weight", 64 * 64);
    assert_eq!(read(&model, "blk.0.attn_q.weight"), q);

    let more = json!({ "head_dim": 16, "rope_theta": 1e6, "tie_word_embeddings": true });
    let config = directories::config("Qwen3ForCausalLM", "qwen3", &more);
    let norms: [(&str, &[usize]); 2] =
        [("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])];
    let (_folder, model) = open_directory(&config, &dense(false, &norms));
    let model = model.unwrap();
    check_metadata(
        &model,
        "qwen3",
        &with(&[
            ("rope.freq_base", 1e6f32.into()),
            ("attention.key_length", 16u32.into()),
            ("attention.value_length", 16u32.into()),
        ]),
    );
    let norms: [(&str, &[usize]); 2] =
        [("attn_q_norm.weight", &[16]), ("attn_k_norm.weight", &[16])];
    check_tensors(&model, &OUTER[..2], &[&LLAMA_BLOCK[..], &norms].concat());
}

const GEMMA_NORMS: [(&str, &[usize]); 2] =
    [("pre_feedforward_layernorm.weight", &[64]), ("post_feedforward_layernorm.weight", &[64])];

#[test]
fn gemma_2() {
    let more = json!({
        "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "sliding_window": 1024, "query_pre_attn_scalar": 16
    });
    let config = config("Gemma2ForCausalLM", "gemma2", &more);
    let (_folder, model) = open_directory(&config, &dense(false, &GEMMA_NORMS));
    let model = model.unwrap();
    check_metadata(
        &model,
        "gemma2",
        &with(&[
            ("attention.key_length", 16u32.into()),
            ("attention.value_length", 16u32.into()),
            ("attn_logit_softcapping", 50.0f32.into()),
            ("final_logit_softcapping", 30.0f32.into()),
            ("attention.sliding_window", 1024u32.into()),
        ]),
    );
    let norms: [(&str, &[usize]); 2] =
        [("post_attention_norm.weight", &[64]), ("post_ffw_norm.weight", &[64])];
    check_tensors(&model, &OUTER[..2], &[&LLAMA_BLOCK[..], &norms].concat());
    for (gguf, hf) in [
        ("output_norm.weight", "model.norm.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.1.post_attention_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("blk.1.ffn_norm.weight", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("blk.1.post_ffw_norm.weight", "model.layers.1.post_feedforward_layernorm.weight"),
    ] {
        let expected: Vec<f32> = values(hf, 64).iter().map(|v| v + 1.0).collect();
        assert_eq!(read(&model, gguf), expected, "{gguf}");
    }
}

#[test]
fn gemma_3_alone_and_inside_a_multimodal_checkpoint() {
    let norms: Vec<(&str, &[usize])> = [
        &GEMMA_NORMS[..],
        &[("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])],
    ]
    .concat();
    let tensors = dense(false, &norms);
    let text = json!({
        "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512,
        "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 }
    });
    let alone = config("Gemma3ForCausalLM", "gemma3_text", &text);
    let mut inner = alone.clone();
    inner.as_object_mut().unwrap().retain(|key, _| key != "architectures");
    let outer = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": inner, "vision_config": { "hidden_size": 3 }
    });
    let mut new = alone.clone();
    for key in ["rope_theta", "rope_local_base_freq", "rope_scaling"] {
        new.as_object_mut().unwrap().remove(key);
    }
    new["rope_parameters"] = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 10000.0 }
    });
    let renamed = |prefix: &str| -> Vec<(String, Vec<usize>)> {
        let mut list: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| (name.replacen("model.", &format!("{prefix}."), 1), shape.clone()))
            .collect();
        list.push(("vision_tower.vision_model.x.weight".into(), vec![3, 3]));
        list.push(("multi_modal_projector.y.weight".into(), vec![3, 3]));
        list
    };
    for (config, tensors, hf_prefix) in [
        (&alone, tensors.clone(), "model"),
        (&new, tensors.clone(), "model"),
        (&outer, renamed("language_model.model"), "language_model.model"),
        (&outer, renamed("model.language_model"), "model.language_model"),
    ] {
        let (_folder, model) = open_directory(config, &tensors);
        let model = model.unwrap();
        check_metadata(
            &model,
            "gemma3",
            &with(&[
                ("attention.key_length", 16u32.into()),
                ("attention.value_length", 16u32.into()),
                ("attention.sliding_window", 512u32.into()),
                ("rope.freq_base", 1e6f32.into()),
                ("rope.freq_base_swa", 10_000.0f32.into()),
                ("rope.scaling.type", "linear".into()),
                ("rope.scaling.factor", 8.0f32.into()),
            ]),
        );
        let expected: Vec<f32> =
            values(&format!("{hf_prefix}.layers.1.self_attn.k_norm.weight"), 16)
                .iter()
                .map(|v| v + 1.0)
                .collect();
        assert_eq!(read(&model, "blk.1.attn_k_norm.weight"), expected);
        // What sees is left out, and named.
        let named: Vec<bool> =
            model.warnings.iter().map(|warning| warning.contains("vision_tower")).collect();
        let expected = if hf_prefix == "model" { vec![] } else { vec![true] };
        assert_eq!(named, expected, "{:?}", model.warnings);
    }
}

#[test]
fn phi_3_with_factors_for_long_texts() {
    let short: Vec<f64> = (0..8).map(|i| 1.0 + f64::from(i) / 8.0).collect();
    let long: Vec<f64> = short.iter().map(|factor| factor * 4.0).collect();
    let more = json!({
        "original_max_position_embeddings": 1024, "sliding_window": 2047, "hidden_act": "silu",
        "rope_scaling": { "type": "longrope", "short_factor": short, "long_factor": long }
    });
    let modules: [(&str, &[usize]); 6] = [
        ("input_layernorm.weight", &[64]),
        ("self_attn.qkv_proj.weight", &[128, 64]),
        ("self_attn.o_proj.weight", &[64, 64]),
        ("post_attention_layernorm.weight", &[64]),
        ("mlp.gate_up_proj.weight", &[192, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let (_folder, opened) =
        open_directory(&config("Phi3ForCausalLM", "phi3", &more), &model(true, &modules));
    let opened = opened.unwrap();
    let expected = with(&[
        ("rope.dimension_count", 16u32.into()),
        ("rope.scaling.original_context_length", 1024u32.into()),
        // sqrt(1 + ln 4 / ln 1024)
        ("rope.scaling.attn_factor", 1.095_445_1f32.into()),
        ("attention.sliding_window", 2047u32.into()),
    ]);
    check_metadata(&opened, "phi3", &expected);
    let outer: Vec<(&str, &[usize])> =
        [&OUTER[..], &[("rope_factors_long.weight", &[8]), ("rope_factors_short.weight", &[8])]]
            .concat();
    check_tensors(
        &opened,
        &outer,
        &[
            ("attn_norm.weight", &[64]),
            ("attn_qkv.weight", &[128, 64]),
            ("attn_output.weight", &[64, 64]),
            ("ffn_norm.weight", &[64]),
            ("ffn_up.weight", &[192, 64]),
            ("ffn_down.weight", &[64, 96]),
        ],
    );
    assert_eq!(read(&opened, "rope_factors_long.weight")[6..], [7.0, 7.5]);

    // Phi-4: no factors, no window, a part of each head rotates.
    let more = json!({ "sliding_window": null, "partial_rotary_factor": 0.75 });
    let (_folder, opened) =
        open_directory(&config("Phi3ForCausalLM", "phi3", &more), &model(true, &modules));
    check_metadata(
        &opened.unwrap(),
        "phi3",
        &with(&[
            ("rope.dimension_count", 12u32.into()),
            ("rope.scaling.original_context_length", 4096u32.into()),
            ("attention.sliding_window", 0u32.into()),
        ]),
    );
}

const ATTENTION: [(&str, &[usize]); 6] = [
    ("input_layernorm.weight", &[64]),
    ("self_attn.q_proj.weight", &[64, 64]),
    ("self_attn.k_proj.weight", &[32, 64]),
    ("self_attn.v_proj.weight", &[32, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("post_attention_layernorm.weight", &[64]),
];

#[test]
fn experts_of_mixtral_are_stacked() {
    let more = json!({ "num_local_experts": 3, "num_experts_per_tok": 2, "rope_theta": 1e6 });
    let mut modules: Vec<(String, Vec<usize>)> =
        ATTENTION.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect();
    modules.push(("block_sparse_moe.gate.weight".into(), vec![3, 64]));
    for expert in 0..3 {
        for (name, shape) in [("w1", vec![96, 64]), ("w2", vec![64, 96]), ("w3", vec![96, 64])] {
            modules.push((format!("block_sparse_moe.experts.{expert}.{name}.weight"), shape));
        }
    }
    let borrowed: Vec<(&str, &[usize])> =
        modules.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let (_folder, opened) =
        open_directory(&config("MixtralForCausalLM", "mixtral", &more), &model(true, &borrowed));
    let opened = opened.unwrap();
    check_metadata(
        &opened,
        "llama",
        &with(&[
            ("rope.freq_base", 1e6f32.into()),
            ("vocab_size", (ROWS as u32).into()),
            ("rope.dimension_count", 16u32.into()),
            ("expert_count", 3u32.into()),
            ("expert_used_count", 2u32.into()),
        ]),
    );
    let block: Vec<(&str, &[usize])> = [
        &LLAMA_BLOCK[..6],
        &[
            ("ffn_gate_inp.weight", &[3, 64]),
            ("ffn_gate_exps.weight", &[3, 96, 64]),
            ("ffn_up_exps.weight", &[3, 96, 64]),
            ("ffn_down_exps.weight", &[3, 64, 96]),
        ],
    ]
    .concat();
    check_tensors(&opened, &OUTER, &block);
    let stack: Vec<f32> = (0..3)
        .flat_map(|e| {
            values(&format!("model.layers.1.block_sparse_moe.experts.{e}.w2.weight"), 64 * 96)
        })
        .collect();
    assert_eq!(read(&opened, "blk.1.ffn_down_exps.weight"), stack);
    assert_eq!(opened.shape.experts, 3);
}

#[test]
fn experts_of_qwen_in_both_layouts() {
    let biases: [(&str, &[usize]); 3] = [
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
    ];
    let shared: [(&str, &[usize]); 5] = [
        ("mlp.gate.weight", &[3, 64]),
        ("mlp.shared_expert_gate.weight", &[1, 64]),
        ("mlp.shared_expert.gate_proj.weight", &[48, 64]),
        ("mlp.shared_expert.up_proj.weight", &[48, 64]),
        ("mlp.shared_expert.down_proj.weight", &[64, 48]),
    ];
    let fused: [(&str, &[usize]); 2] =
        [("mlp.experts.gate_up_proj", &[3, 64, 64]), ("mlp.experts.down_proj", &[3, 64, 32])];
    let single: Vec<(String, Vec<usize>)> = (0..3)
        .flat_map(|e| {
            [
                (format!("mlp.experts.{e}.gate_proj.weight"), vec![32, 64]),
                (format!("mlp.experts.{e}.up_proj.weight"), vec![32, 64]),
                (format!("mlp.experts.{e}.down_proj.weight"), vec![64, 32]),
            ]
        })
        .collect();
    let single: Vec<(&str, &[usize])> =
        single.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let more = json!({
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48
    });
    let start = [&ATTENTION[..], &biases, &shared].concat();
    for (experts, is_fused) in [(&fused[..], true), (&single[..], false)] {
        let tensors = model(true, &[&start[..], experts].concat());
        let config = config("Qwen2MoeForCausalLM", "qwen2_moe", &more);
        let (_folder, opened) = open_directory(&config, &tensors);
        let opened = opened.unwrap();
        check_metadata(
            &opened,
            "qwen2moe",
            &with(&[
                ("expert_count", 3u32.into()),
                ("expert_used_count", 2u32.into()),
                ("expert_feed_forward_length", 32u32.into()),
                ("expert_shared_feed_forward_length", 48u32.into()),
            ]),
        );
        let block: Vec<(&str, &[usize])> = [
            &LLAMA_BLOCK[..6],
            &[
                ("attn_q.bias", &[64]),
                ("attn_k.bias", &[32]),
                ("attn_v.bias", &[32]),
                ("ffn_gate_inp.weight", &[3, 64]),
                ("ffn_gate_inp_shexp.weight", &[64]),
                ("ffn_gate_shexp.weight", &[48, 64]),
                ("ffn_up_shexp.weight", &[48, 64]),
                ("ffn_down_shexp.weight", &[64, 48]),
                ("ffn_gate_exps.weight", &[3, 32, 64]),
                ("ffn_up_exps.weight", &[3, 32, 64]),
                ("ffn_down_exps.weight", &[3, 64, 32]),
            ],
        ]
        .concat();
        check_tensors(&opened, &OUTER, &block);
        let up = read(&opened, "blk.1.ffn_up_exps.weight");
        if is_fused {
            let both = values("model.layers.1.mlp.experts.gate_up_proj", 3 * 64 * 64);
            assert_eq!(up[..2048], both[2048..4096]);
            assert_eq!(up[4096..], both[2 * 4096 + 2048..]);
        } else {
            let one = values("model.layers.1.mlp.experts.2.up_proj.weight", 2048);
            assert_eq!(up[4096..], one[..]);
        }
    }
}

#[test]
fn what_would_be_wrong_is_refused() {
    let llama = |more: serde_json::Value| config("LlamaForCausalLM", "llama", &more);
    let refused = |config: &serde_json::Value, tensors: &[(String, Vec<usize>)], words: &str| {
        let (folder, model) = open_directory(config, tensors);
        let error = model.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.suggestion().is_empty() && folder.path().exists());
        error
    };
    let whole = dense(true, &[]);
    let error = refused(&llama(json!({})), &whole[1..], "lacks 1 tensors");
    assert!(matches!(error, Error::ModelNotFound { .. }));
    let mut other = whole.clone();
    other[3].1 = vec![64, 32];
    let error = refused(&llama(json!({})), &other, "[64, 32], the configuration says [64, 64]");
    assert!(matches!(error, Error::ValidationFailed { .. }));
    let odd = dense(true, &[("self_attn.sinks", &[4])]);
    refused(&llama(json!({})), &odd, "sinks");
    let error = refused(&llama(json!({ "hidden_act": "gelu" })), &whole, "\"gelu\"");
    assert!(matches!(error, Error::Unsupported { .. }));
    refused(&llama(json!({ "quantization_config": { "quant_method": "fp8" } })), &whole, "fp8");
    let mixture = json!({ "moe_intermediate_size": 32, "norm_topk_prob": false, "num_experts": 3 });
    let mixture = config("Qwen3MoeForCausalLM", "qwen3_moe", &mixture);
    refused(&mixture, &whole, "`norm_topk_prob` false");
    refused(&config("FalconForCausalLM", "falcon", &json!({})), &whole, "FalconForCausalLM");
    refused(
        &llama(json!({ "rope_scaling": { "rope_type": "wave", "factor": 2.0 } })),
        &whole,
        "\"wave\"",
    );

    let folder = tempfile::tempdir().unwrap();
    directories::write(folder.path(), &llama(json!({})), &whole);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = open(folder.path(), &SourceOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    let error = open(Path::new("no such folder"), &SourceOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}
