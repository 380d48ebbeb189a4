//! `littlebit compress` on the tiny model, end to end, and its JSON declared again.

use serde::Deserialize;

use crate::workspace::{Workspace, compress_arguments, json, stderr, stdout, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompressionDocument {
    pub(crate) status: String,
    pub(crate) output_path: String,
    format: String,
    source_model: String,
    pub(crate) target_bpw: f64,
    pub(crate) achieved_bpw: f64,
    file_bpw: f64,
    compression_ratio: f64,
    original_size_bytes: u64,
    pub(crate) compressed_size_bytes: u64,
    pub(crate) duration_seconds: f64,
    peak_memory_bytes: u64,
    pub(crate) quality_metrics: Option<QualityDocument>,
    per_layer_summary: SummaryDocument,
    solver: SolverDocument,
    pub(crate) effort: String,
    pub(crate) recipe: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) estimated_stages: Vec<StageDocument>,
    pub(crate) recovery: Option<serde_json::Value>,
    calibration: Option<CalibrationDocument>,
    #[serde(default)]
    pub(crate) iterations: Vec<IterationDocument>,
    pub(crate) resumed_layers: usize,
    pub(crate) layers: Vec<LayerDocument>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageDocument {
    pub(crate) stage: String,
    pub(crate) seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QualityDocument {
    pub(crate) perplexity_original: f64,
    pub(crate) perplexity_compressed: f64,
    pub(crate) perplexity_delta_pct: f64,
    pub(crate) quality_passed: bool,
    pub(crate) quality_threshold_pct: f64,
    pub(crate) perplexity_original_stderr: f64,
    pub(crate) perplexity_compressed_stderr: f64,
    pub(crate) perplexity_delta_stderr_pct: f64,
    pub(crate) kl_divergence: Option<f64>,
    pub(crate) same_top_token_pct: Option<f64>,
    pub(crate) dataset: String,
    pub(crate) tokens_scored: u64,
    pub(crate) window: usize,
    pub(crate) coherence_score: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SummaryDocument {
    total_layers: usize,
    average_rank: f64,
    min_bpw: f64,
    max_bpw: f64,
    mean_relative_error: Option<f64>,
    mean_weighted_error: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SolverDocument {
    init: String,
    paths: usize,
    latent_scale: bool,
    scales: String,
    iterations: usize,
    seed: u64,
    weighting: String,
    device: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalibrationDocument {
    dataset: String,
    samples: usize,
    tokens: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IterationDocument {
    pub(crate) target_bpw: f64,
    achieved_bpw: f64,
    perplexity: f64,
    perplexity_delta_pct: f64,
    pub(crate) passed: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerDocument {
    pub(crate) name: String,
    shape: [usize; 2],
    pub(crate) rank: usize,
    paths: usize,
    pub(crate) bpw: f64,
    bytes: u64,
    compression_ratio: f64,
    relative_error: Option<f64>,
    weighted_error: Option<f64>,
    factorization_seconds: Option<f64>,
}

#[test]
fn compressing_the_tiny_model_writes_a_measured_file() {
    let workspace = Workspace::new();
    let output = workspace.compress("tiny.littlebit", &["--target-bpw", "1.0"]);
    let report: CompressionDocument = json(&output);

    assert_eq!(report.status, "success");
    assert_eq!(report.format, "littlebit");
    assert_eq!(report.source_model, "tiny");
    let size = std::fs::metadata(workspace.path("tiny.littlebit")).unwrap().len();
    assert_eq!(report.compressed_size_bytes, size, "the size is the file's");
    assert!(report.output_path.ends_with("tiny.littlebit"));
    let ratio = report.original_size_bytes as f64 / size as f64;
    assert!((report.compression_ratio - ratio).abs() < 1e-9);
    assert!((report.target_bpw - 1.0).abs() < 1e-12);
    assert!((report.achieved_bpw - 1.0).abs() < 0.01, "{}", report.achieved_bpw);
    assert!(report.duration_seconds > 0.0 && report.peak_memory_bytes > 1 << 20);

    // Bits per weight, counted again from ranks and shapes: signs, a byte for
    // each scale and four bytes in front of each of the two vectors.
    assert_eq!(report.layers.len(), 28);
    let (mut bits, mut weights) = (0, 0);
    for layer in &report.layers {
        let [m, n] = layer.shape;
        let own = layer.rank * (m + n) + 8 * (m + n) + 64;
        assert!((layer.bpw - own as f64 / (m * n) as f64).abs() < 1e-9, "{layer:?}");
        assert_eq!(layer.bytes as usize * 8, own, "{layer:?}");
        assert!((layer.compression_ratio - 16.0 / layer.bpw).abs() < 1e-6);
        assert_eq!(layer.paths, 1);
        assert!(layer.name.starts_with("model.layers."));
        let (plain, weighted) = (layer.relative_error.unwrap(), layer.weighted_error.unwrap());
        assert!(plain > 0.05 && plain < 0.7 && weighted > 0.02 && weighted < 0.7, "{layer:?}");
        assert!(layer.factorization_seconds.unwrap() > 0.0);
        bits += own;
        weights += m * n;
    }
    assert!((report.achieved_bpw - bits as f64 / weights as f64).abs() < 1e-9);
    assert!(report.file_bpw > report.achieved_bpw, "embeddings take more bits");

    let summary = &report.per_layer_summary;
    assert_eq!(summary.total_layers, 4);
    assert!(summary.min_bpw <= report.achieved_bpw && report.achieved_bpw <= summary.max_bpw);
    assert!(summary.average_rank > 8.0);
    assert!(
        summary.mean_relative_error.unwrap() > 0.0 && summary.mean_weighted_error.unwrap() > 0.0
    );
    assert_eq!(report.solver.init, "admm");
    assert_eq!((report.solver.paths, report.solver.iterations, report.solver.seed), (1, 12, 0));
    assert!(!report.solver.latent_scale);
    assert_eq!(report.solver.scales, "log8");
    assert_eq!(report.solver.weighting, "activation");
    assert_eq!(report.solver.device, "cpu");
    assert_eq!(report.effort, "none");
    assert!(report.recipe.is_none() && report.recovery.is_none());
    assert!(report.estimated_stages.is_empty(), "measured, not estimated");
    let calibration = report.calibration.unwrap();
    assert_eq!(calibration.samples, 64);
    assert!(calibration.tokens >= 64 * 64 && calibration.dataset.contains("built-in"));

    let quality = report.quality_metrics.unwrap();
    // Independent of this run: the model card states what the trainer measured.
    assert!(quality.perplexity_original > 5.0 && quality.perplexity_original < 60.0, "{quality:?}");
    assert!(quality.perplexity_compressed > quality.perplexity_original);
    let delta = (quality.perplexity_compressed / quality.perplexity_original - 1.0) * 100.0;
    assert!((quality.perplexity_delta_pct - delta).abs() < 1e-6);
    assert_eq!(quality.quality_passed, delta <= quality.quality_threshold_pct);
    assert!(quality.tokens_scored > 1500 && quality.tokens_scored <= 2048);
    assert_eq!(quality.window, 256);
    assert!(quality.perplexity_original_stderr > 0.0 && quality.perplexity_compressed_stderr > 0.0);
    assert!(quality.dataset.contains("built-in"));
    assert!(quality.perplexity_delta_stderr_pct > 0.0);
    assert!(quality.kl_divergence.is_none() && quality.same_top_token_pct.is_none());
    assert!((0.0..=1.0).contains(&quality.coherence_score.unwrap()));
    assert!(report.iterations.is_empty() && report.resumed_layers == 0);
    assert!(
        report.warnings.iter().any(|w| w.contains("expected for 1 BPW")),
        "{:?}",
        report.warnings
    );
    assert!(stderr(&output).contains("Warning:"));
}

#[test]
fn a_dry_run_states_the_exact_size_and_writes_nothing() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let base = |more: &[&'static str]| -> Vec<String> {
        compress_arguments(model.to_str().unwrap(), "m.littlebit", more)
            .into_iter()
            .map(String::from)
            .collect()
    };
    for options in [&["--target-bpw", "0.7"][..], &["--rank", "24", "--residual", "--latent-scale"]]
    {
        let run = |more: &[&'static str]| -> CompressionDocument {
            let arguments = base(&[options, more].concat());
            json(&workspace.succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        let plan = run(&["--dry-run"]);
        assert_eq!(plan.status, "planned");
        assert!(plan.quality_metrics.is_none());
        assert!(!workspace.path("m.littlebit").exists());
        let done = run(&["--skip-validation"]);
        assert_eq!(done.status, "success");
        assert_eq!(plan.compressed_size_bytes, done.compressed_size_bytes);
        assert!((plan.achieved_bpw - done.achieved_bpw).abs() < 1e-12);
        std::fs::remove_file(workspace.path("m.littlebit")).unwrap();
    }
}

#[test]
fn an_embedding_type_that_does_not_fit_is_replaced_aloud() {
    let workspace = Workspace::new();
    // Rows of 128 values fill no 256-value block.
    let report: CompressionDocument =
        json(&workspace.compress("m.littlebit", &["--dry-run", "--embedding-type", "q6_k"]));
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert!(report.warnings[0].contains("Q8_0 instead of Q6_K"), "{:?}", report.warnings);
    let report: CompressionDocument =
        json(&workspace.compress("m.littlebit", &["--dry-run", "--embedding-type", "q4_k"]));
    assert!(report.warnings[0].contains("Q5_0 instead of Q4_K"), "{:?}", report.warnings);
    // Blocks of 32 fit: 2,048 rows of four blocks, 16 bytes a block less than in Q8_0.
    let size = |embedding: &str| {
        let options = ["--dry-run", "--embedding-type", embedding];
        let report: CompressionDocument = json(&workspace.compress("m.littlebit", &options));
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        report.compressed_size_bytes
    };
    assert_eq!(size("q8_0") - size("q4_0"), 2048 * 4 * 16);
}

/// Every type of embedding is written, verified, read and computed with.
#[test]
fn embeddings_of_four_and_five_bits_work() {
    let workspace = Workspace::new();
    let perplexity = |embedding: &str| -> f64 {
        let options = ["--target-bpw", "2.0", "--embedding-type", embedding];
        let report: CompressionDocument = json(&workspace.compress("m.littlebit", &options));
        report.quality_metrics.unwrap().perplexity_compressed
    };
    let full = perplexity("f16");
    for (embedding, factor) in [("q5_1", 1.1), ("q5_0", 1.1), ("q4_1", 1.25), ("q4_0", 1.25)] {
        let quantized = perplexity(embedding);
        assert!(quantized < factor * full && quantized > full / factor, "{quantized} {full}");
    }
}

#[test]
fn more_bits_lower_the_error_and_every_solver_runs() {
    let workspace = Workspace::new();
    let error = |options: &[&str]| -> f64 {
        let report: CompressionDocument =
            json(&workspace.compress("m.littlebit", &[options, &["--skip-validation"]].concat()));
        report.per_layer_summary.mean_weighted_error.unwrap()
    };
    let admm = error(&["--target-bpw", "1.0"]);
    assert!(error(&["--target-bpw", "2.0"]) < 0.75 * admm);
    let itq = error(&["--target-bpw", "1.0", "--init", "itq"]);
    let svid = error(&["--target-bpw", "1.0", "--init", "dual-svid"]);
    assert!(admm < itq && itq < svid, "{admm} {itq} {svid}");
    assert!(error(&["--target-bpw", "1.0", "--init", "dual-svid", "--residual"]) < 1.0);
}

#[test]
fn a_threshold_raises_the_target_and_reports_every_iteration() {
    let workspace = Workspace::new();
    let threshold = "100000";
    let easy: CompressionDocument = json(
        &workspace
            .compress("easy.littlebit", &["--target-bpw", "0.6", "--quality-threshold", threshold]),
    );
    assert_eq!(easy.iterations.len(), 1, "met at once");
    let only = &easy.iterations[0];
    assert!((only.target_bpw - 0.6).abs() < 1e-12 && (only.achieved_bpw - 0.6).abs() < 0.006);
    assert!(only.perplexity > 1.0 && only.perplexity_delta_pct > 0.0);
    assert!(easy.iterations[0].passed && easy.quality_metrics.unwrap().quality_passed);

    // A threshold between what 0.6 and what 2.0 bits reach.
    let at = |bpw: &str| -> f64 {
        let report: CompressionDocument =
            json(&workspace.compress("m.littlebit", &["--target-bpw", bpw]));
        report.quality_metrics.unwrap().perplexity_delta_pct
    };
    let (low, high) = (at("0.6"), at("2.0"));
    assert!(high < low);
    let threshold = format!("{:.3}", (low * high).sqrt());
    let report: CompressionDocument = json(&workspace.compress(
        "searched.littlebit",
        &["--target-bpw", "0.6", "--quality-threshold", &threshold],
    ));
    let quality = report.quality_metrics.unwrap();
    assert!(quality.quality_passed && quality.perplexity_delta_pct <= threshold.parse().unwrap());
    assert!(
        report.iterations.len() >= 3 && !report.iterations[0].passed && report.iterations[1].passed
    );
    assert!(report.target_bpw > 0.6 && report.target_bpw < 2.0);
    let files = std::fs::read_dir(workspace.path(".")).unwrap();
    let names: Vec<String> = files
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("searched"))
        .collect();
    assert_eq!(names, ["searched.littlebit"], "no candidate is left behind");
}

#[test]
fn metadata_is_exported_apart_from_the_bits() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--export-metadata", "meta"]);
    let bytes = std::fs::read(workspace.path("meta.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let scale = tensors.tensor("model.layers.0.mlp.up_proj.paths.0.row_scale").unwrap();
    assert_eq!(scale.shape(), [384]);
    let text = std::fs::read_to_string(workspace.path("meta.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert!(text.contains("model.layers.0.mlp.up_proj") && text.contains("rank"));
}

#[test]
fn the_human_report_says_what_was_measured() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let arguments = compress_arguments(model.to_str().unwrap(), "m.littlebit", &[]);
    let output = workspace.succeed(&arguments[2..]);
    let out = stdout(&output);
    for words in ["Output:", "Achieved BPW:", "Compression Ratio:", "Perplexity", "m.littlebit"] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
    let err = stderr(&output);
    for words in [
        "[llm-quantize] LittleBit compression: tiny",
        "[llm-quantize] Target: 0.5 BPW, Format: littlebit",
        "[llm-quantize] Rank selection: AUTO",
        "[llm-quantize] Model loaded: 4 layers",
        "  Layer 0: rank=",
        "[llm-quantize] Achieved: ",
        "[llm-quantize] Quality: Perplexity ",
        "[llm-quantize] Complete: ",
    ] {
        assert!(err.contains(words), "{words} in\n{err}");
    }
}
