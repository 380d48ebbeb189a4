//! Directories against the files made from them.

use std::path::{Path, PathBuf};

use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::job::gguf::{SourceOptions, open};
use llm_quantize::model::open_local;
use serde_json::json;

use crate::export;

/// Words, digits, blanks, contractions, other scripts, emoji, what is in no vocabulary, special tokens.
pub(crate) const TEXTS: [&str; 7] = [
    "Four score and seven years ago our fathers brought forth on this continent, a new nation.",
    " leading and  double blanks,\ttabs\n\nand lines\r\n",
    "It's 2026: 1234567 people can't agree, THEY'LL see!!! (x_y=3.14)",
    "Größe, naïve, Ελληνικά, русский, 中文字, 日本語, हिन्दी",
    "emoji 🚀👩‍🚀 and \u{0}\u{7f}\u{fffd} controls",
    "<|im_start|>user\nHi there<|im_end|>\n<|eot_id|><|endoftext|><end_of_turn>",
    "",
];

pub(crate) fn token_ids(path: &Path) -> Vec<Vec<u32>> {
    let tokenizer = open_local(path).unwrap().tokenizer().unwrap();
    TEXTS.iter().map(|text| tokenizer.encode(text, true).unwrap()).collect()
}

fn logits(path: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let decoder = Decoder::new(&open_local(path).unwrap(), &Backend::cpu()).unwrap();
    let hidden = decoder.hidden(ids, 1, None, None).unwrap();
    decoder.logits(&hidden).unwrap().to_vec2().unwrap()
}

fn round_trip(directory: &Path, kind: StoredType, exact: bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let model = open(directory, &SourceOptions::default()).unwrap();
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    export::write(&model, &file, kind);
    let ids = token_ids(directory);
    assert_eq!(token_ids(&file), ids);
    let (want, got) = (logits(directory, &ids[0]), logits(&file, &ids[0]));
    let largest = want
        .iter()
        .flatten()
        .zip(got.iter().flatten())
        .fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
    let size = want.iter().flatten().fold(0.0f32, |largest, v| largest.max(v.abs()));
    eprintln!("{}: logits up to {size} differ by {largest}", directory.display());
    let allowed = if exact { 1e-4 } else { 2e-2 };
    assert!(largest <= allowed * size, "{largest} of {size}");
}

/// The model of the repository: f16, byte-level.
#[test]
fn the_tiny_model_computes_the_same() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    round_trip(&directory, StoredType::F16, true);
    round_trip(&directory, StoredType::F32, true);
}

/// Rotary scaling that the file holds as factors of frequencies, with a scale of its own.
#[test]
fn rotary_factors_and_their_scale_compute_the_same() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let text = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    let half = serde_json::from_str::<serde_json::Value>(&text).unwrap()["head_dim"]
        .as_u64()
        .map_or(16, |dim| dim as usize / 2);
    let factors = |most: f64| -> Vec<f64> {
        (0..half).map(|i| 1.0 + (most - 1.0) * i as f64 / half as f64).collect()
    };
    for scaling in [
        json!({ "rope_type": "yarn", "factor": 4.0, "truncate": false,
            "original_max_position_embeddings": 64 }),
        json!({ "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "attention_factor": 1.5,
            "original_max_position_embeddings": 64 }),
        json!({ "rope_type": "longrope", "short_factor": factors(1.5), "long_factor": factors(8.0),
            "attention_factor": 1.25, "original_max_position_embeddings": 8 }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&tiny).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["rope_scaling"] = scaling;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        round_trip(folder.path(), StoredType::F32, true);
    }
}

/// stories15M with the tokenizer of Llama 2, in the directory that `LLM_QUANTIZE_TEST_STORIES`
/// names (`scripts/fetch-stories15m.sh` makes one).
#[test]
fn a_real_model_with_sentence_piece_computes_the_same() {
    let Some(directory) = std::env::var_os("LLM_QUANTIZE_TEST_STORIES").map(PathBuf::from) else {
        eprintln!("SKIPPED: set LLM_QUANTIZE_TEST_STORIES to a directory with stories15M");
        return;
    };
    round_trip(&directory, StoredType::F32, true);
    round_trip(&directory, StoredType::F16, false);
}
