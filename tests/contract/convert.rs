//! Top-level `convert`: every pair of gguf, gptq and awq, and what other commands make of the
//! directories.

use std::fs;
use std::path::Path;

use llm_quantize::model::open_local;
use llm_quantize::weight::Weight;
use serde::Deserialize;
use serde_json::Value;

use crate::workspace::{Workspace, fails, json, stderr, tiny_model};

/// The document of a conversion, as documented.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    status: String,
    input_path: String,
    input_format: String,
    output_path: String,
    format: String,
    quantization_level: String,
    file_size: u64,
    compression_ratio: f64,
    duration_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    validation_status: String,
    lossless: bool,
    tensors: Counts,
    layers_kept: Kept,
    relative_rms_error: f64,
    changed: Vec<Changed>,
    metadata: Metadata,
    files: Vec<File>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    exact: usize,
    rounded: usize,
    requantized: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    kept: usize,
    all: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    name: String,
    from: String,
    to: String,
    relative_rms_error: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    original_dtype: String,
    original_size: u64,
    layers_processed: usize,
    parameter_count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    bytes: u64,
    sha256: String,
}

/// Converts, and checks what holds for every conversion.
fn convert(workspace: &Workspace, input: &str, more: &[&str]) -> Document {
    let arguments = [&["--format", "json", "convert", input], more].concat();
    let document: Document = json(&workspace.succeed(&arguments));
    assert_eq!(
        (document.status.as_str(), document.validation_status.as_str()),
        ("success", "valid")
    );
    let mut total = 0;
    for file in &document.files {
        let bytes = fs::read(workspace.path(&file.path)).unwrap();
        assert_eq!(file.bytes, bytes.len() as u64, "{}", file.path);
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
        assert_eq!(file.sha256, format!("{digest:x}"), "{}", file.path);
        total += file.bytes;
    }
    assert_eq!(document.file_size, total);
    let ratio = total as f64 / document.metadata.original_size as f64;
    assert!((document.compression_ratio - ratio).abs() < 1e-9);
    assert!(document.duration_seconds > Some(0.0) && document.peak_memory_bytes > Some(0));
    let Counts { exact, rounded, requantized } = document.tensors;
    assert_eq!(exact + rounded + requantized, 38);
    assert_eq!((document.layers_kept.all, document.metadata.layers_processed), (28, 4));
    assert_eq!(document.metadata.parameter_count, 1_049_728);
    assert_eq!(document.changed.len(), rounded + requantized);
    assert_eq!(document.lossless, document.changed.is_empty());
    assert_eq!(document.relative_rms_error > 0.0, requantized > 0);
    // Nothing under a temporary name is left.
    for entry in fs::read_dir(workspace.path(".")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains(".tmp-"), "{name}");
    }
    document
}

fn quantized(workspace: &Workspace, level: &str) -> String {
    let model = tiny_model();
    let name = format!("{level}.gguf");
    let model = model.to_str().unwrap();
    workspace.succeed(&["quantize", model, "gguf", "-q", level, "-n", &name, "--no-checkpoints"]);
    name
}

