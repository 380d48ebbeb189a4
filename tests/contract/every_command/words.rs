//! What the program says, the same way everywhere: warnings, `--format` anywhere, the last line,
//! names that were meant.

use serde_json::Value;

use crate::workspace::{Workspace, check_failure, json, stderr, stdout, tiny_model};

/// The warnings on stderr, in order.
fn warned(text: &str) -> Vec<String> {
    let tag = "[llm-quantize] Warning: ";
    text.lines().filter_map(|line| line.strip_prefix(tag)).map(str::to_owned).collect()
}

fn warnings(document: &Value) -> Vec<String> {
    let list = document["warnings"].as_array().unwrap_or_else(|| panic!("no list: {document}"));
    list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_document_has_every_warning_of_its_run() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    workspace.compress("m.littlebit", &["--skip-validation"]);
    workspace.succeed(&["quantize", tiny, "gguf", "-q", "Q4_K_M", "-n", "q"]);
    workspace.succeed(&["analyze", tiny, "-o", "m.imatrix", "--chunks", "2", "--ctx-size", "64"]);
    let mut seen = 0;
    for (arguments, code) in [
        (&["quantize", tiny, "gguf", "-q", "TQ1_0"][..], 0),
        (&["quantize", tiny, "gguf", "-q", "TQ1_0", "--dry-run"], 0),
        (&["quantize", tiny, "gptq", "-q", "4bit", "--calibration-samples", "0"], 0),
        (&["convert", "q.gguf", "gptq", "-q", "4bit", "--force"], 0),
        (&["convert", "q.gguf", "gptq", "-q", "4bit"], 9),
        (&["littlebit", "convert", "m.littlebit", "gguf-lossy", "--force"], 0),
        (&["littlebit", "convert", "m.littlebit", "gguf-lossy"], 9),
        (&["profile", "create", "--imatrix", "m.imatrix", "--name", "p", "-o", "p.dqprofile"], 0),
        (&["quality", "report", tiny, "m.littlebit", "--calibration-samples", "8"], 0),
        (&["quality", "compare", tiny, "m.littlebit", "--metrics", "size"], 0),
        (&["littlebit", "validate", tiny, "m.littlebit", "--calibration-samples", "8"], 0),
        (&["littlebit", "info", "m.littlebit"], 0),
        (&["profile", "list"], 0),
        (&["profile", "show", "balanced", "--format", "json"], 0),
        (&["info", tiny], 0),
        (&["generate", tiny, "-p", "Once", "-n", "2"], 0),
        (&["info", "./nowhere"], 3),
        (&["info"], 2),
    ] {
        let output = workspace.run(&[&["--format", "json"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        let document: Value = json(&output);
        let (said, listed) = (warned(&stderr(&output)), warnings(&document));
        assert_eq!(listed[..said.len()], said, "{arguments:?}");
        let mut distinct = listed.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), listed.len(), "{arguments:?}: {listed:?}");
        seen += said.len();
    }
    assert!(seen >= 6, "{seen} warnings");
    // At any verbosity.
    let arguments = ["--format", "json", "--verbosity", "quiet", "quantize", tiny, "gguf"];
    let output = workspace.succeed(&[&arguments[..], &["-q", "TQ1_0", "-n", "t"]].concat());
    assert!(stderr(&output).is_empty() && !warnings(&json(&output)).is_empty());
}

#[test]
fn a_profile_that_is_shown_is_a_profile() {
    let workspace = Workspace::new();
    let shown = stdout(&workspace.succeed(&["profile", "show", "balanced", "--format", "json"]));
    std::fs::write(workspace.path("mine.dqprofile"), shown).unwrap();
    workspace.succeed(&["profile", "show", "./mine.dqprofile"]);
}

#[test]
fn global_options_stand_anywhere() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    for arguments in [
        &["info", tiny, "--format", "json"][..],
        &["info", "--format=json", tiny],
        &["--format", "human", "info", tiny, "--format", "json"],
        &["quantize", tiny, "gguf", "-q", "Q8_0", "--dry-run", "--format", "json"],
        &["generate", tiny, "-p", "a", "-n", "1", "--format", "json"],
        &["profile", "list", "--format", "json"],
        &["profile", "--format", "json", "list"],
        &["profile", "validate", "balanced", tiny, "--format", "json"],
        &["littlebit", "--format", "json", "compress", tiny, "--dry-run"],
    ] {
        let output = workspace.succeed(arguments);
        assert!(json::<Value>(&output).is_object(), "{arguments:?}");
    }
    let quiet =
        workspace.succeed(&["quantize", tiny, "gguf", "-q", "Q8_0", "--verbosity", "quiet"]);
    assert!(stderr(&quiet).is_empty());
    // Errors of every kind follow it.
    check_failure(&workspace.run(&["info", "./no", "--format", "json"]), 3, "ModelNotFoundError");
    for arguments in
        [&["info", "--no-such", "--format", "json"][..], &["profile", "nothing", "--format=json"]]
    {
        check_failure(&workspace.run(arguments), 2, "InvalidArgumentError");
    }
}

