//! What the environment names. A test that asks for what is not named fails: it says what it needs
//! as the reason for which it is ignored, so it only runs when somebody wants it to.

use std::path::PathBuf;

use crate::llama_cpp::library::LlamaCpp;

fn named(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{variable} is not set (see README.md, \"Tests\")"));
    assert!(path.exists(), "{variable}: {} does not exist", path.display());
    path
}

/// The folder with `libllama` and `libggml`.
pub(crate) fn llama_cpp_folder() -> PathBuf {
    named("LLM_QUANTIZE_TEST_LLAMA_LIB")
}

pub(crate) fn llama_cpp() -> LlamaCpp {
    LlamaCpp::open(&llama_cpp_folder())
}

/// `SmolLM2-135M-Instruct.Q4_1.gguf`.
pub(crate) fn smollm2() -> PathBuf {
    named("LLM_QUANTIZE_TEST_MODEL")
}

/// A long text.
pub(crate) fn text() -> PathBuf {
    named("LLM_QUANTIZE_TEST_TEXT")
}

/// The `tokenizer.json` that SmolLM2 was published with.
pub(crate) fn tokenizer() -> PathBuf {
    named("LLM_QUANTIZE_TEST_TOKENIZER")
}

/// Published tokenizers, a folder each.
pub(crate) fn tokenizers() -> PathBuf {
    named("LLM_QUANTIZE_TEST_TOKENIZERS")
}

/// A directory with stories15M.
pub(crate) fn stories() -> PathBuf {
    named("LLM_QUANTIZE_TEST_STORIES")
}

/// Tiny models with the answers of transformers, a folder each.
pub(crate) fn architectures() -> PathBuf {
    named("LLM_QUANTIZE_TEST_ARCHITECTURES")
}

/// The folder that the Python package `gguf` is installed in.
pub(crate) fn python_gguf() -> PathBuf {
    named("LLM_QUANTIZE_TEST_PYTHON_GGUF")
}

/// A folder with `wikitext-2-raw/`.
pub(crate) fn data() -> PathBuf {
    named("LLM_QUANTIZE_TEST_DATA")
}

/// Every variable that a reason names is in the README's table, and every test of this program has
/// a reason.
#[test]
fn every_need_is_documented() {
    fn sources(folder: &std::path::Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                out.push((path, text));
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut files = Vec::new();
    sources(&root.join("tests/peers"), &mut files);
    let mut tests = 0;
    for (path, text) in files.iter().filter(|(path, _)| !path.ends_with("needs.rs")) {
        for part in text.split("#[test]\n").skip(1) {
            let reason = part.strip_prefix("#[ignore = \"needs ").and_then(|r| r.split('"').next());
            let reason =
                reason.unwrap_or_else(|| panic!("{}: a test without needs", path.display()));
            let variables: Vec<&str> = reason
                .split(|c: char| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()))
                .filter(|word| word.starts_with("LLM_QUANTIZE_TEST_"))
                .collect();
            assert!(!variables.is_empty(), "{}: {reason}", path.display());
            for variable in variables {
                assert!(readme.contains(&format!("| `{variable}` |")), "{variable}");
            }
            tests += 1;
        }
    }
    assert!(tests > 20, "{tests}");
}
