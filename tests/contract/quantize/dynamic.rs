//! `quantize MODEL gguf -q dynamic`.

use serde::Deserialize;
use serde_json::json as value;

use llm_quantize::files::gguf::GgufFile;

use crate::workspace::{Workspace, fails, json, stderr, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    status: String,
    output_path: String,
    format: String,
    profile: String,
    layer_summary: Vec<Layer>,
    effective_bpw: f64,
    tensor_bpw: f64,
    expected_loss: f64,
    sensitivity: String,
    super_weights: Option<SuperWeights>,
    quality_report: Option<Quality>,
    compression_ratio: f64,
    file_size: u64,
    // The keys of every quantization; `quantize` tests them.
    quantization_level: String,
    duration_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    validation_status: String,
    metadata: serde_json::Value,
    bits_per_weight: f64,
    sha256: Option<String>,
    files: serde_json::Value,
    tensor_types: serde_json::Value,
    #[serde(default)]
    tensors: serde_json::Value,
    imatrix: Option<serde_json::Value>,
    resumed_tensors: usize,
    resumed_layers: usize,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are the contract's")]
struct Layer {
    layer_name: String,
    bit_width: f64,
    parameter_count: u64,
    is_protected: bool,
}

/// The keys of the contract; the tests of `quality` have the others.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "these are the keys of the contract")]
struct Quality {
    perplexity_original: f64,
    perplexity_quantized: f64,
    perplexity_delta_pct: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuperWeights {
    coverage: f64,
    found: u64,
    total_protected: u64,
    mask: Option<String>,
    tensors: Vec<Protected>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are the document's")]
struct Protected {
    name: String,
    r#type: String,
    protected: u64,
    output_share: f64,
}

#[test]
fn the_contract_s_command_gives_the_contract_s_document() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let output = workspace.succeed(&[
        "--format",
        "json",
        "quantize",
        tiny.to_str().unwrap(),
        "gguf",
        "-q",
        "dynamic",
        "--profile",
        "balanced",
    ]);
    let document: Document = json(&output);
    assert_eq!(
        (document.status.as_str(), document.format.as_str(), document.profile.as_str()),
        ("success", "gguf", "balanced")
    );
    assert!(document.output_path.ends_with("tiny-dynamic.gguf"));
    assert_eq!(
        (document.sensitivity.as_str(), document.quantization_level.as_str()),
        ("estimated", "dynamic")
    );
    assert!(document.super_weights.is_none() && document.imatrix.is_none());
    assert!(document.quality_report.is_none());
    assert_eq!((document.validation_status.as_str(), document.resumed_tensors), ("valid", 0));
    assert_eq!(document.resumed_layers, 0);
    assert!(document.duration_seconds > Some(0.0) && document.peak_memory_bytes > Some(0));
    assert!(document.sha256.is_some() && document.files[0]["bytes"] == document.file_size);
    assert!(document.tensors.is_null() && document.tensor_types.is_array());

    // Everything that is said of the file, from the file.
    let path = workspace.path("tiny-dynamic.gguf");
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), document.file_size);
    let sizes = |prefix: &str| {
        let (mut bytes, mut weights) = (0usize, 0usize);
        for name in file.tensors.keys().filter(|name| name.starts_with(prefix)) {
            let tensor = file.tensor(name).unwrap().unwrap();
            bytes += tensor.bytes.len();
            weights += tensor.elements();
        }
        (bytes as f64 * 8.0 / weights as f64, weights as u64)
    };
    let (bits, weights) = sizes("");
    assert!((document.tensor_bpw - bits).abs() < 1e-9 && bits <= 3.5 && bits > 2.5, "{bits}");
    let whole = document.file_size as f64 * 8.0 / weights as f64;
    assert!((document.effective_bpw - whole).abs() < 1e-9, "{whole}");
    assert!((document.bits_per_weight - whole).abs() < 1e-9 && whole > bits, "{whole}");
    assert_eq!(document.metadata["parameter_count"], weights);
    let names: Vec<&str> = document.layer_summary.iter().map(|l| l.layer_name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.norm",
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1",
            "model.layers.2",
            "model.layers.3"
        ]
    );
    for (layer, prefix) in document.layer_summary[1..].iter().zip([
        "token_embd",
        "blk.0.",
        "blk.1.",
        "blk.2.",
        "blk.3.",
    ]) {
        let (bits, weights) = sizes(prefix);
        assert_eq!(layer.parameter_count, weights);
        assert!((layer.bit_width - bits).abs() < 1e-9 && !layer.is_protected, "{layer:?}");
    }
    let ratio = document.file_size as f64 / document.metadata["original_size"].as_f64().unwrap();
    assert!((document.compression_ratio - ratio).abs() < 1e-12);
    assert!(document.expected_loss > 0.0);

    let lines = stderr(&output);
    for line in [
        "[llm-quantize] Loading model: ",
        "[llm-quantize] Applying profile: balanced (target: 3.5 bpw)",
        "[llm-quantize] Layer assignments:",
        "  - Attention layers (4): ",
        "  - MLP layers (4): ",
        "[llm-quantize] Complete: ./tiny-dynamic.gguf (",
    ] {
        assert!(lines.lines().any(|found| found.starts_with(line)), "{line}\n{lines}");
    }
    // The last line has the figure of the document, and the target's is named beside it.
    let complete = lines.lines().find(|line| line.contains("Complete: ")).unwrap();
    assert!(complete.ends_with(&format!(", {whole:.2} bpw)")), "{complete}");
    let target = format!("  Tensors: {bits:.2} bpw, which is what a profile's target counts");
    assert!(lines.lines().any(|line| line.starts_with(&target)), "{target}\n{lines}");
    run_again(&workspace, &document);
}