#[test]
fn an_option_of_the_same_name_says_where_the_other_one_goes() {
    let workspace = Workspace::new();
    let output = workspace.run(&["littlebit", "compress", "m", "--format", "json"]);
    let error = check_failure(&output, 2, "InvalidArgumentError");
    for text in [&stderr(&output), &error.suggestion] {
        assert!(text.contains("before the command: llm-quantize --format json"), "{text}");
    }
    let human = workspace.run(&["littlebit", "compress", "m", "--format", "gguf-los"]);
    assert!(human.stdout.is_empty() && stderr(&human).contains("gguf-lossy"), "{}", stderr(&human));
}

#[test]
fn tips_of_usage_errors_are_the_suggestion() {
    let workspace = Workspace::new();
    for (arguments, meant) in [
        (&["littlebit", "compress", "m", "--efort", "fast"][..], "--effort"),
        (&["littlebit", "compress", "m", "--effort", "balancd"], "balanced"),
        (&["littlebit", "compres", "m"], "compress"),
        (&["quantise", "m", "gguf"], "quantize"),
        (&["quantize", "m", "ggfu", "-q", "Q4_0"], "gguf"),
        (&["quality", "reprot", "a", "b"], "report"),
        (&["convert", "m", "gtpq"], "gptq"),
        (&["analyze", "m", "--method", "fischer"], "fisher"),
        (&["completions", "bsh"], "bash"),
        (&["info", "m", "--verbosity", "quite"], "quiet"),
    ] {
        let output = workspace.run(&[arguments, &["--format", "json"]].concat());
        let error = check_failure(&output, 2, "InvalidArgumentError");
        assert!(error.suggestion.contains(meant), "{arguments:?}: {error:?}");
        assert!(stderr(&output).contains(meant), "{arguments:?}");
    }
}

#[test]
fn names_that_were_meant_are_offered() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let gguf = ["quantize", tiny, "gguf", "-q"];
    let cases = [
        ([&gguf[..], &["Q4KM"]].concat(), 2, "did you mean Q4_K_M?"),
        ([&gguf[..], &["q4-k-m"]].concat(), 2, "did you mean Q4_K_M?"),
        ([&gguf[..], &["Q4_K_N"]].concat(), 2, "Q4_K_M"),
        ([&gguf[..], &["Q4"]].concat(), 2, "Q4_K_M"),
        ([&gguf[..], &["dynamc"]].concat(), 2, "did you mean dynamic?"),
        ([&gguf[..], &["Q4_0", "--tensor-type", "attn_v=q80"]].concat(), 2, "did you mean Q8_0?"),
        (vec!["quantize", tiny, "gptq", "-q", "4-bits?"], 2, "did you mean 4bit?"),
        ([&gguf[..], &["dynamic", "--profile", "blanced"]].concat(), 13, "did you mean balanced?"),
        (vec!["profile", "show", "attention_hihg"], 13, "did you mean attention-high?"),
        (vec!["quality", "compare", tiny, tiny, "--metrics", "bwp"], 2, "did you mean bpw?"),
    ];
    for (arguments, code, words) in cases {
        let output = workspace.run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
    std::fs::write(workspace.path("r.toml"), "[blocks]\nstep = 3\n").unwrap();
    let output = workspace.run(&["littlebit", "compress", tiny, "--recipe", "r.toml"]);
    assert!(stderr(&output).contains("did you mean steps"), "{}", stderr(&output));
}

