//! Architectures that this crate does not run: logits of llama.cpp on the files against those of
//! candle-transformers on the directories they were made from.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, gemma3, mixtral, phi3, qwen3_moe};
use llm_quantize::codec::StoredType;
use llm_quantize::job::gguf::{SourceOptions, open};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::directories::{self, DENSE, ROWS, config, model, model_of};
use crate::export;
use crate::llama_cpp::library::{Attention, LlamaCpp};
use crate::needs;

type Modules<'a> = Vec<(&'a str, &'a [usize])>;

const GEMMA: [(&str, &[usize]); 2] =
    [("pre_feedforward_layernorm.weight", &[64]), ("post_feedforward_layernorm.weight", &[64])];
const HEAD_NORMS: [(&str, &[usize]); 2] =
    [("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])];
const BIASES: [(&str, &[usize]); 3] = [
    ("self_attn.q_proj.bias", &[64]),
    ("self_attn.k_proj.bias", &[32]),
    ("self_attn.v_proj.bias", &[32]),
];
const PHI: [(&str, &[usize]); 6] = [
    ("input_layernorm.weight", &[64]),
    ("self_attn.qkv_proj.weight", &[128, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("post_attention_layernorm.weight", &[64]),
    ("mlp.gate_up_proj.weight", &[192, 64]),
    ("mlp.down_proj.weight", &[64, 96]),
];

/// The matrices of four experts; the second of the names is that of the way down.
fn experts(names: [&str; 3], prefix: &str, width: usize) -> Vec<(String, Vec<usize>)> {
    let shapes = [vec![width, 64], vec![64, width], vec![width, 64]];
    (0..4)
        .flat_map(|expert| {
            names.iter().zip(&shapes).map(move |(name, shape)| {
                (format!("{prefix}.{expert}.{name}.weight"), shape.clone())
            })
        })
        .collect()
}

fn borrowed(list: &[(String, Vec<usize>)]) -> Modules<'_> {
    list.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect()
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % 260).collect()
}

/// llama.cpp's logits of every token for the file of a directory.
fn of_llama(llama: &LlamaCpp, directory: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let file = directory.join("model.gguf");
    let source = open(directory, &SourceOptions::default()).unwrap();
    export::write(&source, &file, StoredType::F32);
    let rows = llama.logits(&file, ids, ROWS, Attention::Exact);
    assert!(rows.iter().flatten().all(|logit| logit.is_finite()));
    rows
}

/// Compares with a model of candle-transformers, whose configuration has the names of `config.json`.
fn compare<C: DeserializeOwned>(
    class: (&str, &str),
    more: &Value,
    tensors: &[(String, Vec<usize>)],
    tolerance: f32,
    run: impl Fn(&C, VarBuilder, &Tensor) -> candle_core::Result<Tensor>,
) {
    let llama = needs::llama_cpp();
    let folder = tempfile::tempdir().unwrap();
    let config = config(class.0, class.1, more);
    directories::write(folder.path(), &config, tensors);
    let ids = tokens(40);
    let theirs = of_llama(&llama, folder.path(), &ids);

    let weights =
        candle_core::safetensors::load(folder.path().join("model.safetensors"), &Device::Cpu)
            .unwrap();
    let weights = weights.into_iter().map(|(n, t)| (n, t.to_dtype(DType::F32).unwrap())).collect();
    let builder = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let parsed: C = serde_json::from_value(config).unwrap();
    let (mut largest, mut size) = (0.0f32, 0.0f32);
    for end in [1, 2, 17, 40] {
        let input = Tensor::new(&ids[..end], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let row: Vec<f32> = run(&parsed, builder.clone(), &input)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!(row.len() == theirs[end - 1].len() && row.iter().all(|logit| logit.is_finite()));
        for (ours, theirs) in row.iter().zip(&theirs[end - 1]) {
            largest = largest.max((ours - theirs).abs());
            size = size.max(ours.abs());
        }
    }
    eprintln!("{}: logits up to {size} differ by {largest}", class.0);
    assert!(largest <= tolerance * size, "{largest} of {size}");
}

/// ggml's GELU is a table of halves.
const WITH_TABLE: f32 = 2e-2;
const EXACT: f32 = 2e-4;

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn gemma_2_computes_the_same() {
    let more = json!({
        "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "sliding_window": 1024, "query_pre_attn_scalar": 16,
        "attention_bias": false, "rope_theta": 10000.0
    });
    let tensors = model(false, &[&DENSE[..], &GEMMA].concat());
    let class = ("Gemma2ForCausalLM", "gemma2");
    compare::<gemma2::Config>(class, &more, &tensors, WITH_TABLE, |config, builder, input| {
        gemma2::Model::new(false, config, builder)?.forward(input, 0)
    });
}

/// Seven blocks: six with a window, one without in between.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn gemma_3_computes_the_same() {
    let more = json!({
        "num_hidden_layers": 7, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 1024, "sliding_window_pattern": 6, "query_pre_attn_scalar": 16,
        "attention_bias": false, "rope_theta": 1e6, "rope_local_base_freq": 10000.0
    });
    let tensors = model_of(7, false, &[&DENSE[..], &GEMMA, &HEAD_NORMS].concat());
    let class = ("Gemma3ForCausalLM", "gemma3_text");
    compare::<gemma3::Config>(class, &more, &tensors, WITH_TABLE, |config, builder, input| {
        // Its cache takes one token at a time.
        let mut model = gemma3::Model::new(false, config, builder)?;
        let length = input.dim(1)?;
        let mut last = model.forward(&input.narrow(1, 0, 1)?, 0)?;
        for at in 1..length {
            last = model.forward(&input.narrow(1, at, 1)?, at)?;
        }
        Ok(last)
    });
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn phi_3_computes_the_same() {
    let more = json!({ "hidden_act": "silu", "rope_theta": 10000.0 });
    let class = ("Phi3ForCausalLM", "phi3");
    let tensors = model(true, &PHI);
    compare::<phi3::Config>(class, &more, &tensors, EXACT, |config, builder, input| {
        phi3::Model::new(config, builder)?.forward(input, 0)
    });
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn mixtral_computes_the_same() {
    let more = json!({
        "num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 1e6, "hidden_act": "silu",
        "sliding_window": 4096, "use_flash_attn": false
    });
    let experts = experts(["w1", "w2", "w3"], "block_sparse_moe.experts", 96);
    let gate: Modules = vec![("block_sparse_moe.gate.weight", &[4, 64])];
    let tensors = model(true, &[&DENSE[..6], &gate, &borrowed(&experts)].concat());
    let class = ("MixtralForCausalLM", "mixtral");
    compare::<mixtral::Config>(class, &more, &tensors, EXACT, |config, builder, input| {
        mixtral::Model::new(config, builder)?.forward(input, 0)
    });
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn qwen_3_with_experts_computes_the_same() {
    let more = json!({
        "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "moe_intermediate_size": 32,
        "norm_topk_prob": true, "hidden_act": "silu", "rope_theta": 1e6, "attention_bias": false,
        "sliding_window": null, "max_window_layers": 2, "use_sliding_window": false,
        "decoder_sparse_step": 1, "tie_word_embeddings": false
    });
    let experts = experts(["gate_proj", "down_proj", "up_proj"], "mlp.experts", 32);
    let gate: Modules = vec![("mlp.gate.weight", &[4, 64])];
    let tensors = model(true, &[&DENSE[..6], &HEAD_NORMS, &gate, &borrowed(&experts)].concat());
    let class = ("Qwen3MoeForCausalLM", "qwen3_moe");
    compare::<qwen3_moe::Config>(class, &more, &tensors, EXACT, |config, builder, input| {
        qwen3_moe::ModelForCausalLM::new(config, builder)?.forward(input, 0)
    });
}

/// What candle-transformers has not, or not as transformers has it: llama.cpp finds everything it
/// asks for, and computes.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn the_rest_loads_and_runs() {
    let llama = needs::llama_cpp();
    let shared: Modules = vec![
        ("mlp.gate.weight", &[4, 64]),
        ("mlp.shared_expert_gate.weight", &[1, 64]),
        ("mlp.shared_expert.gate_proj.weight", &[48, 64]),
        ("mlp.shared_expert.up_proj.weight", &[48, 64]),
        ("mlp.shared_expert.down_proj.weight", &[64, 48]),
    ];
    let experts = experts(["gate_proj", "down_proj", "up_proj"], "mlp.experts", 32);
    let mixture = json!({
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48
    });
    let short: Vec<f64> = (0..8).map(|i| 1.0 + f64::from(i) / 8.0).collect();
    let long: Vec<f64> = short.iter().map(|factor| factor * 4.0).collect();
    let long_texts = json!({ "original_max_position_embeddings": 1024, "rope_scaling": {
        "type": "longrope", "short_factor": short, "long_factor": long } });
    for (class, model_type, more, tensors) in [
        (
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            mixture,
            model(true, &[&DENSE[..6], &BIASES, &shared, &borrowed(&experts)].concat()),
        ),
        ("Phi3ForCausalLM", "phi3", long_texts, model(true, &PHI)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        directories::write(folder.path(), &config(class, model_type, &more), &tensors);
        let rows = of_llama(&llama, folder.path(), &tokens(40));
        let first = &rows[0];
        assert!(rows.iter().skip(1).any(|row| row != first), "{class}: all tokens alike");
    }
}