/// A second run writes over the first one's file, and says so.
fn run_again(workspace: &Workspace, document: &Document) {
    let tiny = tiny_model();
    let again: Document = json(&workspace.succeed(&[
        "--format",
        "json",
        "quantize",
        tiny.to_str().unwrap(),
        "gguf",
        "--dynamic",
        "--quality-report",
        "--calibration-samples",
        "2",
    ]));
    let quality = again.quality_report.unwrap();
    let rise = quality.perplexity_quantized / quality.perplexity_original * 100.0 - 100.0;
    assert!((quality.perplexity_delta_pct - rise).abs() < 1e-6 && rise > 0.0, "{quality:?}");
    assert_eq!(again.sha256, document.sha256);
    assert!(again.warnings.iter().any(|w| w.contains("exists and is replaced")));
}

#[test]
fn rules_hold_and_targets_on_the_command_line_win() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let write = |name: &str, rules: serde_json::Value, target: Option<f64>| {
        let profile = value!({"profile_id": "p", "profile_name": "Mine", "strategy": "custom",
            "layer_assignments": rules, "target_bpw": target, "target_compression": null});
        std::fs::write(workspace.path(name), profile.to_string()).unwrap();
    };
    write(
        "a.dqprofile",
        value!([
            {"layer_name": "model.layers.1.self_attn.q_proj", "bit_width": 4, "is_protected": false, "type": "Q4_1"},
            {"layer_name": "blk\\.\\d+\\.attn_.*", "bit_width": 5, "is_protected": false},
            {"layer_name": "model.layers.99", "bit_width": 5, "is_protected": false},
        ]),
        None,
    );
    let base = ["--format", "json", "quantize", tiny, "gguf", "-q", "dynamic", "-n", "a"];
    let document: Document =
        json(&workspace.succeed(&[&base[..], &["--profile", "a.dqprofile"]].concat()));
    let file = GgufFile::open(&workspace.path("a.gguf")).unwrap();
    let kind = |name: &str| file.tensors[name].kind.name();
    assert_eq!(kind("blk.1.attn_q.weight"), "Q4_1");
    assert!(["Q5_0", "Q5_1"].contains(&kind("blk.0.attn_q.weight")));
    // Without a target, what no rule names gets eight bits.
    assert_eq!((kind("blk.0.ffn_up.weight"), kind("token_embd.weight")), ("Q8_0", "Q8_0"));
    assert!(
        document.warnings.iter().any(|w| w.contains("model.layers.99")),
        "{:?}",
        document.warnings
    );

    // With one, it is chosen; rules hold all the same.
    let small = [&base[..], &["--profile", "a.dqprofile", "--target-bpw", "5.5"]].concat();
    let document: Document = json(&workspace.succeed(&small));
    assert!(document.bits_per_weight <= 5.5 && document.bits_per_weight > 5.0);
    let file = GgufFile::open(&workspace.path("a.gguf")).unwrap();
    assert_eq!(file.tensors["blk.1.attn_q.weight"].kind.name(), "Q4_1");
    assert!(["Q5_0", "Q5_1"].contains(&file.tensors["blk.0.attn_q.weight"].kind.name()));

    write(
        "b.dqprofile",
        value!([{"layer_name": "h.0", "bit_width": 4, "is_protected": false}]),
        None,
    );
    let refused = |more: &[&str], code: i32, kind: &str, words: &str| {
        let arguments = [&["--format", "json", "quantize", tiny, "gguf"], more].concat();
        let error = fails(&workspace, &arguments, code, kind);
        assert!(error.message.contains(words), "{more:?}: {}", error.message);
    };
    let dynamic = ["-q", "dynamic"];
    refused(
        &[&dynamic[..], &["--profile", "b.dqprofile"]].concat(),
        13,
        "ProfileError",
        "no assignment",
    );
    refused(&[&dynamic[..], &["--profile", "none"]].concat(), 13, "ProfileError", "balanced");
    let argument = "InvalidArgumentError";
    refused(&[&dynamic[..], &["--target-bpw", "0.3"]].concat(), 2, argument, "smallest");
    refused(&["-q", "Q8_0", "--profile", "balanced"], 2, argument, "--quant-level dynamic");
    refused(&["-q", "Q8_0", "--dynamic"], 2, argument, "two ways");
    refused(&[&dynamic[..], &["--protect-super-weights"]].concat(), 2, argument, "--imatrix");
    refused(
        &["-q", "Q8_0", "--protection-coverage", "0.001"],
        2,
        argument,
        "--protect-super-weights",
    );
}