/// Two directions, those of the contracts: by the sizes of the files on the disk.
#[test]
fn compression_ratios_have_the_direction_of_their_contract() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let size = |name: &str| std::fs::metadata(workspace.path(name)).unwrap().len() as f64;
    let run = |arguments: &[&str]| -> Value {
        json(&workspace.succeed(&[&["--format", "json"], arguments].concat()))
    };
    let is = |document: &Value, keys: &[&str], expected: f64| {
        let value = keys.iter().fold(document, |value, key| &value[*key]).as_f64().unwrap();
        assert!((value / expected - 1.0).abs() < 6e-3, "{keys:?}: {value} is not {expected}");
    };
    let quantized = run(&["quantize", tiny, "gguf", "-q", "Q4_0", "-n", "q"]);
    let original = quantized["metadata"]["original_size"].as_f64().unwrap();
    is(&quantized, &["compression_ratio"], size("q.gguf") / original);
    let converted = run(&["convert", "q.gguf", "hf", "-q", "F32", "-n", "hf"]);
    let whole = converted["file_size"].as_f64().unwrap();
    let before = converted["metadata"]["original_size"].as_f64().unwrap();
    assert!(whole > before);
    is(&converted, &["compression_ratio"], whole / before);
    let planned = run(&["convert", "q.gguf", "hf", "-q", "F32", "-n", "hf2", "--dry-run"]);
    assert!(planned["compression_ratio"].is_null() && planned["file_size"].is_null());
    let dynamic = run(&["quantize", tiny, "gguf", "-q", "dynamic", "-n", "d"]);
    is(&dynamic, &["compression_ratio"], size("d.gguf") / original);
    let compressed: Value = json(&workspace.compress("m.littlebit", &["--skip-validation"]));
    let original = compressed["original_size_bytes"].as_f64().unwrap();
    is(&compressed, &["compression_ratio"], original / size("m.littlebit"));
    let info = run(&["littlebit", "info", "m.littlebit"]);
    is(&info, &["compression_ratio"], original / size("m.littlebit"));
    let report = ["quality", "report", tiny, "m.littlebit", "--skip-coherence"];
    let report = run(&[&report[..], &["--calibration-samples", "4"]].concat());
    let (before, after) = ("original_size_bytes", "quantized_size_bytes");
    let part =
        report["metrics"][after].as_f64().unwrap() / report["metrics"][before].as_f64().unwrap();
    assert!(part < 1.0 && report["metrics"][after] == size("m.littlebit") as u64);
    is(&report, &["metrics", "compression_ratio"], part);
    let compared = run(&["quality", "compare", tiny, "m.littlebit", "--metrics", "size"]);
    is(&compared["results"][0], &["compression_ratio"], part);
}

