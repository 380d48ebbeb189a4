//! `quality report`, `quality compare`, and what `quantize` and `littlebit validate` measure.

use serde::Deserialize;

use crate::workspace::{Workspace, check_failure, fails, json, stderr, stdout, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportDocument {
    status: String,
    original_model: String,
    quantized_model: String,
    metrics: Metrics,
    divergence: Divergence,
    measured_on: MeasuredOn,
    layer_errors: Vec<LayerError>,
    block_errors: Vec<BlockError>,
    coherence_score: Option<f64>,
    coherence: Option<Coherence>,
    super_weight_coverage: Option<f64>,
    benchmarks: Vec<Benchmark>,
    warnings: Vec<String>,
    timestamp: String,
    duration_seconds: f64,
    peak_memory_bytes: u64,
    tool_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    perplexity_original: f64,
    perplexity_original_stderr: f64,
    perplexity_quantized: f64,
    perplexity_quantized_stderr: f64,
    perplexity_delta_pct: f64,
    perplexity_delta_stderr_pct: f64,
    perplexity_ln_ratio: f64,
    perplexity_ln_ratio_stderr: f64,
    correlation: f64,
    quality_passed: bool,
    quality_threshold_pct: f64,
    effective_bpw: f64,
    compression_ratio: f64,
    original_size_bytes: u64,
    quantized_size_bytes: u64,
    parameter_count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the report's names")]
struct Divergence {
    kl_divergence: Distribution,
    kl_histogram: Vec<Bin>,
    probability_change: Distribution,
    probability_change_rms: f64,
    probability_change_rms_stderr: f64,
    same_top_token_pct: f64,
    same_top_token_stderr_pct: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Distribution {
    mean: f64,
    stderr: f64,
    min: f64,
    p0_1: f64,
    p1: f64,
    p5: f64,
    p10: f64,
    median: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Distribution {
    fn check(&self) {
        let rising = [
            self.min,
            self.p0_1,
            self.p1,
            self.p5,
            self.p10,
            self.median,
            self.p90,
            self.p95,
            self.p99,
            self.p99_9,
            self.max,
        ];
        assert!(rising.windows(2).all(|pair| pair[0] <= pair[1]), "{self:?}");
        assert!(self.stderr > 0.0 && self.mean > self.min && self.mean < self.max, "{self:?}");
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bin {
    from: f64,
    to: f64,
    tokens: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasuredOn {
    dataset: String,
    protocol: String,
    windows: usize,
    windows_available: usize,
    window: usize,
    tokens_scored: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerError {
    layer_name: String,
    mse: f64,
    max_error: f64,
    relative_error: f64,
    bit_width: f64,
    parameter_count: u64,
    #[serde(default)]
    rescaled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockError {
    layer_name: String,
    relative_error: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Coherence {
    passed: bool,
    threshold: f64,
    coherent_prompts: usize,
    total_prompts: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the report's names")]
pub(crate) struct Benchmark {
    pub(crate) benchmark: String,
    pub(crate) dataset: String,
    pub(crate) tasks: usize,
    pub(crate) available: usize,
    pub(crate) original: serde_json::Value,
    pub(crate) quantized: serde_json::Value,
    pub(crate) same_answer_pct: Option<f64>,
    pub(crate) acc_norm_change_pct: Option<f64>,
    pub(crate) acc_norm_change_stderr_pct: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareDocument {
    status: String,
    original_model: String,
    metrics: Vec<String>,
    perplexity_original: Option<f64>,
    perplexity_original_stderr: Option<f64>,
    original_size_bytes: u64,
    parameter_count: u64,
    results: Vec<Compared>,
    measured_on: Option<MeasuredOn>,
    timestamp: String,
    duration_seconds: f64,
    peak_memory_bytes: u64,
    tool_version: String,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compared {
    quantized_model: String,
    perplexity: Option<f64>,
    perplexity_stderr: Option<f64>,
    perplexity_delta_pct: Option<f64>,
    perplexity_delta_stderr_pct: Option<f64>,
    divergence: Option<Divergence>,
    on_frontier: Option<bool>,
    size_bytes: Option<u64>,
    compression_ratio: Option<f64>,
    effective_bpw: Option<f64>,
    #[serde(default)]
    layer_errors: Vec<LayerError>,
}

fn model() -> String {
    tiny_model().to_str().unwrap().to_owned()
}

/// The tiny model at a level, as `LEVEL.gguf`.
fn quantize(workspace: &Workspace, level: &str) {
    workspace.succeed(&["quantize", &model(), "gguf", "-q", level, "-n", level]);
}

#[test]
fn a_report_has_the_keys_of_the_contract() {
    let workspace = Workspace::new();
    quantize(&workspace, "Q4_0");
    let output = workspace.succeed(&[
        "quality",
        "report",
        &model(),
        "Q4_0.gguf",
        "--calibration-samples",
        "8",
        "--include-layers",
        "--format",
        "json",
        "-o",
        "r.qreport",
        "-o",
        "r.html",
    ]);
    let report: ReportDocument = json(&output);
    assert_eq!(report.status, "success");
    assert_eq!((report.original_model, report.quantized_model.as_str()), (model(), "Q4_0.gguf"));
    let m = &report.metrics;
    let ratio = m.perplexity_quantized / m.perplexity_original;
    assert!((m.perplexity_delta_pct - (ratio - 1.0) * 100.0).abs() < 1e-6);
    assert!(
        (m.perplexity_ln_ratio - ratio.ln()).abs() < 1e-9 && m.perplexity_ln_ratio_stderr > 0.0
    );
    assert!(m.perplexity_original_stderr > 0.0 && m.perplexity_quantized_stderr > 0.0);
    assert!(m.perplexity_delta_stderr_pct > 0.0 && m.correlation > 0.9 && m.correlation < 1.0);
    assert!(m.quality_passed && (m.quality_threshold_pct - 20.0).abs() < 1e-12);
    let bytes = std::fs::metadata(workspace.path("Q4_0.gguf")).unwrap().len();
    assert_eq!(m.quantized_size_bytes, bytes);
    assert_eq!((m.original_size_bytes, m.parameter_count), (2_099_456, 1_049_728));
    assert!((m.effective_bpw - bytes as f64 * 8.0 / 1_049_728.0).abs() < 1e-9);
    assert!((m.compression_ratio - bytes as f64 / 2_099_456.0).abs() < 1e-9);

    let d = &report.divergence;
    d.kl_divergence.check();
    d.probability_change.check();
    assert!(d.probability_change_rms > 0.0 && d.probability_change_rms_stderr > 0.0);
    assert!(d.same_top_token_pct > 50.0 && d.same_top_token_pct < 100.0);
    assert!(d.same_top_token_stderr_pct > 0.0);
    let on = &report.measured_on;
    assert_eq!((on.protocol.as_str(), on.windows, on.window), ("llama-perplexity", 8, 256));
    assert!(on.dataset.contains("built-in") && on.windows_available > 8);
    // The second half of each window, less the token in the middle, which nothing predicts from.
    assert_eq!(on.tokens_scored, 8 * 127);
    assert_eq!(d.kl_histogram.iter().map(|bin| bin.tokens).sum::<u64>(), on.tokens_scored);
    assert!(d.kl_histogram.iter().all(|bin| bin.from < bin.to));

    let names: Vec<&str> = report.layer_errors.iter().map(|l| l.layer_name.as_str()).collect();
    assert_eq!(names[..2], ["model.embed_tokens", "model.layers.0.self_attn"]);
    assert_eq!(names.len(), 9);
    let layer = &report.layer_errors[1];
    assert!((layer.bit_width - 4.5).abs() < 1e-9 && layer.parameter_count == 49_152);
    assert!(layer.mse > 0.0 && layer.max_error > 0.0 && layer.relative_error < 0.02);
    assert!(!layer.rescaled);
    let blocks: Vec<&str> = report.block_errors.iter().map(|b| b.layer_name.as_str()).collect();
    assert!(!d.kl_histogram.is_empty());
    assert_eq!(blocks.last(), Some(&"model.layers.3"));
    assert!(report.block_errors.iter().all(|b| b.relative_error > 0.0));
    assert!(report.coherence_score.is_some_and(|score| score > 0.5));
    let coherence = report.coherence.unwrap();
    assert!(coherence.passed && coherence.coherent_prompts <= coherence.total_prompts);
    assert!((coherence.threshold - 0.5).abs() < 1e-12);
    assert!(report.super_weight_coverage.is_none() && report.benchmarks.is_empty());
    assert!(report.warnings.is_empty() && report.duration_seconds > 0.0);
    assert!(report.peak_memory_bytes > 0 && !report.tool_version.is_empty());
    let time = report.timestamp.as_bytes();
    assert!(time.len() == 20 && time[10] == b'T' && time[19] == b'Z', "{}", report.timestamp);

    let written = std::fs::read_to_string(workspace.path("r.qreport")).unwrap();
    let _: ReportDocument = serde_json::from_str(&written).unwrap();
    check_page(&std::fs::read_to_string(workspace.path("r.html")).unwrap(), 2);
}

/// One file: nothing from elsewhere, no scripts, and every picture with axes, units and a legend.
fn check_page(page: &str, figures: usize) {
    for outside in ["http:", "https:", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert!(page.starts_with("<!doctype html>") && page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("@media print") && page.contains("width=device-width"));
    assert_eq!(page.matches("<figure>").count(), figures);
    for figure in page.split("<figure>").skip(1) {
        let figure = figure.split("</figure>").next().unwrap();
        assert!(figure.contains("class=\"wide\"") && figure.contains("class=\"narrow\""));
        assert!(figure.contains("<figcaption>") && figure.contains("class=\"legend\""));
        assert!(figure.matches("class=\"label\"").count() >= 4, "names of the axes");
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
    }
    for name in ["main", "svg", "table", "div", "ul", "li", "p"] {
        let opened =
            page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

#[test]
fn models_are_compared_in_every_format() {
    let workspace = Workspace::new();
    for level in ["Q4_0", "Q8_0"] {
        quantize(&workspace, level);
    }
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "1.0"]);
    workspace.succeed(&["littlebit", "convert", "m.littlebit", "gguf-ext", "-n", "m-ext.gguf"]);
    let model = model();
    let files = ["Q4_0.gguf", "Q8_0.gguf", "m.littlebit", "m-ext.gguf"];
    let base = [&["quality", "compare", &model], &files[..]].concat();
    let samples = ["--calibration-samples", "4"];
    let document: CompareDocument = json(&workspace.succeed(
        &[&base[..], &samples, &["--format", "json", "-o", "c.html", "-o", "c.csv"]].concat(),
    ));
    assert_eq!((document.status.as_str(), &document.original_model), ("success", &model));
    assert_eq!(document.metrics, ["perplexity", "size", "bpw"]);
    assert!(
        document.perplexity_original.is_some() && document.perplexity_original_stderr.is_some()
    );
    assert_eq!((document.original_size_bytes, document.parameter_count), (2_099_456, 1_049_728));
    assert_eq!(document.measured_on.unwrap().windows, 4);
    assert!(document.timestamp.ends_with('Z') && document.duration_seconds > 0.0);
    assert!(document.peak_memory_bytes > 0 && !document.tool_version.is_empty());
    assert_eq!(document.results.len(), 4);
    for (result, file) in document.results.iter().zip(files) {
        assert_eq!(result.quantized_model, file);
        assert!(result.perplexity.is_some() && result.perplexity_stderr.is_some());
        assert!(result.perplexity_delta_pct.is_some());
        assert!(result.perplexity_delta_stderr_pct.is_some_and(|error| error > 0.0));
        let bytes = std::fs::metadata(workspace.path(file)).unwrap().len();
        assert_eq!(result.size_bytes, Some(bytes));
        assert!((result.compression_ratio.unwrap() - bytes as f64 / 2_099_456.0).abs() < 1e-9);
        assert!((result.effective_bpw.unwrap() - bytes as f64 * 8.0 / 1_049_728.0).abs() < 1e-9);
        assert!(result.layer_errors.is_empty());
        result.divergence.as_ref().unwrap().kl_divergence.check();
    }
    let mean =
        |index: usize| document.results[index].divergence.as_ref().unwrap().kl_divergence.mean;
    assert!(mean(1) < mean(0) && mean(0) < mean(2), "8 bits, 4 bits, 1 bit");
    // The same factors in another container.
    assert!((mean(2) - mean(3)).abs() < 1e-9);
    assert_eq!(document.results[0].on_frontier, Some(true));

    let table = stdout(&workspace.succeed(&[&base[..], &samples, &["--format", "csv"]].concat()));
    assert_eq!(table, std::fs::read_to_string(workspace.path("c.csv")).unwrap());
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
    assert_eq!(lines[0][..3], ["model", "size_bytes", "compression_ratio"]);
    assert_eq!(lines[2][0], "Q4_0.gguf");
    check_page(&std::fs::read_to_string(workspace.path("c.html")).unwrap(), 2);

    let human = stdout(&workspace.succeed(&[&base[..], &samples].concat()));
    for text in ["Perplexity", "KL divergence", "Q8_0.gguf", "original"] {
        assert!(human.contains(text), "{human}");
    }
    // Sizes alone run no model, so no text is looked for.
    let sizes =
        workspace.succeed(&[&["--format", "json"], &base[..], &["--metrics", "size,bpw"]].concat());
    let sizes: CompareDocument = json(&sizes);
    assert!(sizes.warnings.iter().all(|warning| !warning.is_empty()));
    assert_eq!(sizes.metrics, ["size", "bpw"]);
    assert!(sizes.measured_on.is_none() && sizes.perplexity_original.is_none());
    assert!(sizes.results.iter().all(|r| r.perplexity.is_none() && r.size_bytes.is_some()));
    let bits = ["--metrics", "bpw", "--format", "csv"];
    let bits = stdout(&workspace.succeed(&[&base[..], &bits].concat()));
    assert_eq!(bits.lines().next(), Some("model,effective_bpw"));
}

#[test]
fn what_cannot_be_measured_is_refused_first() {
    let workspace = Workspace::new();
    quantize(&workspace, "Q8_0");
    let model = model();
    let report = |more: &[&str], code: i32, kind: &str| {
        let base = ["quality", "report", &model, "Q8_0.gguf", "--format", "json"];
        fails(&workspace, &[&base[..], more].concat(), code, kind)
    };
    report(&["-o", "r.pdf"], 2, "InvalidArgumentError");
    report(&["-o", "r.csv"], 2, "InvalidArgumentError");
    report(&["-o", "missing/r.html"], 1, "IoError");
    report(&["--calibration-samples", "0"], 2, "InvalidArgumentError");
    report(&["--quality-threshold", "-1"], 2, "InvalidArgumentError");
    report(&["--calibration-data", "missing.txt"], 15, "CalibrationDataError");
    let error = report(&["--benchmark", "arc"], 3, "ModelNotFoundError");
    assert!(error.suggestion.contains("--benchmark-data"), "{error:?}");
    report(&["--benchmark", "hellaswag", "--benchmark-data", "none"], 3, "ModelNotFoundError");
    let two = ["--benchmark", "hellaswag", "--benchmark", "arc", "--benchmark-data", "x.jsonl"];
    report(&two, 2, "InvalidArgumentError");
    let compare = ["--format", "json", "quality", "compare", &model, "Q8_0.gguf"];
    let metrics = [&compare[..], &["--metrics", "speed"]].concat();
    fails(&workspace, &metrics, 2, "InvalidArgumentError");
    fails(&workspace, &compare[..5], 2, "InvalidArgumentError");
    crate::handmade::Handmade { layers: 2, width: 64, broken: None }
        .write(&workspace.path("other.gguf"));
    let error = fails(
        &workspace,
        &["quality", "report", &model, "other.gguf", "--format", "json"],
        2,
        "InvalidArgumentError",
    );
    assert!(error.message.contains("hidden size"), "{error:?}");
}

/// HellaSwag in llama.cpp's form and as records, ARC, and text.
#[test]
fn benchmarks_are_scored_on_local_data() {
    let workspace = Workspace::new();
    quantize(&workspace, "Q4_0");
    let task = "The law: The people\n1\nzebra zebra\nhave a right.\nfish fish\nblue blue\n";
    std::fs::write(workspace.path("h.txt"), task.repeat(3)).unwrap();
    let record = r#"{"query":"Question: What is a law?","choices":["A rule","A fish"],"gold":0}"#;
    std::fs::write(workspace.path("a.jsonl"), format!("{record}\n{record}\n")).unwrap();
    std::fs::write(
        workspace.path("t.raw"),
        "The people of this country have a right. ".repeat(200),
    )
    .unwrap();
    let model = model();
    let run = |more: &[&str]| {
        let base = ["quality", "report", &model, "Q4_0.gguf", "--format", "json"];
        let quick = ["--calibration-samples", "2", "--skip-coherence"];
        let report: ReportDocument = json(&workspace.succeed(&[&base[..], &quick, more].concat()));
        assert!(report.coherence.is_none() && report.coherence_score.is_none());
        assert!(report.layer_errors.is_empty() && report.block_errors.is_empty());
        report.benchmarks.into_iter().next().unwrap()
    };
    let limit = ["--benchmark-tasks", "2"];
    let hellaswag =
        run(&[&["--benchmark", "hellaswag", "--benchmark-data", "h.txt"], &limit[..]].concat());
    assert_eq!((hellaswag.benchmark.as_str(), hellaswag.dataset.as_str()), ("hellaswag", "h.txt"));
    assert_eq!((hellaswag.tasks, hellaswag.available), (2, 3));
    for scores in [&hellaswag.original, &hellaswag.quantized] {
        let mut keys: Vec<&str> = scores.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "acc",
            "acc_bytes",
            "acc_bytes_stderr",
            "acc_norm",
            "acc_norm_stderr",
            "acc_stderr",
            "llama_cpp_score",
            "llama_cpp_score_stderr",
            "truncated",
        ];
        assert_eq!(keys, expected);
    }
    assert!(hellaswag.same_answer_pct.is_some() && hellaswag.acc_norm_change_pct.is_some());
    assert!(hellaswag.acc_norm_change_stderr_pct.is_some());
    // The same question twice has one answer.
    let acc = hellaswag.original["acc_norm"].as_f64().unwrap();
    assert!(acc.abs() < 1e-12 || (acc - 1.0).abs() < 1e-12, "{acc}");
    let arc = run(&["--benchmark", "arc", "--benchmark-data", "a.jsonl"]);
    assert_eq!((arc.benchmark.as_str(), arc.tasks), ("arc", 2));
    let text = run(&["--benchmark", "wikitext", "--benchmark-data", "t.raw"]);
    assert!(text.original["perplexity"].as_f64().unwrap() > 1.0);
    assert!(text.quantized["perplexity_stderr"].as_f64().unwrap() > 0.0);
    assert!(text.same_answer_pct.is_none() && text.tasks == text.available);
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Summary {
    perplexity_original: f64,
    perplexity_quantized: f64,
    perplexity_delta_pct: f64,
    perplexity_original_stderr: f64,
    perplexity_quantized_stderr: f64,
    perplexity_delta_stderr_pct: f64,
    kl_divergence: f64,
    kl_divergence_stderr: f64,
    same_top_token_pct: f64,
    quality_passed: bool,
    quality_threshold_pct: f64,
    dataset: String,
    tokens_scored: u64,
    window: usize,
}

#[test]
fn quantize_measures_what_it_wrote() {
    let workspace = Workspace::new();
    let model = model();
    let base = ["--format", "json", "quantize", &model, "gguf", "-q", "Q4_0"];
    let samples = ["--quality-report", "--calibration-samples", "4"];
    let output = workspace.succeed(&[&base[..], &samples, &["--coherence-check"]].concat());
    let document: serde_json::Value = json(&output);
    assert_eq!(document["status"], "success");
    assert!(document["coherence_score"].as_f64().unwrap() > 0.5);
    assert_eq!(document["coherence"]["passed"], true);
    let report: Summary = serde_json::from_value(document["quality_report"].clone()).unwrap();
    let ratio = report.perplexity_quantized / report.perplexity_original;
    assert!((report.perplexity_delta_pct - (ratio - 1.0) * 100.0).abs() < 1e-6);
    assert!(report.perplexity_original_stderr > 0.0 && report.perplexity_quantized_stderr > 0.0);
    assert!(report.perplexity_delta_stderr_pct > 0.0 && report.kl_divergence > 0.0);
    assert!(report.kl_divergence_stderr > 0.0 && report.same_top_token_pct > 50.0);
    assert!(report.quality_passed && (report.quality_threshold_pct - 20.0).abs() < 1e-12);
    assert!(report.dataset.contains("built-in"));
    assert_eq!((report.tokens_scored, report.window), (4 * 127, 256));
    let log = stderr(&output);
    assert!(log.contains("Computing quality metrics...") && log.contains("Perplexity: "), "{log}");

    // A threshold that the user demands is an error; that of the environment a warning.
    let demanded = [&base[..], &samples, &["--quality-threshold", "0.001"]].concat();
    let error = fails(&workspace, &demanded, 11, "QualityDegradationError");
    let result = error.result.unwrap();
    assert_eq!(result["quality_report"]["quality_passed"], false);
    assert_eq!(result["validation_status"], "valid");
    let warned = workspace
        .command(&[&base[..], &samples].concat())
        .env("LLM_QUANTIZE_QUALITY_THRESHOLD", "0.001")
        .output()
        .unwrap();
    assert!(warned.status.success() && stderr(&warned).contains("exceeds threshold"));
    let incoherent = workspace
        .command(&[&base[..], &["--coherence-check"]].concat())
        .env("LLM_QUANTIZE_COHERENCE_THRESHOLD", "1")
        .output()
        .unwrap();
    let error = check_failure(&incoherent, 12, "CoherenceCheckFailed");
    assert_eq!(error.result.unwrap()["coherence"]["passed"], false);
    let alone = [&base[..], &["--quality-threshold", "5"]].concat();
    fails(&workspace, &alone, 2, "InvalidArgumentError");
    let missing = [&base[..], &["--quality-report", "--calibration-data", "none.txt"]].concat();
    fails(&workspace, &missing, 15, "CalibrationDataError");
}

#[test]
fn a_report_worse_than_demanded_fails_with_the_whole_result() {
    let workspace = Workspace::new();
    quantize(&workspace, "Q4_0");
    let model = model();
    let error = fails(
        &workspace,
        &[
            "--format",
            "json",
            "quality",
            "report",
            &model,
            "Q4_0.gguf",
            "--calibration-samples",
            "4",
            "--skip-coherence",
            "--quality-threshold",
            "0.001",
            "-o",
            "r.qreport",
        ],
        11,
        "QualityDegradationError",
    );
    assert!(error.message.contains("exceeds threshold (0.001%)"), "{error:?}");
    let result: ReportDocument = serde_json::from_value(error.result.unwrap()).unwrap();
    assert!(!result.metrics.quality_passed && !result.warnings.is_empty());
    assert!(workspace.path("r.qreport").exists());
}
