//! `profile`: the presets, files of one's own, and what they find in a model.

use serde::Deserialize;
use serde_json::json as value;

use crate::workspace::{ErrorDocument, Workspace, fails, json, stderr, stdout, tiny_model};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are the contract's")]
struct Profile {
    profile_id: String,
    profile_name: String,
    strategy: String,
    description: Option<String>,
    layer_assignments: Vec<Assignment>,
    target_bpw: Option<f64>,
    target_compression: Option<f64>,
    target_loss: Option<f64>,
    /// Of what is shown; a file has none.
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Assignment {
    layer_name: String,
    bit_width: f64,
    is_protected: bool,
    r#type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    status: String,
    directory: Option<String>,
    profiles: Vec<Listed>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: String,
    description: String,
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Created {
    status: String,
    output_path: String,
    profile_id: String,
    profile_name: String,
    model: Option<String>,
    imatrix: String,
    sensitivity: String,
    assignments: usize,
    target_bpw: Option<f64>,
    target_compression: Option<f64>,
    effective_bpw: Option<f64>,
    compression_ratio: Option<f64>,
    expected_loss: Option<f64>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Validation {
    status: String,
    profile: String,
    model: String,
    valid: bool,
    tensors: usize,
    assigned: usize,
    rules: Vec<Rule>,
    unassigned: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    layer_name: String,
    bit_width: f64,
    matches: usize,
    holds: usize,
    shadowed_by: Vec<String>,
}

/// An importance matrix of the tiny model in which every column counts the same.
fn flat_importance(workspace: &Workspace) {
    let mut entries: Vec<(String, usize)> = Vec::new();
    for block in 0..4 {
        for (part, columns) in [
            ("attn_q", 128),
            ("attn_k", 128),
            ("attn_v", 128),
            ("attn_output", 128),
            ("ffn_gate", 128),
            ("ffn_up", 128),
            ("ffn_down", 384),
        ] {
            entries.push((format!("blk.{block}.{part}.weight"), columns));
        }
    }
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, columns) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1i32.to_le_bytes());
        out.extend((columns as i32).to_le_bytes());
        (0..columns).for_each(|_| out.extend(1f32.to_le_bytes()));
    }
    std::fs::write(workspace.path("m.imatrix"), out).unwrap();
}

