//! What is refused, and what is said, before a model is downloaded.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::workspace::{Workspace, check_failure, json, stderr, stdout, tiny_model};

use crate::fake_hub::{FakeHub, Request};

const REPO: &str = "org/tiny";

/// Offline, a hub id that is not cached is exit code 3 once it is looked for: everything here must be
/// judged before.
#[test]
fn what_needs_no_model_is_judged_without_one() {
    let workspace = Workspace::new();
    let file = |name: &str, text: &str| {
        std::fs::write(workspace.path(name), text).unwrap();
    };
    file("file", "no folder");
    file("bad.toml", "effort = \"fast\"\nnonsense = 1\n");
    file("range.toml", "effort = \"fast\"\n[blocks]\nbatch = 0\n");
    file("bad.jsonl", "{\"no text\": 1}\n");
    file("text.txt", "Some text to read.\n");
    file("bad.imatrix", "no matrix");
    std::fs::create_dir(workspace.path("empty")).unwrap();
    let m = "some-org/some-model";
    let compress = ["littlebit", "compress", m];
    let gguf = ["quantize", m, "gguf"];
    let gptq = ["quantize", m, "gptq", "-q", "4bit"];
    let analyze = ["analyze", m];
    let report = ["quality", "report", m];
    let cases: &[(i32, &[&str], &[&str])] = &[
        (22, &compress, &["--target-bpw", "0.05"]),
        (22, &compress, &["--target-bpw", "9"]),
        (2, &compress, &["--rank", "0"]),
        (2, &compress, &["--recipe", "bad.toml"]),
        (2, &compress, &["--recipe", "range.toml"]),
        (7, &compress, &["--resume", "nowhere"]),
        (7, &compress, &["--resume", "empty"]),
        (15, &compress, &["--calibration-data", "nope.txt"]),
        (15, &compress, &["--calibration-data", "bad.jsonl"]),
        (15, &compress, &["--eval-data", "nope.txt"]),
        (1, &compress, &["-o", "file"]),
        (1, &compress, &["-o", "file/below", "--dry-run"]),
        (1, &compress, &["--export-metadata", "empty"]),
        (2, &gguf, &[]),
        (2, &gguf, &["-q", "Q9_K"]),
        (2, &gguf, &["--target-bpw", "-1"]),
        (2, &gguf, &["-q", "Q8_0", "--target-size", "1GB"]),
        (2, &gguf, &["-q", "Q8_0", "--tensor-type", "a=Q9"]),
        (10, &gguf, &["-q", "Q8_0", "--imatrix", "nope.gguf"]),
        (10, &gguf, &["-q", "Q8_0", "--imatrix", "bad.imatrix"]),
        (13, &gguf, &["-q", "dynamic", "--profile", "nope"]),
        (7, &gguf, &["-q", "Q8_0", "--resume", "nowhere"]),
        (1, &gguf, &["-q", "Q8_0", "-o", "file"]),
        (15, &gguf, &["-q", "Q8_0", "--quality-report", "--calibration-data", "nope.txt"]),
        (7, &gptq, &["--resume", "nowhere"]),
        (15, &gptq, &["--calibration-data", "nope.txt"]),
        (1, &gptq, &["-o", "file"]),
        (2, &gptq, &["--group-size", "0"]),
        (2, &["quantize", m, "awq", "-q", "3bit"], &[]),
        (15, &analyze, &["--calibration-data", "nope.txt"]),
        (7, &analyze, &["--resume", "nowhere"]),
        (1, &analyze, &["-o", "file/a.imatrix"]),
        (1, &analyze, &["-o", "empty"]),
        (2, &analyze, &["--plot", "a.png"]),
        (10, &analyze, &["--merge", "nope.imatrix"]),
        (2, &["convert", m, "gguf"], &["-q", "Q9"]),
        (2, &["convert", m, "gguf"], &["--group-size", "32"]),
        (2, &["convert", m, "hf"], &["-q", "Q8_0"]),
        (2, &["convert", m, "gptq"], &["-q", "5bit"]),
        (1, &["convert", m, "gguf"], &["-o", "file"]),
        (10, &["profile", "create", "--model", m, "--name", "p"], &["--imatrix", "nope"]),
        (13, &["profile", "validate", "nope", m], &[]),
        (15, &report, &["text.txt", "--calibration-data", "nope.txt"]),
        (2, &report, &["text.txt", "-o", "report.pdf"]),
        (2, &["generate", m, "-p", "x"], &["--max-tokens", "0"]),
    ];
    for (code, command, more) in cases {
        let arguments = [&["--format", "json"], *command, *more].concat();
        let output = workspace.run(&arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", stderr(&output));
    }
    // The local model of a pair is looked for before the other one is.
    let said = |arguments: &[&str]| {
        let output = workspace.run(arguments);
        (output.status.code(), stderr(&output))
    };
    let (code, text) = said(&["quality", "report", m, "./nope"]);
    assert!(code == Some(3) && text.contains("./nope"), "{text}");
    let (code, text) = said(&["quality", "compare", m, "text.txt", "./nope"]);
    assert!(code == Some(3) && text.contains("./nope"), "{text}");
    let (code, text) = said(&["littlebit", "validate", m, "./nope"]);
    assert!(code == Some(3) && text.contains("nope"), "{text}");
    let (code, text) =
        said(&["quality", "report", m, "empty", "--benchmark", "arc", "--benchmark-data", "nope"]);
    assert!(code == Some(3) && text.contains("benchmark data"), "{text}");
}

/// A hub with the model of the repository, and a command that knows no other.
struct OnHub {
    workspace: Workspace,
    hub: FakeHub,
}

impl OnHub {
    fn new(edit: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Self {
        let hub = FakeHub::start();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(tiny_model()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let bytes = std::fs::read(entry.path()).unwrap();
            let large = name.ends_with(".safetensors");
            files.extend(edit(&name, bytes).map(|bytes| (name, bytes, large)));
        }
        let files: Vec<(&str, &[u8], bool)> =
            files.iter().map(|(name, bytes, large)| (name.as_str(), &bytes[..], *large)).collect();
        hub.push(REPO, &files);
        Self { workspace: Workspace::new(), hub }
    }

    fn run(&self, arguments: &[&str]) -> (Output, Vec<Request>) {
        self.hub.take_log();
        let output = self
            .workspace
            .command(arguments)
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", self.hub.endpoint())
            .output()
            .unwrap();
        (output, self.hub.take_log())
    }

    /// Whether the cache holds the weights.
    fn has_weights(&self) -> bool {
        let snapshots = self.workspace.path("hf-home/hub/models--org--tiny/snapshots");
        std::fs::read_dir(snapshots)
            .into_iter()
            .flatten()
            .flatten()
            .any(|commit| commit.path().join("model.safetensors").exists())
    }
}

/// Requests for all of the weights.
fn whole_files(log: &[Request]) -> usize {
    log.iter()
        .filter(|request| {
            request.host == "storage"
                && request.method == "GET"
                && request.header("range").is_none()
        })
        .count()
}

#[test]
fn plans_need_headers_only() {
    let on_hub = OnHub::new(|_, bytes| Some(bytes));
    let local = tiny_model();
    let local = local.to_str().unwrap();
    for arguments in [
        &["littlebit", "compress", REPO, "--dry-run"][..],
        &["quantize", REPO, "gguf", "-q", "Q4_K_M", "--dry-run"],
        &["quantize", REPO, "gptq", "-q", "4bit", "--dry-run"],
        &["quantize", REPO, "awq", "-q", "4bit", "--dry-run"],
        &["quantize", REPO, "smoothquant", "--dry-run"],
        &["info", REPO, "--skip-scan"],
        &["info", REPO, "--skip-scan", "--tensors"],
    ] {
        let arguments = [&["--format", "json"], arguments].concat();
        let (output, log) = on_hub.run(&arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        assert_eq!(whole_files(&log), 0, "{arguments:?}: {log:#?}");
        assert!(!on_hub.has_weights());

        // The plan is the one of the same model on this machine.
        let here: Vec<&str> =
            arguments.iter().map(|a| if *a == REPO { local } else { a }).collect();
        let [remote, here] = [output, on_hub.workspace.succeed(&here)].map(|output| {
            let mut value: serde_json::Value = json(&output);
            let object = value.as_object_mut().unwrap();
            // Names and times of a model on the hub are other ones.
            for key in [
                "path",
                "model_name",
                "source_model",
                "output_path",
                "files",
                "duration_seconds",
                "estimated_stages",
                "peak_memory_bytes",
            ] {
                object.remove(key);
            }
            value
        });
        for (key, value) in here.as_object().unwrap() {
            // The name of a model is a part of a GGUF file, whose size it moves.
            let sized = [
                "file_size",
                "compression_ratio",
                "bits_per_weight",
                "file_bpw",
                "compressed_size_bytes",
            ];
            if let (Some(a), Some(b)) = (value.as_f64(), remote[key].as_f64())
                && sized.contains(&key.as_str())
            {
                assert!((a / b - 1.0).abs() < 0.01, "{arguments:?} {key}: {a} and {b}");
            } else {
                assert_eq!(&remote[key], value, "{arguments:?} {key}");
            }
        }
    }
    let (output, log) = on_hub.run(&["profile", "validate", "balanced", REPO]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(whole_files(&log), 0);
    // Nothing is left of the headers, and what was refused or planned is not in the cache.
    let folder = on_hub.workspace.path("hf-home/hub/models--org--tiny");
    assert!(folder.is_dir() && !folder.join(".outlines").exists());
    // With the weights there, nothing is asked for but the commit.
    let (output, log) = on_hub.run(&["info", REPO]);
    assert!(output.status.success() && whole_files(&log) == 1, "{}", stderr(&output));
    let (output, log) = on_hub.run(&["info", REPO, "--skip-scan"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!log.is_empty() && log.iter().all(|request| request.method == "HEAD"), "{log:#?}");
}

#[test]
fn what_headers_and_small_files_tell_is_refused_before_the_weights() {
    let config = |name: &str, value: serde_json::Value| {
        let name = name.to_owned();
        move |file: &str, bytes: Vec<u8>| {
            if file != "config.json" {
                return Some(bytes);
            }
            let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            config[&name] = value.clone();
            Some(serde_json::to_vec(&config).unwrap())
        }
    };
    let as_it_is = OnHub::new(|_, bytes| Some(bytes));
    let without_tokenizer = OnHub::new(|file, bytes| (file != "tokenizer.json").then_some(bytes));
    let other_shape = OnHub::new(config("intermediate_size", 96.into()));
    let other_kind = OnHub::new(config("architectures", serde_json::json!(["MambaForCausalLM"])));
    for (on_hub, code, arguments) in [
        (&as_it_is, 5, &["littlebit", "compress", REPO, "--max-memory", "1MB"][..]),
        (&as_it_is, 23, &["littlebit", "compress", REPO, "--rank", "100000"]),
        (&as_it_is, 8, &["convert", REPO, "gguf"]),
        (&as_it_is, 10, &["quantize", REPO, "gguf", "-q", "IQ1_S"]),
        (&without_tokenizer, 3, &["littlebit", "compress", REPO]),
        (&without_tokenizer, 3, &["analyze", REPO]),
        (&without_tokenizer, 3, &["quantize", REPO, "gptq", "-q", "4bit"]),
        (&other_shape, 6, &["info", REPO]),
        (&other_shape, 6, &["generate", REPO, "-p", "x"]),
        (&other_shape, 6, &["quality", "report", REPO, REPO]),
        (&other_kind, 1, &["info", REPO]),
    ] {
        let (output, log) = on_hub.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert_eq!(whole_files(&log), 0, "{arguments:?}: {log:#?}");
        assert!(!on_hub.has_weights(), "{arguments:?}");
        // What was made for the judgement has gone, and is not named.
        assert!(!stderr(&output).contains(".outlines"), "{}", stderr(&output));
    }
}

/// A token that the hub repeats in what it sends reaches neither stream.
#[test]
fn a_token_is_not_printed() {
    const TOKEN: &str = "hf_a_secret_that_nobody_sees";
    let on_hub = OnHub::new(|file, bytes| {
        let said = format!("{{\"model_type\":\"{TOKEN}\",\"architectures\":[\"{TOKEN}\"]}}");
        Some(if file == "config.json" { said.into_bytes() } else { bytes })
    });
    for format in ["human", "json"] {
        let output = on_hub
            .workspace
            .command(&["--format", format, "--verbosity", "debug", "info", REPO])
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", on_hub.hub.endpoint())
            .env("HF_TOKEN", TOKEN)
            .output()
            .unwrap();
        // The hub of the tests does not know the token.
        assert!(!output.status.success());
        let all = stdout(&output) + &stderr(&output);
        assert!(!all.contains(TOKEN), "{all}");
    }
    let output = on_hub
        .workspace
        .command(&["info", REPO])
        .env("HF_ENDPOINT", "https://me:my-password@hub.example")
        .output()
        .unwrap();
    let all = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{all}");
    assert!(all.contains("hub.example") && !all.contains("my-password"), "{all}");
}

/// A model of the shape of Llama-2-7B, whose weights are holes: for plans only.
fn seven_billion(workspace: &Workspace) -> PathBuf {
    let folder = workspace.path("l7b");
    std::fs::create_dir(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny_model().join(file), folder.join(file)).unwrap();
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "torch_dtype": "float16", "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes: Vec<(String, Vec<u64>)> =
        vec![("model.embed_tokens.weight".into(), vec![32000, 4096])];
    for layer in 0..32 {
        let mut add = |name: &str, shape: &[u64]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for part in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{part}_proj"), &[4096, 4096]);
        }
        add("mlp.gate_proj", &[11008, 4096]);
        add("mlp.up_proj", &[11008, 4096]);
        add("mlp.down_proj", &[4096, 11008]);
        add("input_layernorm", &[4096]);
        add("post_attention_layernorm", &[4096]);
    }
    shapes.push(("model.norm.weight".into(), vec![4096]));
    shapes.push(("lm_head.weight".into(), vec![32000, 4096]));
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let bytes = 2 * shape.iter().product::<u64>();
        let entry = serde_json::json!({
            "dtype": "F16", "shape": shape, "data_offsets": [end, end + bytes],
        });
        header.insert(name, entry);
        end += bytes;
    }
    let text = serde_json::Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    let path = folder.join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    folder
}

/// The warnings of a dry run.
fn warnings(workspace: &Workspace, model: &Path, more: &[&str]) -> Vec<String> {
    let command = ["--format", "json", "littlebit", "compress", model.to_str().unwrap()];
    let output = workspace.succeed(&[&command[..], &["--dry-run"], more].concat());
    let report: serde_json::Value = json(&output);
    let warnings = report["warnings"].as_array().unwrap();
    warnings.iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

/// A dry run says what the run will be refused for, and the settings that it names do fit.
#[test]
fn a_dry_run_says_what_memory_is_missing_and_what_would_fit() {
    let workspace = Workspace::new();
    let model = seven_billion(&workspace);
    let limit = ["--max-memory", "16GB"];
    let with = |more: &[&str]| warnings(&workspace, &model, &[&limit, more].concat());
    let missing =
        |all: &[String]| all.iter().find(|text| text.contains("--max-memory allows")).cloned();

    let said = missing(&with(&["--effort", "fast"])).expect("16 bytes for each of 3 billion signs");
    assert!(said.contains("will be refused"), "{said}");
    for named in ["distillation.signs = false", "--effort none"] {
        assert!(said.contains(named), "{said}");
    }
    assert!(!said.contains("true (") || said.contains("signs = false"), "{said}");
    // What is named fits, by the same estimate; what is not, does not.
    assert_eq!(missing(&with(&["--effort", "none"])), None);
    let recipe = workspace.path("recipe.toml");
    let recipe = recipe.to_str().unwrap();
    std::fs::write(recipe, "effort = \"fast\"\n[distillation]\nsigns = false\n").unwrap();
    assert_eq!(missing(&with(&["--recipe", recipe])), None);
    std::fs::write(recipe, "effort = \"fast\"\n[distillation]\nrecompute = true\n").unwrap();
    assert!(missing(&with(&["--recipe", recipe])).is_some());
    assert!(!said.contains("a recipe with distillation.recompute = true ("), "{said}");

    // The run itself is refused with the same words, before it looks at the weights.
    let model = model.to_str().unwrap();
    let command = ["--format", "json", "littlebit", "compress", model, "--effort", "fast"];
    let output = workspace.run(&[&command[..], &limit].concat());
    let document = check_failure(&output, 5, "OutOfMemoryError");
    assert!(said.starts_with(&document.message), "{} and {said}", document.message);
    assert!(said.ends_with(&document.suggestion), "{} and {said}", document.suggestion);
    // Where nothing fits, the least is named.
    let output =
        workspace.run(&[&command[..], &["--max-memory", "1MB", "--threads", "1"]].concat());
    let hint = check_failure(&output, 5, "OutOfMemoryError").suggestion;
    assert!(hint.contains("No setting") && hint.contains("the least is --effort none"), "{hint}");
}
