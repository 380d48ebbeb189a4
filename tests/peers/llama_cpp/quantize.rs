//! Whole files against llama.cpp's `llama_model_quantize`.

use std::path::Path;

use llm_quantize::Error;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::files::gguf::GgufFile;
use llm_quantize::files::imatrix::ImportanceMatrix;
use llm_quantize::job::Checkpoints;
use llm_quantize::job::gguf::mix::Overrides;
use llm_quantize::job::gguf::{Goal, Level, QuantizeRequest, SourceOptions, execute, open};

use crate::handmade::Handmade;
use crate::llama_cpp::library::LlamaCpp;
use crate::needs;

/// Importance of the columns of every matrix, uneven and the same for every run.
fn importance(model: &GgufFile) -> Vec<(String, Vec<f32>)> {
    let mut state = 7u64;
    let mut out = vec![];
    for (name, info) in model.tensors.iter().filter(|(_, info)| info.shape.len() == 2) {
        let columns = info.shape[1];
        let values = (0..columns).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let uniform = (state >> 40) as f32 / (1u64 << 24) as f32;
            0.01 + uniform * uniform * 4.0
        });
        out.push((name.clone(), values.collect()));
    }
    out
}

/// The same as a file, each value over one call.
fn write_dat(path: &Path, entries: &[(String, Vec<f32>)]) {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, values) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1i32.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }
    std::fs::write(path, out).unwrap();
}

/// Quantizes `from` with this crate; `false` when it wants an importance matrix.
fn quantize(from: &Path, to: &Path, level: Level, importance: Option<&Path>) -> bool {
    let request = QuantizeRequest {
        goal: Goal::Level(level),
        dynamic: None,
        protection_coverage: None,
        overrides: Overrides::default(),
        importance: importance.map(|path| ImportanceMatrix::open(path).unwrap()),
        allow_requantize: true,
        provenance: false,
        output: to.to_path_buf(),
        split_max: None,
        checkpoints: Checkpoints::Off,
        resume_command: None,
    };
    let model = open(from, &SourceOptions::default()).unwrap();
    match execute::quantize(&model, &[from.to_path_buf()], &request, &NullProgress) {
        Ok(_) => true,
        Err(Error::ImatrixRequired(_)) => false,
        Err(error) => panic!("{}: {error}", level.name()),
    }
}

/// Both files have the same tensors in the same order, of the same types and bytes, and the same
/// metadata.
fn compare(ours: &Path, theirs: &Path, what: &str) {
    let (ours, theirs) = (GgufFile::open(ours).unwrap(), GgufFile::open(theirs).unwrap());
    assert!(ours.tensors.keys().eq(theirs.tensors.keys()), "{what}: other tensors");
    let mut different = vec![];
    for (name, theirs_info) in &theirs.tensors {
        let info = &ours.tensors[name];
        assert_eq!(info.kind.name(), theirs_info.kind.name(), "{what}: type of {name}");
        assert_eq!(info.shape, theirs_info.shape, "{what}: shape of {name}");
        let bytes = |file: &GgufFile| file.tensor(name).unwrap().unwrap().bytes.to_vec();
        if bytes(&ours) != bytes(&theirs) {
            different.push(format!("{name} ({})", info.kind.name()));
        }
    }
    assert!(different.is_empty(), "{what}: other bytes in {different:?}");
    for (key, value) in &theirs.metadata {
        assert_eq!(ours.metadata.get(key), Some(value), "{what}: {key}");
    }
    assert_eq!(ours.metadata.len(), theirs.metadata.len(), "{what}");
}

/// Levels without and with an importance matrix on one model; the number of files that are the same.
fn levels(llama: &LlamaCpp, model: &Path, levels: &[Level], folder: &Path) -> usize {
    let entries = importance(&GgufFile::open(model).unwrap());
    let dat = folder.join("importance.dat");
    write_dat(&dat, &entries);
    let (ours, theirs) = (folder.join("ours.gguf"), folder.join("theirs.gguf"));
    let mut compared = 0;
    for &level in levels {
        for with in [false, true] {
            let what = format!("{}{}", level.name(), if with { " with importance" } else { "" });
            let written = quantize(model, &ours, level, with.then_some(dat.as_path()));
            let given = if with { entries.as_slice() } else { &[] };
            let theirs_written = llama.quantize(model, &theirs, level.file_type() as i32, given);
            assert_eq!(written, theirs_written, "{what}");
            if !written {
                continue;
            }
            compare(&ours, &theirs, &what);
            compared += 1;
        }
    }
    compared
}

/// Rows of multiples of 256, eight layers, shared key/value heads: every type of every mix.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn a_handmade_model_is_quantized_as_llama_cpp_does() {
    let llama = needs::llama_cpp();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    Handmade { layers: 8, width: 256, broken: None }.write(&model);
    let all: Vec<Level> = Level::all().collect();
    let compared = levels(&llama, &model, &all, folder.path());
    // Nine levels are refused by both without an importance matrix.
    eprintln!("{compared} files of {} levels are the same", all.len());
    assert_eq!(compared, 2 * all.len() - 9);
}

/// A real model in F16 whose rows of 576 make most types fall back.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn a_real_model_is_quantized_as_llama_cpp_does() {
    let (original, llama) = (needs::smollm2(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let theirs = folder.path().join("theirs.gguf");
    assert!(quantize(&original, &model, Level::F16, None));
    llama.quantize(&original, &theirs, Level::F16.file_type() as i32, &[]);
    compare(&model, &theirs, "F16");
    let some = [Level::Q8_0, Level::Q4_K_M, Level::Q2_K, Level::IQ1_S];
    let compared = levels(&llama, &model, &some, folder.path());
    eprintln!("{compared} files are the same");
    assert_eq!(compared, 7);
}
