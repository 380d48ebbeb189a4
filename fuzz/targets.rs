//! What is fuzzed: one function per parser, given the bytes of a file. The targets for libFuzzer
//! (`fuzz_targets/`) and the runner for the stable toolchain (`examples/fuzz.rs`) call the same ones.
//!
//! An input may be refused; it may not panic, hang, overflow the stack or take all memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llm_quantize::arch::config_json;
use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::files::checkpoint::{CheckpointStore, Fingerprint, UnitData};
use llm_quantize::files::gguf::GgufFile;
use llm_quantize::files::imatrix::{ImportanceMatrix, ImportanceSums};
use llm_quantize::files::littlebit::LittleBitFile;
use llm_quantize::files::super_weights::SuperWeightMask;
use llm_quantize::hub::ModelSpec;
use llm_quantize::job::gguf::SourceOptions;
use llm_quantize::job::littlebit::tuning::Recipe;
use llm_quantize::job::profile::Profile;
use llm_quantize::measure::tasks::data;
use llm_quantize::model::{gguf, hf};
use llm_quantize::text::documents::{Coverage, DocumentFile};
use llm_quantize::text::wikitext;
use llm_quantize::tokenizer::Tokenizer;
use llm_quantize::tokenizer::chat::ChatMessage;

/// A parser, given the bytes of a file.
pub(crate) type Target = fn(&[u8]);

/// All targets by name; the seeds of each are in `corpus/NAME`.
pub(crate) const TARGETS: [(&str, Target); 21] = [
    ("gguf", parse_gguf),
    ("gguf_model", open_gguf_model),
    ("safetensors", open_safetensors),
    ("safetensors_index", open_index),
    ("littlebit", open_littlebit),
    ("imatrix_gguf", open_imatrix_gguf),
    ("imatrix_dat", open_imatrix_dat),
    ("super_weights", open_super_weights),
    ("config_json", parse_config),
    ("packed_config", open_packed),
    ("tokenizer_json", use_tokenizer),
    ("tokenizer_model", open_sentence_piece),
    ("chat_template", render_template),
    ("profile", parse_profile),
    ("recipe", parse_recipe),
    ("calibration_jsonl", read_documents),
    ("wikitext_zip", read_archive),
    ("benchmark_bin", read_questions),
    ("checkpoint_manifest", open_manifest),
    ("checkpoint_unit", open_unit),
    ("hub_id", parse_hub_id),
];

/// The target of a name.
pub(crate) fn of_name(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// A folder of this process, in memory where that is possible.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = folder_of(std::process::id());
        fs::create_dir_all(&folder).expect("a folder for inputs");
        folder
    })
}

fn folder_of(process: u32) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    base.join(format!("llm-quantize-fuzz-{process}"))
}

/// Removes the inputs of a process.
pub(crate) fn clean_up_of(process: u32) {
    let _ = fs::remove_dir_all(folder_of(process));
}

/// A file with these bytes.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("an input is written");
    path
}

