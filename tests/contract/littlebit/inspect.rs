//! Commands that look at models: `littlebit info`, `littlebit validate`, `info`, `generate`.

use serde::Deserialize;

use super::compress::QualityDocument;
use crate::handmade::Handmade;
use crate::workspace::{Workspace, json, stdout, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDocument {
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
    num_layers: usize,
    layer_stats: LayerStats,
    effort: Option<String>,
    recipe: Option<serde_json::Value>,
    layers: Option<Vec<LayerRow>>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the contract's names")]
struct LayerStats {
    average_rank: f64,
    min_rank: usize,
    max_rank: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerRow {
    name: String,
    shape: [usize; 2],
    rank: usize,
    paths: usize,
    scale_type: String,
    bpw: f64,
    relative_error: Option<f64>,
    weighted_error: Option<f64>,
    compression_ratio: f64,
}

#[test]
fn littlebit_info_has_the_keys_of_the_contract() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "1.0"]);
    let brief: FileDocument =
        json(&workspace.succeed(&["--format", "json", "littlebit", "info", "m.littlebit"]));
    assert!(brief.warnings.iter().all(|warning| !warning.is_empty()));
    assert_eq!(brief.file_path, "m.littlebit");
    assert_eq!((brief.format.as_str(), brief.format_version), ("littlebit", 1));
    assert_eq!(
        (brief.source_model.as_str(), brief.architecture.as_str()),
        ("tiny", "LlamaForCausalLM")
    );
    assert!((brief.target_bpw - 1.0).abs() < 1e-12 && (brief.achieved_bpw - 1.0).abs() < 0.01);
    let size = std::fs::metadata(workspace.path("m.littlebit")).unwrap().len();
    assert_eq!(brief.compressed_size_bytes, size);
    let ratio = brief.original_size_bytes as f64 / size as f64;
    assert!((brief.compression_ratio - ratio).abs() < 0.06, "{} {ratio}", brief.compression_ratio);
    assert_eq!(brief.num_layers, 4);
    assert!(brief.layers.is_none());
    assert!(brief.effort.as_deref() == Some("none") && brief.recipe.is_none());

    let full: FileDocument = json(&workspace.succeed(&[
        "--format",
        "json",
        "littlebit",
        "info",
        "m.littlebit",
        "--layers",
    ]));
    let layers = full.layers.unwrap();
    assert_eq!(layers.len(), 28);
    let ranks: Vec<usize> = layers.iter().map(|l| l.rank).collect();
    assert_eq!(*ranks.iter().min().unwrap(), full.layer_stats.min_rank);
    assert_eq!(*ranks.iter().max().unwrap(), full.layer_stats.max_rank);
    let mean = ranks.iter().sum::<usize>() as f64 / 28.0;
    assert!((full.layer_stats.average_rank - mean).abs() < 0.51);
    for layer in &layers {
        assert_eq!(layer.scale_type, "log8");
        assert!(layer.name.starts_with("model.layers.") && layer.paths == 1, "{layer:?}");
        assert!(
            layer.shape[0] > 0 && layer.bpw > 0.3 && layer.compression_ratio > 1.0,
            "{layer:?}"
        );
        assert!(layer.relative_error.is_some() && layer.weighted_error.is_some());
    }
}

