//! Every exit code, provoked by a real cause.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::workspace::{Workspace, check_failure, compress_arguments, fails, stderr, tiny_model};

/// A copy of the tiny model that a test may damage.
fn copy_of_tiny(workspace: &Workspace) -> PathBuf {
    let target = workspace.path("model");
    std::fs::create_dir(&target).unwrap();
    for entry in std::fs::read_dir(tiny_model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    target
}

fn edit_config(model: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = model.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn compress_fails(
    workspace: &Workspace,
    model: &Path,
    more: &[&str],
    code: i32,
    kind: &str,
) -> crate::workspace::ErrorDocument {
    let arguments = compress_arguments(model.to_str().unwrap(), "m.littlebit", more);
    let document = fails(workspace, &arguments, code, kind);
    assert!(!workspace.path("m.littlebit").exists() || code == 21, "no file under the final name");
    document
}

#[test]
fn exit_1_unsupported_architecture_by_name() {
    for (class, kind) in [
        ("MambaForCausalLM", "mamba"),
        ("GPT2LMHeadModel", "gpt2"),
        ("PhimoeForCausalLM", "phimoe"),
    ] {
        let workspace = Workspace::new();
        let model = copy_of_tiny(&workspace);
        edit_config(&model, |config| {
            config["architectures"] = serde_json::json!([class]);
            config["model_type"] = kind.into();
        });
        let error = compress_fails(&workspace, &model, &[], 1, "UnsupportedModelError");
        assert!(error.message.contains(class), "{error:?}");
        assert!(
            error.suggestion.contains("llama") && error.suggestion.contains("qwen3"),
            "{error:?}"
        );
    }
}

#[test]
fn exit_1_output_directory_that_is_a_file() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("file"), b"").unwrap();
    compress_fails(&workspace, &tiny_model(), &["-o", "file"], 1, "IoError");
}

#[test]
fn exit_2_values_that_make_no_sense() {
    let workspace = Workspace::new();
    let model = tiny_model();
    for more in [
        &["--rank", "0"][..],
        &["--quality-threshold", "-5"],
        &["--quality-threshold", "0"],
        &["--target-bpw", "NaN"],
        &["--target-bpw", "half"],
        &["--calibration-samples", "5"],
        &["--calibration-samples", "2000"],
        &["--threads", "0"],
        &["--iterations", "0"],
        &["--format", "nonsense"],
        &["--resume", "x", "--no-checkpoints"],
    ] {
        compress_fails(&workspace, &model, more, 2, "InvalidArgumentError");
    }
    let mut command =
        workspace.command(&compress_arguments(model.to_str().unwrap(), "m.littlebit", &[]));
    let output = command.env("LLM_QUANTIZE_LITTLEBIT_MAX_BPW", "many").output().unwrap();
    let error = check_failure(&output, 2, "InvalidArgumentError");
    assert!(error.message.contains("LLM_QUANTIZE_LITTLEBIT_MAX_BPW"));
}

#[test]
fn exit_3_models_and_files_that_are_not_there() {
    let workspace = Workspace::new();
    let kind = "ModelNotFoundError";
    compress_fails(&workspace, Path::new("./nowhere"), &[], 3, kind);
    // Offline and not in the cache.
    compress_fails(&workspace, Path::new("org/model"), &[], 3, kind);
    let model = copy_of_tiny(&workspace);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    compress_fails(&workspace, &model, &[], 3, kind);
    fails(&workspace, &["--format", "json", "littlebit", "info", "./nowhere.littlebit"], 3, kind);
}

/// Answers every request with `status` until dropped.
fn hub_answering(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            );
        }
    });
    address
}

#[test]
fn exit_3_and_4_what_the_hub_answers() {
    for (status, code, kind) in [
        ("401 Unauthorized", 4, "AuthenticationRequiredError"),
        ("403 Forbidden", 4, "AuthenticationRequiredError"),
        ("404 Not Found", 3, "ModelNotFoundError"),
    ] {
        let workspace = Workspace::new();
        let arguments = compress_arguments("org/gated-model", "m.littlebit", &[]);
        let output = workspace
            .command(&arguments)
            .env("HF_ENDPOINT", hub_answering(status))
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        let error = check_failure(&output, code, kind);
        assert!(error.message.contains("org/gated-model"), "{error:?}");
        assert!(code != 4 || error.suggestion.contains("HF_TOKEN"));
    }
}

#[test]
fn exit_5_more_memory_than_allowed() {
    let workspace = Workspace::new();
    let error =
        compress_fails(&workspace, &tiny_model(), &["--max-memory", "1MB"], 5, "OutOfMemoryError");
    assert!(error.message.contains("--max-memory allows 1.0 MB"), "{error:?}");
}

#[test]
fn exit_6_damaged_files() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation"]);
    let path = workspace.path("m.littlebit");
    let whole = std::fs::read(&path).unwrap();
    let kind = "ValidationFailedError";
    let model = tiny_model();
    let model = model.to_str().unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 4;
    std::fs::write(&path, &flipped).unwrap();
    fails(
        &workspace,
        &["--format", "json", "littlebit", "info", "--verify", "m.littlebit"],
        6,
        kind,
    );
    fails(
        &workspace,
        &["--format", "json", "littlebit", "validate", model, "m.littlebit"],
        6,
        kind,
    );

    for length in [0, 7, 63, 64, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        fails(&workspace, &["--format", "json", "littlebit", "info", "m.littlebit"], 6, kind);
    }

    let copy = copy_of_tiny(&workspace);
    let weights = copy.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    fails(&workspace, &["--format", "json", "info", copy.to_str().unwrap()], 6, kind);
}

