//! GGUF files as models: the same weights as in a directory, written as llama.cpp's converter
//! writes them, must read back the same.

use std::path::Path;

use llm_quantize::Error;
use llm_quantize::arch::config::RopeScaling;
use llm_quantize::arch::families::LLAMA;
use llm_quantize::arch::{ModelConfig, config_json, names};
use llm_quantize::codec::{StoredType, ggml};
use llm_quantize::model::{LocalModel, open_local};
use llm_quantize::weight::Weight;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::tiny::{self, Tensors};
use crate::gguf_bytes::GgufBytes;

const F32: u32 = 0;
const F16: u32 = 1;
const Q8_0: u32 = 8;
const BF16: u32 = 30;

/// Metadata of a tiny configuration, without a tokenizer.
pub(crate) fn metadata(config: &Value) -> GgufBytes {
    let architecture = match config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        other => other,
    };
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let key = |name: &str| format!("{architecture}.{name}");
    let mut file = GgufBytes::new();
    file.text("general.architecture", architecture);
    file.text("general.type", "model");
    file.u32(&key("block_count"), number("num_hidden_layers"));
    file.u32(&key("context_length"), number("max_position_embeddings"));
    file.u32(&key("embedding_length"), number("hidden_size"));
    file.u32(&key("feed_forward_length"), number("intermediate_size"));
    file.u32(&key("attention.head_count"), number("num_attention_heads"));
    file.u32(&key("attention.head_count_kv"), number("num_key_value_heads"));
    file.u32(&key("attention.key_length"), number("head_dim"));
    file.u32(&key("attention.value_length"), number("head_dim"));
    file.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    file.f32(&key("rope.freq_base"), 10_000.0);
    file.u32("tokenizer.ggml.bos_token_id", 1);
    file.u32("tokenizer.ggml.eos_token_id", 2);
    file
}

