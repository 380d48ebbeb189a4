//! A private folder per test and a way to run the binary in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// The model that lives in the repository.
pub(crate) fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

/// A folder of its own for every test, with the binary ready to run in it: no network, no cache,
/// no settings of the person who runs the tests.
pub(crate) struct Workspace {
    folder: TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary with `arguments`, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-quantize"));
        for (name, _) in std::env::vars() {
            if name.starts_with("HF_") || name.starts_with("LLM_QUANTIZE_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.folder.path())
            .env("HF_HOME", self.path("hf-home"))
            .env("HF_HUB_OFFLINE", "1")
            .env("LLM_QUANTIZE_IMATRIX_CACHE", self.path("imatrix-cache"))
            .env_remove("COLUMNS")
            .args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and expects status 0.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}\n{}", output.status, stderr(&output));
        output
    }

    /// Compresses the tiny model quickly (few tokens, few iterations, no recovery) into `name`.
    pub(crate) fn compress(&self, name: &str, more: &[&str]) -> Output {
        self.succeed(&compress_arguments(tiny_model().to_str().unwrap(), name, more))
    }
}

/// Arguments of a quick compression with JSON output and without recovery.
pub(crate) fn compress_arguments<'a>(
    model: &'a str,
    name: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut arguments = short_arguments(model, name, more);
    arguments.extend(["--effort", "none"]);
    arguments.extend(more);
    arguments
}

/// The same with recovery.
pub(crate) fn recovery_arguments<'a>(
    model: &'a str,
    name: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut arguments = short_arguments(model, name, more);
    arguments.extend(more);
    arguments
}

/// What makes a compression quick, without options that would do nothing beside `more`.
fn short_arguments<'a>(model: &'a str, name: &'a str, more: &[&str]) -> Vec<&'a str> {
    let mut arguments = vec!["--format", "json", "littlebit", "compress", model, "-n", name];
    let has = |words: &[&str]| more.windows(words.len()).any(|found| found == words);
    if !has(&["--init", "dual-svid"]) {
        arguments.extend(["--iterations", "12"]);
    }
    if !has(&["--weighting", "none"]) {
        arguments.extend(["--calibration-samples", "64"]);
    }
    if !has(&["--skip-validation"]) {
        arguments.extend(["--eval-tokens", "2048"]);
    }
    arguments
}

/// Parses stdout, which must be exactly one JSON document.
pub(crate) fn json<T: DeserializeOwned>(output: &Output) -> T {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in:\n{}", String::from_utf8_lossy(&output.stdout));
    })
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error document, declared again so that a new or renamed key is noticed.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ErrorDocument {
    pub(crate) status: String,
    pub(crate) error_code: i32,
    pub(crate) error_type: String,
    pub(crate) message: String,
    pub(crate) suggestion: String,
    pub(crate) warnings: Vec<String>,
    pub(crate) result: Option<serde_json::Value>,
}

/// Runs, expects status `code` with the same code and `error_type` in the JSON document, a message
/// on stderr, and returns the document.
pub(crate) fn fails(
    workspace: &Workspace,
    arguments: &[&str],
    code: i32,
    kind: &str,
) -> ErrorDocument {
    check_failure(&workspace.run(arguments), code, kind)
}

pub(crate) fn check_failure(output: &Output, code: i32, kind: &str) -> ErrorDocument {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    let document: ErrorDocument = json(output);
    assert_eq!(document.status, "error");
    assert_eq!(document.error_code, code);
    assert_eq!(document.error_type, kind, "{document:?}");
    assert!(!document.message.is_empty() && !document.suggestion.is_empty(), "{document:?}");
    assert!(document.warnings.iter().all(|warning| !warning.is_empty()), "{document:?}");
    assert!(stderr(output).contains("error:"), "{}", stderr(output));
    document
}
