//! `littlebit convert` and `littlebit compress --format`.

use std::fs;

use serde::Deserialize;
use serde_json::Value;

use crate::workspace::{Workspace, fails, json, stderr, tiny_model};

/// The document of a conversion, as documented.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConversionDocument {
    status: String,
    input_path: String,
    input_format: String,
    input_size_bytes: u64,
    output_path: String,
    format: String,
    quantization_level: Option<String>,
    file_size: u64,
    sha256: String,
    lossless: bool,
    warnings: Vec<String>,
}

fn convert(workspace: &Workspace, input: &str, more: &[&str]) -> ConversionDocument {
    let arguments = [&["--format", "json", "littlebit", "convert", input], more].concat();
    let document: ConversionDocument = json(&workspace.succeed(&arguments));
    let bytes = fs::read(workspace.path(&document.output_path)).unwrap();
    assert_eq!(document.status, "success");
    assert_eq!(document.file_size, bytes.len() as u64);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    assert_eq!(document.sha256, format!("{digest:x}"));
    let input = fs::metadata(workspace.path(&document.input_path)).unwrap().len();
    assert_eq!(document.input_size_bytes, input);
    document
}

#[test]
fn gguf_ext_comes_back_bit_for_bit() {
    let workspace = Workspace::new();
    // Two paths and f16 scales; one path and log8.
    for (name, options) in [
        ("two", &["--target-bpw", "2.0", "--residual", "--scales", "f16"][..]),
        ("one", &["--target-bpw", "0.7"][..]),
    ] {
        workspace.compress(name, &[options, &["--skip-validation"]].concat());
        let native = format!("{name}.littlebit");
        let ext = convert(&workspace, &native, &["gguf-ext"]);
        assert_eq!((ext.input_format.as_str(), ext.format.as_str()), ("littlebit", "gguf-ext"));
        assert_eq!(ext.output_path, format!("./{name}.ext.gguf"));
        assert!(ext.lossless && ext.warnings.is_empty() && ext.quantization_level.is_none());
        let back = convert(&workspace, &ext.output_path, &["littlebit", "-n", "back"]);
        assert_eq!(back.input_format, "gguf-ext");
        let read = |name: &str| fs::read(workspace.path(name)).unwrap();
        assert!(read(&native) == read("back.littlebit"), "{name} comes back otherwise");

        // It is run as the native file is, and says its own size.
        let info = |name: &str| -> Value {
            json(&workspace.succeed(&["--format", "json", "littlebit", "info", name]))
        };
        let (of_native, of_ext) = (info(&native), info(&ext.output_path));
        assert_eq!(of_ext["achieved_bpw"], of_native["achieved_bpw"]);
        assert_eq!(
            (&of_native["format"], &of_ext["format"]),
            (&"littlebit".into(), &"gguf-ext".into())
        );
        assert!(of_ext.to_string().contains(&ext.file_size.to_string()), "{of_ext}");
        let text = |name: &str| {
            let arguments = ["generate", name, "--prompt", "The", "--max-tokens", "12"];
            workspace.succeed(&arguments).stdout
        };
        assert_eq!(text(&native), text(&ext.output_path));
    }
}

