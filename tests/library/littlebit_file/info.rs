//! The report of `littlebit info`, against the contract's keys and layout.

use llm_quantize::base::SharedBytes;
use llm_quantize::files::littlebit::LittleBitFile;
use serde::Deserialize;

use super::samples::sample;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contract {
    file_path: String,
    format: String,
    format_version: u32,
    source_model: String,
    architecture: String,
    target_bpw: f64,
    achieved_bpw: f64,
    compression_ratio: f64,
    original_size_bytes: u64,
    compressed_size_bytes: u64,
    num_layers: u32,
    layer_stats: Ranks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the keys of the contract")]
struct Ranks {
    average_rank: u32,
    min_rank: u32,
    max_rank: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    name: String,
    shape: [u32; 2],
    rank: u32,
    paths: u32,
    scale_type: String,
    bpw: f64,
    relative_error: Option<f64>,
    weighted_error: Option<f64>,
    compression_ratio: f64,
}

fn open() -> (LittleBitFile, usize) {
    let bytes = sample(2).write();
    let size = bytes.len();
    (LittleBitFile::from_bytes("./s.littlebit", SharedBytes::from_vec(bytes)).unwrap(), size)
}

#[test]
fn json_has_exactly_the_keys_of_the_contract() {
    let (file, size) = open();
    let text = serde_json::to_string(&file.info(false).unwrap()).unwrap();
    let info: Contract = serde_json::from_str(&text).unwrap();
    assert_eq!(info.file_path, "./s.littlebit");
    assert_eq!((info.format.as_str(), info.format_version), ("littlebit", 1));
    assert_eq!(info.source_model, "org/sample");
    assert_eq!(info.architecture, "LlamaForCausalLM");
    assert_eq!((info.target_bpw, info.num_layers), (0.55, 2));
    assert_eq!((info.original_size_bytes, info.compressed_size_bytes), (123_456, size as u64));
    assert!((info.compression_ratio - 123_456.0 / size as f64).abs() <= 0.005);
    // Ranks of a block: 24, 8 (and 5), 11, 64, 16, 9, 1: mean 19.
    let ranks = info.layer_stats;
    assert_eq!((ranks.average_rank, ranks.min_rank, ranks.max_rank), (19, 1, 64));
    assert!(info.achieved_bpw > 1.0);
}

#[test]
fn layers_are_listed_on_demand() {
    let (file, _) = open();
    let mut value = serde_json::to_value(file.info(true).unwrap()).unwrap();
    let layers: Vec<Layer> = serde_json::from_value(value["layers"].take()).unwrap();
    assert_eq!(layers.len(), 14);
    let layer = &layers[1];
    assert_eq!(layer.name, "model.layers.0.self_attn.k_proj");
    assert_eq!((layer.shape, layer.rank, layer.paths), ([32, 64], 8, 2));
    // Left factors of a byte a row, right ones of 8 and 5 rows of 64 bits, a pair of f16
    // scales and one of codes.
    let bpw = f64::from(2 * 8 * 32 + (8 + 5) * 64 + 16 * 96 + (8 * 96 + 64)) / (32.0 * 64.0);
    assert_eq!(layer.scale_type, "f16");
    assert_eq!(layers[3].scale_type, "log8");
    assert!((layer.bpw - bpw).abs() < 1e-4);
    assert!((layer.compression_ratio - 16.0 / bpw).abs() < 0.01);
    assert!(layer.relative_error.is_some());
    assert!(layers.iter().any(|layer| layer.weighted_error.is_none()));
}

#[test]
fn people_read_the_layout_of_the_contract() {
    let (file, _) = open();
    let mut info = file.info(false).unwrap();
    // The figures of the contract's example.
    info.file_path = "./Llama-2-7b-hf.littlebit".into();
    info.source_model = Some("meta-llama/Llama-2-7b-hf".into());
    (info.target_bpw, info.achieved_bpw, info.compression_ratio) = (0.1, 0.11, 28.3);
    (info.original_size_bytes, info.compressed_size_bytes) = (14_495_514_624, 501_219_328);
    info.num_layers = 32;
    let ranks = info.layer_stats.as_mut().unwrap();
    (ranks.average_rank, ranks.min_rank, ranks.max_rank) = (48, 32, 64);
    ranks.min_rank_layer = "model.layers.31.mlp.down_proj".into();
    ranks.max_rank_layer = "model.layers.0.self_attn.q_proj".into();
    assert_eq!(
        info.to_string(),
        "File: ./Llama-2-7b-hf.littlebit
Format: LittleBit Native v1
Source: meta-llama/Llama-2-7b-hf
Architecture: LlamaForCausalLM

Compression:
  Target BPW: 0.1
  Achieved BPW: 0.11
  Compression Ratio: 28.3x
  Original Size: 13.5 GB
  Compressed Size: 478 MB

Layers: 32
  Average Rank: 48
  Min Rank: 32 (model.layers.31.mlp.down_proj)
  Max Rank: 64 (model.layers.0.self_attn.q_proj)
"
    );
}

#[test]
fn the_first_layer_of_the_extreme_rank_is_named() {
    let (file, _) = open();
    let text = file.info(true).unwrap().to_string();
    assert!(text.contains("Min Rank: 1 (model.layers.0.mlp.down_proj)"), "{text}");
    assert!(text.contains("Max Rank: 64 (model.layers.0.self_attn.o_proj)"), "{text}");
    let row = text.lines().find(|line| line.starts_with("model.layers.1.self_attn.k_proj"));
    assert!(row.unwrap().contains("2 x 8"), "{text}");
}