/// All values of a layer, decoded.
fn values(path: &Path, name: &str) -> Vec<f32> {
    let model = open_local(path).unwrap();
    let weight: &Weight = &model.weights[name];
    let mut out = vec![0.0; weight.elements()];
    weight.read_rows(0..weight.rows(), &mut out);
    out
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What a model writes; the same weights write the same.
fn text(workspace: &Workspace, model: &str) -> Vec<u8> {
    workspace.succeed(&["generate", model, "-p", "Once upon a time", "-n", "12"]).stdout
}

/// A GGUF file becomes a GPTQ and an AWQ directory, one becomes the other, and both come back as the
/// tensors that they were: nothing is lost on the way round.
#[test]
fn simple_blocks_go_round_through_gptq_and_awq() {
    let workspace = Workspace::new();
    let gguf = quantized(&workspace, "Q4_0");
    let layer = "model.layers.2.self_attn.q_proj.weight";
    let original = values(&workspace.path(&gguf), layer);
    let written = text(&workspace, &gguf);

    let gptq = convert(&workspace, &gguf, &["gptq"]);
    assert_eq!((gptq.input_format.as_str(), gptq.format.as_str()), ("gguf", "gptq"));
    assert_eq!(gptq.quantization_level, "4bit-g32");
    assert_eq!(gptq.output_path, "./Q4_0-GPTQ-4bit-g32");
    assert_eq!((gptq.layers_kept.kept, gptq.tensors.requantized), (28, 0));
    assert!(gptq.warnings.is_empty() && gptq.input_path == gguf, "{gptq:?}");
    assert_eq!(gptq.metadata.original_dtype, "Q4_0");
    // The embedding is rounded to the type that the directory's other tensors have.
    assert_eq!(gptq.changed[0].name, "model.embed_tokens.weight");
    assert_eq!((gptq.changed[0].from.as_str(), gptq.changed[0].to.as_str()), ("Q8_0", "F16"));
    assert!(gptq.changed[0].relative_rms_error < 0.0005);
    let folder = workspace.path(&gptq.output_path);
    assert_eq!(values(&folder, layer), original);
    let config = read_json(&folder.join("config.json"));
    let quantization = &config["quantization_config"];
    assert_eq!(config["torch_dtype"], "float16");
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(
        (&quantization["quant_method"], &quantization["bits"], &quantization["group_size"]),
        (&"gptq".into(), &4.into(), &32.into())
    );
    assert_eq!((&quantization["sym"], &quantization["desc_act"]), (&true.into(), &false.into()));
    assert_eq!(read_json(&folder.join("quantize_config.json")), *quantization);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"] {
        assert!(folder.join(name).is_file(), "{name}");
    }

    let awq = convert(&workspace, &gptq.output_path, &["awq"]);
    assert!(awq.lossless && awq.format == "awq", "{awq:?}");
    assert_eq!(values(&workspace.path(&awq.output_path), layer), original);
    let config = read_json(&workspace.path(&awq.output_path).join("config.json"));
    assert_eq!(config["quantization_config"]["version"], "gemm");
    let back = convert(&workspace, &awq.output_path, &["gptq", "-n", "back"]);
    assert!(back.lossless, "{back:?}");
    // The same tensors, byte for byte.
    let shard = |path: &str| fs::read(workspace.path(path).join("model.safetensors")).unwrap();
    let (first, second) = (shard(&gptq.output_path), shard("back"));
    let first = safetensors::SafeTensors::deserialize(&first).unwrap();
    let second = safetensors::SafeTensors::deserialize(&second).unwrap();
    assert_eq!(first.len(), second.len());
    for (name, tensor) in first.tensors() {
        assert!(tensor == second.tensor(&name).unwrap(), "{name}");
    }

    for directory in [&gptq.output_path, &awq.output_path] {
        let gguf = convert(&workspace, directory, &["gguf"]);
        assert!(gguf.lossless && gguf.quantization_level == "Q4_0", "{gguf:?}");
        assert_eq!(values(&workspace.path(&gguf.output_path), layer), original);
        assert_eq!(text(&workspace, &gguf.output_path), written);
        assert_eq!(text(&workspace, directory), written);
    }
}

