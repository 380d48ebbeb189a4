//! What goes to which stream.

use crate::workspace::{Workspace, check_failure, compress_arguments, stderr, stdout, tiny_model};

fn plan(verbosity: &str) -> Vec<String> {
    let model = tiny_model();
    ["--verbosity", verbosity, "--format", "json", "littlebit", "compress"]
        .into_iter()
        .map(String::from)
        .chain([model.to_str().unwrap().to_owned()])
        .chain(
            ["--skip-validation", "--weighting", "none", "--iterations", "2", "-n", "m.littlebit"]
                .map(String::from),
        )
        .chain(["--effort", "none"].map(String::from))
        .collect()
}

fn run_at(verbosity: &str) -> (String, String) {
    let workspace = Workspace::new();
    let arguments = plan(verbosity);
    let output = workspace.succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    (stdout(&output), stderr(&output))
}

#[test]
fn json_mode_writes_one_document_to_stdout_and_progress_to_stderr() {
    let (out, err) = run_at("normal");
    assert!(out.starts_with('{') && out.trim_end().ends_with('}'));
    serde_json::from_str::<serde_json::Value>(&out).unwrap();
    assert!(err.contains("[llm-quantize] LittleBit compression:"), "{err}");
    assert!(err.contains("Factorizing"), "{err}");
    assert!(!err.contains('\u{1b}') && !err.contains('\r'), "not a terminal: plain lines only");
}

#[test]
fn each_verbosity_level_says_more_than_the_one_below() {
    let lines = |level| run_at(level).1.lines().count();
    let (quiet, normal, verbose, debug) =
        (lines("quiet"), lines("normal"), lines("verbose"), lines("debug"));
    assert_eq!(quiet, 0);
    // Verbose adds a line for each of the 28 matrices.
    assert!(
        normal > 4 && verbose >= normal + 28 && debug > verbose,
        "{quiet} {normal} {verbose} {debug}"
    );
}

#[test]
fn quiet_still_reports_errors() {
    let workspace = Workspace::new();
    let output = workspace.run(&["--verbosity", "quiet", "info", "./nowhere"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("error:") && stderr(&output).contains("hint:"));
    assert!(output.stdout.is_empty(), "in human mode errors are for stderr");
}

#[test]
fn the_two_meanings_of_format_parse_side_by_side() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let mut arguments = compress_arguments(model.to_str().unwrap(), "m.littlebit", &[]);
    arguments.extend(["--format", "littlebit", "--dry-run"]);
    let output = workspace.succeed(&arguments);
    assert!(stdout(&output).contains("\"status\": \"planned\""));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let workspace = Workspace::new();
    let model = tiny_model();
    let mut child = workspace
        .command(&["info", model.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn help_and_version_go_to_stdout() {
    let workspace = Workspace::new();
    for arguments in [&["--help"][..], &["--version"], &["littlebit", "compress", "--help"]] {
        let output = workspace.succeed(arguments);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn a_bad_option_in_json_mode_is_an_error_document() {
    let workspace = Workspace::new();
    for arguments in [
        &["--format", "json", "littlebit", "compress", "m", "--no-such-option"][..],
        &["--format=json", "nonsense"],
    ] {
        check_failure(&workspace.run(arguments), 2, "InvalidArgumentError");
    }
    let human = workspace.run(&["littlebit", "compress", "m", "--no-such-option"]);
    assert_eq!(human.status.code(), Some(2));
    assert!(human.stdout.is_empty() && stderr(&human).contains("Usage:"));
}

#[test]
fn completions_and_man_pages_are_printed() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&workspace.succeed(&["completions", shell]));
        assert!(script.contains("llm-quantize") && script.contains("target-bpw"), "{shell}");
    }
    assert!(stdout(&workspace.succeed(&["man"])).contains(".TH llm-quantize"));
    workspace.succeed(&["man", "pages"]);
    assert!(workspace.path("pages/llm-quantize-littlebit-compress.1").exists());
}
