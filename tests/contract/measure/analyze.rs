//! `analyze`: its JSON, its files, what it refuses, and that an interrupted run ends in the same bytes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use llm_quantize::files::imatrix::{ImportanceMatrix, ImportanceSums, Method};
use llm_quantize::files::super_weights::SuperWeightMask;
use serde::Deserialize;

use crate::workspace::{Workspace, fails, json, stderr, stdout, tiny_model};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    status: String,
    output_path: Option<String>,
    output_format: Option<String>,
    model_path: Option<String>,
    method: String,
    num_layers: usize,
    calibration_samples: u64,
    calibration: Option<Calibration>,
    global_statistics: Global,
    tensor_statistics: Vec<Tensor>,
    super_weights: SuperWeights,
    merged: Vec<String>,
    cached: bool,
    resumed_samples: usize,
    resumed_layers: usize,
    plot_path: Option<String>,
    duration_seconds: f64,
    peak_memory_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibration {
    dataset: String,
    sha256: String,
    samples: usize,
    sequence_length: usize,
    tokens: usize,
    arithmetic: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Global {
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "all keys are declared, some are looked at")]
struct Tensor {
    #[serde(rename = "tensor")]
    name: String,
    columns: usize,
    matrices: usize,
    sum: f64,
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
    active: f64,
    entropy: f64,
    normalized_entropy: f64,
    outliers: f64,
    cosine_to_previous: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuperWeights {
    identified: bool,
    coverage: f64,
    total_protected: u64,
    mask_path: Option<String>,
    score: Option<String>,
    perplexity: Option<f64>,
    #[serde(rename = "super_weights")]
    list: Vec<SuperWeight>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuperWeight {
    tensor: String,
    row: usize,
    column: usize,
    value: f32,
    input: f32,
    output: f32,
    input_spike: f32,
    output_spike: f32,
    share: f32,
    perplexity_without: Option<f64>,
}

fn text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/corpus/calibration.txt")
}

/// Arguments of an analysis of the tiny model on the first chunks of the corpus, with JSON output.
fn arguments<'a>(model: &'a str, text: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--format", "json", "analyze", model, "--calibration-data", text];
    all.extend_from_slice(more);
    all
}

fn tiny(workspace: &Workspace, more: &[&str]) -> Document {
    let (model, text) = (tiny_model(), text());
    let arguments = arguments(model.to_str().unwrap(), text.to_str().unwrap(), more);
    json(&workspace.succeed(&arguments))
}

#[test]
fn the_document_and_the_files_are_those_of_the_contract() {
    let workspace = Workspace::new();
    let (model, text) = (tiny_model(), text());
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    let more = ["--calibration-samples", "128", "-c", "32", "--identify-super-weights"];
    let output = workspace.succeed(&arguments(model, text, &more));
    let document: Document = json(&output);
    assert_eq!(document.status, "success");
    assert_eq!(document.output_path.as_deref(), Some("./tiny.imatrix"));
    assert_eq!(document.output_format.as_deref(), Some("gguf"));
    assert_eq!(document.model_path.as_deref(), Some(model));
    assert_eq!(document.method, "activation_magnitude");
    assert_eq!((document.num_layers, document.calibration_samples), (4, 128));
    let calibration = document.calibration.unwrap();
    assert_eq!(calibration.dataset, "calibration.txt");
    assert_eq!((calibration.samples, calibration.sequence_length), (128, 32));
    assert_eq!((calibration.tokens, calibration.sha256.len()), (128 * 32, 64));
    assert!(["bf16", "f32", "device"].contains(&calibration.arithmetic.as_str()));
    let global = &document.global_statistics;
    assert!(0.0 < global.min && global.min < global.mean && global.mean < global.max);
    assert!(global.std > 0.0 && document.duration_seconds > 0.0);
    assert!(
        document.peak_memory_bytes > 0
            && !document.cached
            && document.resumed_samples == 0
            && document.resumed_layers == 0
    );
    assert!(document.merged.is_empty() && document.plot_path.is_none());
    assert_eq!(document.warnings, Vec::<String>::new());
    assert_eq!(document.tensor_statistics.len(), 28);
    let sum: f64 = document.tensor_statistics.iter().map(|t| t.mean * t.columns as f64).sum();
    let columns: usize = document.tensor_statistics.iter().map(|t| t.columns).sum();
    assert!((sum / columns as f64 / global.mean - 1.0).abs() < 1e-9);

    // The lines on stderr.
    let lines = stderr(&output);
    for line in [
        "[llm-quantize] Loading model: ",
        "[llm-quantize] Collecting calibration data: 128 samples",
        "[llm-quantize] Computing importance matrix (activation_magnitude)",
        "Analyzing 100% 4/4 layers [",
        "[llm-quantize] Identifying super weights (coverage: 0.01%)",
        "[llm-quantize] Protected parameters: 104 (",
        "[llm-quantize] Complete: ./tiny.imatrix",
    ] {
        assert!(lines.contains(line), "{line} is not in\n{lines}");
    }

    // The files: the matrix as the quantizer reads it, and the mask.
    let matrix = ImportanceMatrix::open(&workspace.path("tiny.imatrix")).unwrap();
    assert_eq!((matrix.entries.len(), matrix.chunks), (28, 128));
    assert_eq!(matrix.datasets, ["calibration.txt"]);
    assert_eq!(matrix.columns("blk.3.ffn_down.weight", 1, 384).unwrap().unwrap().len(), 384);
    let found = &document.super_weights;
    assert!(found.identified && found.perplexity.is_some_and(|p| p > 1.0));
    assert!((found.coverage - 1e-4).abs() < 1e-12);
    assert_eq!(found.score.as_deref(), Some("weight-times-root-mean-square-input"));
    let mask = SuperWeightMask::read(&workspace.path("tiny.superweights.json")).unwrap();
    assert_eq!(found.mask_path.as_deref(), Some("./tiny.superweights.json"));
    // The model has 1,049,728 parameters.
    assert_eq!((mask.total(), found.total_protected), (104, 104));
    assert!(!workspace.path(".checkpoint").exists());
}

