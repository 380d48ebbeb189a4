//! A run outlives its terminal: streams that cannot be written, signals that are ignored, threads that
//! cannot be started, a working directory that cannot be written.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::workspace::{Workspace, fails, json, stderr, tiny_model};

fn quantize(workspace: &Workspace, name: &str, more: &[&str]) -> Command {
    let model = tiny_model();
    let base = ["quantize", model.to_str().unwrap(), "gguf", "-q", "Q4_K_M", "-n", name];
    workspace.command(&[&base[..], more].concat())
}

/// The same command behind a shell that does `before` it.
fn behind(shell: &str, command: &Command) -> Command {
    let mut behind = Command::new("sh");
    behind.args(["-c", shell]).arg(command.get_program()).args(command.get_args());
    behind.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => behind.env(name, value),
            None => behind.env_remove(name),
        };
    }
    behind
}

#[cfg(target_os = "linux")]
#[test]
fn streams_that_cannot_be_written_lose_nothing() {
    let workspace = Workspace::new();
    assert!(quantize(&workspace, "expected", &[]).output().unwrap().status.success());
    let expected = fs::read(workspace.path("expected.gguf")).unwrap();
    let check = |what: &str, mut command: Command| {
        assert!(command.status().unwrap().success(), "{what}");
        assert!(fs::read(workspace.path("out.gguf")).unwrap() == expected, "{what}");
        fs::remove_file(workspace.path("out.gguf")).unwrap();
    };
    let mut full = quantize(&workspace, "out", &[]);
    full.stderr(File::options().write(true).open("/dev/full").unwrap()).stdout(Stdio::null());
    check("a full disk", full);
    for shell in [
        "exec \"$0\" \"$@\" 2>&-",
        "exec \"$0\" \"$@\" 0<&- 1>&- 2>&-",
        "exec \"$0\" \"$@\" 0<&-",
        // The reader has gone before anything is written.
        "{ sleep 0.2; \"$0\" \"$@\" >/dev/null; echo $? >code; } 2>&1 | true; exit $(cat code)",
    ] {
        check(shell, behind(shell, &quantize(&workspace, "out", &[])));
    }
    // Errors that nobody can read keep their status.
    let mut wrong = workspace.command(&["info", "./nowhere"]);
    wrong.stderr(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(wrong.status().unwrap().code(), Some(3));
}

/// A run of some seconds.
fn long(workspace: &Workspace) -> Command {
    let model = tiny_model();
    workspace.command(&[
        "littlebit",
        "compress",
        model.to_str().unwrap(),
        "--effort",
        "none",
        "--weighting",
        "none",
        "--skip-validation",
        "--iterations",
        "60",
        "-n",
        "m.littlebit",
    ])
}

/// Waits until the first unit is kept.
fn wait_for_work(workspace: &Workspace) {
    let began = Instant::now();
    let units = || {
        let runs = fs::read_dir(workspace.path(".checkpoint")).into_iter().flatten().flatten();
        let units = runs.filter_map(|run| fs::read_dir(run.path().join("units")).ok());
        units.flatten().flatten().any(|unit| unit.path().extension().is_some_and(|e| e == "unit"))
    };
    while !units() && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(signal: &str, process: u32) {
    let sent = Command::new("kill").args([signal, &process.to_string()]).status().unwrap();
    assert!(sent.success(), "{signal}: the run was over");
}

#[test]
fn signals_stop_a_run_unless_they_were_ignored() {
    let workspace = Workspace::new();
    let ignoring = "trap '' HUP INT; exec \"$0\" \"$@\"";
    let mut child = behind(ignoring, &long(&workspace)).stderr(Stdio::null()).spawn().unwrap();
    wait_for_work(&workspace);
    for signal in ["-HUP", "-INT", "-HUP", "-INT"] {
        send(signal, child.id());
    }
    assert!(child.wait().unwrap().success());
    assert!(workspace.path("m.littlebit").exists());

    for signal in ["-HUP", "-INT", "-TERM"] {
        let workspace = Workspace::new();
        let child = long(&workspace).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_work(&workspace);
        send(signal, child.id());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}");
        let text = stderr(&output);
        assert!(text.contains("Stopping after the current layer"), "{signal}: {text}");
        assert!(text.contains("--resume ./.checkpoint"), "{signal}: {text}");
    }
}

/// Stacks of a petabyte are a way to have no thread started that works for every user.
#[cfg(target_os = "linux")]
#[test]
fn without_threads_the_work_is_done_all_the_same() {
    const STACK: (&str, &str) = ("RUST_MIN_STACK", "1125899906842624");
    let workspace = Workspace::new();
    assert!(quantize(&workspace, "expected", &[]).output().unwrap().status.success());
    let output = quantize(&workspace, "out", &[]).env(STACK.0, STACK.1).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("Warning: the system refuses"), "{}", stderr(&output));
    let read = |name: &str| fs::read(workspace.path(name)).unwrap();
    assert!(read("expected.gguf") == read("out.gguf"));

    workspace.compress("expected.littlebit", &["--skip-validation"]);
    let model = tiny_model();
    let arguments = crate::workspace::compress_arguments(
        model.to_str().unwrap(),
        "out.littlebit",
        &["--skip-validation"],
    );
    let output = workspace.command(&arguments).env(STACK.0, STACK.1).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(read("expected.littlebit") == read("out.littlebit"));
}