#[test]
fn eight_bits_are_kept_and_four_are_asked_for() {
    let workspace = Workspace::new();
    let gguf = quantized(&workspace, "Q8_0");
    let gptq = convert(&workspace, &gguf, &["gptq"]);
    assert_eq!((gptq.quantization_level.as_str(), gptq.layers_kept.kept), ("8bit-g32", 28));
    let document: Value =
        json(&workspace.succeed(&["--format", "json", "info", &gptq.output_path]));
    let types: Vec<&str> = document["tensor_types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["GPTQ 8-bit g32", "F16"]);
    assert!(
        document["runtimes"][1].as_str().unwrap().starts_with("vLLM with Marlin"),
        "{document}"
    );
    assert_eq!(document["non_finite"], Value::Array(Vec::new()));

    // Nobody can answer here.
    let question = ["--format", "json", "convert", &gptq.output_path, "awq"];
    let error = fails(&workspace, &question, 9, "CancelledError");
    assert!(error.suggestion.contains("--force"));
    assert!(!workspace.path("Q8_0-GPTQ-8bit-g32-AWQ-4bit-g32").exists());
    let awq = convert(&workspace, &gptq.output_path, &["awq", "--force"]);
    assert_eq!((awq.layers_kept.kept, awq.tensors.requantized), (0, 28));
    // 15 steps of a group's width, uniformly missed: a few percent of the values.
    assert!((0.03..0.12).contains(&awq.relative_rms_error), "{}", awq.relative_rms_error);
    let asymmetric = read_json(&workspace.path(&awq.output_path).join("config.json"));
    assert_eq!(asymmetric["quantization_config"]["zero_point"], true);
    // Zero points of any size fit Q5_0, whose steps reach from -16 to 15.
    let gguf = convert(&workspace, &awq.output_path, &["gguf"]);
    assert!(gguf.lossless, "{gguf:?}");

    // Plain numbers: F32 keeps everything, F16 is not asked about.
    let dense = convert(&workspace, &gptq.output_path, &["hf", "-q", "f32"]);
    assert!(dense.lossless && dense.format == "hf", "{dense:?}");
    let rounded = convert(&workspace, &gptq.output_path, &["hf"]);
    assert_eq!((rounded.tensors.rounded, rounded.quantization_level.as_str()), (28, "F16"));
    let config = read_json(&workspace.path(&rounded.output_path).join("config.json"));
    assert!(config.get("quantization_config").is_none());
}

#[test]
fn shards_are_written_and_read() {
    let workspace = Workspace::new();
    let gguf = quantized(&workspace, "Q4_0");
    let gptq = convert(&workspace, &gguf, &["gptq", "--max-shard-size", "300KB", "-n", "parts"]);
    let index = read_json(&workspace.path("parts/model.safetensors.index.json"));
    let shards: Vec<_> =
        gptq.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
    assert!(shards.len() >= 3, "{shards:?}");
    assert!(shards.iter().all(|shard| shard.path.contains(&format!("of-{:05}.", shards.len()))));
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), 28 * 4 + 10);
    for (name, file) in map {
        let bytes = fs::read(workspace.path("parts").join(file.as_str().unwrap())).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.tensor(name).is_ok(), "{name} in {file}");
    }
    let one = convert(&workspace, &gguf, &["gptq", "-n", "whole"]);
    let name = "model.layers.3.mlp.down_proj.weight";
    assert_eq!(
        values(&workspace.path("parts"), name),
        values(&workspace.path(&one.output_path), name)
    );
    // Again into the same directory: replaced, with no shard of before left.
    convert(&workspace, &gguf, &["gptq", "-n", "parts"]);
    let names: Vec<_> = fs::read_dir(workspace.path("parts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name.contains("-of-")), "{names:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let workspace = Workspace::new();
    let gguf = quantized(&workspace, "Q4_K_S");
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let refuse = |arguments: &[&str], code: i32, kind: &str| {
        let all = [&["--format", "json", "convert"], arguments].concat();
        fails(&workspace, &all, code, kind).message
    };
    let unsupported = "UnsupportedConversionError";
    assert!(refuse(&[tiny, "gptq"], 8, unsupported).contains("quantize"));
    assert!(refuse(&[&gguf, "gguf"], 8, unsupported).contains("already"));
    let invalid = "InvalidArgumentError";
    refuse(&[&gguf, "awq", "-q", "3bit"], 2, invalid);
    refuse(&[&gguf, "gptq", "-q", "5bit"], 2, invalid);
    refuse(&[&gguf, "gptq", "--group-size", "48"], 2, invalid);
    refuse(&[&gguf, "gptq", "--group-size", "0"], 2, invalid);
    refuse(&[&gguf, "hf", "-q", "Q4_0"], 2, invalid);
    refuse(&["nowhere.gguf", "gptq"], 3, "ModelNotFoundError");
    // Files that are not ours are never written over or mixed with ours.
    fs::create_dir(workspace.path("mine")).unwrap();
    fs::write(workspace.path("mine/notes.txt"), "keep").unwrap();
    let message = refuse(&[&gguf, "gptq", "--force", "-n", "mine"], 2, invalid);
    assert!(message.contains("notes.txt"), "{message}");
    fs::create_dir(workspace.path("theirs")).unwrap();
    for name in ["model.safetensors", "config.json"] {
        fs::copy(tiny_model().join(name), workspace.path("theirs").join(name)).unwrap();
    }
    refuse(&[&gguf, "gptq", "--force", "-n", "theirs"], 2, invalid);
    // A model is not read from and written to one place.
    fs::create_dir(workspace.path("place")).unwrap();
    fs::rename(workspace.path(&gguf), workspace.path("place/m.gguf")).unwrap();
    refuse(&["place/m.gguf", "gptq", "--force", "-n", "place"], 2, invalid);
    assert!(workspace.path("place/m.gguf").is_file());
    let plan = workspace.succeed(&["convert", "place/m.gguf", "gptq", "--dry-run"]);
    assert!(!stderr(&plan).contains("error"), "{}", stderr(&plan));
    assert!(!workspace.path("m-GPTQ-4bit-g32").exists());
}

/// Missing and contradictory parts of a packed directory are named.
#[test]
fn damaged_directories_are_named() {
    let workspace = Workspace::new();
    let gguf = quantized(&workspace, "Q4_0");
    convert(&workspace, &gguf, &["gptq", "-n", "good"]);
    let config_path = workspace.path("good/config.json");
    let text = fs::read_to_string(&config_path).unwrap();
    // Another layout than the tensors have.
    fs::write(&config_path, text.replace("\"gptq\"", "\"awq\"")).unwrap();
    let error =
        fails(&workspace, &["--format", "json", "info", "good"], 6, "ValidationFailedError");
    assert!(error.message.contains("model.layers.0"), "{}", error.message);
    fs::write(&config_path, text.replace("\"gptq\"", "\"bitsandbytes\"")).unwrap();
    let info = ["--format", "json", "info", "good"];
    let error = fails(&workspace, &info, 1, "UnsupportedModelError");
    assert!(error.message.contains("bitsandbytes"), "{}", error.message);
    // Factors are not made of integers.
    fs::write(&config_path, text).unwrap();
    let compress = ["--format", "json", "littlebit", "compress", "good"];
    let error = fails(&workspace, &compress, 1, "UnsupportedModelError");
    assert!(error.message.contains("already quantized"), "{}", error.message);
    // `quantize` reads packed directories, and says that they are quantized.
    let again = ["--format", "json", "quantize", "good", "gguf", "-q", "Q4_K_M"];
    let error = fails(&workspace, &again, 8, "UnsupportedConversionError");
    assert!(error.message.contains("GPTQ 4-bit g32"), "{}", error.message);
}