/// What a mask must hold, by sorting all scores: rows of q and k as a GGUF file has them.
#[test]
fn the_mask_has_the_largest_scores_in_the_order_of_gguf() {
    let workspace = Workspace::new();
    // A GGUF copy has its rows in the file's order, so that positions can be read off.
    let model = tiny_model();
    workspace.succeed(&["quantize", model.to_str().unwrap(), "gguf", "-q", "F32", "-n", "t"]);
    let text = text();
    let more =
        ["--chunks", "8", "--identify-super-weights", "--coverage", "0.002", "-o", "m.imatrix"];
    for model in [model.to_str().unwrap(), "t.gguf"] {
        let document: Document =
            json(&workspace.succeed(&arguments(model, text.to_str().unwrap(), &more)));
        assert!(document.super_weights.list.is_empty());
        let mask = SuperWeightMask::read(&workspace.path("m.superweights.json")).unwrap();
        let matrix = ImportanceMatrix::open(&workspace.path("m.imatrix")).unwrap();
        let file = llm_quantize::files::gguf::GgufFile::open(&workspace.path("t.gguf")).unwrap();
        let mut all = Vec::new();
        for (name, entry) in &matrix.entries {
            let weight = file.tensor(name).unwrap().unwrap().to_f32();
            for (position, value) in weight.iter().enumerate() {
                let column = position % entry.values.len();
                all.push((
                    value.abs() * entry.values[column].sqrt(),
                    name.clone(),
                    position as u64,
                ));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total = document.super_weights.total_protected as usize;
        assert!(total > 2000);
        let least = all[total - 1].0;
        for (score, name, position) in &all {
            let inside = mask.tensors.get(name).is_some_and(|p| p.binary_search(position).is_ok());
            // Scores that round alike may fall on either side.
            assert!(
                inside == (*score >= least) || (score / least - 1.0).abs() < 1e-5,
                "{name} {score}"
            );
        }
    }
}

#[test]
fn the_same_bytes_with_one_thread_and_with_more_and_out_of_the_cache() {
    let workspace = Workspace::new();
    for method in ["activation", "gradient", "fisher"] {
        let run = |name: &str, more: &[&str]| {
            let base = ["--method", method, "--chunks", "12", "-c", "64", "-o", name];
            let document = tiny(&workspace, &[&base[..], more].concat());
            (document, std::fs::read(workspace.path(name)).unwrap())
        };
        let (first, expected) = run("a.imatrix", &["-t", "1"]);
        assert!(!first.cached);
        let (_, bytes) = run("b.imatrix", &["-t", "3", "--no-cache"]);
        assert!(bytes == expected, "{method}");
        let (cached, bytes) = run("c.imatrix", &[]);
        assert!(cached.cached && bytes == expected);
        let sums = ImportanceSums::open(&workspace.path("a.imatrix")).unwrap();
        assert_eq!(sums.method.name(), first.method);
        assert_eq!((sums.chunks, sums.chunk_size), (12, 64));
        let count = if sums.method == Method::Activation { 12.0 * 64.0 } else { 12.0 };
        assert_eq!(sums.entries.len(), 28);
        assert!(sums.entries.values().all(|entry| (entry.counts[0] - count).abs() < 1e-9));
    }
    // Another text, or another size, is another entry.
    let document = tiny(&workspace, &["--chunks", "12", "-c", "63"]);
    assert!(!document.cached);
}

#[test]
fn parts_merge_into_the_whole_and_forms_say_the_same() {
    let workspace = Workspace::new();
    let text = std::fs::read_to_string(text()).unwrap();
    let half = text.len() / 2;
    let half = (half..half + 4).find(|at| text.is_char_boundary(*at)).unwrap();
    std::fs::write(workspace.path("a.txt"), &text[..half]).unwrap();
    std::fs::write(workspace.path("b.txt"), &text[half..]).unwrap();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let run = |text: &str, more: &[&str]| {
        let more = [&["--chunks", "6", "-c", "128"], more].concat();
        json::<Document>(&workspace.succeed(&arguments(model, text, &more)))
    };
    run("a.txt", &["-o", "a.imatrix"]);
    run("b.txt", &["-o", "b.dat", "--output-format", "dat"]);
    run("b.txt", &["-o", "b.imatrix"]);
    // Of files alone, and in the run that measures the other half.
    let merge =
        ["--format", "json", "analyze", "--merge", "a.imatrix", "b.imatrix", "-o", "c.imatrix"];
    let merged: Document = json(&workspace.succeed(&merge));
    assert_eq!((merged.calibration_samples, merged.num_layers), (12, 4));
    assert_eq!(merged.merged, ["a.imatrix", "b.imatrix"]);
    assert!(merged.model_path.is_none() && merged.calibration.is_none());
    run("b.txt", &["-o", "d.imatrix", "--merge", "a.imatrix"]);
    let open = |name: &str| ImportanceSums::open(&workspace.path(name)).unwrap();
    let (a, b, c, d) = (open("a.imatrix"), open("b.imatrix"), open("c.imatrix"), open("d.imatrix"));
    assert_eq!(c.datasets, ["a.txt", "b.txt"]);
    for (name, entry) in &c.entries {
        for (column, sum) in entry.sums.iter().enumerate() {
            let expected = a.entries[name].sums[column] + b.entries[name].sums[column];
            assert!((sum / expected - 1.0).abs() < 1e-6);
            assert!((d.entries[name].sums[column] / expected - 1.0).abs() < 1e-6);
        }
        assert!((entry.counts[0] - 2.0 * 6.0 * 128.0).abs() < 1e-9);
    }
    // The .dat form has the same means.
    let dat = ImportanceMatrix::open(&workspace.path("b.dat")).unwrap();
    let gguf = ImportanceMatrix::open(&workspace.path("b.imatrix")).unwrap();
    assert_eq!((dat.chunks, &dat.datasets), (6, &gguf.datasets));
    for (name, entry) in &gguf.entries {
        let pairs = entry.values.iter().zip(&dat.entries[name].values);
        assert!(pairs.into_iter().all(|(a, b)| (a / b - 1.0).abs() < 1e-6), "{name}");
    }
    // A matrix as MODEL: looked at, converted.
    let shown = stdout(&workspace.succeed(&["analyze", "b.dat", "--show-statistics"]));
    assert!(shown.contains("blk.3.ffn_down.weight") && shown.contains("Entropy"), "{shown}");
    workspace.succeed(&["analyze", "b.dat", "-o", "e.imatrix"]);
    assert_eq!(open("e.imatrix").entries.len(), 28);
    // What does not fit together.
    run("a.txt", &["-o", "g.imatrix", "--method", "gradient"]);
    let wrong =
        ["--format", "json", "analyze", "--merge", "a.imatrix", "g.imatrix", "-o", "x.imatrix"];
    let error = fails(&workspace, &wrong, 10, "ImportanceMatrixError");
    assert!(error.message.contains("gradient_sensitivity"), "{}", error.message);
    assert!(!workspace.path("x.imatrix").exists());
}

/// Kills at points all over the run; each time it goes on.
#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let workspace = Workspace::new();
    let (model, text) = (tiny_model(), text());
    let more = [
        "--chunks",
        "40",
        "-c",
        "128",
        "--method",
        "fisher",
        "--no-cache",
        "-t",
        "1",
        "-o",
        "k.imatrix",
    ];
    let arguments = arguments(model.to_str().unwrap(), text.to_str().unwrap(), &more);
    let began = Instant::now();
    workspace.succeed(&arguments);
    let whole = began.elapsed();
    let expected = std::fs::read(workspace.path("k.imatrix")).unwrap();
    std::fs::remove_file(workspace.path("k.imatrix")).unwrap();
    let (mut killed, mut resumed) = (0, 0);
    for attempt in 0..6_u32 {
        let mut child = workspace
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(f64::from((attempt * 5) % 7 + 1) / 8.0));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        let output = child.wait_with_output().unwrap();
        resumed += usize::from(stderr(&output).contains("Resuming from checkpoint"));
        if workspace.path("k.imatrix").exists() {
            assert!(std::fs::read(workspace.path("k.imatrix")).unwrap() == expected);
            std::fs::remove_file(workspace.path("k.imatrix")).unwrap();
        }
    }
    assert!(killed > 0, "no run lived long enough to be killed");
    workspace.succeed(&arguments);
    assert!(std::fs::read(workspace.path("k.imatrix")).unwrap() == expected);
    assert!(!workspace.path(".checkpoint").exists());
    eprintln!("{killed} of 6 runs were killed, {resumed} took up the work of another");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_work_and_says_how_to_go_on() {
    let workspace = Workspace::new();
    let (model, text) = (tiny_model(), text());
    let more = [
        "--chunks",
        "96",
        "-c",
        "128",
        "--method",
        "fisher",
        "--no-cache",
        "-t",
        "1",
        "-o",
        "k.imatrix",
    ];
    let arguments = arguments(model.to_str().unwrap(), text.to_str().unwrap(), &more);
    let child = workspace
        .command(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let saved = || {
        let runs = std::fs::read_dir(workspace.path(".checkpoint")).into_iter().flatten().flatten();
        runs.filter_map(|run| std::fs::read_dir(run.path().join("units")).ok())
            .any(|units| units.flatten().count() > 0)
    };
    let began = Instant::now();
    while !saved() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let error = crate::workspace::check_failure(&output, 130, "Interrupted");
    assert!(error.suggestion.contains("--resume ./.checkpoint"), "{}", error.suggestion);
    let resume = [&arguments[..], &["--resume", ".checkpoint"]].concat();
    let document: Document = json(&workspace.succeed(&resume));
    assert!(document.resumed_samples > 0 && document.calibration_samples == 96);
    // There is nothing left to resume, and other options are another run.
    fails(&workspace, &resume, 7, "CheckpointError");
}

#[test]
fn what_makes_no_sense_is_refused_before_the_work() {
    let workspace = Workspace::new();
    let (model, text) = (tiny_model(), text());
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    for more in [
        &["--calibration-samples", "127"][..],
        &["--calibration-samples", "1025"],
        &["--chunks", "0"],
        &["--chunks", "-2"],
        &["--ctx-size", "257"],
        &["--identify-super-weights", "--coverage", "0.02"],
        &["--identify-super-weights", "--coverage", "0"],
        &["--plot", "picture.png"],
    ] {
        fails(&workspace, &arguments(model, text, more), 2, "InvalidArgumentError");
    }
    for bad in [&["--coverage", "0.001"][..], &["--method", "guess"], &["--merge"]] {
        fails(&workspace, &arguments(model, text, bad), 2, "InvalidArgumentError");
    }
    fails(&workspace, &arguments("nowhere", text, &[]), 3, "ModelNotFoundError");
    fails(&workspace, &arguments(model, "missing.txt", &[]), 15, "CalibrationDataError");
    std::fs::write(workspace.path("short.txt"), "Too short.").unwrap();
    fails(
        &workspace,
        &arguments(model, "short.txt", &["--chunks", "-1"]),
        15,
        "CalibrationDataError",
    );
    std::fs::write(workspace.path("bad.json"), "{\"text\": 7}").unwrap();
    fails(&workspace, &arguments(model, "bad.json", &[]), 15, "CalibrationDataError");
    fails(&workspace, &["--format", "json", "analyze"], 2, "InvalidArgumentError");
    let merge = ["--format", "json", "analyze", "--merge", "none.imatrix", "-o", "x"];
    fails(&workspace, &merge, 10, "ImportanceMatrixError");
    assert_eq!(std::fs::read_dir(workspace.path(".")).unwrap().count(), 2, "something was written");
}

type Change<'a> = &'a dyn Fn(&mut [half::f16]);

/// Changes values of tensors in a copy of the tiny model, whose weights are f16.
fn change(workspace: &Workspace, name: &str, changes: &[(&str, Change)]) {
    let target = workspace.path(name);
    std::fs::create_dir(&target).unwrap();
    for entry in std::fs::read_dir(tiny_model()).unwrap().flatten() {
        std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    let path = target.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (tensor, change) in changes {
        let entry = &header[*tensor];
        assert_eq!(entry["dtype"], "F16");
        let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let range = at(0)..at(1);
        let mut values: Vec<half::f16> = bytes[range.clone()]
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]))
            .collect();
        change(&mut values);
        let changed = values.iter().flat_map(|v| v.to_le_bytes());
        bytes.splice(range, changed);
    }
    std::fs::write(&path, bytes).unwrap();
}

