//! Every option of every command in every mode: it does something, or it is refused. Commands name
//! an empty folder as the model, so that whatever is not refused ends with another status at once.

use std::collections::BTreeSet;

use crate::workspace::{Workspace, check_failure, stderr};

/// A command in one of its modes, and every option that it has.
struct Mode {
    command: &'static str,
    arguments: &'static str,
    /// Refused: it would do nothing.
    idle: &'static str,
    /// Does something.
    works: &'static str,
}

const GLOBAL: &str = "format verbosity help";
const HUB: &str = "offline";

const MODES: [Mode; 30] = [
    Mode {
        command: "quantize",
        arguments: "./none gguf -q Q4_0",
        idle: "calibration-data calibration-samples group-size desc-act asym damp-percent smoothquant alpha \
               sensitivity profile dynamic revision cache-dir",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                imatrix tensor-type output-tensor-type token-embedding-type pure leave-output-tensor \
                allow-requantize pre override-kv no-provenance split-max-size protect-super-weights \
                protection-coverage quality-report coherence-check quality-threshold target-size \
                target-bpw",
    },
    Mode {
        command: "quantize",
        arguments: "./none gguf -q dynamic",
        idle: "calibration-data calibration-samples group-size desc-act asym damp-percent smoothquant alpha \
               pure revision cache-dir",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                imatrix tensor-type output-tensor-type token-embedding-type leave-output-tensor \
                allow-requantize pre override-kv no-provenance split-max-size protect-super-weights \
                protection-coverage quality-report coherence-check quality-threshold target-size \
                target-bpw sensitivity profile dynamic",
    },
    Mode {
        command: "quantize",
        arguments: "./none gguf --target-bpw 4 --sensitivity measured",
        idle: "group-size desc-act asym damp-percent smoothquant alpha pure profile revision",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                imatrix tensor-type output-tensor-type token-embedding-type leave-output-tensor \
                allow-requantize pre override-kv no-provenance split-max-size protect-super-weights \
                protection-coverage quality-report coherence-check quality-threshold target-size \
                target-bpw sensitivity dynamic calibration-data calibration-samples cache-dir",
    },
    Mode {
        command: "quantize",
        arguments: "./none gptq -q 4bit",
        idle: "imatrix tensor-type output-tensor-type token-embedding-type pure leave-output-tensor \
               allow-requantize target-size target-bpw pre override-kv no-provenance split-max-size dynamic \
               profile protect-super-weights protection-coverage sensitivity smoothquant alpha revision",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                group-size desc-act asym damp-percent calibration-data calibration-samples cache-dir \
                quality-report coherence-check quality-threshold",
    },
    Mode {
        command: "quantize",
        arguments: "./none awq -q 4bit",
        idle: "imatrix tensor-type output-tensor-type token-embedding-type pure leave-output-tensor \
               allow-requantize target-size target-bpw pre override-kv no-provenance split-max-size dynamic \
               profile protect-super-weights protection-coverage sensitivity smoothquant alpha desc-act \
               asym damp-percent revision",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                group-size calibration-data calibration-samples cache-dir quality-report coherence-check \
                quality-threshold",
    },
    Mode {
        command: "quantize",
        arguments: "./none smoothquant",
        idle: "imatrix tensor-type output-tensor-type token-embedding-type pure leave-output-tensor \
               allow-requantize target-size target-bpw pre override-kv no-provenance split-max-size dynamic \
               profile protect-super-weights protection-coverage sensitivity group-size alpha desc-act \
               asym damp-percent revision",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                smoothquant calibration-data calibration-samples cache-dir quality-report coherence-check \
                quality-threshold",
    },
    Mode {
        command: "quantize",
        arguments: "./none smoothquant --smoothquant --calibration-samples 0",
        idle: "imatrix tensor-type output-tensor-type token-embedding-type pure leave-output-tensor \
               allow-requantize target-size target-bpw pre override-kv no-provenance split-max-size dynamic \
               profile protect-super-weights protection-coverage sensitivity group-size alpha desc-act \
               asym damp-percent revision calibration-data",
        works: "quant-level output-dir output-name dry-run threads no-checkpoints checkpoint-dir resume \
                smoothquant calibration-samples cache-dir quality-report coherence-check quality-threshold",
    },
    Mode {
        command: "convert",
        arguments: "./none gguf",
        idle: "group-size max-shard-size revision cache-dir",
        works: "output-dir output-name force quant-level no-provenance dry-run threads",
    },
    Mode {
        command: "convert",
        arguments: "./none gptq",
        idle: "no-provenance revision cache-dir",
        works: "output-dir output-name force quant-level dry-run threads group-size max-shard-size",
    },
    Mode {
        command: "convert",
        arguments: "./none awq",
        idle: "no-provenance revision cache-dir",
        works: "output-dir output-name force quant-level dry-run threads group-size max-shard-size",
    },
    Mode {
        command: "convert",
        arguments: "./none hf",
        idle: "group-size no-provenance revision cache-dir",
        works: "output-dir output-name force quant-level dry-run threads max-shard-size",
    },
    Mode {
        command: "analyze",
        arguments: "./none",
        idle: "revision",
        works: "output method calibration-data calibration-samples chunks ctx-size seed process-output \
                output-format merge show-statistics plot identify-super-weights coverage no-checkpoints \
                checkpoint-dir resume no-cache device threads cache-dir",
    },
    Mode {
        command: "analyze",
        arguments: "./none --method fisher --chunks 2",
        idle: "revision seed process-output calibration-samples",
        works: "output method calibration-data chunks ctx-size output-format merge show-statistics plot \
                identify-super-weights coverage no-checkpoints checkpoint-dir resume no-cache device threads \
                cache-dir",
    },
    Mode {
        command: "analyze",
        arguments: "--merge ./none",
        idle: "method calibration-data calibration-samples chunks ctx-size seed process-output output-format \
               identify-super-weights coverage no-checkpoints checkpoint-dir resume no-cache device threads \
               revision offline cache-dir",
        works: "output merge show-statistics plot",
    },
    Mode {
        command: "profile create",
        arguments: "--imatrix ./none --name n -o ./p.dqprofile --model ./none",
        idle: "calibration-data calibration-samples revision cache-dir",
        works: "imatrix name model target-bpw target-size output sensitivity allow-requantize threads",
    },
    Mode {
        command: "profile create",
        arguments: "--imatrix ./none --name n -o ./p.dqprofile",
        idle: "sensitivity calibration-data calibration-samples allow-requantize threads revision offline \
               cache-dir",
        works: "imatrix name model target-bpw target-size output",
    },
    Mode {
        command: "profile validate",
        arguments: "balanced ./none",
        idle: "revision cache-dir",
        works: "",
    },
    Mode {
        command: "quality report",
        arguments: "./none ./none",
        idle: "revision benchmark-data benchmark-tasks",
        works: "calibration-data calibration-samples include-layers output quality-threshold skip-coherence \
                super-weights benchmark device threads cache-dir",
    },
    Mode {
        command: "quality compare",
        arguments: "./none ./none",
        idle: "revision",
        works: "metrics calibration-data calibration-samples include-layers output device threads cache-dir",
    },
    Mode {
        command: "quality compare",
        arguments: "./none ./none --metrics size,bpw",
        idle: "revision calibration-data calibration-samples device cache-dir",
        works: "metrics include-layers output threads",
    },
    Mode {
        command: "littlebit compress",
        arguments: "./none",
        idle: "revision",
        works: "target-bpw rank quality-threshold output-dir output-name calibration-data \
                calibration-samples eval-data eval-tokens effort recipe no-checkpoints checkpoint-dir resume \
                skip-validation max-memory dry-run export-metadata init residual latent-scale scales \
                iterations weighting embedding-type seed device threads cache-dir",
    },
    Mode {
        command: "littlebit compress",
        arguments: "./none --effort none --weighting none --init dual-svid --skip-validation --no-checkpoints",
        idle: "revision calibration-data calibration-samples eval-data eval-tokens quality-threshold \
               iterations checkpoint-dir resume",
        works: "target-bpw rank output-dir output-name effort recipe no-checkpoints skip-validation \
                max-memory dry-run export-metadata init residual latent-scale scales weighting \
                embedding-type seed device threads cache-dir",
    },
    Mode {
        command: "littlebit convert",
        arguments: "./none gguf-ext",
        idle: "gguf-quant",
        works: "output-dir output-name force",
    },
    Mode {
        command: "littlebit validate",
        arguments: "./none ./none",
        idle: "revision benchmark-data benchmark-tasks",
        works: "calibration-data calibration-samples coherence-test quality-threshold benchmark device \
                threads cache-dir",
    },
    Mode {
        command: "info",
        arguments: "./none",
        idle: "revision cache-dir",
        works: "tensors skip-scan",
    },
    Mode {
        command: "littlebit info",
        arguments: "./none",
        idle: "",
        works: "layers verify export-metadata",
    },
    Mode { command: "profile list", arguments: "", idle: "", works: "" },
    Mode { command: "profile show", arguments: "none", idle: "", works: "" },
    Mode {
        command: "generate",
        arguments: "./none -p text",
        idle: "top-p seed revision cache-dir",
        works: "prompt max-tokens temperature chat device threads",
    },
    Mode {
        command: "generate",
        arguments: "./none -p text --temperature 0.7",
        idle: "revision cache-dir",
        works: "prompt max-tokens temperature top-p seed chat device threads",
    },
];

