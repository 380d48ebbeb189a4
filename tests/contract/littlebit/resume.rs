//! Checkpoints: kills at random points, Ctrl-C, and checkpoints that belong to another run.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::workspace::{
    Workspace, compress_arguments, fails, recovery_arguments, stderr, tiny_model,
};

/// More iterations than elsewhere, so that there is time to be killed.
const SLOW: [&str; 6] =
    ["--iterations", "40", "--target-bpw", "1.0", "--skip-validation", "--threads"];

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = compress_arguments(model, "m.littlebit", &["--skip-validation"]);
    let without_iterations = base.iter().take(7).chain(base.iter().skip(9)).copied();
    without_iterations.chain(SLOW).chain(["2"]).chain(more.iter().copied()).collect()
}

/// What is done to a checkpoint, by name.
type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>);

#[cfg(unix)]
#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let reference = Workspace::new();
    let began = std::time::Instant::now();
    reference.succeed(&arguments(model, &[]));
    let whole = began.elapsed();
    let expected = std::fs::read(reference.path("m.littlebit")).unwrap();

    let workspace = Workspace::new();
    let mut killed = 0;
    // A fixed sequence of delays that covers the run from its start to its end.
    for attempt in 0..20_u32 {
        let mut child = workspace
            .command(&arguments(model, &[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(f64::from((attempt * 7) % 20 + 1) / 20.0 * 0.6));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        child.wait().unwrap();
        if workspace.path("m.littlebit").exists() {
            // It got through in small steps: what is there must be whole; then start over.
            assert!(std::fs::read(workspace.path("m.littlebit")).unwrap() == expected);
            std::fs::remove_file(workspace.path("m.littlebit")).unwrap();
        }
    }
    assert!(killed > 0, "no run lived long enough to be killed");
    workspace.succeed(&arguments(model, &[]));
    assert!(
        std::fs::read(workspace.path("m.littlebit")).unwrap() == expected,
        "other bytes after {killed} kills"
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let child = workspace
        .command(&arguments(model, &["--iterations", "400"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Interrupt when the first matrix is in the store.
    let mut waited = 0;
    while finished_matrices(&workspace).is_empty() && waited < 600 {
        std::thread::sleep(Duration::from_millis(100));
        waited += 1;
    }
    let kill = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error_code"], 130);
    let suggestion = document["suggestion"].as_str().unwrap();
    assert!(
        suggestion.contains("littlebit compress") && suggestion.contains("--resume"),
        "{suggestion}"
    );
    assert!(!workspace.path("m.littlebit").exists());
    let beside: Vec<_> =
        walk(&workspace.path(".")).into_iter().filter(|p| p.contains("m.littlebit")).collect();
    assert!(beside.is_empty(), "{beside:?}");

    workspace.succeed(&arguments(model, &["--iterations", "400", "--resume", ".checkpoint"]));
    assert!(workspace.path("m.littlebit").exists());
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(entries) = std::fs::read_dir(folder) {
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                found.extend(walk(&entry.path()));
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// The units of factorized matrices in the store; one that is still being written has another
/// extension until it is renamed.
fn finished_matrices(workspace: &Workspace) -> Vec<String> {
    let mut found = walk(&workspace.path(".checkpoint"));
    found.retain(|path| {
        path.contains("proj") && std::path::Path::new(path).extension().is_some_and(|e| e == "unit")
    });
    found
}

/// Leaves a checkpoint of an unfinished run behind.
fn unfinished(workspace: &Workspace, model: &str) {
    let mut child = workspace
        .command(&arguments(model, &["--iterations", "400"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if !finished_matrices(workspace).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_checkpoint_of_other_settings_is_refused_with_the_difference() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    unfinished(&workspace, model);
    let other =
        arguments(model, &["--iterations", "400", "--resume", ".checkpoint", "--seed", "7"]);
    let error = fails(&workspace, &other, 7, "CheckpointError");
    assert!(error.message.contains("seed") && error.message.contains('7'), "{error:?}");
}

#[test]
fn a_torn_checkpoint_is_redone() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    unfinished(&workspace, model);
    let unit = finished_matrices(&workspace).remove(0);
    let bytes = std::fs::read(&unit).unwrap();
    std::fs::write(&unit, &bytes[..bytes.len() / 2]).unwrap();
    let output =
        workspace.succeed(&arguments(model, &["--iterations", "400", "--resume", ".checkpoint"]));
    assert!(stderr(&output).contains("Warning:"), "{}", stderr(&output));

    let reference = Workspace::new();
    reference.succeed(&arguments(model, &["--iterations", "400"]));
    let read = |w: &Workspace| std::fs::read(w.path("m.littlebit")).unwrap();
    assert!(read(&workspace) == read(&reference));
}

#[test]
fn threads_do_not_change_the_bytes() {
    let bytes: Vec<Vec<u8>> = ["1", "2", "3"]
        .iter()
        .map(|threads| {
            let workspace = Workspace::new();
            workspace.compress("m.littlebit", &["--skip-validation", "--threads", threads]);
            std::fs::read(workspace.path("m.littlebit")).unwrap()
        })
        .collect();
    assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2]);
}

/// The weights between kill and resumption are others: same size, same times, only the middles of
/// the matrices differ.
#[test]
fn replaced_weights_are_another_model() {
    let workspace = Workspace::new();
    copy_folder(&tiny_model(), &workspace.path("m"));
    unfinished(&workspace, "m");
    let weights = workspace.path("m/model.safetensors");
    let time = std::fs::metadata(&weights).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (name, tensor) in tensors.as_object().unwrap() {
        if name.contains("_proj") {
            let at =
                |end: usize| tensor["data_offsets"][end].as_u64().unwrap() as usize + 8 + header;
            // The sign bits of little-endian numbers.
            for byte in bytes[at(0) + 4096..at(1) - 4096].iter_mut().skip(3).step_by(4) {
                *byte ^= 0x80;
            }
        }
    }
    std::fs::write(&weights, bytes).unwrap();
    std::fs::File::options().write(true).open(&weights).unwrap().set_modified(time).unwrap();

    let run = ["--iterations", "400"];
    let resume = arguments("m", &[&run[..], &["--resume", ".checkpoint"]].concat());
    let error = fails(&workspace, &resume, 7, "CheckpointError");
    assert!(error.message.contains("source is `files-sha256:"), "{error:?}");
    let output = workspace.succeed(&arguments("m", &run));
    assert!(!stderr(&output).contains("Resuming"), "{}", stderr(&output));
    let bytes = std::fs::read(workspace.path("m.littlebit")).unwrap();
    let reference = Workspace::new();
    copy_folder(&workspace.path("m"), &reference.path("m"));
    reference.succeed(&arguments("m", &run));
    assert!(std::fs::read(reference.path("m.littlebit")).unwrap() == bytes);
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Killed while the whole model is distilled; then files of the checkpoint are damaged. Whatever it
/// is, the run goes through, to the bytes of an undisturbed one.
#[test]
fn a_damaged_distillation_is_done_again() {
    const RECIPE: &str = "
[text]
sequences = 8
held-out = 2
length = 64
[blocks]
steps = 4
[distillation]
steps = 150
sequences = 8
batch = 2
";
    let workspace = Workspace::new();
    std::fs::write(workspace.path("r.toml"), RECIPE).unwrap();
    let model = tiny_model();
    let arguments = |name: &'static str| -> Vec<String> {
        let more = ["--recipe", "r.toml", "--skip-validation"];
        let words = recovery_arguments(model.to_str().unwrap(), name, &more);
        words.into_iter().map(str::to_owned).collect()
    };
    let run = |name: &'static str| {
        let words = arguments(name);
        workspace.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let output = run("expected");
    assert!(output.status.success(), "{}", stderr(&output));
    let expected = std::fs::read(workspace.path("expected.littlebit")).unwrap();

    // Two saves at least: then both slots hold a state.
    let units = || {
        let mut found = walk(&workspace.path(".checkpoint"));
        found.retain(|path| Path::new(path).extension().is_some_and(|kind| kind == "unit"));
        found.sort();
        found
    };
    let slot = |number: char| {
        let mut found = units();
        found.retain(|path| {
            let name = path.rsplit('/').next().unwrap();
            let mut parts = name.splitn(4, '-');
            parts.next() == Some("distilled") && parts.nth(1).is_some_and(|n| n.starts_with(number))
        });
        found
    };
    let words = arguments("m");
    let mut child = workspace
        .command(&words.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while slot('1').len() < 28 && began.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(slot('0').len() == 28 && slot('1').len() == 28, "{:?}", units());
    copy_folder(&workspace.path(".checkpoint"), &workspace.path("kept"));

    let cut = |path: &String| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..100]).unwrap();
    };
    let pointer = || {
        let mut found = units();
        found.retain(|path| path.rsplit('/').next().unwrap().matches('-').count() == 1);
        found.retain(|path| path.contains("distilled-"));
        found
    };
    let damages: [Damage; 6] = [
        ("a layer of the first slot", Box::new(|| cut(slot('0').last().unwrap()))),
        ("a layer of the second slot", Box::new(|| cut(slot('1').last().unwrap()))),
        ("a layer of both", Box::new(|| [slot('0'), slot('1')].iter().for_each(|s| cut(&s[3])))),
        ("what says which is whole", Box::new(|| pointer().iter().for_each(cut))),
        (
            "everything is missing",
            Box::new(|| {
                [slot('0'), slot('1')]
                    .concat()
                    .iter()
                    .for_each(|path| std::fs::remove_file(path).unwrap());
            }),
        ),
        (
            "a block",
            Box::new(|| cut(units().iter().find(|unit| unit.contains("tuned-1")).unwrap())),
        ),
    ];
    for (what, damage) in damages {
        let _ = std::fs::remove_dir_all(workspace.path(".checkpoint"));
        copy_folder(&workspace.path("kept"), &workspace.path(".checkpoint"));
        damage();
        let output = run("m");
        assert!(output.status.success(), "{what}: {}", stderr(&output));
        assert!(stderr(&output).contains("Completed layers: "), "{what}: {}", stderr(&output));
        let same = std::fs::read(workspace.path("m.littlebit")).unwrap() == expected;
        assert!(same, "{what}: {}", stderr(&output));
        assert!(!workspace.path(".checkpoint").exists(), "{what}");
    }
}
