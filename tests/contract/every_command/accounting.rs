//! Nothing of a model is left out in silence: tensors that a class may have, heads, names, and what
//! lies there instead of a model.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llm_quantize::model::open_local;
use serde_json::{Value, json as object};

use crate::workspace::{Workspace, json, stderr, tiny_model};

/// The tiny model in the workspace, its configuration and tensors changed.
fn changed(
    workspace: &Workspace,
    name: &str,
    change: impl FnOnce(&mut Value, &mut HashMap<String, Tensor>),
) {
    let folder = workspace.path(name);
    fs::create_dir(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny_model().join(file), folder.join(file)).unwrap();
    }
    let text = fs::read_to_string(tiny_model().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let weights = tiny_model().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    change(&mut config, &mut tensors);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// Biases that turn the text into another one.
fn with_mlp_biases(config: &mut Value, tensors: &mut HashMap<String, Tensor>) {
    config["mlp_bias"] = object!(true);
    let matrices: Vec<String> =
        tensors.keys().filter(|name| name.contains(".mlp.")).cloned().collect();
    for (number, name) in matrices.into_iter().enumerate() {
        let rows = tensors[&name].dim(0).unwrap();
        let values: Vec<f32> =
            (0..rows).map(|row| ((row * 7 + number) % 13) as f32 / 8.0 - 0.75).collect();
        let bias = Tensor::from_vec(values, rows, &Device::Cpu).unwrap();
        tensors.insert(name.replace(".weight", ".bias"), bias);
    }
}

fn text(workspace: &Workspace, model: &str) -> Vec<u8> {
    workspace.succeed(&["generate", model, "-p", "Once upon a time", "-n", "8"]).stdout
}

fn stored(folder: &Path, name: &str) -> Vec<f32> {
    let model = open_local(folder).unwrap();
    let weight = &model.weights[name];
    let mut out = vec![0.0; weight.elements()];
    weight.read_rows(0..weight.rows(), &mut out);
    out
}

#[test]
fn biases_of_the_mlp_go_wherever_the_model_goes() {
    let workspace = Workspace::new();
    changed(&workspace, "biased", with_mlp_biases);
    let with = text(&workspace, "biased");
    assert_ne!(with, text(&workspace, tiny_model().to_str().unwrap()));

    let export = ["quantize", "biased", "gguf", "-q", "F32", "-n", "b.gguf", "--no-checkpoints"];
    workspace.succeed(&export);
    assert_eq!(text(&workspace, "b.gguf"), with);
    let back: Value = json(&workspace.succeed(&[
        "--format",
        "json",
        "convert",
        "b.gguf",
        "hf",
        "-q",
        "F32",
        "--output-name",
        "back",
        "--force",
    ]));
    assert_eq!(back["lossless"], object!(true), "{back}");
    let name = "model.layers.1.mlp.down_proj.bias";
    assert_eq!(stored(&workspace.path("back"), name), stored(&workspace.path("biased"), name));
    assert_eq!(text(&workspace, "back"), with);

    let packed = ["quantize", "biased", "gptq", "-q", "8bit", "--group-size", "-1"];
    let options = ["--calibration-samples", "0", "-n", "packed", "--no-checkpoints"];
    workspace.succeed(&[&packed[..], &options].concat());
    let rounded = stored(&workspace.path("packed"), name);
    for (before, after) in stored(&workspace.path("biased"), name).iter().zip(rounded) {
        assert!((before - after).abs() < 1e-3, "{before} {after}");
    }
}

#[test]
fn a_head_that_is_not_the_embedding_is_kept() {
    let workspace = Workspace::new();
    changed(&workspace, "other", |config, tensors| {
        assert_eq!(config["tie_word_embeddings"], object!(true));
        let embedding = tensors["model.embed_tokens.weight"].to_dtype(DType::F32).unwrap();
        tensors.insert("lm_head.weight".into(), embedding.neg().unwrap());
    });
    let output = workspace.succeed(&["generate", "other", "-p", "Once", "-n", "4"]);
    assert!(stderr(&output).contains("lm_head.weight"), "{}", stderr(&output));
    let packed =
        ["--format", "json", "quantize", "other", "gptq", "-q", "8bit", "--group-size", "-1"];
    let options = ["--calibration-samples", "0", "-n", "packed", "--no-checkpoints"];
    let document: Value = json(&workspace.succeed(&[&packed[..], &options].concat()));
    let said = document["warnings"].to_string();
    assert!(said.contains("lm_head.weight"), "{said}");
    let config = fs::read_to_string(workspace.path("packed/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["tie_word_embeddings"], object!(false));
    let (before, after) = (
        stored(&workspace.path("other"), "lm_head.weight"),
        stored(&workspace.path("packed"), "lm_head.weight"),
    );
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs().max(1e-3)));
}

#[test]
fn both_loaders_read_names_with_prefixes() {
    let workspace = Workspace::new();
    changed(&workspace, "wrapped", |_, tensors| {
        let renamed = tensors.drain().map(|(name, t)| (format!("language_model.{name}"), t));
        let mut renamed: HashMap<String, Tensor> = renamed.collect();
        let seeing = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
        renamed.insert("vision_tower.norm.weight".into(), seeing);
        *tensors = renamed;
    });
    let plain = text(&workspace, tiny_model().to_str().unwrap());
    assert_eq!(text(&workspace, "wrapped"), plain);
    let export = ["quantize", "wrapped", "gguf", "-q", "F32", "-n", "w.gguf", "--no-checkpoints"];
    let output = workspace.succeed(&export);
    assert!(stderr(&output).contains("vision_tower.norm.weight"), "{}", stderr(&output));
    assert_eq!(text(&workspace, "w.gguf"), plain);
}

#[test]
fn a_setting_that_is_not_read_is_refused_by_every_command() {
    let workspace = Workspace::new();
    changed(&workspace, "scaled", |config, _| config["attention_multiplier"] = object!(0.5));
    let packed = ["quantize", "scaled", "gptq", "-q", "8bit", "--calibration-samples", "0"];
    for arguments in [
        &["generate", "scaled", "-p", "x"][..],
        &["analyze", "scaled", "--chunks", "1", "-o", "m.imatrix"],
        &packed,
        &["littlebit", "compress", "scaled", "-o", "s.littlebit"],
    ] {
        let output = workspace.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {}", stderr(&output));
        assert!(stderr(&output).contains("attention_multiplier"), "{}", stderr(&output));
    }
}
