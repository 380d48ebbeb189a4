//! Layer errors of checkpoints whose quantizer moved scales between tensors, against what does not
//! change when scales move: the product of the matrices that they moved between.

use std::path::Path;

use serde_json::Value;

use llm_quantize::model::{LocalModel, open_local};

use crate::workspace::{Workspace, fails, json, stdout, tiny_model};

fn values(model: &LocalModel, name: &str) -> Vec<f32> {
    let weight = &model.weights[name];
    let mut values = vec![0.0; weight.elements()];
    weight.read_rows(0..weight.rows(), &mut values);
    values
}

/// `down · up` of a block, with the weight of the norm before it.
fn product(model: &LocalModel, block: usize) -> Vec<f64> {
    let (hidden, inner) = (model.config.hidden_size, model.config.intermediate_size);
    let name = |part: &str| format!("model.layers.{block}.{part}.weight");
    let (up, down) = (values(model, &name("mlp.up_proj")), values(model, &name("mlp.down_proj")));
    let norm = values(model, &name("post_attention_layernorm"));
    let mut product = vec![0.0; hidden * hidden];
    for row in 0..hidden {
        for middle in 0..inner {
            let left = f64::from(down[row * inner + middle]);
            for column in 0..hidden {
                product[row * hidden + column] +=
                    left * f64::from(up[middle * hidden + column]) * f64::from(norm[column]);
            }
        }
    }
    product
}

/// What the product of a block is off, relative to its size.
fn product_error(original: &LocalModel, quantized: &Path, block: usize) -> f64 {
    let (before, after) =
        (product(original, block), product(&open_local(quantized).unwrap(), block));
    let error: f64 = before.iter().zip(&after).map(|(x, y)| (x - y).powi(2)).sum();
    error / before.iter().map(|x| x * x).sum::<f64>()
}

#[test]
fn moved_scales_are_no_error() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let model = tiny.to_str().unwrap();
    let original = open_local(&tiny).unwrap();
    for (format, most) in [("smoothquant", 0.005), ("awq", 0.05), ("gptq", 0.05)] {
        let level = match format {
            "gptq" => &["-q", "4bit", "--desc-act"][..],
            "awq" => &["-q", "4bit"],
            _ => &[],
        };
        let base = ["quantize", model, format, "--calibration-samples", "16", "--group-size", "32"];
        let base = if format == "smoothquant" { &base[..5] } else { &base[..] };
        workspace.succeed(&[base, &["-n", format], level].concat());
        let document: Value = json(&workspace.succeed(&[
            "--format",
            "json",
            "quality",
            "report",
            model,
            format,
            "--include-layers",
            "--calibration-samples",
            "2",
            "--skip-coherence",
        ]));
        let layers = document["layer_errors"].as_array().unwrap();
        let error = |name: &str| {
            let layer = layers.iter().find(|layer| layer["layer_name"] == name).unwrap();
            layer["relative_error"].as_f64().unwrap()
        };
        for layer in layers.iter().filter(|layer| layer["layer_name"] != "model.embed_tokens") {
            assert!(layer["relative_error"].as_f64().unwrap() < most, "{format}: {layer}");
            assert_eq!(layer["rescaled"] == true, format != "gptq", "{format}: {layer}");
        }
        for block in 0..4 {
            // Errors of both matrices add up in the product.
            let known = product_error(&original, &workspace.path(format), block) / 2.0;
            let told = error(&format!("model.layers.{block}.mlp"));
            assert!(told < 3.0 * known && told > known / 3.0, "{format} {block}: {told} {known}");
        }
    }
    // The same in a comparison, and in a sentence for people.
    let compare =
        ["quality", "compare", model, "smoothquant", "awq", "--include-layers", "--metrics", "bpw"];
    let document: Value = json(&workspace.succeed(&[&["--format", "json"], &compare[..]].concat()));
    for result in document["results"].as_array().unwrap() {
        for layer in result["layer_errors"].as_array().unwrap() {
            assert!(layer["relative_error"].as_f64().unwrap() < 0.05, "{layer}");
        }
    }
    assert!(stdout(&workspace.succeed(&compare)).contains("Layer error"));
    let table = stdout(&workspace.succeed(&[&compare[..], &["--format", "csv"]].concat()));
    assert_eq!(table.lines().next(), Some("model,effective_bpw,mean_layer_error"));
}

/// More models than a page has styles for are refused before any of them is opened.
#[test]
fn a_page_has_a_style_for_each_model() {
    let workspace = Workspace::new();
    let models: Vec<String> = (0..33).map(|index| format!("m{index}.gguf")).collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let base = ["--format", "json", "quality", "compare", "original"];
    let page = [&base[..], &models, &["-o", "c.html"]].concat();
    let error = fails(&workspace, &page, 2, "InvalidArgumentError");
    assert!(error.message.contains("32 models apart, not 33"), "{error:?}");
    // A table has room for any number.
    fails(&workspace, &[&base[..], &models, &["-o", "c.csv"]].concat(), 3, "ModelNotFoundError");
}