#[test]
fn damage_is_found() {
    let workspace = Workspace::new();
    workspace.compress("m", &["--target-bpw", "1.0", "--skip-validation"]);
    convert(&workspace, "m.littlebit", &["gguf-ext"]);
    let path = workspace.path("m.ext.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    fs::write(&path, bytes).unwrap();
    let arguments = ["--format", "json", "littlebit", "convert", "m.ext.gguf", "littlebit"];
    let error = fails(&workspace, &arguments, 24, "ReconstructionFailed");
    assert!(error.message.contains("m.ext.gguf"), "{error:?}");
}

#[test]
fn lossy_conversions_are_confirmed() {
    let workspace = Workspace::new();
    workspace.compress("m", &["--target-bpw", "1.0", "--skip-validation"]);
    let arguments = ["--format", "json", "littlebit", "convert", "m.littlebit", "gguf-lossy"];
    let error = fails(&workspace, &arguments, 9, "CancelledError");
    assert!(error.message.contains("not confirmed"), "{error:?}");
    assert!(!workspace.path("m-lossy-Q4_K_M.gguf").exists());

    let lossy =
        convert(&workspace, "m.littlebit", &["gguf-lossy", "--force", "--gguf-quant", "f16"]);
    assert_eq!(lossy.output_path, "./m-lossy-F16.gguf");
    assert_eq!(lossy.quantization_level.as_deref(), Some("F16"));
    assert!(!lossy.lossless);
    // The same model up to the rounding of f16: perplexity of both beside the original.
    let model = tiny_model();
    let perplexity = |name: &str| -> f64 {
        let report: Value = json(&workspace.succeed(&[
            "--format",
            "json",
            "littlebit",
            "compress",
            name,
            "--target-bpw",
            "2.0",
            "--effort",
            "none",
            "--iterations",
            "4",
            "--eval-tokens",
            "2048",
            "--calibration-samples",
            "64",
            "--offline",
        ]));
        report["quality_metrics"]["perplexity_original"].as_f64().unwrap()
    };
    let report: Value = json(&workspace.succeed(&[
        "--format",
        "json",
        "littlebit",
        "validate",
        model.to_str().unwrap(),
        "m.littlebit",
        "--calibration-samples",
        "8",
        "--offline",
    ]));
    let expected = report["quality_metrics"]["perplexity_compressed"].as_f64().unwrap();
    let found = perplexity("m-lossy-F16.gguf");
    assert!((found / expected - 1.0).abs() < 2e-3, "{found}, {expected} from the factors");
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let workspace = Workspace::new();
    workspace.compress("m", &["--target-bpw", "1.0", "--skip-validation"]);
    convert(&workspace, "m.littlebit", &["gguf-lossy", "--force", "--gguf-quant", "Q8_0"]);
    fs::write(workspace.path("text"), "no model").unwrap();
    let unsupported = (8, "UnsupportedConversionError");
    let invalid = (2, "InvalidArgumentError");
    // Nor is a file of factors quantized as if they were weights.
    convert(&workspace, "m.littlebit", &["gguf-ext"]);
    for name in ["m.littlebit", "m.ext.gguf"] {
        let arguments =
            ["--format", "json", "quantize", name, "gguf", "-q", "Q8_0", "--allow-requantize"];
        let error = fails(&workspace, &arguments, 8, "UnsupportedConversionError");
        assert!(error.message.contains("gguf-lossy"), "{error:?}");
    }
    for (arguments, (code, kind), words) in [
        (&["m.littlebit", "littlebit"][..], unsupported, "already"),
        (&["m-lossy-Q8_0.gguf", "littlebit"], unsupported, "without binary factors"),
        (&["text", "gguf-ext"], unsupported, "neither"),
        (&["none", "gguf-ext"], (3, "ModelNotFoundError"), "does not exist"),
        (&["m.littlebit", "gguf-lossy", "--gguf-quant", "Q9"], invalid, "Q9"),
        (&["m.littlebit", "gguf-ext", "-n", "a/b"], invalid, "--output-dir"),
    ] {
        let all = [&["--format", "json", "littlebit", "convert"], arguments].concat();
        let error = fails(&workspace, &all, code, kind);
        assert!(error.message.contains(words), "{arguments:?}: {error:?}");
    }
}

#[test]
fn compress_writes_the_other_formats() {
    let workspace = Workspace::new();
    let native: Value =
        json(&workspace.compress("m", &["--target-bpw", "1.0", "--skip-validation"]));
    for (format, given, name) in
        [("gguf-ext", "m.ext", "m.ext.gguf"), ("gguf-lossy", "lossy.gguf", "lossy.gguf")]
    {
        let output = workspace
            .compress(given, &["--target-bpw", "1.0", "--skip-validation", "--format", format]);
        let report: Value = json(&output);
        assert_eq!(report["format"], format);
        assert_eq!(report["output_path"], format!("./{name}"));
        let size = fs::metadata(workspace.path(name)).unwrap().len();
        assert_eq!(report["compressed_size_bytes"], size);
        let ratio = report["original_size_bytes"].as_f64().unwrap() / size as f64;
        assert!((report["compression_ratio"].as_f64().unwrap() - ratio).abs() < 1e-9);
        let per_byte = |r: &Value| {
            r["file_bpw"].as_f64().unwrap() / r["compressed_size_bytes"].as_f64().unwrap()
        };
        assert!((per_byte(&report) / per_byte(&native) - 1.0).abs() < 1e-9);
        let left = fs::read_dir(workspace.path(".")).unwrap().flatten();
        let mut natives = left.filter(|e| e.file_name().to_string_lossy().contains("native"));
        assert!(natives.next().is_none(), "{}", stderr(&output));
        let complete = format!("[llm-quantize] Complete: ./{name} (");
        assert!(stderr(&output).trim_end().lines().last().unwrap().starts_with(&complete));
    }
    let back = convert(&workspace, "m.ext.gguf", &["littlebit", "-n", "back"]);
    assert_eq!(back.format, "littlebit");
    let weights = |name: &str| -> Value {
        json(&workspace.succeed(&["--format", "json", "littlebit", "info", name, "--layers"]))
    };
    assert_eq!(weights("back.littlebit")["layers"], weights("m.littlebit")["layers"]);
}
