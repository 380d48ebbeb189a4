//! Files that anyone may have made: each is refused with a message and in bounds, or used.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::workspace::{Workspace, stderr, stdout, tiny_model};

/// A copy of the tiny model whose small files may be changed.
fn copy(workspace: &Workspace, name: &str) -> PathBuf {
    let folder = workspace.path(name);
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny_model().join(file), folder.join(file)).unwrap();
    }
    let weights = "model.safetensors";
    std::os::unix::fs::symlink(tiny_model().join(weights), folder.join(weights)).unwrap();
    folder
}

/// Runs in 3 GB of address space and waits for at most half a minute.
fn bounded(workspace: &Workspace, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -v 3000000; ulimit -c 0; exec timeout 30 \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_llm-quantize"))
        .args(arguments)
        .current_dir(workspace.path("."))
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", workspace.path("hf-home"));
    command.output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn hostile_chat_templates_are_refused() {
    let workspace = Workspace::new();
    let model = copy(&workspace, "model");
    let long = |piece: &str, times: usize| format!("{{{{ {}1 }}}}", piece.repeat(times));
    let templates = [
        long("1 ~ ", 60_000),
        long("not ", 50_000),
        long("-", 50_000),
        long("false or ", 60_000),
        long("x.", 8000),
        "{% if 1 %}{% elif 1 %}".repeat(5000),
        format!("{{{{ 1{} }}}}", "|string".repeat(60_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        r#"{{ "%.99999f"|format(1) }}"#.to_owned(),
        r#"{{ "%99999999999d"|format(1) }}"#.to_owned(),
        r#"{{ ("a\n" * 10000)|indent(1000000) }}"#.to_owned(),
        r#"{{ "a" * 99999999999 }}"#.to_owned(),
        r"{{ [1] * 999999999 }}".to_owned(),
        r"{{ messages|tojson(indent=99999999999) }}".to_owned(),
        r#"{{ range(99999999)|list|join("aaaaaaaaaaaaaaaaaaaa") }}"#.to_owned(),
        r#"{{ ("a" * 100000).replace("a", "b" * 100000) }}"#.to_owned(),
        r#"{% set ns = namespace(x="aaaaaaaa") %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"#.to_owned(),
        r#"{% set ns = namespace(x=["a"]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"#.to_owned(),
        "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}{{ ns|tojson }}".to_owned(),
        "{% set ns = namespace(a=1) %}{% set ns.a = {'x': ns} %}{{ ns|string|length }}".to_owned(),
        "{% set a = namespace(a=1) %}{% set b = namespace(a=a) %}{% set a.a = b %}{{ a == b }}{{ a|pprint }}".to_owned(),
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".to_owned(),
        // As many values in each other as the steps allow.
        "{% set ns = namespace(a=1) %}{% for i in range(99999) %}{% for j in range(99) %}{% set ns.a = [ns.a] %}{% endfor %}{% endfor %}".to_owned(),
        "{% set ns = namespace(a=1) %}{% for i in range(99999) %}{% for j in range(99) %}{% set ns.a = {1: ns.a} %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
    ];
    for template in templates {
        std::fs::write(model.join("chat_template.jinja"), &template).unwrap();
        let arguments = ["generate", text(&model), "--chat", "--prompt", "hi", "--max-tokens", "1"];
        let output = bounded(&workspace, &arguments);
        let start: String = template.chars().take(80).collect();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{start}: {said}");
        assert!(said.contains("chat template cannot be rendered"), "{start}: {said}");
        assert!(said.contains("plain text instead"), "{start}: {said}");
        assert!(!said.contains("panicked"), "{start}: {said}");
    }
}

/// Values may be nested as deep as the steps of a template allow: taking them apart is no fault.
#[test]
fn deep_values_of_templates_are_taken_apart() {
    let workspace = Workspace::new();
    let model = copy(&workspace, "model");
    let template = "{% set ns = namespace(a=[1]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}x";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let arguments = ["generate", text(&model), "--chat", "--prompt", "hi", "--max-tokens", "1"];
    let output = bounded(&workspace, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn hostile_tokenizers_are_refused() {
    let workspace = Workspace::new();
    let model = copy(&workspace, "model");
    let original: Value =
        serde_json::from_slice(&std::fs::read(tiny_model().join("tokenizer.json")).unwrap())
            .unwrap();
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let many = |step: &Value, times: usize| json!({ "type": "Sequence", "normalizers": vec![step.clone(); times] });
    let normalizers = [
        replace(json!({ "String": "" }), "aaaa"),
        many(&replace(json!({ "Regex": "." }), "0123456789"), 8),
        many(&replace(json!({ "String": "a" }), &"a".repeat(1000)), 6),
        many(&json!({ "type": "Prepend", "prepend": "a".repeat(1 << 20) }), 60),
        json!({ "type": "Precompiled", "precompiled_charsmap": "" }),
        json!({ "type": "Precompiled", "precompiled_charsmap": "/////wEAAAA=" }),
        json!({ "type": "Precompiled", "precompiled_charsmap": "EAAAAAEAAAACAAAAAwAAAAQAAABhYmMAZGVmAA==" }),
        json!({ "type": "Nothing" }),
        json!([]),
    ];
    let mut files: Vec<Value> = normalizers
        .into_iter()
        .map(|normalizer| {
            let mut root = original.clone();
            root["normalizer"] = normalizer;
            root
        })
        .collect();
    let mut change = |change: &dyn Fn(&mut Value)| {
        let mut root = original.clone();
        change(&mut root);
        files.push(root);
    };
    change(&|root| {
        let longest = "x".repeat(200);
        root["model"]["vocab"]["x"] = json!(0);
        root["model"]["merges"] = json!([[longest, "x"]]);
    });
    change(&|root| root["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 }));
    change(&|root| root["model"] = json!(7));
    change(&|root| *root = json!([1]));
    for root in files {
        std::fs::write(model.join("tokenizer.json"), root.to_string()).unwrap();
        let prompt = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hello";
        let arguments = ["generate", text(&model), "--prompt", prompt, "--max-tokens", "1"];
        let output = bounded(&workspace, &arguments);
        let changed: String = format!("{} {}", root["normalizer"], root["pre_tokenizer"]);
        let changed: String = changed.chars().take(200).collect();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(6), "{changed}: {said}");
        assert!(said.contains("tokenizer.json: "), "{changed}: {said}");
        assert!(!said.contains("panicked"), "{changed}: {said}");
    }
}

/// No control characters, and no line that a file began.
#[test]
fn names_from_files_cannot_steer_the_terminal() {
    let workspace = Workspace::new();
    let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\u{7f}Evil\nerror: FAKE\r";
    let config: Value =
        serde_json::from_slice(&std::fs::read(tiny_model().join("config.json")).unwrap()).unwrap();
    let changed = |name: &str, key: &str, value: Value| {
        let model = copy(&workspace, name);
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        model
    };
    let template = copy(&workspace, "template");
    let raising = "{{ raise_exception(messages[0].content) }}";
    std::fs::write(template.join("chat_template.jinja"), raising).unwrap();
    let runs: [Vec<String>; 5] = [
        vec!["info".into(), text(&changed("a", "architectures", json!([evil]))).into()],
        vec!["info".into(), text(&changed("b", "hidden_act", json!(evil))).into()],
        vec![
            "info".into(),
            text(&changed("c", "quantization_config", json!({ "quant_method": evil }))).into(),
        ],
        vec![
            "generate".into(),
            text(&template).into(),
            "--chat".into(),
            "--prompt".into(),
            evil.into(),
        ],
        vec!["info".into(), format!("./{evil}")],
    ];
    for run in &runs {
        let arguments: Vec<&str> = run.iter().map(String::as_str).collect();
        let output = workspace.run(&arguments);
        let said = stdout(&output) + &stderr(&output);
        let hostile = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.contains(hostile), "{arguments:?}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("error: FAKE")), "{said:?}");
        assert!(said.contains("Evil"), "{said:?}");
    }
    // JSON is data: it has what the file has.
    let a = workspace.path("a");
    let output = workspace.run(&["--format", "json", "info", text(&a)]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document.to_string().contains("error: FAKE"), "{document}");
}

/// Pipes and devices in the place of files: named, and nobody waits for them.
#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let workspace = Workspace::new();
    let pipe = workspace.path("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let tiny = tiny_model();
    let tiny = text(&tiny);
    let replaced = |name: &str| {
        let model = copy(&workspace, &format!("with-{name}"));
        let _ = std::fs::remove_file(model.join(name));
        std::os::unix::fs::symlink(&pipe, model.join(name)).unwrap();
        text(&model).to_owned()
    };
    let (config, tokenizer) = (replaced("config.json"), replaced("tokenizer.json"));
    let (settings, template) = (replaced("tokenizer_config.json"), replaced("chat_template.jinja"));
    for special in [text(&pipe), "/dev/zero", "/dev/stdin"] {
        let runs: [&[&str]; 14] = [
            &["info", special],
            &["generate", special, "--prompt", "x"],
            &["quantize", special, "gguf", "-q", "Q8_0"],
            &["quantize", tiny, "gguf", "-q", "Q2_K", "--imatrix", special],
            &["analyze", tiny, "--calibration-data", special],
            &["quantize", tiny, "gptq", "-q", "4bit", "--calibration-data", special],
            &["littlebit", "compress", tiny, "--effort", "none", "--calibration-data", special],
            &["littlebit", "compress", tiny, "--recipe", special],
            &["littlebit", "info", special],
            &["profile", "show", special],
            &["info", &config],
            &["generate", &tokenizer, "--prompt", "x"],
            &["generate", &settings, "--prompt", "x"],
            &["generate", &template, "--prompt", "x"],
        ];
        for arguments in runs {
            let began = Instant::now();
            // A standard input that never ends, so that whoever reads it is found out.
            let mut child = workspace
                .command(arguments)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            while child.try_wait().unwrap().is_none() {
                if began.elapsed() > Duration::from_secs(20) {
                    child.kill().unwrap();
                    panic!("{arguments:?} hangs");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let output = child.wait_with_output().unwrap();
            let said = stderr(&output);
            assert!(!output.status.success(), "{arguments:?}: {said}");
            assert!(said.contains("not a regular file"), "{arguments:?}: {said}");
        }
    }
}