/// The option as a person would type it, with a value that it takes.
#[expect(clippy::match_same_arms, reason = "a table by meaning reads better than one by value")]
fn typed(option: &str) -> Vec<&str> {
    match option {
        "calibration-data" | "eval-data" | "benchmark-data" => vec!["TEXT.txt"],
        "calibration-samples" | "samples" => vec!["100"],
        "group-size" | "rank" | "iterations" | "seed" | "chunks" | "ctx-size" => vec!["64"],
        "max-tokens" | "threads" | "benchmark-tasks" | "eval-tokens" => vec!["2"],
        "damp-percent" | "alpha" | "top-p" | "temperature" => vec!["0.5"],
        "coverage" => vec!["0.001", "--identify-super-weights"],
        "protection-coverage" => vec!["0.001", "--protect-super-weights", "--imatrix", "m.imatrix"],
        "protect-super-weights" => vec!["--imatrix", "m.imatrix"],
        "quality-threshold" => vec!["5"],
        "sensitivity" => vec!["estimated"],
        "profile" => vec!["balanced"],
        "revision" => vec!["v1"],
        "target-bpw" => vec!["0.5"],
        "max-memory" | "max-shard-size" | "split-max-size" => vec!["4GB"],
        "tensor-type" => vec!["ffn=Q8_0"],
        "output-tensor-type" | "token-embedding-type" => vec!["Q8_0"],
        "override-kv" => vec!["a.b=int:1"],
        "method" => vec!["activation"],
        "plot" => vec!["p.svg"],
        "metrics" => vec!["all"],
        "device" => vec!["cpu"],
        "scales" => vec!["f16"],
        "init" => vec!["admm"],
        "weighting" => vec!["activation"],
        "effort" => vec!["fast"],
        "embedding-type" => vec!["f16"],
        "gguf-quant" => vec!["Q8_0"],
        "output-format" => vec!["dat"],
        "benchmark" => vec!["arc"],
        "target-size" => vec!["0.5"],
        "dynamic"
        | "smoothquant"
        | "pure"
        | "desc-act"
        | "asym"
        | "dry-run"
        | "no-checkpoints"
        | "leave-output-tensor"
        | "allow-requantize"
        | "no-provenance"
        | "quality-report"
        | "coherence-check"
        | "force"
        | "process-output"
        | "show-statistics"
        | "no-cache"
        | "identify-super-weights"
        | "include-layers"
        | "skip-coherence"
        | "coherence-test"
        | "skip-validation"
        | "residual"
        | "latent-scale"
        | "chat"
        | "offline"
        | "tensors"
        | "skip-scan"
        | "layers"
        | "verify" => vec![],
        // Files, folders and names.
        _ => vec!["some-name"],
    }
}