/// Super weights are named in the document, and read from the file beside the importance matrix.
#[test]
fn super_weights_are_reported() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let mut dat = 1i32.to_le_bytes().to_vec();
    let name = "blk.0.ffn_down.weight";
    dat.extend((name.len() as i32).to_le_bytes());
    dat.extend(name.as_bytes());
    dat.extend(1i32.to_le_bytes());
    dat.extend(384i32.to_le_bytes());
    // Of the columns, number 7 is all that counts.
    (0..384).for_each(|i| dat.extend((if i == 7 { 1e6f32 } else { 1e-6 }).to_le_bytes()));
    std::fs::write(workspace.path("m.imatrix"), dat).unwrap();
    let arguments = [
        "--format",
        "json",
        "quantize",
        tiny.to_str().unwrap(),
        "gguf",
        "-q",
        "dynamic",
        "--imatrix",
        "m.imatrix",
        "--protect-super-weights",
        "--protection-coverage",
        "0.001",
    ];
    let output = workspace.succeed(&arguments);
    let document: Document = json(&output);
    let found = document.super_weights.unwrap();
    // 0.1 % of the 49,152 weights of the one matrix that was measured.
    assert_eq!((found.coverage, found.found, found.total_protected), (0.001, 49, 49));
    assert_eq!((found.tensors.len(), found.mask), (1, None));
    let tensor = &found.tensors[0];
    assert_eq!((tensor.name.as_str(), tensor.protected), (name, 49));
    assert!(tensor.output_share > 0.5 && tensor.output_share <= 1.0, "{}", tensor.output_share);
    // The 49 largest of the column, decoded from the file, are within 1 % of what they were.
    let file = GgufFile::open(&workspace.path("tiny-dynamic.gguf")).unwrap();
    let written = file.tensor(name).unwrap().unwrap();
    assert_eq!(written.dtype.name(), tensor.r#type);
    let model = llm_quantize::model::open_local(&tiny).unwrap();
    let source = &model.weights["model.layers.0.mlp.down_proj.weight"];
    let llm_quantize::weight::Weight::Stored(source) = source else { panic!("{source:?}") };
    let source = source.to_f32();
    let written = written.to_f32();
    let mut rows: Vec<(f32, f32)> =
        (0..128).map(|row| (source[row * 384 + 7], written[row * 384 + 7])).collect();
    rows.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    let squares = |f: &dyn Fn(&(f32, f32)) -> f32| rows[..49].iter().map(f).sum::<f32>();
    let error = squares(&|(x, y)| (x - y).powi(2)) / squares(&|(x, _)| x * x);
    assert!(error <= 1e-4, "{error}");
    let lines = stderr(&output);
    let expected = format!("  - Protected weights: 49 at {}", tensor.r#type);
    assert!(lines.lines().any(|line| line.starts_with(&expected)), "{expected}\n{lines}");
    let protected: Vec<_> = document.layer_summary.iter().filter(|l| l.is_protected).collect();
    assert_eq!((protected.len(), protected[0].layer_name.as_str()), (1, "model.layers.0"));

    let mask = value!({"version": 1, "coverage": 0.001, "method": "x", "total_protected": 1,
        "tensors": {name: [7]}});
    std::fs::write(workspace.path("m.superweights.json"), mask.to_string()).unwrap();
    let document: Document = json(&workspace.succeed(&arguments));
    let found = document.super_weights.unwrap();
    assert_eq!(found.found, 1);
    assert!(found.mask.unwrap().ends_with("m.superweights.json"));
    let mask = mask.to_string().replace("[7]", "[99999999]");
    std::fs::write(workspace.path("m.superweights.json"), mask).unwrap();
    fails(&workspace, &arguments, 10, "ImportanceMatrixError");
}

/// Sensitivity is measured on the built-in text and gives the same types every time. Of the plans that
/// are then measured as a whole the best one is taken.
#[test]
fn sensitivity_can_be_measured() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let run = |threads: &str, more: &[&str]| -> (Document, String) {
        let base = [
            "--format",
            "json",
            "quantize",
            tiny.to_str().unwrap(),
            "gguf",
            "--dynamic",
            "--dry-run",
            "-t",
            threads,
        ];
        let output = workspace.succeed(&[&base[..], more].concat());
        (json(&output), stderr(&output))
    };
    let measure = ["--sensitivity", "measured", "--calibration-samples", "1"];
    let ((one, notes), (two, _)) = (run("1", &measure), run("2", &measure));
    assert_eq!((one.sensitivity.as_str(), one.status.as_str()), ("measured", "planned"));
    assert_eq!(one.tensors, two.tensors);
    assert!(one.expected_loss.to_bits() == two.expected_loss.to_bits());
    let line = notes.lines().find(|line| line.contains("Divergence of the whole on "));
    let (_, line) = line.unwrap().split_once("per token: ").unwrap();
    let (plans, taken) = line.split_once("; ").unwrap();
    let plans = plans.split(", ").map(|plan| plan.rsplit_once(' ').unwrap());
    let plans: Vec<(&str, f64)> = plans.map(|(name, loss)| (name, loss.parse().unwrap())).collect();
    let best = plans.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let taken = taken.strip_suffix(" is taken").unwrap();
    assert!(plans.iter().any(|(name, loss)| *name == taken && *loss <= best.1), "{line}");
    assert!(plans.len() > 1 && plans.iter().any(|(name, _)| name.contains("mix of")), "{line}");

    let (estimated, notes) = run("2", &[]);
    assert_eq!(estimated.sensitivity, "estimated");
    assert!(!notes.contains("Divergence of the whole"));
}