const PLANTED: (usize, usize) = (77, 201);

/// One hidden unit of the MLP that a few tokens excite, and one weight that takes it up.
#[test]
fn a_planted_super_weight_is_found_and_drawn() {
    let workspace = Workspace::new();
    let (row, column) = PLANTED;
    let louder = |values: &mut [half::f16]| {
        for value in &mut values[column * 128..(column + 1) * 128] {
            *value = half::f16::from_f32(value.to_f32() * 40.0);
        }
    };
    let planted = |values: &mut [half::f16]| {
        for other in 0..128 {
            values[other * 384 + column] = half::f16::from_f32(0.0);
        }
        values[row * 384 + column] = half::f16::from_f32(2.0);
    };
    change(
        &workspace,
        "planted",
        &[
            ("model.layers.1.mlp.gate_proj.weight", &louder),
            ("model.layers.1.mlp.up_proj.weight", &louder),
            ("model.layers.1.mlp.down_proj.weight", &planted),
        ],
    );
    let text = text();
    let more = ["--chunks", "8", "--identify-super-weights", "--plot", "p.html", "-o", "p.imatrix"];
    let document: Document =
        json(&workspace.succeed(&arguments("planted", text.to_str().unwrap(), &more)));
    let found = &document.super_weights;
    let [weight] = &found.list[..] else {
        panic!("{} super weights", found.list.len());
    };
    assert_eq!(weight.tensor, "blk.1.ffn_down.weight");
    assert_eq!((weight.row, weight.column), PLANTED);
    assert!((weight.value - 2.0).abs() < 1e-6);
    assert!((weight.input * weight.value / weight.output - weight.share).abs() < 1e-3);
    assert!(weight.input_spike > 300.0 && weight.output_spike > 300.0 && weight.share > 0.9);
    let (with, without) = (found.perplexity.unwrap(), weight.perplexity_without.unwrap());
    assert!((with / without - 1.0).abs() > 0.01, "{with} {without}");
    // It is in the mask whatever its score, and in the picture.
    let mask = SuperWeightMask::read(&workspace.path("p.superweights.json")).unwrap();
    let position = (row * 384 + column) as u64;
    assert!(mask.tensors["blk.1.ffn_down.weight"].binary_search(&position).is_ok());
    let page = std::fs::read_to_string(workspace.path("p.html")).unwrap();
    for piece in ["<svg ", "</svg>", "layer (transformer block)", "row 77, column 201", "log scale"]
    {
        assert!(page.contains(piece), "{piece}");
    }
    // Drawn again from the file alone, without the mask.
    workspace.succeed(&["analyze", "p.imatrix", "--plot", "q.svg"]);
    let picture = std::fs::read_to_string(workspace.path("q.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert!(!picture.contains("Protected weights"));
}

#[test]
fn a_model_that_overflows_is_named() {
    let workspace = Workspace::new();
    let infinite = |values: &mut [half::f16]| values[5] = half::f16::INFINITY;
    change(&workspace, "broken", &[("model.layers.2.self_attn.v_proj.weight", &infinite)]);
    let text = text();
    for method in ["activation", "gradient"] {
        let more = ["--chunks", "4", "-c", "64", "--method", method];
        let error = fails(
            &workspace,
            &arguments("broken", text.to_str().unwrap(), &more),
            16,
            "ImportanceComputationError",
        );
        assert!(error.message.contains("not finite") || error.message.contains("overflow"));
        if method == "activation" {
            assert!(error.message.contains("model.layers.2.self_attn.o_proj"), "{}", error.message);
        }
    }
    assert!(!workspace.path("broken.imatrix").exists());
}
