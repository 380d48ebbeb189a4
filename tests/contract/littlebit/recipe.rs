//! `--effort` and `--recipe`: what they mean, how they are refused, where they are written down.

use super::compress::CompressionDocument;
use crate::workspace::{Workspace, fails, json, recovery_arguments, stderr, stdout, tiny_model};

/// Little enough for a test; `--calibration-samples 64` of the arguments is the rest.
const SMALL: &str = "effort = \"fast\"\n\n[text]\nheld-out = 2\nlength = 16\n\n[blocks]\nsteps = \
                     2\n\n[distillation]\nsteps = 2\ntop-k = 8\n";

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    recovery_arguments(model, "m.littlebit", more)
}

fn compress(workspace: &Workspace, more: &[&str]) -> CompressionDocument {
    json(&workspace.succeed(&arguments(tiny_model().to_str().unwrap(), more)))
}

#[test]
fn a_plan_has_every_knob_and_the_time_of_each_stage() {
    let workspace = Workspace::new();
    let plan = compress(&workspace, &["--dry-run"]);
    assert_eq!(plan.effort, "balanced", "recovery is on by default");
    let recipe = plan.recipe.unwrap();
    assert_eq!(recipe["text"]["sequences"], 64, "--calibration-samples");
    assert_eq!(recipe["blocks"]["estimator"], "identity");
    let rate = recipe["distillation"]["sign-rate"].to_string();
    assert!(rate.len() < 8, "{rate}: as people write it");
    let stages: Vec<&str> = plan.estimated_stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(
        stages,
        [
            "sensitivity",
            "activations",
            "factorization",
            "tuning",
            "opinions",
            "distillation",
            "evaluation"
        ]
    );
    assert!(plan.warnings.iter().any(|w| w.contains("rank-allocation")), "{:?}", plan.warnings);
    let sum: f64 = plan.estimated_stages.iter().map(|s| s.seconds).sum();
    assert!((plan.duration_seconds - sum).abs() < 1e-9 * sum);
    assert!(plan.estimated_stages.iter().all(|s| s.seconds > 0.0));

    // The built-in text is too short for all sequences of this effort.
    let model = tiny_model();
    let command = ["--format", "json", "littlebit", "compress", model.to_str().unwrap()];
    let whole = [&command[..], &["--effort", "balanced", "--dry-run"]].concat();
    let whole: CompressionDocument = json(&workspace.succeed(&whole));
    let writing = whole.estimated_stages.iter().position(|stage| stage.stage == "writing");
    assert_eq!(writing, Some(1), "{:?}", whole.estimated_stages);
    assert!(whole.estimated_stages[1].seconds > 0.0);
    // What is read first stands last, behind the recipe and the layers.
    let human = [&command[2..], &["--effort", "balanced", "--dry-run"]].concat();
    let human = stdout(&workspace.succeed(&human));
    let at = |text: &str| human.find(text).unwrap_or_else(|| panic!("{text} in {human}"));
    assert!(at("[distillation]") < at("model.layers.3.mlp.down_proj"));
    assert!(at("model.layers.3.mlp.down_proj") < at("Compression Ratio:"));
    assert!(at("Compression Ratio:") < at("  writing:") && at("  writing:") < at("Warning: "));

    let none = compress(&workspace, &["--dry-run", "--effort", "none", "--skip-validation"]);
    assert_eq!(none.effort, "none");
    assert!(none.recipe.is_none());
    let stages: Vec<&str> = none.estimated_stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(stages, ["calibration", "factorization"]);
    let work = |effort| {
        let stages = compress(&workspace, &["--dry-run", "--effort", effort]).estimated_stages;
        stages.iter().find(|s| s.stage == "distillation").map_or(0.0, |s| s.seconds)
    };
    assert!(work("max") > work("fast"));
}