/// Nobody, whoever it is, can make a file in /proc.
#[cfg(target_os = "linux")]
#[test]
fn a_working_directory_that_cannot_be_written_is_enough() {
    let workspace = Workspace::new();
    let folder = workspace.path(".");
    let output = |more: &[&str]| {
        let elsewhere = ["-o", folder.to_str().unwrap()];
        let mut command = quantize(&workspace, "out", &[&elsewhere[..], more].concat());
        command.current_dir("/proc").output().unwrap()
    };
    let dry = output(&["--dry-run"]);
    assert!(dry.status.success(), "{}", stderr(&dry));
    assert!(!stderr(&dry).contains("Warning"), "{}", stderr(&dry));
    let done = output(&[]);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = stderr(&done);
    assert!(text.contains("--checkpoint-dir") && text.contains("--no-checkpoints"), "{text}");
    assert!(workspace.path("out.gguf").exists() && !workspace.path(".checkpoint").exists());

    // What was asked for by name is not replaced by something else.
    let arguments = ["--format", "json", "quantize"];
    let model = tiny_model();
    let rest = [model.to_str().unwrap(), "gguf", "-q", "Q8_0", "--checkpoint-dir", "/proc/x"];
    let error = fails(&workspace, &[&arguments[..], &rest].concat(), 7, "CheckpointError");
    assert!(error.message.contains("no checkpoints can be kept in /proc/x"), "{error:?}");
    assert!(error.suggestion.contains("--no-checkpoints"), "{error:?}");
}

#[test]
fn a_resumed_run_says_so_and_another_commands_checkpoint_is_named() {
    let workspace = Workspace::new();
    let mut child = long(&workspace).stderr(Stdio::null()).spawn().unwrap();
    wait_for_work(&workspace);
    // A layer or two, so that there is something to count.
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();

    let model = tiny_model();
    let model = model.to_str().unwrap();
    let quantize =
        ["--format", "json", "quantize", model, "gguf", "-q", "Q4_0", "--resume", ".checkpoint"];
    let error = fails(&workspace, &quantize, 7, "CheckpointError");
    assert!(
        error.message.ends_with("another command: littlebit compress, not quantize gguf"),
        "{error:?}"
    );
    assert!(error.suggestion.contains("leave out --resume"), "{error:?}");

    let command = long(&workspace);
    let arguments: Vec<&str> = command.get_args().map(|word| word.to_str().unwrap()).collect();
    let resume = [&["--format", "json"], &arguments[..], &["--resume", ".checkpoint"]].concat();
    let output = workspace.succeed(&resume);
    let text = stderr(&output);
    assert!(text.contains("[llm-quantize] Resuming from checkpoint: .checkpoint"), "{text}");
    let document: serde_json::Value = json(&output);
    let layers = document["resumed_layers"].as_u64().unwrap();
    assert!(text.contains(&format!("[llm-quantize] Completed layers: {layers}/4")), "{text}");
    assert_eq!(text.contains("layers [resumed]"), layers > 0, "{text}");
}