#[test]
fn exit_7_checkpoints_that_do_not_fit() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let error =
        compress_fails(&workspace, &model, &["--resume", "nothing-here"], 7, "CheckpointError");
    assert!(error.message.contains("nothing-here"));
    // tests in `resume` cover a checkpoint of other settings
}

#[test]
fn exit_12_and_21_gates_of_validate() {
    let workspace = Workspace::new();
    workspace.compress("m.littlebit", &["--skip-validation", "--target-bpw", "0.6"]);
    let model = tiny_model();
    let validate = [
        "--format",
        "json",
        "littlebit",
        "validate",
        model.to_str().unwrap(),
        "m.littlebit",
        "--calibration-samples",
        "64",
    ];
    let over = [&validate[..], &["--quality-threshold", "1"]].concat();
    let error = fails(&workspace, &over, 21, "QualityThresholdExceeded");
    assert!(error.message.contains("exceeds threshold (1%)"), "{error:?}");
    assert!(
        error.result.unwrap()["quality_metrics"]["perplexity_compressed"].as_f64().unwrap() > 1.0
    );
}

#[test]
fn exit_15_calibration_text_that_cannot_be_used() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("empty.txt"), "").unwrap();
    std::fs::write(workspace.path("bad.jsonl"), "{\"text\": \"fine\"}\n{\"text\":").unwrap();
    for name in ["empty.txt", "bad.jsonl", "missing.txt"] {
        let more = ["--calibration-data", name];
        let error = compress_fails(&workspace, &tiny_model(), &more, 15, "CalibrationDataError");
        assert!(error.message.contains(name), "{error:?}");
    }
}

/// Overwrites the first element of a tensor of the safetensors file at `path`.
fn poison(path: &Path, tensor: &str, half: u16) {
    let mut bytes = std::fs::read(path).unwrap();
    let header_length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_length]).unwrap();
    let offset = 8 + header_length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    // Row 0, column 5 of a f16 matrix.
    bytes[offset + 10..offset + 12].copy_from_slice(&half.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn exit_20_nan_and_inf_in_a_weight() {
    for (half, value) in [(0x7e00, "NaN"), (0x7c00, "inf")] {
        let workspace = Workspace::new();
        let model = copy_of_tiny(&workspace);
        poison(&model.join("model.safetensors"), "model.layers.2.mlp.up_proj.weight", half);
        let more = ["--weighting", "none", "--skip-validation"];
        let error = compress_fails(&workspace, &model, &more, 20, "FactorizationFailed");
        assert!(error.message.contains("model.layers.2.mlp.up_proj"), "{error:?}");
        assert!(error.message.contains("[0, 5]") && error.message.contains(value), "{error:?}");
        assert!(error.suggestion.contains("NaN/Inf"));
        let info = workspace.succeed(&["info", model.to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&info.stdout).contains("model.layers.2.mlp.up_proj"));
    }
}

#[test]
fn exit_21_a_threshold_out_of_reach_keeps_the_best_result() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let arguments = compress_arguments(
        model.to_str().unwrap(),
        "m.littlebit",
        &["--quality-threshold", "0.001", "--target-bpw", "1.5"],
    );
    let error = fails(&workspace, &arguments, 21, "QualityThresholdExceeded");
    assert!(error.message.contains("m.littlebit") && error.message.contains("0.001%"), "{error:?}");
    assert!(workspace.path("m.littlebit").exists());
    let result = error.result.unwrap();
    assert!(result["iterations"].as_array().unwrap().len() >= 2);
    assert!((result["target_bpw"].as_f64().unwrap() - 2.0).abs() < 1e-9);
}

#[test]
fn exit_22_targets_outside_the_range() {
    let workspace = Workspace::new();
    let model = tiny_model();
    for (target, words) in [
        ("0.05", "Target BPW 0.05 is below minimum supported (0.1)"),
        ("-1", "below minimum"),
        ("2.5", "Target BPW 2.5 is above maximum supported (2)"),
        ("16", "above maximum"),
    ] {
        let error =
            compress_fails(&workspace, &model, &["--target-bpw", target], 22, "InvalidBPWRange");
        assert!(error.message.contains(words), "{error:?}");
        assert!(error.suggestion.contains("between 0.1 and 2"));
    }
    let arguments =
        compress_arguments(model.to_str().unwrap(), "m.littlebit", &["--target-bpw", "0.5"]);
    let output = workspace
        .command(&arguments)
        .env("LLM_QUANTIZE_LITTLEBIT_MIN_BPW", "0.6")
        .output()
        .unwrap();
    check_failure(&output, 22, "InvalidBPWRange");
}

#[test]
fn exit_23_ranks_and_targets_that_no_layer_can_have() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let error = compress_fails(&workspace, &model, &["--rank", "4096"], 23, "RankSelectionFailed");
    assert!(error.message.contains("model.layers.0."), "{error:?}");
    // The scales of matrices this small exceed 0.1 bits per weight.
    let error =
        compress_fails(&workspace, &model, &["--target-bpw", "0.1"], 23, "RankSelectionFailed");
    assert!(error.suggestion.contains("0."), "the smallest reachable figure: {error:?}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_file() {
    let workspace = Workspace::new();
    let model = tiny_model();
    // Files of at most 64 blocks of 512 bytes, as on a disk that fills up while writing.
    let script = format!(
        "ulimit -f 64; exec {} --format json littlebit compress {} -n m.littlebit --no-checkpoints \
         --iterations 2 --weighting none --skip-validation --effort none",
        env!("CARGO_BIN_EXE_llm-quantize"),
        model.display()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(workspace.path("."))
        .output()
        .unwrap();
    let error = check_failure(&output, 1, "IoError");
    assert!(error.message.contains("m.littlebit"), "{error:?}\n{}", stderr(&output));
    let left: Vec<_> = std::fs::read_dir(workspace.path(".")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