#[test]
fn littlebit_info_reads_as_the_contract_prints_it() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "1.0"]);
    let out = stdout(&workspace.succeed(&["littlebit", "info", "m.littlebit", "--verify"]));
    let lines = [
        "File: m.littlebit",
        "Format: LittleBit Native v1",
        "Source: tiny",
        "Architecture: LlamaForCausalLM",
        "Compression:",
        "  Target BPW: 1",
        "  Achieved BPW: ",
        "  Compression Ratio: ",
        "  Original Size: ",
        "  Compressed Size: ",
        "Layers: 4",
        "  Average Rank: ",
        "  Min Rank: ",
        "  Max Rank: ",
    ];
    for line in lines {
        assert!(out.lines().any(|l| l.starts_with(line)), "{line} in\n{out}");
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValidationDocument {
    status: String,
    original_model: String,
    compressed_model: String,
    achieved_bpw: f64,
    quality_metrics: QualityDocument,
    coherence: Option<CoherenceDocument>,
    #[serde(default)]
    benchmarks: Vec<crate::measure::quality::Benchmark>,
    verdict: String,
    duration_seconds: f64,
    peak_memory_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoherenceDocument {
    passed: bool,
    score: f64,
    threshold: f64,
    coherent_prompts: usize,
    total_prompts: usize,
}

#[test]
fn validate_measures_both_models() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "2.0"]);
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let task = "The law: The people\n1\nzebra zebra\nhave a right.\nfish fish\nblue blue\n";
    std::fs::write(workspace.path("h.txt"), task.repeat(2)).unwrap();
    let output = workspace.succeed(&[
        "--format",
        "json",
        "littlebit",
        "validate",
        model,
        "m.littlebit",
        "--calibration-samples",
        "64",
        "--coherence-test",
        "--benchmark",
        "hellaswag",
        "--benchmark-data",
        "h.txt",
    ]);
    let report: ValidationDocument = json(&output);
    assert!(report.warnings.iter().all(|warning| !warning.is_empty()));
    assert_eq!(report.status, "success");
    assert_eq!(
        (report.original_model.as_str(), report.compressed_model.as_str()),
        (model, "m.littlebit")
    );
    assert!((report.achieved_bpw - 2.0).abs() < 0.02);
    assert_eq!((report.benchmarks.len(), report.benchmarks[0].tasks), (1, 2));
    assert!(report.benchmarks[0].quantized["acc_norm"].is_f64());
    let quality = report.quality_metrics;
    assert!(
        quality.perplexity_original > 5.0
            && quality.perplexity_compressed > quality.perplexity_original
    );
    assert_eq!(quality.tokens_scored, 64 * 255);
    let same = quality.same_top_token_pct.unwrap();
    assert!(quality.kl_divergence.unwrap() > 0.0 && same > 0.0 && same < 100.0);
    let coherence = report.coherence.unwrap();
    assert!(coherence.total_prompts >= 10 && coherence.coherent_prompts <= coherence.total_prompts);
    assert_eq!(coherence.passed, coherence.score >= coherence.threshold);
    assert!(
        !report.verdict.is_empty() && report.duration_seconds > 0.0 && report.peak_memory_bytes > 0
    );

    let human = stdout(&workspace.succeed(&[
        "littlebit",
        "validate",
        model,
        "m.littlebit",
        "--calibration-samples",
        "64",
    ]));
    for line in [
        "Validation: m.littlebit vs ",
        "Quality Metrics:",
        "  Perplexity (Original): ",
        "  Perplexity (Compressed): ",
        "  Perplexity Delta: +",
        "Verdict: ",
    ] {
        assert!(human.lines().any(|l| l.starts_with(line)), "{line} in\n{human}");
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InfoDocument {
    model_name: String,
    path: String,
    format: String,
    architecture: String,
    parameter_count: u64,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    torch_dtype: String,
    size_bytes: u64,
    weight_bytes: u64,
    non_finite: Option<Vec<serde_json::Value>>,
    file_type: Option<String>,
    tensor_types: Vec<TypeRow>,
    runtimes: Vec<String>,
    tensors: Option<Vec<TensorRow>>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeRow {
    r#type: String,
    tensors: usize,
    weights: u64,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorRow {
    name: String,
    r#type: String,
    shape: Vec<usize>,
    bytes: u64,
}

/// A GGUF file that this crate has no forward pass for: its level, types and tensors are shown, and
/// a NaN is found.
#[test]
fn info_looks_into_gguf_files_of_any_architecture() {
    let workspace = Workspace::new();
    let model = Handmade { layers: 2, width: 256, broken: Some("blk.1.ffn_up.weight") };
    model.write(&workspace.path("m.gguf"));
    let bytes = std::fs::read(workspace.path("m.gguf")).unwrap();
    let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"whale");
    std::fs::write(workspace.path("other.gguf"), other).unwrap();
    let info: InfoDocument =
        json(&workspace.succeed(&["--format", "json", "info", "other.gguf", "--tensors"]));
    assert!(info.warnings.iter().all(|warning| !warning.is_empty()));
    assert_eq!((info.architecture.as_str(), info.format.as_str()), ("whale", "gguf"));
    assert!(info.file_type.is_none() && info.runtimes[0].starts_with("llama.cpp"));
    let found = info.non_finite.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["tensor"], "blk.1.ffn_up.weight");
    assert_eq!(found[0]["first_index"], 0);
    let tensors = info.tensors.unwrap();
    assert_eq!(tensors.len(), 2 + 2 * 9);
    let up = tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_up.weight").unwrap();
    assert_eq!((up.r#type.as_str(), up.bytes), ("F16", 512 * 256 * 2));
    assert_eq!(up.shape, [512, 256]);
    assert_eq!(info.tensor_types.len(), 2);
    let halves = &info.tensor_types[0];
    assert_eq!((halves.r#type.as_str(), halves.tensors), ("F16", 1 + 2 * 7));
    assert_eq!(halves.bytes, halves.weights * 2);
    let text = stdout(&workspace.succeed(&["info", "other.gguf", "--skip-scan"]));
    assert!(text.contains("Types:") && text.contains("Runs in:"), "{text}");
}

#[test]
fn info_describes_directories_and_littlebit_files() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let source: InfoDocument =
        json(&workspace.succeed(&["--format", "json", "info", model.to_str().unwrap()]));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    assert_eq!(source.model_name, "tiny");
    assert_eq!(source.hidden_size as u64, config["hidden_size"].as_u64().unwrap());
    assert_eq!(source.vocab_size as u64, config["vocab_size"].as_u64().unwrap());
    assert_eq!((source.num_layers, source.num_heads, source.num_key_value_heads), (4, 4, 2));
    assert_eq!((source.format.as_str(), source.torch_dtype.as_str()), ("huggingface", "float16"));
    assert_eq!(source.architecture, "LlamaForCausalLM");
    assert_eq!(source.max_position_embeddings, 256);
    assert!(source.path.ends_with("tiny") && source.non_finite.unwrap().is_empty());
    // The file holds two bytes per parameter and a header.
    let file = std::fs::metadata(model.join("model.safetensors")).unwrap().len();
    assert_eq!((source.weight_bytes, source.size_bytes), (2 * source.parameter_count, file));

    workspace.compress("m.littlebit", &["--skip-validation"]);
    let compressed: InfoDocument =
        json(&workspace.succeed(&["--format", "json", "info", "m.littlebit", "--skip-scan"]));
    assert_eq!(compressed.format, "littlebit");
    assert_eq!(compressed.parameter_count, source.parameter_count);
    assert!(compressed.size_bytes < source.size_bytes / 2 && compressed.non_finite.is_none());
    let file = std::fs::metadata(workspace.path("m.littlebit")).unwrap().len();
    assert_eq!(compressed.size_bytes, file);
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateDocument {
    status: String,
    model: String,
    prompt: String,
    text: String,
    prompt_tokens: usize,
    generated_tokens: usize,
    stop_reason: String,
    prompt_tokens_per_second: f64,
    generated_tokens_per_second: f64,
    load_seconds: f64,
    resident_memory_bytes: Option<u64>,
    kv_cache_bytes: u64,
    peak_memory_bytes: u64,
    warnings: Vec<String>,
}

#[test]
fn generate_runs_originals_and_compressed_files() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "2.0"]);
    let tiny = tiny_model();
    for model in [tiny.to_str().unwrap(), "m.littlebit"] {
        let prompt = "The people of the United States";
        let arguments = ["generate", model, "--prompt", prompt, "--max-tokens", "24"];
        let human = stdout(&workspace.succeed(&arguments));
        let again: GenerateDocument =
            json(&workspace.succeed(&[&["--format", "json"], &arguments[..]].concat()));
        assert!(again.warnings.iter().all(|warning| !warning.is_empty()));
        assert_eq!(again.text.trim(), human.trim(), "greedy text is the same in both formats");
        assert_eq!((again.status.as_str(), again.prompt.as_str()), ("success", prompt));
        assert!(
            again.generated_tokens > 0 && again.generated_tokens <= 24 && again.prompt_tokens > 3
        );
        assert!(!again.stop_reason.is_empty() && !again.model.is_empty());
        assert!(again.prompt_tokens_per_second > 0.0 && again.generated_tokens_per_second > 0.0);
        assert!(again.load_seconds > 0.0 && again.peak_memory_bytes > 0);
        assert_eq!(again.resident_memory_bytes.is_some(), cfg!(target_os = "linux"));
        if let Some(resident) = again.resident_memory_bytes {
            // The promise of the documentation, with the file mapped whole.
            let file = if model.ends_with(".littlebit") {
                std::fs::metadata(workspace.path(model)).unwrap().len()
            } else {
                std::fs::metadata(tiny.join("model.safetensors")).unwrap().len()
            };
            assert!(resident < file + again.kv_cache_bytes + (64 << 20), "{again:?}");
        }

        let sample = |seed: &str| {
            let more = ["--temperature", "1.2", "--top-p", "0.95", "--seed", seed];
            stdout(&workspace.succeed(&[&arguments[..], &more].concat()))
        };
        assert_eq!(sample("1"), sample("1"));
        assert_ne!(sample("1"), sample("2"));
    }
}