/// `weights.reshape(heads, 2, d / 2, columns).swapaxes(1, 2)`, as the converter does it.
fn permuted(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let pairs = rows / heads / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for pair in 0..pairs {
            for half in 0..2 {
                let row = head * 2 * pairs + half * pairs + pair;
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

fn encoded(values: &[f32], columns: usize, kind: u32) -> Vec<u8> {
    match kind {
        F32 => tiny::bytes_of(values, Dtype::F32),
        F16 => tiny::bytes_of(values, Dtype::F16),
        BF16 => tiny::bytes_of(values, Dtype::BF16),
        Q8_0 => values
            .chunks_exact(columns)
            .flat_map(|row| {
                let mut bytes = vec![0; columns / 32 * 34];
                ggml::encode(StoredType::Q8_0, row, &mut bytes);
                bytes
            })
            .collect(),
        other => panic!("no encoder for {other}"),
    }
}

/// Adds the tensors as the converter names and orders them; vectors stay f32.
pub(crate) fn add_tensors(file: &mut GgufBytes, config: &Value, tensors: &Tensors, kind: u32) {
    let is_llama = matches!(config["model_type"].as_str(), Some("llama" | "mistral"));
    for (name, (shape, values)) in tensors {
        let heads = match name.rsplit('.').nth(1) {
            Some("q_proj") if is_llama => config["num_attention_heads"].as_u64(),
            Some("k_proj") if is_llama => config["num_key_value_heads"].as_u64(),
            _ => None,
        };
        let values = match heads {
            Some(heads) => permuted(values, heads as usize, shape[0]),
            None => values.clone(),
        };
        let kind = if shape.len() == 1 { F32 } else { kind };
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        let gguf = names::to_gguf(name).unwrap();
        file.tensor(&gguf, &dimensions, kind, encoded(&values, *shape.last().unwrap(), kind));
    }
}

pub(crate) fn open(file: &GgufBytes) -> Result<LocalModel, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some-model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    open_local(&path)
}

fn whole(model_type: &str, kind: u32) -> (GgufBytes, Value, Tensors) {
    let config = tiny::config(model_type);
    let tensors = tiny::tensors(&config);
    let mut file = metadata(&config);
    add_tensors(&mut file, &config, &tensors, kind);
    (file, config, tensors)
}

/// A file with one metadata value replaced or added.
fn with(change: impl FnOnce(&mut GgufBytes)) -> GgufBytes {
    let (mut file, _, _) = whole("llama", F32);
    change(&mut file);
    file
}

fn replace(file: &mut GgufBytes, key: &str, kind: u32, value: Vec<u8>) {
    let entry = file.values.iter_mut().find(|(name, _, _)| name == key).unwrap();
    (entry.1, entry.2) = (kind, value);
}

fn values(model: &LocalModel, name: &str) -> Vec<f32> {
    match &model.weights[name] {
        Weight::Stored(tensor) => tensor.to_f32(),
        _ => panic!("{name} is not stored"),
    }
}

fn reparsed(model: &LocalModel) -> ModelConfig {
    config_json::parse(&model.config_json, Path::new("config.json")).unwrap().config
}

#[test]
fn the_same_weights_read_the_same_from_both_formats() {
    for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
        for kind in [F32, F16, BF16, Q8_0] {
            let (file, config, tensors) = whole(model_type, kind);
            let folder = tempfile::tempdir().unwrap();
            tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
            let directory = open_local(folder.path()).unwrap();
            let model = open(&file).unwrap();
            assert_eq!(model.name, "some-model");
            assert_eq!(model.weights.len(), directory.weights.len(), "{model_type}");
            for (name, (shape, plain)) in &tensors {
                let expected = if kind == Q8_0 && shape.len() == 2 {
                    let bytes = encoded(plain, shape[1], Q8_0);
                    let mut values = vec![0.0; plain.len()];
                    for (row, out) in bytes
                        .chunks_exact(shape[1] / 32 * 34)
                        .zip(values.chunks_exact_mut(shape[1]))
                    {
                        ggml::decode(StoredType::Q8_0, row, out);
                    }
                    values
                } else {
                    values(&directory, name)
                };
                assert_eq!(values(&model, name), expected, "{model_type} {name}");
            }
            // The converter calls Mistral llama; GGUF has no element type.
            let mut expected = directory.config.clone();
            if model_type == "mistral" {
                expected.family = &LLAMA;
                expected.class_name = "LlamaForCausalLM".into();
            }
            let dtype = match kind {
                F32 => "float32",
                BF16 => "bfloat16",
                _ => "float16",
            };
            expected.torch_dtype = dtype.into();
            assert_eq!(model.config, expected, "{model_type}");
            assert_eq!(reparsed(&model), expected, "{model_type}: the text of the configuration");
        }
    }
}

#[test]
fn rows_of_a_matrix_are_in_hugging_face_order_whatever_part_is_read() {
    let (file, _, tensors) = whole("llama", F16);
    let model = open(&file).unwrap();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let Weight::Stored(tensor) = &model.weights[name] else { panic!() };
    let expected = &tensors[name].1;
    for rows in [0..1, 7..9, 15..17, 60..64] {
        let mut out = vec![0.0; rows.len() * 64];
        tensor.read_rows(rows.clone(), &mut out);
        assert_eq!(out, expected[rows.start * 64..rows.end * 64], "{rows:?}");
    }
}

#[test]
fn biases_are_put_in_order() {
    let mut config = tiny::config("llama");
    config["attention_bias"] = json!(true);
    let tensors = tiny::tensors(&config);
    let mut file = metadata(&config);
    add_tensors(&mut file, &config, &tensors, F16);
    let model = open(&file).unwrap();
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        let name = format!("model.layers.1.self_attn.{name}.bias");
        assert_eq!(values(&model, &name), tensors[&name].1, "{name}");
    }
    // The configuration says that there are biases.
    let text: Value = serde_json::from_str(&model.config_json).unwrap();
    assert_eq!(text["attention_bias"], json!(true));

    // A bias on a part of the layers is not what the configuration can say.
    file.tensors.retain(|tensor| !tensor.name.ends_with("attn_output.bias"));
    assert_eq!(open(&file).unwrap_err().exit_code(), 1);
}

#[test]
fn biases_of_the_mlp_belong_to_the_model() {
    let mut config = tiny::config("llama");
    config["mlp_bias"] = json!(true);
    let tensors = tiny::tensors(&config);
    let mut file = metadata(&config);
    add_tensors(&mut file, &config, &tensors, F16);
    let model = open(&file).unwrap();
    assert_eq!(model.weights.len(), tensors.len());
    for name in ["gate_proj", "up_proj", "down_proj"] {
        let name = format!("model.layers.0.mlp.{name}.bias");
        assert_eq!(values(&model, &name), tensors[&name].1, "{name}");
    }
    let text: Value = serde_json::from_str(&model.config_json).unwrap();
    assert_eq!(text["mlp_bias"], json!(true));

    // One of the second block is missing: neither a model with such biases nor one without.
    file.tensors.retain(|tensor| tensor.name != "blk.1.ffn_up.bias");
    let error = open(&file).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("biases on a part"), "{error}");

    // The class Qwen2ForCausalLM has no place for them.
    let (mut file, _, _) = whole("qwen2", F32);
    let bias = tiny::bytes_of(&[1.0; 96], Dtype::F32);
    for block in 0..2 {
        for module in ["ffn_gate", "ffn_up"] {
            file.tensor(&format!("blk.{block}.{module}.bias"), &[96], F32, bias.clone());
        }
        let bias = tiny::bytes_of(&[1.0; 64], Dtype::F32);
        file.tensor(&format!("blk.{block}.ffn_down.bias"), &[64], F32, bias);
    }
    assert_eq!(open(&file).unwrap_err().exit_code(), 1);
}