#[test]
fn presets_are_listed_and_shown() {
    let workspace = Workspace::new();
    let text = stdout(&workspace.succeed(&["profile", "list"]));
    for line in [
        "attention-high    Attention layers at 4-bit, MLP at 2-bit",
        "balanced          Even distribution based on importance",
        "compression-max   Minimize size while maintaining coherence",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let list: List = json(&workspace.succeed(&["--format", "json", "profile", "list"]));
    assert_eq!((list.status.as_str(), list.profiles.len()), ("success", 3));
    assert!(list.warnings.is_empty() && list.profiles.iter().all(|p| p.path.is_none()));

    for (name, strategy, rules, target) in [
        ("attention-high", "attention_high", 3, None),
        ("balanced", "balanced", 0, Some(3.5)),
        ("compression-max", "compression_max", 0, None),
    ] {
        let profile: Profile =
            json(&workspace.succeed(&["profile", "show", name, "--format", "json"]));
        assert_eq!((profile.profile_id.as_str(), profile.strategy.as_str()), (name, strategy));
        assert_eq!((profile.layer_assignments.len(), profile.target_bpw), (rules, target));
        assert_eq!((profile.profile_name, profile.target_compression), (name.to_owned(), None));
        assert_eq!(profile.target_loss.is_some(), name == "compression-max");
        assert!(profile.description.is_some());
        assert!(profile.layer_assignments.iter().all(|rule| rule.r#type.is_none()));
        let human = stdout(&workspace.succeed(&["profile", "show", name]));
        assert!(human.contains(name) && human.contains(strategy), "{human}");
    }
    let error =
        fails(&workspace, &["--format", "json", "profile", "show", "x"], 13, "ProfileError");
    assert!(error.message.contains("attention-high"), "{}", error.message);
}

#[test]
fn a_profile_is_made_found_shown_and_used() {
    let workspace = Workspace::new();
    flat_importance(&workspace);
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let folder = workspace.path("profiles");
    let run = |arguments: &[&str]| {
        let mut command = workspace.command(arguments);
        command.env("LLM_QUANTIZE_PROFILE_DIR", &folder).output().unwrap()
    };
    let created: Created = json(&run(&[
        "--format",
        "json",
        "profile",
        "create",
        "--imatrix",
        "m.imatrix",
        "--name",
        "My own",
        "--target-bpw",
        "6",
        "--model",
        tiny,
    ]));
    assert_eq!((created.status.as_str(), created.profile_id.as_str()), ("success", "my-own"));
    assert_eq!(
        (created.profile_name.as_str(), created.sensitivity.as_str()),
        ("My own", "estimated")
    );
    assert_eq!((created.target_bpw, created.target_compression), (Some(6.0), None));
    assert_eq!((created.model.as_deref(), created.imatrix.as_str()), (Some(tiny), "m.imatrix"));
    assert!(created.effective_bpw.unwrap() <= 6.0 && created.expected_loss.unwrap() > 0.0);
    assert!(created.compression_ratio.unwrap() < 0.6, "{:?}", created.warnings);
    assert_eq!(created.output_path, folder.join("my-own.dqprofile").display().to_string());

    let list: List = json(&run(&["--format", "json", "profile", "list"]));
    assert_eq!(list.directory.as_deref(), folder.to_str());
    let own = &list.profiles[3];
    assert_eq!((own.name.as_str(), own.path.is_some()), ("my-own", true));
    assert!(!own.description.is_empty());
    let shown: Profile = json(&run(&["--format", "json", "profile", "show", "my-own"]));
    assert!(shown.warnings.iter().all(|warning| !warning.is_empty()));
    assert_eq!(shown.layer_assignments.len(), created.assignments);
    for rule in &shown.layer_assignments {
        assert!(rule.r#type.is_some() && !rule.is_protected, "{rule:?}");
        assert!([1.5, 2.0, 4.0, 5.0, 8.0, 16.0].contains(&rule.bit_width), "{rule:?}");
        assert!(!rule.layer_name.is_empty());
    }
    let valid: Validation =
        json(&run(&["--format", "json", "profile", "validate", "my-own", tiny]));
    assert!(valid.valid && valid.unassigned.is_empty() && valid.warnings.is_empty(), "{valid:?}");
    assert_eq!((valid.tensors, valid.assigned), (29, 29));
    // Types are those of the profile, so the same file comes out with and without the solver.
    let types = |name: &str| {
        let file = workspace.path(name);
        let file = llm_quantize::files::gguf::GgufFile::open(&file).unwrap();
        file.tensors.iter().map(|(n, t)| format!("{n} {}", t.kind.name())).collect::<Vec<_>>()
    };
    let base = ["quantize", tiny, "gguf", "--imatrix", "m.imatrix"];
    let used = run(&[&base[..], &["-q", "dynamic", "--profile", "my-own", "-n", "a"]].concat());
    assert!(used.status.success(), "{}", stderr(&used));
    workspace.succeed(&[&base[..], &["--target-bpw", "6", "-n", "b"]].concat());
    assert_eq!(types("a.gguf"), types("b.gguf"));
}

#[test]
fn without_a_model_widths_follow_roles() {
    let workspace = Workspace::new();
    flat_importance(&workspace);
    let base = ["--format", "json", "profile", "create", "--imatrix", "m.imatrix", "--name", "r"];
    let created: Created = json(
        &workspace.succeed(&[&base[..], &["--target-bpw", "3.5", "-o", "r.dqprofile"]].concat()),
    );
    assert_eq!((created.sensitivity.as_str(), created.effective_bpw), ("roles", None));
    assert_eq!(created.warnings.len(), 1);
    let text = std::fs::read_to_string(workspace.path("r.dqprofile")).unwrap();
    let profile: Profile = serde_json::from_str(&text).unwrap();
    assert_eq!(profile.layer_assignments.len(), 28);
    for (more, code, kind) in [
        (&["--target-bpw", "1"][..], 2, "InvalidArgumentError"),
        (&["--target-bpw", "-3"], 2, "InvalidArgumentError"),
        (&["--sensitivity", "measured"], 2, "InvalidArgumentError"),
    ] {
        fails(&workspace, &[&base[..], &["-o", "x.dqprofile"], more].concat(), code, kind);
        assert!(!workspace.path("x.dqprofile").exists());
    }
    let missing = ["--format", "json", "profile", "create", "--imatrix", "no", "--name", "r"];
    fails(&workspace, &missing, 10, "ImportanceMatrixError");
}

#[test]
fn validation_says_which_rules_are_idle() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let rule = |name: &str, bits: f64| value!({"layer_name": name, "bit_width": bits, "is_protected": false});
    let write = |name: &str, rules: Vec<serde_json::Value>| {
        let profile = value!({"profile_id": "p", "profile_name": "P", "strategy": "custom",
            "layer_assignments": rules, "target_bpw": null, "target_compression": null});
        std::fs::write(workspace.path(name), profile.to_string()).unwrap();
    };
    write(
        "bad.dqprofile",
        vec![
            rule("model.layers.0", 8.0),
            rule(r"model\.layers\.\d+\.mlp", 4.0),
            rule("blk.0.ffn_up", 4.0),
            rule("model.layers.7", 4.0),
        ],
    );
    let arguments = ["--format", "json", "profile", "validate", "bad.dqprofile", tiny];
    let error: ErrorDocument = fails(&workspace, &arguments, 13, "ProfileError");
    assert!(error.message.contains("model.layers.7 matches no tensor"), "{}", error.message);
    assert!(
        error.message.contains("blk.0.ffn_up is shadowed by model.layers.0"),
        "{}",
        error.message
    );
    let report: Validation = serde_json::from_value(error.result.unwrap()).unwrap();
    assert!(!report.valid);
    assert_eq!((report.status.as_str(), report.profile.as_str()), ("success", "P"));
    assert_eq!((report.model.as_str(), report.tensors, report.assigned), (tiny, 29, 7 + 9));
    let counts: Vec<_> = report.rules.iter().map(|rule| (rule.matches, rule.holds)).collect();
    assert_eq!(counts, [(7, 7), (12, 9), (1, 0), (0, 0)]);
    assert_eq!(report.rules[1].shadowed_by, ["model.layers.0"]);
    assert_eq!(
        (report.rules[1].layer_name.as_str(), report.rules[1].bit_width),
        (r"model\.layers\.\d+\.mlp", 4.0)
    );
    assert!(report.unassigned.contains(&"token_embd.weight".to_owned()));
    assert!(report.warnings.iter().any(|w| w.contains("3 of 12")), "{:?}", report.warnings);

    // The preset is valid; rows of 128 fill no 6-bit type, which is said.
    let output = workspace.succeed(&["profile", "validate", "attention-high", tiny]);
    assert!(stdout(&output).contains("Valid:              yes"), "{}", stdout(&output));
    assert!(stderr(&output).contains("Q8_0 takes its place"), "{}", stderr(&output));

    std::fs::write(workspace.path("no.dqprofile"), "{}").unwrap();
    let arguments = ["--format", "json", "profile", "validate", "no.dqprofile", tiny];
    fails(&workspace, &arguments, 13, "ProfileError");
    let arguments = ["--format", "json", "profile", "validate", "balanced", "nowhere.gguf"];
    fails(&workspace, &arguments, 3, "ModelNotFoundError");
}
