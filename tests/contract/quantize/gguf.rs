//! `quantize`: documents, refusals, and what is written.

use serde::Deserialize;

use llm_quantize::files::gguf::{GgufFile, Value};

use crate::handmade::Handmade;
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
    sha256: Option<String>,
    files: Vec<File>,
    tensor_types: Vec<TypeCount>,
    #[serde(default)]
    tensors: Vec<Tensor>,
    expected_loss: Option<f64>,
    sensitivity: Option<String>,
    imatrix: Option<Importance>,
    resumed_tensors: usize,
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
struct File {
    path: String,
    bytes: u64,
    sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeCount {
    r#type: String,
    tensors: usize,
    weights: u64,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    source_type: String,
    r#type: String,
    bytes: u64,
    reason: String,
    instead_of: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Importance {
    path: String,
    entries: usize,
    used: usize,
    chunks: u32,
    datasets: Vec<String>,
    sha256: String,
}

const SMALL: Handmade = Handmade { layers: 3, width: 256, broken: None };

#[test]
fn the_plan_is_what_is_written() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    for level in ["q4_0", "Q8_0", "F16", "f32"] {
        let base = ["--format", "json", "quantize", "m.gguf", "gguf", "-q", level];
        let plan: Document = json(&workspace.succeed(&[&base[..], &["--dry-run"]].concat()));
        assert_eq!(
            (plan.status.as_str(), plan.validation_status.as_str()),
            ("planned", "not_written")
        );
        // Nothing ran yet.
        assert_eq!((plan.duration_seconds, plan.peak_memory_bytes), (None, None));
        let target = workspace.path(&plan.output_path);
        assert!(!target.exists());
        let done: Document = json(&workspace.succeed(&base));
        assert_eq!((done.status.as_str(), done.validation_status.as_str()), ("success", "valid"));
        assert_eq!(done.output_path, plan.output_path);
        assert_eq!(done.output_path, format!("./m-{}.gguf", level.to_uppercase()));
        assert_eq!((done.format.as_str(), done.quantization_level), ("gguf", level.to_uppercase()));
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!((done.file_size, plan.file_size), (bytes.len() as u64, bytes.len() as u64));
        assert_eq!(done.files[0].bytes, done.file_size);
        assert_eq!(done.files[0].path, done.output_path);
        let hash = sha256(&bytes);
        assert_eq!(done.sha256.as_deref(), Some(hash.as_str()));
        assert_eq!(done.files[0].sha256, done.sha256);
        assert!(done.duration_seconds > Some(0.0) && done.peak_memory_bytes > Some(0));
        assert_eq!(done.metadata.original_dtype, "F16");
        assert_eq!(done.metadata.layers_processed, 3);
        assert_eq!(done.metadata.architecture, "llama");
        let ratio = done.file_size as f64 / done.metadata.original_size as f64;
        assert!((done.compression_ratio - ratio).abs() < 1e-12);
        let bits = done.file_size as f64 * 8.0 / done.metadata.parameter_count as f64;
        assert!((done.bits_per_weight - bits).abs() < 1e-12);
        assert!(done.imatrix.is_none() && done.resumed_tensors == 0 && done.resumed_layers == 0);

        let file = GgufFile::open(&target).unwrap();
        assert_eq!(file.tensors.len(), plan.tensors.len());
        for (planned, (name, info)) in plan.tensors.iter().zip(&file.tensors) {
            assert_eq!(
                (planned.name.as_str(), planned.r#type.as_str()),
                (name.as_str(), info.kind.name())
            );
            assert_eq!((&planned.shape, planned.bytes as usize), (&info.shape, info.range.len()));
            assert!(!planned.reason.is_empty() && planned.instead_of.is_none());
            assert!(["F16", "F32"].contains(&planned.source_type.as_str()));
        }
        let weights: u64 = done.tensor_types.iter().map(|count| count.weights).sum();
        let tensors: usize = done.tensor_types.iter().map(|count| count.tensors).sum();
        let data: u64 = done.tensor_types.iter().map(|count| count.bytes).sum();
        assert_eq!((weights, tensors), (done.metadata.parameter_count, file.tensors.len()));
        assert!(data < done.file_size && done.tensor_types.iter().all(|c| !c.r#type.is_empty()));
        assert!(matches!(file.metadata["general.quantization_version"], Value::U32(2)));
        assert!(matches!(file.metadata["general.file_type"], Value::U32(_)));
        assert!(!workspace.path(".checkpoint").exists(), "checkpoints of a finished run");
        let left: Vec<_> = std::fs::read_dir(workspace.path("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".part"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// F16 to Q8_0 by the formula of the format, and norms untouched.
#[test]
fn values_are_those_of_the_format() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    workspace.succeed(&["quantize", "m.gguf", "gguf", "-q", "Q8_0", "-n", "out", "-t", "2"]);
    let before = GgufFile::open(&workspace.path("m.gguf")).unwrap();
    let after = GgufFile::open(&workspace.path("out.gguf")).unwrap();
    assert!(before.tensors.keys().eq(after.tensors.keys()));
    let mut blocks = 0;
    for name in before.tensors.keys() {
        let from = before.tensor(name).unwrap().unwrap();
        let to = after.tensor(name).unwrap().unwrap();
        if from.shape.len() == 1 {
            assert_eq!(&from.bytes[..], &to.bytes[..], "{name}");
            continue;
        }
        let values = from.to_f32();
        assert_eq!(values.len() / 32, to.bytes.len() / 34, "{name}");
        blocks += values.len() / 32;
        for (block, bytes) in values.chunks(32).zip(to.bytes.chunks(34)) {
            let largest = block.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let scale = largest / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let mut expected = half::f16::from_f32(scale).to_le_bytes().to_vec();
            expected.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
            assert_eq!(bytes, expected, "{name}");
        }
    }
    assert!(blocks > 0, "no matrix");
}

#[test]
fn options_change_types_metadata_and_files() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    workspace.succeed(&[
        "--format",
        "json",
        "quantize",
        "m.gguf",
        "gguf",
        "-q",
        "q4_0",
        "-o",
        "new/folder",
        "-n",
        "a.gguf",
        "--tensor-type",
        r"blk\.1\.attn_(q|k)=f16",
        "--token-embedding-type",
        "Q4_0",
        "--override-kv",
        "llama.context_length=int:64",
        "--override-kv",
        "general.name=str:Another name",
    ]);
    let file = GgufFile::open(&workspace.path("new/folder/a.gguf")).unwrap();
    assert_eq!(file.tensors["blk.1.attn_q.weight"].kind.name(), "F16");
    assert_eq!(file.tensors["blk.2.attn_q.weight"].kind.name(), "Q4_0");
    assert_eq!(file.tensors["token_embd.weight"].kind.name(), "Q4_0");
    assert!(matches!(file.metadata["llama.context_length"], Value::U32(64)));
    assert!(
        matches!(&file.metadata["general.name"], Value::String(name) if name == "Another name")
    );
    // A pattern that names no tensor decides about nothing.
    let idle = ["quantize", "m.gguf", "gguf", "-q", "q4_0", "--tensor-type", "nothing=q8_0"];
    let said =
        fails(&workspace, &[&["--format", "json"], &idle[..]].concat(), 2, "InvalidArgumentError");
    assert!(said.message.contains("nothing matches no tensor"), "{}", said.message);

    let document: Document = json(&workspace.succeed(&[
        "--format",
        "json",
        "quantize",
        "m.gguf",
        "gguf",
        "-q",
        "q8_0",
        "-n",
        "split",
        "--split-max-size",
        "1MB",
        "--no-checkpoints",
    ]));
    assert!(document.files.len() > 1);
    let count = document.files.len();
    for (number, part) in document.files.iter().enumerate() {
        assert!(part.path.ends_with(&format!("split-{:05}-of-{count:05}.gguf", number + 1)));
        let bytes = std::fs::read(workspace.path(&part.path)).unwrap();
        assert_eq!((part.bytes, part.sha256.clone()), (bytes.len() as u64, Some(sha256(&bytes))));
        assert!(part.bytes <= 1 << 20);
    }
    // A split model is a source like any other.
    let first = document.files[0].path.clone();
    workspace.succeed(&["quantize", &first, "gguf", "-q", "q8_0", "-n", "joined"]);
    workspace.succeed(&["quantize", "m.gguf", "gguf", "-q", "q8_0", "-n", "whole"]);
    let joined = std::fs::read(workspace.path("joined.gguf")).unwrap();
    assert!(joined == std::fs::read(workspace.path("whole.gguf")).unwrap());
}

#[test]
fn budgets_are_kept() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    let run = |more: &[&str]| -> Document {
        let base = ["--format", "json", "quantize", "m.gguf", "gguf"];
        json(&workspace.succeed(&[&base[..], more].concat()))
    };
    let mut sizes = vec![];
    for bits in ["5", "6.5", "8", "12"] {
        let document = run(&["--target-bpw", bits]);
        let limit: f64 = bits.parse().unwrap();
        assert!(document.bits_per_weight <= limit, "{} > {limit}", document.bits_per_weight);
        // Not far below either: the room left is less than the largest step of one matrix.
        assert!(document.bits_per_weight > limit - 0.6, "{} ≪ {limit}", document.bits_per_weight);
        sizes.push(document.file_size);
    }
    assert!(sizes.is_sorted() && sizes[0] < sizes[3]);
    let document = run(&["--target-size", "2MB", "--dry-run"]);
    assert!(document.file_size <= 2 << 20);
    assert!(document.tensors.iter().any(|tensor| tensor.reason == "budget"));
    let error = fails(
        &workspace,
        &["--format", "json", "quantize", "m.gguf", "gguf", "--target-size", "100k"],
        2,
        "InvalidArgumentError",
    );
    assert!(error.message.contains("smallest"), "{}", error.message);
}

/// Every matrix in the smallest type that there is: nothing smaller is possible.
#[test]
fn the_smallest_file_is_the_smallest() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    let base = ["--format", "json", "quantize", "m.gguf", "gguf"];
    let pure = ["-q", "Q1_0", "--pure", "--dry-run"];
    let smallest: Document = json(&workspace.succeed(&[&base[..], &pure].concat()));
    let size = smallest.file_size.to_string();
    let exact = ["--target-size", &size, "--dry-run"];
    let document: Document = json(&workspace.succeed(&[&base[..], &exact].concat()));
    assert_eq!(document.file_size, smallest.file_size);
    assert!(document.expected_loss.unwrap() > 0.0);
    assert_eq!(document.sensitivity.as_deref(), Some("estimated"));
    let less = (smallest.file_size - 1).to_string();
    let error = fails(
        &workspace,
        &[&base[..], &["--target-size", &less]].concat(),
        2,
        "InvalidArgumentError",
    );
    assert!(error.message.contains(&size), "{}", error.message);
}

/// Options that change nothing are refused, and what else there is to know is a warning.
#[test]
fn idle_options_are_refused() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m-F16.gguf"));
    let base = ["--format", "json", "quantize", "m-F16.gguf", "gguf", "--dry-run", "-q"];
    let refused = |more: &[&str], words: &str| {
        let arguments = [&base[..], more].concat();
        let error = fails(&workspace, &arguments, 2, "InvalidArgumentError");
        assert!(error.message.contains(words), "{words}: {}", error.message);
    };
    refused(&["Q4_0", "--tensor-type", "attn_norm=q8_0"], "only tensors that are never quantized");
    refused(&["Q4_0", "--tensor-type", "zzz=q8_0"], "zzz matches no tensor");
    let shadowed = ["--tensor-type", "attn=q8_0", "--tensor-type", "attn_q=q5_0"];
    refused(&[&["Q4_0"], &shadowed[..]].concat(), "attn_q decides about no tensor");
    refused(&["Q4_0", "--leave-output-tensor"], "--leave-output-tensor changes nothing");
    // The embeddings serve as the output matrix here.
    let both = ["--output-tensor-type", "q8_0", "--token-embedding-type", "q4_0"];
    refused(&[&["Q4_0"], &both[..]].concat(), "--output-tensor-type decides about no tensor");
    let warned = |more: &[&str], words: &str| {
        let document: Document = json(&workspace.succeed(&[&base[..], more].concat()));
        let found = document.warnings.iter().filter(|w| w.contains(words)).count();
        assert_eq!(found, 1, "{words}: {:?}", document.warnings);
        document
    };
    let document = warned(&["MXFP4"], "this model has none");
    assert!(document.tensors.iter().any(|t| t.r#type == "Q8_0"));
    assert!(document.tensors.iter().all(|t| t.r#type == "Q8_0" || t.shape.len() == 1));
    // The name of the file has the new level alone.
    assert!(document.output_path.ends_with("m-MXFP4_MOE.gguf"), "{}", document.output_path);
    // Plans look at the place that is to be written.
    std::fs::write(workspace.path("file"), "").unwrap();
    let arguments = [&base[..], &["Q4_0", "-o", "file"]].concat();
    fails(&workspace, &arguments, 1, "IoError");
}

#[test]
fn what_would_fail_later_is_refused_at_once() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    Handmade { broken: Some("blk.1.ffn_up.weight"), ..SMALL }.write(&workspace.path("nan.gguf"));
    let refused = |arguments: &[&str], code: i32, kind: &str, words: &str| {
        let base = ["--format", "json", "quantize"];
        let error = fails(&workspace, &[&base[..], arguments].concat(), code, kind);
        let all = format!("{} {}", error.message, error.suggestion);
        assert!(all.contains(words), "{arguments:?}: {all}");
    };
    let argument = "InvalidArgumentError";
    refused(&["m.gguf", "gguf", "-q", "Q9"], 2, argument, "Q4_K_M");
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "--tensor-type", "x"], 2, argument, "REGEX=TYPE");
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "--group-size", "64"], 2, argument, "--group-size");
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "-n", "a/b"], 2, argument, "--output-dir");
    refused(&["m.gguf", "gguf", "-q", "F16", "-n", "m"], 2, argument, "the model itself");
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "-t", "0"], 2, argument, "--threads");
    refused(&["m.gguf", "gguf", "--target-bpw", "-1"], 2, argument, "above 0");
    refused(&["none.gguf", "gguf", "-q", "Q8_0"], 3, "ModelNotFoundError", "none.gguf");
    refused(&["nan.gguf", "gguf", "-q", "Q8_0"], 6, "ValidationFailedError", "blk.1.ffn_up.weight");
    let imatrix = "ImportanceMatrixError";
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "--imatrix", "no"], 10, imatrix, "no");
    refused(&["m.gguf", "gguf", "-q", "Q8_0", "--imatrix", "m.gguf"], 10, imatrix, "no importance");
    refused(
        &["m.gguf", "gguf", "-q", "Q8_0", "--resume", "no"],
        7,
        "CheckpointError",
        "no checkpoint",
    );
    workspace.succeed(&["quantize", "m.gguf", "gguf", "-q", "Q8_0", "-n", "small"]);
    refused(
        &["small.gguf", "gguf", "-q", "Q4_0"],
        8,
        "UnsupportedConversionError",
        "--allow-requantize",
    );
    workspace.succeed(&["quantize", "small.gguf", "gguf", "-q", "Q4_0", "--allow-requantize"]);
    let neither = workspace.run(&["quantize", "m.gguf", "gguf"]);
    assert_eq!(neither.status.code(), Some(2), "{}", stderr(&neither));
    assert!(!workspace.path("m-Q4_0.gguf").exists());
}

