//! Small random models: configuration, weights, and the files they are written to.

use std::path::Path;

use indexmap::IndexMap;
use llm_quantize::arch::config_json;
use llm_quantize::arch::tensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Shapes and values of all tensors of a model, by Hugging Face name.
pub(crate) type Tensors = IndexMap<String, (Vec<usize>, Vec<f32>)>;

/// `config.json` of a model of two blocks; every width is a multiple of 32.
pub(crate) fn config(model_type: &str) -> Value {
    let class = match model_type {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => panic!("no class for {other}"),
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    });
    if model_type == "mistral" {
        config["sliding_window"] = json!(null);
    }
    config
}

/// Values that differ everywhere, roughly uniform in -1..1, exact in f16 and bf16.
pub(crate) fn values(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 56) as f32 - 127.5) / 128.0
        })
        .collect()
}

/// Random weights for a configuration.
pub(crate) fn tensors(config: &Value) -> Tensors {
    let parsed = config_json::parse(&config.to_string(), Path::new("config.json")).unwrap();
    tensors::of_model(&parsed.config)
        .into_iter()
        .map(|tensor| {
            let values = values(&tensor.name, tensor.shape.iter().product());
            (tensor.name, (tensor.shape, values))
        })
        .collect()
}

/// The bytes of values in a safetensors type.
pub(crate) fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("no bytes for {other}"),
    }
}

/// Writes one safetensors file.
pub(crate) fn write_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a String, &'a (Vec<usize>, Vec<f32>))>,
    dtype: Dtype,
) {
    let data: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.map(|(name, (shape, values))| (name, shape, bytes_of(values, dtype))).collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(dtype, (*shape).clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_model(folder: &Path, config: &Value, tensors: &Tensors, dtype: Dtype) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_safetensors(&folder.join("model.safetensors"), tensors.iter(), dtype);
}
