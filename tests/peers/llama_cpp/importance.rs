//! Importance matrices beside the values that pass through llama.cpp's graph, and our files in its hands.

use std::path::{Path, PathBuf};

use llm_quantize::base::progress::NullProgress;
use llm_quantize::device::Backend;
use llm_quantize::files::imatrix::{ImportanceMatrix, ImportanceSums, Method};
use llm_quantize::job::Checkpoints;
use llm_quantize::job::analyze::{AnalyzeRequest, MatrixFormat, Samples, analyze};
use llm_quantize::model::open_local;
use llm_quantize::text::TextOptions;

use super::library::{F16, LlamaCpp};
use crate::needs;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn request(output: &Path, text: &Path, chunks: usize, format: MatrixFormat) -> AnalyzeRequest {
    AnalyzeRequest {
        output: output.to_path_buf(),
        format,
        method: Method::Activation,
        text: TextOptions { calibration: Some(text.to_path_buf()), ..TextOptions::default() },
        samples: Samples::First(Some(chunks)),
        chunk_size: None,
        seed: 0,
        process_output: false,
        merge: Vec::new(),
        coverage: None,
        plot: None,
        checkpoints: Checkpoints::Off,
        cache: None,
        resume_command: None,
    }
}

/// The chunks of `llama-imatrix`, cut here by its description: the tokens of the text with what the
/// tokenizer puts in front, cut every `length`, the first token of each chunk replaced by that one.
fn chunks(model: &Path, text: &Path, length: usize, count: usize) -> Vec<u32> {
    let tokenizer = open_local(model).unwrap().tokenizer().unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let mut tokens = tokenizer.encode(&text, true).unwrap();
    tokens.truncate(length * count);
    assert_eq!(tokens.len(), length * count);
    if tokenizer.adds_bos() {
        tokens.iter_mut().step_by(length).for_each(|t| *t = tokenizer.bos().unwrap());
    }
    tokens
}

/// Chunks that are compared.
const CHUNKS: usize = 4;

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn importance_is_that_of_llama_imatrix() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("t.gguf");
    quantize_tiny(&model);
    compare(&needs::llama_cpp(), &model, &repository("models/corpus/calibration.txt"));
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2), LLM_QUANTIZE_TEST_TEXT (a long text), LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn importance_of_a_real_model_is_that_of_llama_imatrix() {
    let (original, text, library) = (needs::smollm2(), needs::text(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("f16.gguf");
    library.write(&original, &model, F16);
    compare(&library, &model, &text);
}

/// Our importance matrix of a model beside the squares in llama.cpp's graph.
fn compare(library: &LlamaCpp, model: &Path, text: &Path) {
    let opened = open_local(model).unwrap();
    let length = opened.config.max_positions.min(512);
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.imatrix");
    let began = std::time::Instant::now();
    let request = request(&ours, text, CHUNKS, MatrixFormat::Gguf);
    analyze(&opened, &request, &Backend::cpu(), &NullProgress).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let sums = ImportanceSums::open(&ours).unwrap();

    let tokens = chunks(model, text, length, CHUNKS);
    let (squares, theirs) = library.squares(model, &tokens, length, 2);
    assert_eq!(squares.len(), sums.entries.len());
    let (mut differences, mut worst) = (Vec::new(), (0.0, String::new()));
    for (name, entry) in &sums.entries {
        let (expected, tokens) = &squares[name];
        assert!((entry.counts[0] - *tokens as f64).abs() < 1e-9, "{name}: {tokens} tokens");
        for (column, (sum, expected)) in entry.sums.iter().zip(expected).enumerate() {
            let difference = (sum / expected - 1.0).abs();
            if difference > worst.0 {
                worst = (difference, format!("{name} column {column}"));
            }
            differences.push(difference);
        }
    }
    differences.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| differences[((differences.len() - 1) as f64 * share) as usize];
    eprintln!(
        "{} values of {CHUNKS} chunks: relative difference median {:.2e}, 90 % {:.2e}, 99 % {:.2e}, \
         largest {:.2e} ({}); {seconds:.1} s, llama.cpp {theirs:.1} s",
        differences.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        worst.0,
        worst.1
    );
    assert!(at(0.5) < 1e-3, "median {}", at(0.5));
}

/// The tiny model as a GGUF file in f16, written by the binary.
fn quantize_tiny(target: &Path) {
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_llm-quantize"))
        .args(["--verbosity", "quiet", "quantize"])
        .arg(repository("models/tiny"))
        .args(["gguf", "-q", "F16", "--no-checkpoints", "-o"])
        .arg(target.parent().unwrap())
        .arg("-n")
        .arg(target.file_name().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

/// `LLAMA_FTYPE_MOSTLY_IQ2_XXS`.
const IQ2_XXS: i32 = 19;

/// llama.cpp reads our GGUF form with its own reader, takes the values, and quantizes with them at a
/// level that refuses to work without.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn llama_cpp_takes_our_files() {
    let library = needs::llama_cpp();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("t.gguf");
    quantize_tiny(&model);
    let opened = open_local(&model).unwrap();
    let text = repository("models/corpus/calibration.txt");
    let (gguf, dat) = (folder.path().join("m.imatrix"), folder.path().join("m.dat"));
    for (path, format) in [(&gguf, MatrixFormat::Gguf), (&dat, MatrixFormat::Dat)] {
        let request = request(path, &text, 3, format);
        analyze(&opened, &request, &Backend::cpu(), &NullProgress).unwrap();
    }
    let (entries, chunks, chunk_size) = library.read_importance(&gguf);
    assert_eq!((entries.len(), chunks, chunk_size), (28, 3, 256));
    let ours = ImportanceMatrix::open(&gguf).unwrap();
    for (name, values) in &entries {
        assert_eq!(&ours.entries[name].values, values, "{name}");
    }
    assert_eq!(read_dat(&dat, 3).len(), 28);
    for (name, values) in read_dat(&dat, 3) {
        let pairs = ours.entries[&name].values.iter().zip(values);
        assert!(pairs.into_iter().all(|(a, b)| (a / b - 1.0).abs() < 1e-6), "{name}");
    }
    let target = folder.path().join("q.gguf");
    assert!(library.quantize(&model, &target, IQ2_XXS, &entries), "llama.cpp refuses");
    assert!(std::fs::metadata(&target).unwrap().len() > 0);
}

/// Means of a `.dat` file, read by the description of the format (little-endian): i32 entries; each
/// i32 length, name, i32 calls, i32 values, f32 values (means times calls); then i32 chunks, i32
/// length, name of the text.
fn read_dat(path: &Path, chunks: i32) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        bytes[at - count..at].to_vec()
    };
    let int = |bytes: Vec<u8>| i32::from_le_bytes(bytes.try_into().unwrap());
    let mut all = Vec::new();
    for _ in 0..int(take(4)) {
        let length = int(take(4));
        let name = String::from_utf8(take(length as usize)).unwrap();
        let calls = int(take(4));
        assert!(calls > 0);
        let count = int(take(4));
        let values = take(4 * count as usize);
        let values = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        all.push((name, values.map(|value| value / calls as f32).collect()));
    }
    assert_eq!(int(take(4)), chunks);
    let length = int(take(4));
    assert_eq!(String::from_utf8(take(length as usize)).unwrap(), "calibration.txt");
    assert_eq!(at, bytes.len());
    all
}