#[test]
fn what_a_plan_prints_is_a_recipe_file() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("small.toml"), SMALL).unwrap();
    let model = tiny_model();
    let options = ["--dry-run", "--recipe", "small.toml"];
    let out = stdout(&workspace.succeed(&arguments(model.to_str().unwrap(), &options)[2..]));
    let (_, rest) = out.split_once("Recipe:\n").unwrap();
    let (printed, _) = rest.split_once("\nLayer  ").unwrap();
    let table: toml::Table = toml::from_str(printed).unwrap();
    assert_eq!(table["effort"].as_str(), Some("fast"), "{printed}");
    assert_eq!(table["blocks"]["steps"].as_integer(), Some(2));
    for line in ["Recovery:           fast", "  distillation:", "(estimated)"] {
        assert!(out.contains(line), "{line} in\n{out}");
    }
    std::fs::write(workspace.path("printed.toml"), printed).unwrap();
    let options = |name| ["--dry-run", "--recipe", name];
    let (small, printed) = (
        compress(&workspace, &options("small.toml")),
        compress(&workspace, &options("printed.toml")),
    );
    assert_eq!(small.recipe, printed.recipe);
    assert_eq!(small.effort, printed.effort);
    // The command line has the last word on the effort, the file on its knobs.
    let max = compress(&workspace, &["--dry-run", "--recipe", "small.toml", "--effort", "max"]);
    assert_eq!(max.effort, "max");
    assert_eq!(max.recipe.unwrap()["blocks"]["steps"], 2);
}

#[test]
fn a_recipe_is_followed_and_written_into_the_file() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("small.toml"), SMALL).unwrap();
    let options = ["--target-bpw", "1.0", "--recipe", "small.toml"];
    let plan = compress(&workspace, &[&options[..], &["--dry-run"]].concat());
    let model = tiny_model();
    let options = [&options[..], &["--skip-validation"]].concat();
    let output = workspace.succeed(&arguments(model.to_str().unwrap(), &options));
    let report: CompressionDocument = json(&output);
    assert_eq!(report.effort, "fast");
    assert_eq!(report.recipe, plan.recipe);
    let (planned, size) = (plan.compressed_size_bytes as f64, report.compressed_size_bytes as f64);
    assert!((size / planned - 1.0).abs() < 0.01, "{size} bytes, {planned} planned");
    let size = std::fs::metadata(workspace.path("m.littlebit")).unwrap().len();
    assert_eq!(report.compressed_size_bytes, size);
    let err = stderr(&output);
    for words in [
        "Recovery: fast (64 sequences of 16 tokens, 64 for blocks; 2 steps per block (32 tokens), 2 \
         of the whole model (32))",
        "Estimated time: ",
    ] {
        assert!(err.contains(words), "{words} in\n{err}");
    }
    let info: serde_json::Value =
        json(&workspace.succeed(&["--format", "json", "littlebit", "info", "m.littlebit"]));
    assert_eq!(info["effort"], "fast");
    assert_eq!(Some(&info["recipe"]), report.recipe.as_ref());
    let out = stdout(&workspace.succeed(&["littlebit", "info", "m.littlebit"]));
    for line in ["Recovery: fast", "  [distillation]", "  top-k = 8", "  sequences = 64"] {
        assert!(out.lines().any(|l| l == line), "{line} in\n{out}");
    }
}

