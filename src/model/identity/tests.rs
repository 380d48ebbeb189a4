//! The identity against its definition, computed in one go, and against everything that changes.

use std::fs;
use std::time::{Duration, SystemTime};

use super::*;
use crate::base::progress::NullProgress;

fn of(path: &Path) -> String {
    identity(path, &NullProgress).unwrap()
}

/// A directory with weights of more than one piece.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("m");
    fs::create_dir_all(model.join(TEMPLATES)).unwrap();
    let weights: Vec<u8> = (0..2 * CHUNK + 12_345).map(|at| (at * 7 % 251) as u8).collect();
    fs::write(model.join("model.safetensors"), weights).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    fs::write(model.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    fs::write(model.join(TEMPLATES).join("tool.jinja"), "x").unwrap();
    model
}

/// The definition, without threads and buffers.
fn by_the_book(files: &[(&str, &Path)]) -> String {
    let mut hash = Sha256::new();
    for (name, path) in files {
        let bytes = fs::read(path).unwrap();
        let pieces: Vec<u8> =
            bytes.chunks(8 << 20).flat_map(|piece| Sha256::digest(piece).to_vec()).collect();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(Sha256::digest(&pieces));
    }
    format!("files-sha256:{:x}", hash.finalize())
}

#[test]
fn it_is_the_digest_that_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let expected = by_the_book(&[
        ("tool.jinja", &model.join(TEMPLATES).join("tool.jinja")),
        ("config.json", &model.join("config.json")),
        ("model.safetensors", &model.join("model.safetensors")),
        ("tokenizer.json", &model.join("tokenizer.json")),
    ]);
    assert_eq!(of(&model), expected);
    let file = folder.path().join("x.gguf");
    fs::write(&file, "GGUF").unwrap();
    let expected = by_the_book(&[("", &file)]);
    assert_eq!(of(&file), expected);
    fs::rename(&file, folder.path().join("y.gguf")).unwrap();
    assert_eq!(of(&folder.path().join("y.gguf")), expected);
}

#[test]
fn a_changed_bit_shows_wherever_it_is_even_with_the_old_time() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let before = of(&model);
    let weights = model.join("model.safetensors");
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    let bytes = fs::read(&weights).unwrap();
    for place in
        [0, 4096 + 17, CHUNK as usize - 1, CHUNK as usize, bytes.len() / 2, bytes.len() - 1]
    {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        fs::write(&weights, changed).unwrap();
        fs::File::options().write(true).open(&weights).unwrap().set_modified(time).unwrap();
        assert_ne!(of(&model), before, "byte {place}");
    }
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(of(&model), before);
    for text in ["config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"] {
        let kept = fs::read(model.join(text)).unwrap();
        fs::write(model.join(text), "[]").unwrap();
        assert_ne!(of(&model), before, "{text}");
        fs::write(model.join(text), kept).unwrap();
    }
    fs::write(model.join("chat_template.jinja"), "").unwrap();
    assert_ne!(of(&model), before, "a file more");
}

#[test]
fn copies_times_and_other_files_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let first = model(folder.path());
    let before = of(&first);
    let past = SystemTime::now() - Duration::from_secs(1_000_000);
    let config = fs::File::options().write(true).open(first.join("config.json")).unwrap();
    config.set_modified(past).unwrap();
    fs::write(first.join("m-Q8_0.gguf"), "an output").unwrap();
    assert_eq!(of(&first), before);
    assert_eq!(of(&model(&folder.path().join("elsewhere"))), before);
}