#[test]
fn settings_that_are_not_read_are_refused_by_name() {
    for key in ["llama.logit_scale", "llama.attention.scale", "llama.final_logit_softcapping"] {
        let error = open(&with(|file| file.f32(key, 0.5))).unwrap_err();
        assert_eq!(error.type_name(), "UnsupportedModelError");
        assert!(error.to_string().contains(key), "{error}");
        assert!(open(&with(|file| file.f32(key, 0.0))).is_ok());
    }
    assert!(open(&with(|file| file.flag("llama.attention.causal", false))).is_err());
    assert!(open(&with(|file| file.flag("llama.attention.causal", true))).is_ok());
    assert!(open(&with(|file| file.u32("llama.pooling_type", 3))).is_ok());
    assert!(open(&with(|file| file.text("other.setting", "x"))).is_ok());
}

#[test]
fn a_file_without_a_head_is_tied() {
    let (mut file, _, tensors) = whole("qwen2", F16);
    file.tensors.retain(|tensor| tensor.name != "output.weight");
    let model = open(&file).unwrap();
    assert!(model.config.tie_word_embeddings && reparsed(&model).tie_word_embeddings);
    assert_eq!(model.weights.len(), tensors.len() - 1);
}

#[test]
fn rope_scalings_are_read() {
    let factors: Vec<f32> = (0..8).map(|i| 1.0 + i as f32 * 0.37).collect();
    let file = with(|file| {
        file.tensor("rope_freqs.weight", &[8], F32, tiny::bytes_of(&factors, Dtype::F32));
    });
    let model = open(&file).unwrap();
    assert_eq!(model.config.rope.scaling, RopeScaling::Factors(factors));
    assert_eq!(reparsed(&model), model.config);

    let file = with(|file| {
        file.text("llama.rope.scaling.type", "linear");
        file.f32("llama.rope.scaling.factor", 4.0);
    });
    assert_eq!(open(&file).unwrap().config.rope.scaling, RopeScaling::Linear { factor: 4.0 });

    let file = with(|file| {
        file.text("llama.rope.scaling.type", "yarn");
        file.f32("llama.rope.scaling.factor", 4.0);
        file.u32("llama.rope.scaling.original_context_length", 64);
        file.f32("llama.rope.scaling.yarn_beta_fast", 16.0);
    });
    let model = open(&file).unwrap();
    assert_eq!(
        model.config.rope.scaling,
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 16.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }
    );
    assert_eq!(reparsed(&model), model.config);

    for (length, value) in [(7usize, 1.0f32), (8, 0.0), (8, f32::NAN)] {
        let bytes = tiny::bytes_of(&vec![value; length], Dtype::F32);
        let file = with(|file| file.tensor("rope_freqs.weight", &[length as u64], F32, bytes));
        assert_eq!(open(&file).unwrap_err().exit_code(), 6, "{length} {value}");
    }
    let file = with(|file| file.text("llama.rope.scaling.type", "longrope"));
    assert_eq!(open(&file).unwrap_err().exit_code(), 1);
}

#[test]
fn other_architectures_are_refused_by_name() {
    for architecture in ["gemma4", "phimoe", "mamba", "jamba", "lightbit-llama"] {
        let mut file = GgufBytes::new();
        file.text("general.architecture", architecture);
        let error = open(&file).unwrap_err();
        assert_eq!((error.exit_code(), error.type_name()), (1, "UnsupportedModelError"));
        assert!(error.to_string().contains(architecture), "{error}");
        assert!(error.suggestion().contains("qwen3"), "{}", error.suggestion());
    }
    // Binary factors of another program, or of a later version.
    let mut file = GgufBytes::new();
    file.text("general.architecture", "littlebit-llama");
    let error = open(&file).unwrap_err();
    assert_eq!((error.exit_code(), error.type_name()), (1, "UnsupportedModelError"));
    assert!(error.to_string().contains("littlebit.version"), "{error}");
    let file = with(|file| file.u32("llama.expert_count", 8));
    assert!(open(&file).unwrap_err().to_string().contains("expert_used_count"));
    let kind = [7u64.to_le_bytes().as_slice(), b"imatrix"].concat();
    let file = with(|file| replace(file, "general.type", 8, kind));
    assert!(open(&file).unwrap_err().to_string().contains("imatrix"));
    let file = with(|file| file.u32("llama.rope.dimension_count", 8));
    assert_eq!(open(&file).unwrap_err().exit_code(), 1, "partial rotary positions");
    assert_eq!(open(&GgufBytes::new()).unwrap_err().exit_code(), 6, "no architecture");
}