/// What was measured of this model, one matrix at a time, with another program: at one bit the first
/// block's `down` costs it a nat, the queries before it a third of a thousandth.
#[test]
fn bits_go_where_the_model_is_sensitive() {
    let workspace = Workspace::new();
    let uniform =
        SMALL.replace("steps = 2\n\n[dist", "steps = 2\nrank-allocation = 'uniform'\n\n[dist");
    assert_ne!(uniform, SMALL);
    std::fs::write(workspace.path("uniform.toml"), uniform).unwrap();
    std::fs::write(workspace.path("small.toml"), SMALL).unwrap();
    let run = |recipe: &str, more: &[&str]| -> CompressionDocument {
        let options = ["--target-bpw", "1.0", "--recipe", recipe, "--skip-validation"];
        let report = compress(&workspace, &[&options[..], more].concat());
        std::fs::remove_file(workspace.path("m.littlebit")).ok();
        report
    };
    let rate = |report: &CompressionDocument, name: &str| -> f64 {
        let name = format!("model.layers.0.{name}");
        report.layers.iter().find(|layer| layer.name == name).unwrap().bpw
    };
    let even = run("uniform.toml", &[]);
    let moved = run("small.toml", &[]);
    for report in [&even, &moved] {
        assert!(report.achieved_bpw <= 1.0 && report.achieved_bpw > 0.99);
    }
    assert!((rate(&even, "mlp.down_proj") - rate(&even, "self_attn.q_proj")).abs() < 0.2);
    assert!(rate(&moved, "mlp.down_proj") > 1.4 && rate(&moved, "self_attn.q_proj") < 0.7);
    assert_eq!(moved.layers.len(), 28);
    for layer in &moved.layers {
        // Half of the target and 1.6 times the target, and a step of eight ranks beyond.
        assert!((0.37..1.75).contains(&layer.bpw), "{} has {}", layer.name, layer.bpw);
    }
    // A rank that was given is kept.
    let given = run("small.toml", &["--rank", "24"]);
    assert_eq!(given.layers.len(), moved.layers.len());
    assert!(given.layers.iter().all(|layer| layer.rank == 24));
    let plan = run("uniform.toml", &["--dry-run"]);
    assert_eq!(plan.compressed_size_bytes, even.compressed_size_bytes);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn recipes_that_make_no_sense_are_refused() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let options = ["--recipe", "bad.toml"];
    for (text, words) in [
        ("[blocks]\nstep = 5\n", &["`blocks.step`", "sign-rate"][..]),
        ("[blocks]\nsteps = 'many'\n", &["blocks.steps = \"many\"", "0 to 1000000"]),
        ("[blocks]\nsign-rate = -0.1\n", &["blocks.sign-rate = -0.1", "above 0"]),
        ("[distillation]\ntop-k = 0\n", &["distillation.top-k = 0", "1 to"]),
        ("[text\n", &["line 1"]),
        ("effort = 'none'\n[text]\nlength = 9\n", &["[text]", "none"]),
    ] {
        std::fs::write(workspace.path("bad.toml"), text).unwrap();
        let error = fails(&workspace, &arguments(model, &options), 2, "InvalidArgumentError");
        assert!(error.message.starts_with("bad.toml: "), "{error:?}");
        assert!(words.iter().all(|word| error.message.contains(word)), "{error:?}");
    }
    let missing = arguments(model, &["--recipe", "nowhere.toml"]);
    let error = fails(&workspace, &missing, 3, "ModelNotFoundError");
    assert!(error.message.contains("nowhere.toml") && error.suggestion.contains("--recipe"));
    fails(&workspace, &arguments(model, &["--effort", "much"]), 2, "InvalidArgumentError");
}

#[test]
fn a_checkpoint_of_another_recipe_is_refused_by_the_knob() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("small.toml"), SMALL).unwrap();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    // A threshold out of reach leaves the checkpoint.
    let target = ["--target-bpw", "2.0", "--quality-threshold", "0.001", "--recipe", "small.toml"];
    fails(&workspace, &arguments(model, &target), 21, "QualityThresholdExceeded");
    std::fs::write(workspace.path("small.toml"), SMALL.replace("top-k = 8", "top-k = 9")).unwrap();
    let resumed = [&target[..], &["--resume", ".checkpoint"]].concat();
    let error = fails(&workspace, &arguments(model, &resumed), 7, "CheckpointError");
    let words = "recipe distillation.top-k is `8` there, `9` here";
    assert!(error.message.contains(words), "{error:?}");
}
