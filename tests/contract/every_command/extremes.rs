//! Values that are finite in the source and would not be in the result, or would be zero there.

use std::path::Path;

use half::f16;
use safetensors::tensor::{SafeTensors, TensorView};

use llm_quantize::files::gguf::GgufFile;

use crate::workspace::{Workspace, fails, json, stderr, tiny_model};

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

/// The tiny model in F32, changed.
fn altered(folder: &Path, change: impl Fn(&str, &mut [f32])) {
    std::fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(tiny_model().join(name), folder.join(name)).unwrap();
    }
    let bytes = std::fs::read(tiny_model().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let halves = view.data().chunks_exact(2);
            let mut values: Vec<f32> =
                halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            change(name, &mut values);
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name.to_owned(), view.shape().to_vec(), bytes)
        })
        .collect();
    let views = changed.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn gguf_refuses_what_a_type_cannot_hold_by_name_and_place() {
    let workspace = Workspace::new();
    altered(&workspace.path("m"), |name, values| {
        if name == DOWN {
            values[3 * 384 + 5] = 3e9;
        }
    });
    let levels =
        ["F16", "Q8_0", "Q5_1", "Q4_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_XS", "TQ2_0", "Q1_0"];
    for level in levels {
        let arguments = ["--format", "json", "quantize", "m", "gguf", "-q", level, "-n", "out"];
        let error = fails(&workspace, &arguments, 8, "UnsupportedConversionError");
        let place = "blk.1.ffn_down.weight is 3000000000.0 at [3, 5]";
        assert!(error.message.contains(place), "{level}: {}", error.message);
        assert!(error.suggestion.contains("BF16"), "{}", error.suggestion);
        assert!(!workspace.path("out.gguf").exists(), "{level}");
    }
    // What the hint says.
    let kept = [
        "quantize",
        "m",
        "gguf",
        "-q",
        "Q8_0",
        "-n",
        "out",
        "--tensor-type",
        r"^blk\.1\.ffn_down\.weight$=bf16",
    ];
    workspace.succeed(&kept);
    let file = GgufFile::open(&workspace.path("out.gguf")).unwrap();
    let down = file.tensor("blk.1.ffn_down.weight").unwrap().unwrap().to_f32();
    assert!((down[3 * 384 + 5] / 3e9 - 1.0).abs() < 0.01);
}

#[derive(serde::Deserialize)]
struct Document {
    status: String,
}

#[test]
fn rows_that_become_zero_are_named() {
    let workspace = Workspace::new();
    altered(&workspace.path("m"), |name, values| {
        if name == DOWN {
            values[384..2 * 384].iter_mut().for_each(|v| *v *= 1e-9);
        }
    });
    for level in ["Q8_0", "Q4_K_M", "F16"] {
        let output = workspace
            .succeed(&["--format", "json", "quantize", "m", "gguf", "-q", level, "-n", "o"]);
        assert_eq!(json::<Document>(&output).status, "success");
        let said = stderr(&output);
        assert!(
            said.contains("blk.1.ffn_down.weight: ")
                && said.contains("in 1 of 128 rows become zero"),
            "{level}: {said}"
        );
    }
    let output = workspace.succeed(&["quantize", "m", "gguf", "-q", "BF16", "-n", "o"]);
    assert!(!stderr(&output).contains("become zero"), "{}", stderr(&output));
}

#[test]
fn packed_formats_refuse_weights_beyond_their_scales() {
    let workspace = Workspace::new();
    altered(&workspace.path("m"), |name, values| {
        if name.ends_with("layers.2.mlp.up_proj.weight") {
            values.fill(1e8);
        }
    });
    for method in ["gptq", "awq", "smoothquant"] {
        let level = if method == "smoothquant" { "w8a8" } else { "4bit" };
        let arguments = [
            "--format",
            "json",
            "quantize",
            "m",
            method,
            "-q",
            level,
            "-n",
            "out",
            "--calibration-samples",
            "64",
            "--no-checkpoints",
        ];
        let output = workspace.run(&arguments);
        if method == "smoothquant" {
            // Its factors move such a scale into the matrices around, where it fits.
            #[derive(serde::Deserialize)]
            struct Smoothed {
                mean_relative_error: f64,
            }
            assert!(output.status.success(), "{}", stderr(&output));
            assert!(json::<Smoothed>(&output).mean_relative_error < 0.01);
            continue;
        }
        assert_eq!(output.status.code(), Some(8), "{method}: {}", stderr(&output));
        assert!(stderr(&output).contains("layers.2.mlp."), "{method}: {}", stderr(&output));
        assert!(!workspace.path("out").exists());
    }
}

#[test]
fn embeddings_of_a_littlebit_file_are_checked_before_the_work() {
    let workspace = Workspace::new();
    altered(&workspace.path("m"), |name, values| {
        if name == "model.embed_tokens.weight" {
            values[7 * 128 + 3] = -1e12;
        }
    });
    let arguments = [
        "--format",
        "json",
        "littlebit",
        "compress",
        "m",
        "-n",
        "m.littlebit",
        "--effort",
        "none",
        "--skip-validation",
    ];
    let error = fails(&workspace, &arguments, 8, "UnsupportedConversionError");
    assert!(
        error.message.contains("model.embed_tokens.weight is -1e12 at [7, 3]")
            || error.message.contains("model.embed_tokens.weight is -1000000000000.0 at [7, 3]"),
        "{}",
        error.message
    );
}

#[test]
fn convert_refuses_what_plain_numbers_cannot_hold() {
    let workspace = Workspace::new();
    altered(&workspace.path("m"), |name, values| {
        if name == DOWN {
            values[0] = 1e6;
        }
    });
    workspace.succeed(&["quantize", "m", "gguf", "-q", "F32", "-n", "m"]);
    let plain =
        ["--format", "json", "convert", "m.gguf", "hf", "-q", "F16", "-n", "out", "--force"];
    let error = fails(&workspace, &plain, 8, "UnsupportedConversionError");
    assert!(error.message.contains(&format!("{DOWN} is 1000000.0 at [0, 0]")), "{}", error.message);
    let packed =
        ["--format", "json", "convert", "m.gguf", "gptq", "-q", "4bit", "-n", "out", "--force"];
    let error = fails(&workspace, &packed, 8, "UnsupportedConversionError");
    assert!(error.message.contains(DOWN), "{}", error.message);
    assert!(!workspace.path("out").exists());
}

/// Levels that llama-quantize takes with an importance matrix only, whatever the model.
#[test]
fn levels_that_need_importance_are_refused_without_one() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    for level in ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K_S"] {
        // No row of 128 values fills a block of these types.
        let arguments = ["--format", "json", "quantize", model, "gguf", "-q", level, "--dry-run"];
        let error = fails(&workspace, &arguments, 10, "ImportanceMatrixError");
        assert!(error.message.contains(level), "{}", error.message);
    }
    workspace.succeed(&["quantize", model, "gguf", "-q", "Q2_K", "--dry-run"]);
}
