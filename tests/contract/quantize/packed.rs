//! `quantize MODEL awq|gptq|smoothquant`: documents, refusals, and the directory that is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use crate::workspace::{Workspace, fails, json, stderr, stdout, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    status: String,
    output_path: String,
    format: String,
    quantization_level: String,
    file_size: u64,
    compression_ratio: f64,
    duration_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    validation_status: String,
    metadata: Source,
    bits_per_weight: f64,
    packed_layers_bpw: f64,
    group_size: i64,
    settings: Settings,
    calibration: Option<Calibration>,
    mean_relative_error: Option<f64>,
    fallbacks: usize,
    problematic_layers: Vec<Problem>,
    files: Vec<File>,
    layers: Vec<Layer>,
    #[serde(default)]
    tensors: Vec<Tensor>,
    resumed_layers: usize,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    original_dtype: String,
    original_size: u64,
    layers_processed: usize,
    architecture: String,
    parameter_count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    symmetric: Option<bool>,
    desc_act: Option<bool>,
    damp_percent: Option<f64>,
    alpha: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibration {
    dataset: String,
    samples: usize,
    tokens: u64,
    tokens_sha256: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Problem {
    name: String,
    sqnr_db: f64,
    suggestion: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    bytes: u64,
    sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    name: String,
    shape: [usize; 2],
    method: String,
    relative_error: Option<f64>,
    damping: Option<f64>,
    dead_columns: Option<usize>,
    ratio: Option<f64>,
    alpha: Option<f64>,
    sqnr_db: Option<f64>,
    factors: Option<Factors>,
    activations: Option<Activations>,
    fallback: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Factors {
    min: f64,
    max: f64,
    geometric_mean: f64,
    channels: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Activations {
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
    outlier_channels: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    r#type: String,
    bytes: u64,
}

fn quantize(workspace: &Workspace, arguments: &[&str]) -> Document {
    let model = tiny_model();
    let base = ["--format", "json", "quantize", model.to_str().unwrap()];
    json(&workspace.succeed(&[&base[..], arguments].concat()))
}

fn config(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("config.json")).unwrap()).unwrap()
}

/// Tensors of a directory of one shard: type, shape, bytes.
fn tensors(directory: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The source's weight, `[out, in]`.
fn original(name: &str) -> Vec<f32> {
    let tensors = tensors(&tiny_model());
    let (dtype, _, bytes) = &tensors[name];
    assert_eq!(*dtype, Dtype::F16);
    halves(bytes)
}

#[test]
fn gptq_writes_what_its_readers_expect() {
    let workspace = Workspace::new();
    let document = quantize(
        &workspace,
        &["gptq", "-q", "4bit", "--group-size", "32", "--calibration-samples", "8"],
    );
    assert_eq!(document.status, "success");
    assert!(document.output_path.ends_with("tiny-gptq-4bit-g32"), "{}", document.output_path);
    assert_eq!((document.format.as_str(), document.quantization_level.as_str()), ("gptq", "4bit"));
    assert_eq!((document.validation_status.as_str(), document.group_size), ("valid", 32));
    // 4 bits, 16 + 4 a group of 32, an index of 32 bits for each of 128 or 384 inputs.
    assert!((4.625..5.2).contains(&document.packed_layers_bpw), "{}", document.packed_layers_bpw);
    assert_eq!(document.settings.symmetric, Some(true));
    assert_eq!(document.settings.desc_act, Some(false));
    assert_eq!(document.settings.damp_percent, Some(0.01));
    assert!(document.settings.alpha.is_none() && document.problematic_layers.is_empty());
    let calibration = document.calibration.unwrap();
    assert_eq!((calibration.samples, calibration.tokens), (8, 8 * 256), "{}", calibration.dataset);
    assert_eq!(calibration.tokens_sha256.len(), 64);
    assert_eq!(document.metadata.original_dtype, "F16");
    assert_eq!(document.metadata.architecture, "llama");
    assert_eq!((document.metadata.layers_processed, document.layers.len()), (4, 28));
    assert!(document.metadata.parameter_count > 500_000);
    let mean = document.mean_relative_error.unwrap();
    assert!(mean > 0.0 && mean < 0.05, "{mean}");
    assert_eq!((document.fallbacks, document.resumed_layers), (0, 0));
    assert!(document.duration_seconds > Some(0.0) && document.peak_memory_bytes > Some(0));
    for layer in &document.layers {
        assert_eq!(layer.method, "gptq");
        assert!(layer.relative_error.is_some_and(|e| e > 0.0 && e < 0.2), "{layer:?}");
        assert!((layer.damping.unwrap() - 0.01).abs() < 1e-9 && layer.dead_columns == Some(0));
        assert!(layer.fallback.is_none() && layer.ratio.is_none() && layer.alpha.is_none());
    }
    assert_eq!(document.layers[6].shape, [128, 384]);

    let directory = workspace.path("tiny-gptq-4bit-g32");
    let on_disk: u64 = document
        .files
        .iter()
        .map(|file| std::fs::metadata(workspace.path(&file.path)).unwrap().len())
        .sum();
    assert_eq!(document.file_size, on_disk);
    assert!(document.files.iter().all(|f| f.bytes > 0 && f.sha256.as_ref().unwrap().len() == 64));
    let ratio = on_disk as f64 / document.metadata.original_size as f64;
    assert!((document.compression_ratio - ratio).abs() < 1e-9);
    let quantization = &config(&directory)["quantization_config"];
    let beside: Value =
        serde_json::from_slice(&std::fs::read(directory.join("quantize_config.json")).unwrap())
            .unwrap();
    assert_eq!(*quantization, beside);
    for (key, value) in [
        ("quant_method", Value::from("gptq")),
        ("checkpoint_format", "gptq".into()),
        ("bits", 4.into()),
        ("group_size", 32.into()),
        ("sym", true.into()),
        ("desc_act", false.into()),
        ("true_sequential", true.into()),
    ] {
        assert_eq!(quantization[key], value, "{key}");
    }
    assert_eq!(config(&directory)["torch_dtype"], "float16");
    let card = std::fs::read_to_string(directory.join("README.md")).unwrap();
    assert!(card.contains("GPTQ") && card.contains("8 samples"), "{card}");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(
            std::fs::read(directory.join(name)).unwrap(),
            std::fs::read(tiny_model().join(name)).unwrap(),
            "{name}"
        );
    }

    // Dequantized here by the layout's own rules, the weights are near the original's.
    let tensors = tensors(&directory);
    let layer = "model.layers.1.mlp.down_proj";
    let part = |suffix: &str| &tensors[&format!("{layer}.{suffix}")];
    assert_eq!((part("qweight").0, part("qweight").1.as_slice()), (Dtype::I32, &[48, 128][..]));
    assert_eq!(part("qzeros").1, [12, 16]);
    assert!(words(&part("qzeros").2).iter().all(|&word| word == 0x7777_7777), "8 less one");
    let groups: Vec<u32> = (0..384).map(|input| input / 32).collect();
    assert_eq!(words(&part("g_idx").2), groups);
    let (qweight, scales) = (words(&part("qweight").2), halves(&part("scales").2));
    let weight = original(&format!("{layer}.weight"));
    let (mut error, mut size) = (0.0, 0.0);
    for input in 0..384 {
        for row in 0..128 {
            let q = qweight[input / 8 * 128 + row] >> (4 * (input % 8)) & 15;
            let value = (q as f32 - 8.0) * scales[input / 32 * 128 + row];
            let exact = weight[row * 384 + input];
            error += f64::from(value - exact).powi(2);
            size += f64::from(exact).powi(2);
        }
    }
    assert!(error > 0.0 && error < 0.1 * size, "{error} of {size}");
}

#[test]
fn awq_writes_what_its_readers_expect() {
    let workspace = Workspace::new();
    let arguments = ["awq", "-q", "w4", "--group-size", "64", "--calibration-samples", "8"];
    let document = quantize(&workspace, &[&arguments[..], &["-n", "out"]].concat());
    assert_eq!((document.format.as_str(), document.quantization_level.as_str()), ("awq", "4bit"));
    // 4 bits, 16 + 4 a group of 64.
    assert!((document.packed_layers_bpw - 4.3125).abs() < 1e-9, "{}", document.packed_layers_bpw);
    assert_eq!(document.layers.len(), 28);
    assert!(document.layers.iter().all(|layer| layer.method == "awq"));
    assert!(document.layers.iter().any(|layer| layer.ratio.is_some()), "no scale helped");
    for layer in &document.layers {
        let factors = layer.factors.as_ref().unwrap();
        assert!(factors.min > 0.0 && factors.max >= factors.geometric_mean, "{layer:?}");
        assert_eq!(factors.channels, layer.shape[1]);
    }
    let directory = workspace.path("out");
    let quantization = &config(&directory)["quantization_config"];
    for (key, value) in [
        ("quant_method", Value::from("awq")),
        ("bits", 4.into()),
        ("group_size", 64.into()),
        ("zero_point", true.into()),
        ("version", "gemm".into()),
    ] {
        assert_eq!(quantization[key], value, "{key}");
    }
    assert!(!directory.join("quantize_config.json").exists());
    let tensors = tensors(&directory);
    let part = |suffix: &str| &tensors[&format!("model.layers.0.self_attn.q_proj.{suffix}")];
    assert_eq!(part("qweight").1, [128, 16]);
    assert_eq!(part("qzeros").1, [2, 16]);
    assert_eq!(part("scales").1, [2, 128]);

    // Without calibration nothing is folded: every weight is within half a step of its level.
    let plain = [&arguments[..5], &["--calibration-samples", "0", "-n", "plain"]].concat();
    let document = quantize(&workspace, &plain);
    assert!(document.calibration.is_none() && document.mean_relative_error.is_none());
    assert_eq!(document.layers.len(), 28);
    assert!(document.layers.iter().all(|layer| layer.method == "rtn"));
    assert!(document.warnings.iter().any(|w| w.contains("rounded to nearest")));
    let tensors = self::tensors(&workspace.path("plain"));
    let part = |suffix: &str| &tensors[&format!("model.layers.2.mlp.gate_proj.{suffix}")];
    let (q, zeros) = (words(&part("qweight").2), words(&part("qzeros").2));
    let scales = halves(&part("scales").2);
    let weight = original("model.layers.2.mlp.gate_proj.weight");
    let place = [0, 4, 1, 5, 2, 6, 3, 7];
    for input in 0..128 {
        for row in 0..384 {
            let nibble = |words: &[u32], line: usize| {
                (words[line * 48 + row / 8] >> (4 * place[row % 8]) & 15) as f32
            };
            let scale = scales[input / 64 * 384 + row];
            let value = (nibble(&q, input) - nibble(&zeros, input / 64)) * scale;
            let off = (value - weight[row * 128 + input]).abs();
            // The zero point is rounded too, so the ends of the range may be a step short.
            assert!(off <= 1.01 * scale, "[{row}, {input}]: {off} with steps of {scale}");
        }
    }
}

#[test]
fn smoothquant_reports_what_it_loses() {
    let workspace = Workspace::new();
    let document = quantize(
        &workspace,
        &["smoothquant", "--smoothquant", "--alpha", "auto", "--calibration-samples", "8"],
    );
    assert!(document.output_path.ends_with("tiny-smoothquant-w8a8"));
    assert_eq!(document.quantization_level, "w8a8");
    assert_eq!((document.group_size, document.settings.alpha.as_deref()), (-1, Some("auto")));
    for layer in &document.layers {
        // Absent where no strength was best.
        assert!(layer.factors.is_some(), "{}", layer.name);
        assert!(layer.alpha.is_none_or(|alpha| (0.0..=1.0).contains(&alpha)));
        let decibels = layer.sqnr_db.unwrap();
        assert!(decibels > 20.0 && decibels < 80.0, "{layer:?}");
        // The two figures are one.
        let error = layer.relative_error.unwrap();
        assert!((10.0 * (1.0 / error).log10() - decibels).abs() < 1e-6);
        let input = layer.activations.as_ref().unwrap();
        assert!(input.min < input.mean && input.mean < input.max && input.std > 0.0);
        assert!(input.outlier_channels <= layer.shape[1]);
    }
    for problem in &document.problematic_layers {
        assert!(problem.sqnr_db < 20.0 && !problem.suggestion.is_empty(), "{}", problem.name);
    }
    let directory = workspace.path("tiny-smoothquant-w8a8");
    let quantization = &config(&directory)["quantization_config"];
    assert_eq!(quantization["quant_method"], "compressed-tensors");
    assert_eq!(quantization["format"], "int-quantized");
    let tensors = tensors(&directory);
    let (dtype, shape, _) = &tensors["model.layers.0.mlp.down_proj.weight"];
    assert_eq!((*dtype, shape.as_slice()), (Dtype::I8, &[128, 384][..]));
    assert_eq!(tensors["model.layers.0.mlp.down_proj.weight_scale"].1, [128, 1]);
    // What was divided in the norm and in rows of up, columns of up and of down make up for.
    let int8 = |layer: &str| -> Vec<f32> {
        let (_, shape, q) = &tensors[&format!("model.layers.0.mlp.{layer}_proj.weight")];
        let scales = &tensors[&format!("model.layers.0.mlp.{layer}_proj.weight_scale")].2;
        let rows = q.chunks_exact(shape[1]).zip(halves(scales));
        rows.flat_map(|(q, scale)| q.iter().map(move |q| f32::from(q.cast_signed()) * scale))
            .collect()
    };
    let path = |norm: &[f32], up: &[f32], down: &[f32], at: usize| {
        let row = up[at * 128..][..128].iter().zip(norm).map(|(w, n)| (w * n).powi(2));
        let column = down[at..].iter().step_by(384).map(|w| w * w);
        (row.sum::<f32>() * column.sum::<f32>()).sqrt()
    };
    let name = "model.layers.0.post_attention_layernorm.weight";
    let exact = ["up", "down"].map(|l| original(&format!("model.layers.0.mlp.{l}_proj.weight")));
    let (norm, norm_before) = (halves(&tensors[name].2), original(name));
    let (up, down) = (int8("up"), int8("down"));
    for at in 0..384 {
        let (got, exact) =
            (path(&norm, &up, &down, at), path(&norm_before, &exact[0], &exact[1], at));
        assert!((got / exact - 1.0).abs() < 0.05, "{at}: {got} {exact}");
    }
    let human = workspace.succeed(&[
        "quantize",
        tiny_model().to_str().unwrap(),
        "smoothquant",
        "--calibration-samples",
        "2",
        "-n",
        "human",
    ]);
    assert!(stdout(&human).contains("a scale for each row"), "{}", stdout(&human));
}

#[test]
fn a_plan_is_exact_and_writes_nothing() {
    let workspace = Workspace::new();
    for (format, level) in [("gptq", "3bit"), ("awq", "4bit"), ("smoothquant", "w8a8")] {
        let arguments = [format, "-q", level, "-n", "out", "--calibration-samples", "0"];
        let planned = quantize(&workspace, &[&arguments[..], &["--dry-run"]].concat());
        assert_eq!(
            (planned.status.as_str(), planned.validation_status.as_str()),
            ("planned", "not_written")
        );
        assert!(planned.layers.is_empty() && planned.files.is_empty());
        assert_eq!((planned.duration_seconds, planned.peak_memory_bytes), (None, None));
        assert!(!workspace.path("out").exists() && !workspace.path(".checkpoint").exists());
        let sum: u64 = planned.tensors.iter().map(|tensor| tensor.bytes).sum();
        assert_eq!(planned.file_size, sum);
        // Of everything, as for the other formats.
        let bits = sum as f64 * 8.0 / planned.metadata.parameter_count as f64;
        assert!((planned.bits_per_weight - bits).abs() < 1e-9, "{bits}");
        assert!(planned.packed_layers_bpw < planned.bits_per_weight);
        quantize(&workspace, &arguments);
        let written = tensors(&workspace.path("out"));
        assert_eq!(written.len(), planned.tensors.len());
        for tensor in &planned.tensors {
            let (dtype, shape, bytes) = &written[&tensor.name];
            assert_eq!(
                (shape, bytes.len() as u64),
                (&tensor.shape, tensor.bytes),
                "{}",
                tensor.name
            );
            assert_eq!(dtype.to_string(), tensor.r#type);
        }
        for left in ["out", ".checkpoint"] {
            let _ = std::fs::remove_dir_all(workspace.path(left));
        }
    }
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let refused = |arguments: &[&str], code: i32, kind: &str, words: &str| {
        let base = ["--format", "json", "quantize", model];
        let error = fails(&workspace, &[&base[..], arguments].concat(), code, kind);
        let all = format!("{} {}", error.message, error.suggestion);
        assert!(all.contains(words), "{arguments:?}: {all}");
    };
    let argument = "InvalidArgumentError";
    refused(&["awq", "-q", "3bit"], 2, argument, "4bit");
    refused(&["gptq", "-q", "5bit"], 2, argument, "2bit, 3bit, 4bit, 8bit");
    refused(&["gptq", "-q", "Q4_K_M"], 2, argument, "4bit");
    refused(&["smoothquant", "-q", "4bit"], 2, argument, "8bit");
    refused(&["gptq"], 2, argument, "--quant-level");
    refused(&["gptq", "-q", "4bit", "--smoothquant"], 2, argument, "smoothquant");
    refused(&["awq", "-q", "4bit", "--alpha", "0.5"], 2, argument, "--smoothquant");
    refused(&["smoothquant", "--smoothquant", "--alpha", "1.5"], 2, argument, "0 to 1");
    refused(&["smoothquant", "--alpha", "0.5"], 2, argument, "without --smoothquant");
    refused(&["smoothquant", "--group-size", "64"], 2, argument, "--group-size");
    refused(&["awq", "-q", "4bit", "--asym"], 2, argument, "--asym");
    refused(&["awq", "-q", "4bit", "--desc-act"], 2, argument, "--desc-act");
    refused(&["gptq", "-q", "4bit", "--damp-percent", "0"], 2, argument, "--damp-percent");
    refused(&["gptq", "-q", "4bit", "--group-size", "0"], 2, argument, "-1");
    refused(&["gptq", "-q", "4bit", "--group-size", "256"], 2, argument, "--group-size 128 or -1");
    refused(&["gptq", "-q", "4bit", "--imatrix", "x"], 2, argument, "--imatrix");
    refused(&["gptq", "-q", "4bit", "--profile", "balanced"], 2, argument, "--profile");
    refused(&["gptq", "-q", "4bit", "--target-bpw", "4"], 2, argument, "--target-bpw");
    let missing = ["gptq", "-q", "4bit", "--calibration-data", "none.txt"];
    refused(&missing, 15, "CalibrationDataError", "none.txt");
    let resume = ["gptq", "-q", "4bit", "--calibration-samples", "2", "--resume", "none"];
    refused(&resume, 7, "CheckpointError", "no checkpoint");
    std::fs::create_dir(workspace.path("mine")).unwrap();
    std::fs::write(workspace.path("mine/notes.txt"), "x").unwrap();
    refused(&["gptq", "-q", "4bit", "-n", "mine"], 2, argument, "notes.txt");
    assert_eq!(std::fs::read_dir(workspace.path("mine")).unwrap().count(), 1);
}

#[test]
fn slow_kernels_are_named_before_the_work() {
    let workspace = Workspace::new();
    let planned = |arguments: &[&str]| {
        let document = quantize(&workspace, &[arguments, &["--dry-run"]].concat());
        document.warnings.join("\n")
    };
    assert_eq!(planned(&["gptq", "-q", "4bit"]), "");
    assert!(planned(&["gptq", "-q", "3bit"]).contains("3 bits"));
    assert!(planned(&["gptq", "-q", "4bit", "--asym"]).contains("zero points"));
    assert!(planned(&["gptq", "-q", "4bit", "--group-size", "16"]).contains("groups of 16"));
    assert_eq!(planned(&["gptq", "-q", "8bit", "--group-size", "-1"]), "");
    assert_eq!(planned(&["smoothquant"]), "");
}

#[test]
fn every_width_and_option_of_gptq_is_written() {
    let workspace = Workspace::new();
    let mut errors = Vec::new();
    for (number, more) in [
        &["-q", "2bit"][..],
        &["-q", "3bit", "--asym"],
        &["-q", "4bit", "--desc-act", "--damp-percent", "0.05"],
        &["-q", "8bit", "--group-size", "-1"],
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("out{number}");
        let rest = ["--calibration-samples", "4", "-n", &name, "--no-checkpoints"];
        let document = quantize(&workspace, &[&["gptq"][..], more, &rest[..]].concat());
        errors.push(document.mean_relative_error.unwrap());
        let directory = workspace.path(&name);
        let quantization = &config(&directory)["quantization_config"];
        assert_eq!(quantization["sym"], !more.contains(&"--asym"));
        assert_eq!(quantization["desc_act"], more.contains(&"--desc-act"));
        let tensors = tensors(&directory);
        let index = words(&tensors["model.layers.0.mlp.down_proj.g_idx"].2);
        let natural: Vec<u32> = (0..384).map(|i| if number == 3 { 0 } else { i / 128 }).collect();
        assert_eq!(index == natural, !more.contains(&"--desc-act"), "{more:?}");
        let mut counts = [0; 3];
        index.iter().for_each(|&group| counts[group as usize] += 1);
        assert!(number == 3 || counts == [128, 128, 128]);
    }
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "more bits, less error: {errors:?}");
}

#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let run = [
        "quantize",
        model.to_str().unwrap(),
        "gptq",
        "-q",
        "4bit",
        "--group-size",
        "32",
        "--calibration-samples",
        "12",
        "-t",
        "1",
        "-n",
        "out",
    ];
    workspace.succeed(&[&run[..], &["--no-checkpoints"]].concat());
    let read = || std::fs::read(workspace.path("out/model.safetensors")).unwrap();
    let expected = read();
    std::fs::remove_dir_all(workspace.path("out")).unwrap();
    let finished = || {
        let runs = std::fs::read_dir(workspace.path(".checkpoint")).into_iter().flatten().flatten();
        runs.map(|run| std::fs::read_dir(run.path().join("units")).map_or(0, Iterator::count))
            .max()
            .unwrap_or(0)
    };
    for blocks in [1, 3] {
        let mut child =
            workspace.command(&run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while finished() < blocks
            && child.try_wait().unwrap().is_none()
            && began.elapsed() < Duration::from_secs(120)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!workspace.path("out").exists(), "nothing under the final name");
    }
    let output = workspace.succeed(&[&run[..], &["--resume", ".checkpoint"]].concat());
    assert!(stderr(&output).contains("Complete"), "{}", stderr(&output));
    assert!(read() == expected);
    assert!(!workspace.path(".checkpoint").exists());
    let left: Vec<_> = std::fs::read_dir(workspace.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".tmp-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
