//! Directories against the files made from them.

use std::path::Path;

use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::job::gguf::{SourceOptions, open};
use llm_quantize::model::open_local;

use crate::export;
use crate::logits::{largest_difference, logits, size};

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

fn logits_of(path: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    logits(&Decoder::new(&open_local(path).unwrap(), &Backend::cpu()).unwrap(), ids)
}

/// Writes the directory as a file and compares token ids and logits.
pub(crate) fn round_trip(directory: &Path, kind: StoredType, exact: bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let model = open(directory, &SourceOptions::default()).unwrap();
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    export::write(&model, &file, kind);
    let ids = token_ids(directory);
    assert_eq!(token_ids(&file), ids);
    let (want, got) = (logits_of(directory, &ids[0]), logits_of(&file, &ids[0]));
    let (largest, size) = (largest_difference(&got, &want), size(&want));
    eprintln!("{}: logits up to {size} differ by {largest}", directory.display());
    let allowed = if exact { 1e-4 } else { 2e-2 };
    assert!(largest <= allowed * size, "{largest} of {size}");
}