/// Every command that writes something ends with the name of the file and its size.
#[test]
fn the_last_line_names_the_file() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    workspace.compress("model.littlebit", &["--skip-validation"]);
    workspace.succeed(&["quantize", tiny, "gguf", "-q", "Q4_0", "-n", "q"]);
    let few = ["--calibration-samples", "8"];
    for (arguments, name) in [
        (vec!["quantize", tiny, "gguf", "-q", "Q4_K_M"], "./tiny-Q4_K_M.gguf"),
        (vec!["quantize", tiny, "gguf", "-q", "dynamic"], "./tiny-dynamic.gguf"),
        ([&["quantize", tiny, "gptq", "-q", "4bit"][..], &few].concat(), "./tiny-gptq-4bit-g128"),
        ([&["quantize", tiny, "smoothquant"][..], &few].concat(), "./tiny-smoothquant-w8a8"),
        (vec!["convert", "q.gguf", "hf", "-q", "F32"], "./q-hf-F32"),
        (vec!["analyze", tiny, "--chunks", "2", "-c", "64"], "./tiny.imatrix"),
        (
            vec![
                "profile",
                "create",
                "--imatrix",
                "tiny.imatrix",
                "--name",
                "p",
                "-o",
                "p.dqprofile",
            ],
            "p.dqprofile",
        ),
        (vec!["littlebit", "convert", "model.littlebit", "gguf-ext"], "./model.ext.gguf"),
        (
            vec!["littlebit", "convert", "./model.littlebit", "gguf-lossy", "--force"],
            "./model-lossy-Q4_K_M.gguf",
        ),
        (vec!["quality", "compare", tiny, "q.gguf", "--metrics", "size", "-o", "r.csv"], "r.csv"),
    ] {
        let output = workspace.succeed(&arguments);
        let said = stderr(&output);
        let last = said.trim_end().lines().last().unwrap_or_default();
        let size = last.strip_prefix(&format!("[llm-quantize] Complete: {name} ("));
        let size = size.unwrap_or_else(|| panic!("{arguments:?} ends with {last}"));
        assert!(size.contains('B') && size.ends_with(')'), "{last}");
        assert!(workspace.path(name).exists(), "{name}");
    }
    let output = workspace.compress("m", &["--skip-validation"]);
    assert!(
        stderr(&output).trim_end().lines().last().unwrap().contains("Complete: ./m.littlebit (")
    );
}

