//! Recovery after factorization, from the command line.

use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::workspace::{Workspace, json, recovery_arguments, tiny_model};

/// A recipe of seconds.
const RECIPE: &str = "
[text]
held-out = 4
length = 96
[blocks]
steps = 40
absorption-steps = 10
[distillation]
steps = 60
batch = 2
";

fn arguments<'a>(model: &'a str, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let recipe = ["--target-bpw", "1.0", "--recipe", "recipe.toml"];
    recovery_arguments(model, name, &[&recipe[..], more].concat())
}

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("recipe.toml"), RECIPE).unwrap();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/models/corpus/calibration.txt");
    let text = std::fs::read_to_string(corpus).unwrap();
    std::fs::write(workspace.path("short.txt"), &text[..12_000]).unwrap();
    workspace
}

/// Without validation, on a text so short that the model itself writes a part of what is read.
const SHORT: [&str; 3] = ["--skip-validation", "--calibration-data", "short.txt"];

fn perplexity(report: &Value) -> f64 {
    report["quality_metrics"]["perplexity_compressed"].as_f64().unwrap()
}

#[test]
fn recovery_makes_a_model_predict_better() {
    let workspace = workspace();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let bare: Value = json(&workspace.compress("bare", &["--target-bpw", "1.0"]));
    assert!(bare.get("recovery").is_none());
    let output = workspace.succeed(&arguments(model, "m", &[]));
    let recovered: Value = json(&output);
    assert!(
        perplexity(&recovered) < 0.5 * perplexity(&bare),
        "{} after recovery, {} without",
        perplexity(&recovered),
        perplexity(&bare)
    );
    let recovery = &recovered["recovery"];
    assert_eq!(recovery["sequences"], 64, "--calibration-samples");
    assert_eq!(recovery["held_out_sequences"], 4);
    assert_eq!(recovery["sequence_length"], 96);
    assert_eq!(recovery["tokens_per_block"], 40 * 96);
    assert_eq!(recovery["distillation_tokens"], 60 * 2 * 96);
    let blocks = recovery["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 4);
    for block in blocks {
        // A stage never leaves a block worse than it found it.
        let figure = |key: &str| block[key].as_f64().unwrap();
        assert!(figure("error_after") <= figure("error_before"));
    }
    let figure = |key: &str| recovery["distillation"][key].as_f64().unwrap();
    assert!(figure("divergence_after") < figure("divergence_before"));
    // The budget is that of factorization alone, however it is divided.
    for report in [&recovered, &bare] {
        let achieved = report["achieved_bpw"].as_f64().unwrap();
        assert!(achieved <= 1.0 && achieved > 0.99, "{achieved}");
    }
    // Tuning moves the weights away from the original's in places that do not matter.
    let errors = |report: &Value| report["per_layer_summary"]["mean_relative_error"].as_f64();
    assert!(errors(&recovered).unwrap() > errors(&bare).unwrap());
}

#[test]
fn neither_threads_nor_checkpoints_change_a_bit_of_the_result() {
    let workspace = workspace();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    for (name, options) in
        [("one", &["--threads", "1", "--no-checkpoints"][..]), ("three", &["--threads", "3"])]
    {
        workspace.succeed(&arguments(model, name, &[&SHORT[..], options].concat()));
    }
    let bytes = |name: &str| std::fs::read(workspace.path(&format!("{name}.littlebit"))).unwrap();
    assert!(bytes("one") == bytes("three"));
}

#[test]
fn the_model_writes_what_the_text_lacks() {
    let workspace = workspace();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let recovery = |more: &[&str]| -> (Value, String) {
        let output = workspace.succeed(&arguments(model, "m", &[&SHORT[..], more].concat()));
        let report: Value = json(&output);
        (report["recovery"].clone(), String::from_utf8(output.stderr).unwrap())
    };
    let quick = RECIPE.replace("steps = 40", "steps = 1").replace("steps = 60", "steps = 20");
    std::fs::write(workspace.path("recipe.toml"), &quick).unwrap();
    let (with, err) = recovery(&[]);
    let (all, written) = (with["sequences"].as_u64().unwrap(), &with["written_sequences"]);
    assert_eq!((all, with["block_sequences"].as_u64()), (64, Some(64)), "--calibration-samples");
    let written = written.as_u64().unwrap();
    assert!(written > 0 && written < 64, "{written}");
    assert!(err.contains(&format!("the original writes {written} more")), "{err}");
    let quick = quick.replace("[text]", "[text]\nwritten = false");
    std::fs::write(workspace.path("recipe.toml"), quick).unwrap();
    let (without, err) = recovery(&[]);
    assert_eq!(without["written_sequences"], 0);
    assert_eq!(without["sequences"].as_u64().unwrap(), all - written);
    assert!(err.contains("short.txt") && err.contains("instead of"), "{err}");
}

#[test]
fn killed_recoveries_end_with_the_same_bytes() {
    let workspace = workspace();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let began = Instant::now();
    workspace.succeed(&arguments(model, "m", &SHORT));
    let whole = began.elapsed();
    let file = workspace.path("m.littlebit");
    let expected = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut killed = 0;
    for attempt in 0..8_u32 {
        let mut child = workspace
            .command(&arguments(model, "m", &SHORT))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(f64::from((attempt * 3) % 8 + 1) / 8.0 * 0.7));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        child.wait().unwrap();
        if file.exists() {
            assert!(std::fs::read(&file).unwrap() == expected);
            std::fs::remove_file(&file).unwrap();
        }
    }
    assert!(killed > 0, "no run lived long enough to be killed");
    workspace.succeed(&arguments(model, "m", &SHORT));
    assert!(std::fs::read(&file).unwrap() == expected, "other bytes after {killed} kills");
}