/// An importance matrix is used, counted and named in the file, without its folder.
#[test]
fn importance_matrices_leave_their_mark() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    std::fs::create_dir(workspace.path("secret")).unwrap();
    let mut dat = 3i32.to_le_bytes().to_vec();
    for name in ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.2.attn_q.weight"] {
        dat.extend((name.len() as i32).to_le_bytes());
        dat.extend(name.as_bytes());
        dat.extend(1i32.to_le_bytes());
        dat.extend(256i32.to_le_bytes());
        (0..256).for_each(|i| dat.extend((1.0f32 + i as f32 * 100.0).to_le_bytes()));
    }
    dat.extend(5i32.to_le_bytes());
    dat.extend(8i32.to_le_bytes());
    dat.extend(b"wiki.raw");
    std::fs::write(workspace.path("secret/m.dat"), &dat).unwrap();
    let base = ["--format", "json", "quantize", "m.gguf", "gguf", "-q", "Q4_0"];
    let with: Document = json(
        &workspace.succeed(&[&base[..], &["--imatrix", "secret/m.dat", "-n", "with"]].concat()),
    );
    let matrix = with.imatrix.unwrap();
    assert_eq!((matrix.entries, matrix.used, matrix.chunks), (3, 3, 5));
    assert_eq!((matrix.datasets[0].as_str(), matrix.sha256), ("wiki.raw", sha256(&dat)));
    assert!(matrix.path.ends_with("m.dat"));
    assert!(with.warnings.iter().any(|w| w.contains("no entry for")), "{:?}", with.warnings);
    let file = GgufFile::open(&workspace.path("with.gguf")).unwrap();
    assert_eq!(file.text("quantize.imatrix.file").unwrap(), Some("m.dat"));
    assert_eq!(file.text("quantize.imatrix.dataset").unwrap(), Some("wiki.raw"));
    assert_eq!(file.u32("quantize.imatrix.entries_count").unwrap(), Some(3));
    assert_eq!(file.u32("quantize.imatrix.chunks_count").unwrap(), Some(5));
    let hidden = ["--imatrix", "secret/m.dat", "-n", "hidden", "--no-provenance"];
    workspace.succeed(&[&base[..], &hidden[..]].concat());
    let hidden = GgufFile::open(&workspace.path("hidden.gguf")).unwrap();
    assert!(hidden.metadata.keys().all(|key| !key.starts_with("quantize.")));
    workspace.succeed(&[&base[..], &["-n", "without"]].concat());
    let without = GgufFile::open(&workspace.path("without.gguf")).unwrap();
    let data = |file: &GgufFile, name: &str| file.tensor(name).unwrap().unwrap().bytes.to_vec();
    assert!(data(&file, "blk.0.attn_k.weight") == data(&without, "blk.0.attn_k.weight"));
    assert!(data(&file, "blk.0.attn_q.weight") != data(&without, "blk.0.attn_q.weight"));
}