/// Completion in bash below the first level, as bash calls the script's function.
#[cfg(unix)]
#[test]
fn bash_completes_at_every_level() {
    let workspace = Workspace::new();
    let script = stdout(&workspace.succeed(&["completions", "bash"]));
    assert!(script.contains("-o default llm-quantize\n"), "{script}");
    std::fs::write(workspace.path("c.bash"), script).unwrap();
    for (line, expected) in [
        ("llm-quantize quant", "quantize"),
        ("llm-quantize --form", "--format"),
        ("llm-quantize quantize m gguf --tensor-t", "--tensor-type"),
        ("llm-quantize littlebit comp", "compress"),
        ("llm-quantize littlebit compress --eff", "--effort"),
        ("llm-quantize littlebit compress m --effort bal", "balanced"),
        ("llm-quantize littlebit compress m --format gguf-l", "gguf-lossy"),
        ("llm-quantize --format json quality report --sup", "--super-weights"),
        ("/usr/bin/llm-quantize profile create --imat", "--imatrix"),
        ("llm-quantize info m --form", "--format"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let last = words.len() - 1;
        let call = format!(
            ". ./c.bash; F=$(complete -p llm-quantize | grep -oE -- '-F [^ ]+' | cut -c4-); \
             COMP_WORDS=({line}); COMP_CWORD={last}; COMPREPLY=(); $F {} '{}' '{}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words[0],
            words[last],
            words[last - 1]
        );
        let output = std::process::Command::new("bash")
            .args(["--norc", "-c", &call])
            .current_dir(workspace.path("."))
            .output()
            .unwrap();
        let offered = stdout(&output);
        assert!(offered.lines().any(|o| o == expected), "{line}: {offered}{}", stderr(&output));
    }
}

/// A directory where a file belongs is called that.
#[test]
fn a_directory_in_the_place_of_a_file_is_named() {
    let workspace = Workspace::new();
    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    std::fs::create_dir(workspace.path("folder")).unwrap();
    let compress = ["littlebit", "compress", tiny, "--effort", "none"];
    for arguments in [
        vec!["littlebit", "info", tiny],
        vec!["littlebit", "convert", tiny, "gguf-ext"],
        vec!["littlebit", "validate", tiny, tiny, "--calibration-samples", "1"],
        vec!["quantize", tiny, "gguf", "-q", "Q4_0", "--imatrix", "folder"],
        vec!["quantize", tiny, "gguf", "-q", "dynamic", "--profile", "./folder"],
        vec!["profile", "show", "./folder"],
        vec!["profile", "create", "--imatrix", "folder", "--name", "p", "-o", "p.dqprofile"],
        vec!["analyze", "--merge", "folder", "--show-statistics"],
        [&compress[..], &["--calibration-data", "folder"]].concat(),
        [&compress[..], &["--eval-data", "folder"]].concat(),
        vec!["littlebit", "compress", tiny, "--recipe", "folder"],
        vec!["quality", "report", tiny, tiny, "--super-weights", "folder"],
        vec!["quality", "report", tiny, tiny, "--benchmark", "arc", "--benchmark-data", "folder"],
    ] {
        let output = workspace.run(&arguments);
        let said = stderr(&output);
        assert!(matches!(output.status.code(), Some(1..=24)), "{arguments:?}: {said}");
        assert!(said.contains("directory") && !said.contains("os error"), "{arguments:?}: {said}");
    }
}

/// A copy of the tiny model with `edit` done to the text of a file.
fn edited(workspace: &Workspace, file: &str, edit: impl Fn(String) -> String) -> String {
    let folder = workspace.path("edited");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(tiny_model()).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, edit(text)).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// JSON as Python's `json` writes and reads it: what does not matter is no obstacle, what matters is
/// named.
#[test]
fn settings_are_read_as_python_reads_them() {
    let workspace = Workspace::new();
    let range = |value: &str| {
        let value = format!("\"initializer_range\": {value}");
        move |text: String| text.replace("\"initializer_range\": 0.05", &value)
    };
    for (before, value) in [
        ("", "Infinity"),
        ("", "-Infinity"),
        ("", "NaN"),
        ("", "1e999"),
        (r#""hidden_size": 7, "model_type": "nothing","#, "0.02"),
        (r#""_name_or_path": "half a pair \ud800","#, "NaN"),
    ] {
        let model = edited(&workspace, "config.json", |text| {
            range(value)(text).replacen('{', &format!("{{{before}"), 1)
        });
        workspace.succeed(&["info", &model]);
        workspace.succeed(&["quantize", &model, "gguf", "-q", "Q8_0", "--dry-run"]);
    }
    let marked = edited(&workspace, "config.json", |text| format!("\u{feff}{text}"));
    workspace.succeed(&["info", &marked]);
    let model = edited(&workspace, "config.json", |text| {
        text.replace("\"rope_theta\": 10000.0", "\"rope_theta\": Infinity")
    });
    for arguments in [
        &["info", &model][..],
        &["quantize", &model, "gguf", "-q", "Q8_0", "--dry-run"],
        &["littlebit", "compress", &model, "--dry-run"],
    ] {
        let output = workspace.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let said = stderr(&output);
        assert!(said.contains("rope_theta") && said.contains("Infinity"), "{arguments:?}: {said}");
    }
    // What is ignored is not lost on the way into another directory.
    let kept = edited(&workspace, "config.json", range("Infinity"));
    let few = ["--calibration-samples", "0", "-n", "packed"];
    workspace.succeed(&[&["quantize", &kept, "gptq", "-q", "4bit"], &few[..]].concat());
    let config = std::fs::read_to_string(workspace.path("packed/config.json")).unwrap();
    assert!(config.contains("\"initializer_range\": Infinity"), "{config}");

    let tiny = tiny_model();
    let tiny = tiny.to_str().unwrap();
    let text = "once upon a time there was a little fox ".repeat(40);
    let lines = format!("\u{feff}{{\"score\": NaN, \"text\": \"{text}\"}}\n").repeat(30);
    std::fs::write(workspace.path("a.jsonl"), lines.replace("}\n\u{feff}", "}\n")).unwrap();
    let list = format!("{{\"score\": -Infinity, \"text\": \"{text}\"}},").repeat(30);
    std::fs::write(workspace.path("b.json"), format!("[{}]", list.trim_end_matches(','))).unwrap();
    for data in ["a.jsonl", "b.json"] {
        let few = ["--chunks", "2", "-c", "32", "-o", "m.imatrix", "--no-cache"];
        workspace.succeed(&[&["analyze", tiny, "--calibration-data", data], &few[..]].concat());
    }
}