const MODEL: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("model/config.json")),
    ("model.safetensors", include_bytes!("model/model.safetensors")),
    ("tokenizer.json", include_bytes!("model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("model/tokenizer_config.json")),
];

/// A directory with a small model, of which one file is the input.
fn model(name: &str, replaced: &str, bytes: &[u8]) -> PathBuf {
    let directory = folder().join(name);
    if !directory.is_dir() {
        fs::create_dir_all(&directory).expect("a folder for a model");
        for (file, contents) in MODEL {
            fs::write(directory.join(file), contents).expect("a model is written");
        }
    }
    fs::write(directory.join(replaced), bytes).expect("an input is written");
    directory
}

fn shared(bytes: &[u8]) -> SharedBytes {
    SharedBytes::from_vec(bytes.to_vec())
}

fn parse_gguf(bytes: &[u8]) {
    let Ok(file) = GgufFile::parse(shared(bytes), Path::new("input.gguf")) else { return };
    let names: Vec<String> = file.tensors.keys().cloned().collect();
    for name in names {
        if let Ok(Some(tensor)) = file.tensor(&name) {
            let _ = tensor.first_non_finite();
        }
    }
}

fn open_gguf_model(bytes: &[u8]) {
    let path = file("input.gguf", bytes);
    if let Ok(model) = gguf::open(&path)
        && let Ok(tokenizer) = model.tokenizer()
    {
        converse(&tokenizer);
    }
    let _ = llm_quantize::job::gguf::open(&path, &SourceOptions::default());
}

fn open_safetensors(bytes: &[u8]) {
    let directory = model("safetensors", "model.safetensors", bytes);
    if let Ok(model) = hf::open(&directory) {
        let _ = model.parameter_count();
    }
    let _ = llm_quantize::job::gguf::open(&directory, &SourceOptions::default());
}

fn open_index(bytes: &[u8]) {
    let directory = model("index", "model.safetensors.index.json", bytes);
    let _ = fs::rename(directory.join("model.safetensors"), directory.join("a.safetensors"));
    let _ = hf::open(&directory);
}

fn open_littlebit(bytes: &[u8]) {
    let Ok(file) = LittleBitFile::from_bytes("input.littlebit", shared(bytes)) else { return };
    let _ = file.info(true).map(|info| info.to_string());
    let _ = file.verify_checksums(&NullProgress);
    if let Ok(model) = file.model() {
        let _ = model.parameter_count();
    }
}

fn open_imatrix_gguf(bytes: &[u8]) {
    use_imatrix(&file("imatrix.gguf", bytes));
}

fn open_imatrix_dat(bytes: &[u8]) {
    use_imatrix(&file("imatrix.dat", bytes));
}

fn use_imatrix(path: &Path) {
    if let Ok(matrix) = ImportanceMatrix::open(path) {
        let _ = matrix.columns("blk.0.attn_q.weight", 1, 32);
    }
    if let Ok(sums) = ImportanceSums::open(path) {
        let mut twice = sums.clone();
        let _ = twice.add(&sums);
        for entry in sums.entries.values() {
            let _ = entry.means();
        }
    }
}

fn open_super_weights(bytes: &[u8]) {
    if let Ok(mask) = SuperWeightMask::read(&file("mask.json", bytes)) {
        let _ = mask.total();
    }
}

fn parse_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("config.json");
    if let Ok(parsed) = config_json::parse(text, path) {
        let _ = config_json::write(&parsed.config);
    }
    let _ = config_json::generation_end_tokens(text, path);
    let _ = llm_quantize::job::gguf::check_config(&file("config.json", bytes));
}

/// The configuration beside weights in the layout of GPTQ.
fn open_packed(bytes: &[u8]) {
    static WEIGHTS: OnceLock<()> = OnceLock::new();
    let directory = model("packed", "config.json", bytes);
    WEIGHTS.get_or_init(|| {
        let weights = include_bytes!("model/gptq.safetensors");
        fs::write(directory.join("model.safetensors"), weights).expect("weights are written");
    });
    if let Ok(model) = hf::open(&directory)
        && let Some(tensor) = model.packed()
    {
        let _ = tensor.to_f32();
    }
}

fn use_tokenizer(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(tokenizer) = Tokenizer::from_json(text, None, Path::new("input")) {
        converse(&tokenizer);
    }
}

const TEXT: &str = "Once upon a time, aaaa\n\n  12345 ÄÖ 日本語 \u{1F600}<s>[INST]\u{fb01}\u{fdfa} it's 'll\r\n\tend";