#[test]
fn a_level_that_needs_importance_says_so() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    for level in ["IQ1_S", "IQ1_M"] {
        let error = fails(
            &workspace,
            &["--format", "json", "quantize", "m.gguf", "gguf", "-q", level],
            10,
            "ImportanceMatrixError",
        );
        assert!(error.message.contains("blk.0."), "{}", error.message);
        assert!(error.suggestion.contains("--imatrix"), "{}", error.suggestion);
        // A plan refuses what the run would.
        let plan = ["--format", "json", "quantize", "m.gguf", "gguf", "-q", level, "--dry-run"];
        fails(&workspace, &plan, 10, "ImportanceMatrixError");
    }
}

#[test]
fn the_tiny_model_in_human_words() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let output = workspace.succeed(&["quantize", model.to_str().unwrap(), "gguf", "-q", "Q8_0"]);
    let text = stdout(&output);
    for label in ["Output:", "Level:", "Size:", "Bits per weight:", "Types:", "SHA-256:", "Time:"] {
        assert!(text.contains(label), "{label} in {text}");
    }
    assert!(workspace.path("tiny-Q8_0.gguf").exists());
}

/// What is read first stands last, behind a table that may be longer than the screen.
#[test]
fn a_dry_run_ends_with_its_summary() {
    let workspace = Workspace::new();
    SMALL.write(&workspace.path("m.gguf"));
    let tiny = crate::workspace::tiny_model();
    let tiny = tiny.to_str().unwrap();
    for (arguments, last) in [
        (&["m.gguf", "gguf", "-q", "q8_0"][..], "blk.2.ffn_up.weight"),
        (&[tiny, "gptq", "-q", "4bit"], "model.layers.3.mlp.up_proj.qweight"),
    ] {
        let plan = [&["quantize"], arguments, &["--dry-run"]].concat();
        let human = stdout(&workspace.succeed(&plan));
        let at = |text: &str| human.find(text).unwrap_or_else(|| panic!("{text} in {human}"));
        assert!(human.starts_with("Tensor "), "{human}");
        assert!(at(last) < at("Would write:") && at("Would write:") < at("Bits per weight:"));
        assert!(human.lines().rev().take(12).any(|line| line.starts_with("Would write:")));
    }
    let info = stdout(&workspace.succeed(&["info", "m.gguf", "--tensors", "--skip-scan"]));
    assert!(info.starts_with("Tensor ") && info.find("output.weight") < info.find("Model:"));
}