#[test]
fn sizes_per_block_must_be_the_same() {
    let list = |values: &[i32]| {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    };
    let key = "llama.attention.head_count_kv";
    let file = with(|file| replace(file, key, 9, list(&[2, 2])));
    assert_eq!(open(&file).unwrap().config.num_kv_heads, 2);
    for (values, code) in [(vec![2, 1], 1), (vec![], 1), (vec![-2, -2], 6), (vec![0, 0], 6)] {
        let file = with(|file| replace(file, key, 9, list(&values)));
        assert_eq!(open(&file).unwrap_err().exit_code(), code, "{values:?}");
    }
}

#[test]
fn missing_and_wrong_metadata_is_named() {
    for key in [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let file = with(|file| file.values.retain(|(name, _, _)| name != key));
        let error = open(&file).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains(key), "{error}");

        let file = with(|file| replace(file, key, 10, 8u64.to_le_bytes().to_vec()));
        let error = open(&file).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");

        let file = with(|file| replace(file, key, 4, 0u32.to_le_bytes().to_vec()));
        assert_eq!(open(&file).unwrap_err().exit_code(), 6, "{key} 0");
    }
    for value in [u32::MAX, 1 << 20] {
        let bytes = value.to_le_bytes().to_vec();
        let file = with(|file| replace(file, "llama.block_count", 4, bytes.clone()));
        assert!(open(&file).is_err(), "{value} blocks");
        let file = with(|file| replace(file, "llama.attention.head_count", 4, bytes));
        assert!(open(&file).is_err(), "{value} heads");
    }
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_named() {
    let file = with(|file| file.tensors.retain(|tensor| tensor.name != "blk.1.ffn_up.weight"));
    let error = open(&file).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("model.layers.1.mlp.up_proj.weight"), "{error}");

    let file = with(|file| file.tensor("blk.0.ssm_a", &[4], F32, vec![0; 16]));
    let error = open(&file).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("blk.0.ssm_a"), "{error}");

    for name in ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"] {
        let file = with(|file| {
            let tensor = file.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
            tensor.dimensions = vec![tensor.dimensions[0] / 2, tensor.dimensions[1] * 2];
        });
        assert_eq!(open(&file).unwrap_err().exit_code(), 6, "{name}");
    }

    let file = with(|file| {
        let tensor = file.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_gate.weight").unwrap();
        // NVFP4: 36 bytes for 64 values.
        (tensor.kind, tensor.data) = (40, vec![0; 64 * 96 / 64 * 36]);
    });
    let error = open(&file).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    assert!(text.contains("blk.1.ffn_gate.weight") && text.contains("NVFP4"), "{text}");
}

#[test]
fn a_split_file_is_opened_from_any_part() {
    let (file, config, tensors) = whole("llama", F16);
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("tiny-0000{number}-of-00003.gguf"));
    let mut rest = file.tensors;
    for number in 1..=3u16 {
        let mut part = if number == 1 { metadata(&config) } else { GgufBytes::new() };
        part.raw("split.no", 2, (number - 1).to_le_bytes().to_vec());
        part.raw("split.count", 2, 3u16.to_le_bytes().to_vec());
        part.tensors = rest.split_off(if number == 3 { 0 } else { rest.len() - 7 });
        std::fs::write(path(usize::from(number)), part.bytes()).unwrap();
    }
    for number in 1..=3 {
        let model = open_local(&path(number)).unwrap();
        assert_eq!(model.name, "tiny");
        assert_eq!(model.weights.len(), tensors.len());
        for (name, (_, expected)) in &tensors {
            assert_eq!(&values(&model, name), expected, "{name}");
        }
    }
    std::fs::remove_file(path(2)).unwrap();
    let error = open_local(&path(1)).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("tiny-00002-of-00003.gguf"), "{error}");
}

#[test]
fn what_was_made_from_a_gguf_file_is_a_directory_that_opens() {
    let (file, _, tensors) = whole("qwen3", F32);
    let model = open(&file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), &model.config_json).unwrap();
    tiny::write_safetensors(&folder.path().join("model.safetensors"), tensors.iter(), Dtype::F32);
    assert_eq!(open_local(folder.path()).unwrap().config, model.config);
}