fn converse(tokenizer: &Tokenizer) {
    for add_special in [false, true] {
        let Ok(ids) = tokenizer.encode(TEXT, add_special) else { return };
        if tokenizer.decode(&ids, true).is_err() {
            return;
        }
    }
    let some: Vec<u32> = (0..64).collect();
    if tokenizer.decode(&some, false).is_err() {
        return;
    }
    let _ = tokenizer.decode(&[], false);
    let mut stream = tokenizer.stream(true);
    for id in some {
        if stream.push(id).is_err() {
            return;
        }
    }
    let _ = stream.finish();
    let _ = tokenizer.encode_chat(&messages());
}

fn messages() -> [ChatMessage; 3] {
    let message = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    [
        message("system", "Be brief."),
        message("user", "Hi \u{1F600} {{ x }}"),
        message("assistant", "Hm?"),
    ]
}

fn open_sentence_piece(bytes: &[u8]) {
    let directory = model("pieces", "tokenizer.model", bytes);
    let _ = fs::remove_file(directory.join("tokenizer.json"));
    let _ = llm_quantize::job::gguf::open(&directory, &SourceOptions::default());
}

fn render_template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let template = llm_quantize::tokenizer::chat::ChatTemplate::new(text);
    let _ = template.render(&messages(), true);
}

fn parse_profile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(profile) = Profile::parse(text, "input") {
        let _ = profile.check();
        let _ = profile.to_json();
    }
}

fn parse_recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok((_, Some(recipe))) = Recipe::parse(text, None) {
        let _ = recipe.to_toml();
        let _ = recipe.text_of(2048);
    }
}

fn read_documents(bytes: &[u8]) {
    for name in ["text.jsonl", "text.json", "text.txt"] {
        if let Ok(file) = DocumentFile::open(&file(name, bytes), None) {
            let _ = file.read(Coverage::Spread, 1 << 16);
            let _ = file.read(Coverage::First, 100);
            let _ = file.read_split(1 << 16, 100);
        }
    }
}

fn read_archive(bytes: &[u8]) {
    let _ = wikitext::load(&file("wikitext.zip", bytes), [wikitext::TRAIN, wikitext::TEST]);
}

fn read_questions(bytes: &[u8]) {
    for name in ["questions.bin", "questions.jsonl", "questions.json", "questions.txt"] {
        let _ = data::read(&file(name, bytes));
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint::new("model").with("effort", "none")
}

fn open_manifest(bytes: &[u8]) {
    let run = folder().join("manifest").join(fingerprint().folder_name());
    fs::create_dir_all(&run).expect("a folder for a checkpoint");
    fs::write(run.join("manifest.json"), bytes).expect("an input is written");
    let _ = CheckpointStore::open(&folder().join("manifest"), &fingerprint(), &NullProgress);
}

/// A unit under its own checksum is damaged; those that the seeds have are whole.
fn open_unit(bytes: &[u8]) {
    static MADE: OnceLock<()> = OnceLock::new();
    let directory = folder().join("units");
    MADE.get_or_init(|| {
        make_checkpoint(&directory);
    });
    fs::write(unit_path(&directory), bytes).expect("an input is written");
    if let Ok(store) = CheckpointStore::open(&directory, &fingerprint(), &NullProgress) {
        let _ = store.load("layer");
    }
}

/// A checkpoint with one unit.
fn make_checkpoint(directory: &Path) {
    let store = CheckpointStore::create(directory, &fingerprint(), &NullProgress)
        .expect("a checkpoint is made");
    let data = UnitData::new(serde_json::json!({})).with_f32("x", vec![1.0, 2.0]);
    store.save("layer", &data).expect("a unit is saved");
}

fn unit_path(directory: &Path) -> PathBuf {
    directory.join(fingerprint().folder_name()).join("units/layer.unit")
}

/// A seed that depends on the version of the program: a unit of the run that is opened.
pub(crate) fn made_seed(name: &str) -> Option<Vec<u8>> {
    (name == "checkpoint_unit").then(|| {
        let directory = folder().join("seed");
        make_checkpoint(&directory);
        fs::read(unit_path(&directory)).expect("a unit was saved")
    })
}

fn parse_hub_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = ModelSpec::parse(text);
}
