//! `quantize` interrupted: kills at random points, Ctrl-C, damaged parts, other runs.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::handmade::Handmade;
use crate::workspace::{Workspace, fails, stderr};

const MODEL: Handmade = Handmade { layers: 10, width: 512, broken: None };
const RUN: [&str; 8] = ["quantize", "m.gguf", "gguf", "-q", "Q4_K_M", "-n", "out", "--threads=1"];

fn parts(workspace: &Workspace) -> Vec<PathBuf> {
    std::fs::read_dir(workspace.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".part-"))
        .collect()
}

fn reference() -> (Workspace, Vec<u8>, Duration) {
    let workspace = Workspace::new();
    MODEL.write(&workspace.path("m.gguf"));
    let began = Instant::now();
    workspace.succeed(&[&RUN[..], &["--no-checkpoints"]].concat());
    let whole = began.elapsed();
    let bytes = std::fs::read(workspace.path("out.gguf")).unwrap();
    std::fs::remove_file(workspace.path("out.gguf")).unwrap();
    assert!(parts(&workspace).is_empty());
    (workspace, bytes, whole)
}

#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let (workspace, expected, whole) = reference();
    let mut killed = 0;
    let mut taken_up = 0;
    // A fixed sequence of delays that covers the run from its start to its end.
    for attempt in 0..20_u32 {
        let mut child =
            workspace.command(&RUN).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from((attempt * 7) % 20 + 1) / 20.0));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        let output = child.wait_with_output().unwrap();
        taken_up += usize::from(stderr(&output).contains("Resuming from checkpoint"));
        if workspace.path("out.gguf").exists() {
            // It got through in small steps: what has the name must be whole; then start over.
            assert!(std::fs::read(workspace.path("out.gguf")).unwrap() == expected);
            std::fs::remove_file(workspace.path("out.gguf")).unwrap();
        }
    }
    assert!(killed > 0, "no run lived long enough to be killed");
    workspace.succeed(&RUN);
    assert!(std::fs::read(workspace.path("out.gguf")).unwrap() == expected, "after {killed} kills");
    assert!(parts(&workspace).is_empty() && !workspace.path(".checkpoint").exists());
    eprintln!("{killed} of 20 runs were killed, {taken_up} took up the work of another");
}

/// Interrupts a run as soon as its part has some bytes.
#[cfg(unix)]
fn interrupt(workspace: &Workspace) -> std::process::Output {
    let child =
        workspace.command(&RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = || {
        let runs = std::fs::read_dir(workspace.path(".checkpoint")).into_iter().flatten().flatten();
        runs.filter_map(|run| std::fs::read_to_string(run.path().join("tensors")).ok())
            .any(|text| text.lines().count() > 5)
    };
    let began = Instant::now();
    while !journal() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_work_and_damage_is_noticed() {
    let (workspace, expected, _) = reference();
    let output = interrupt(&workspace);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume ./.checkpoint"), "{}", stderr(&output));
    assert!(!workspace.path("out.gguf").exists());
    let part = parts(&workspace).pop().unwrap();
    let kept = std::fs::read(&part).unwrap();
    assert!(kept.len() < expected.len() && !kept.is_empty());

    // Another level has a checkpoint of its own; asked to resume this one, it says what differs.
    let mut other = RUN.to_vec();
    other[4] = "Q8_0";
    let error = fails(
        &workspace,
        &[&["--format", "json"], &other[..], &["--resume", ".checkpoint"]].concat(),
        7,
        "CheckpointError",
    );
    assert!(error.message.contains("level is `Q4_K_M` there, `Q8_0` here"), "{}", error.message);

    // A flipped bit in the kept part, and bytes beyond what the journal has.
    let mut damaged = kept.clone();
    let at = damaged.len() * 2 / 3;
    damaged[at] ^= 1;
    damaged.extend([7; 100]);
    std::fs::write(&part, &damaged).unwrap();
    let output = workspace.succeed(&[&RUN[..], &["--resume", ".checkpoint"]].concat());
    assert!(stderr(&output).contains("Resuming from checkpoint"));
    assert!(std::fs::read(workspace.path("out.gguf")).unwrap() == expected);
    assert!(!workspace.path(".checkpoint").exists() && parts(&workspace).is_empty());
}