fn options_of(command: &str) -> BTreeSet<String> {
    let mut found = llm_quantize::cli::command();
    found.build();
    for name in command.split(' ') {
        found = found.find_subcommand(name).unwrap().clone();
    }
    found.get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect()
}

#[test]
fn every_option_does_something_or_is_refused() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.path("none")).unwrap();
    for Mode { command, arguments, idle, works } in MODES {
        let words = |list: &'static str| list.split_whitespace();
        let known: BTreeSet<String> =
            [idle, works, GLOBAL, HUB].into_iter().flat_map(words).map(str::to_owned).collect();
        let with_hub = options_of(command).contains("offline");
        let there: BTreeSet<String> = options_of(command);
        let known: BTreeSet<String> =
            known.into_iter().filter(|o| with_hub || o != "offline").collect();
        assert_eq!(there, known, "{command} {arguments}: every option must be in the table");
        let base: Vec<&str> = ["--format", "json"]
            .into_iter()
            .chain(command.split(' '))
            .chain(words(arguments))
            .collect();
        for option in words(idle) {
            let long = format!("--{option}");
            let all = [&base[..], &[long.as_str()], &typed(option)].concat();
            let output = workspace.run(&all);
            assert_eq!(output.status.code(), Some(2), "{all:?}: {}", stderr(&output));
            let error = check_failure(&output, 2, "InvalidArgumentError");
            // Or it lacks the option that it goes with.
            let mut named = vec![long.as_str(), "required arguments"];
            named.extend(typed(option).into_iter().filter(|word| word.starts_with("--")));
            assert!(named.iter().any(|n| error.message.contains(n)), "{all:?}: {}", error.message);
        }
        for option in
            words(works).chain(with_hub.then_some("offline").filter(|o| !idle.contains(o)))
        {
            // Given already, or one of several ways to the same.
            let other_way =
                ["quant-level", "target-size", "target-bpw", "dynamic"].contains(&option);
            if arguments.contains(&format!("--{option}")) || (command == "quantize" && other_way) {
                continue;
            }
            let long = format!("--{option}");
            let all = [&base[..], &[long.as_str()], &typed(option)].concat();
            let output = workspace.run(&all);
            let said = stderr(&output);
            assert!(!said.contains("does nothing"), "{all:?}: {said}");
            // `Q4_0` is a level of one output format only, `some-name` no number.
            let excused = ["quality-threshold", "quant-level", "output"].contains(&option);
            assert!(excused || output.status.code() != Some(2), "{all:?}: {said}");
        }
    }
}
