//! Perplexity before and after every conversion of `convert`.

use std::path::{Path, PathBuf};
use std::process::Command;

use indexmap::IndexMap;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::codec::affine::nearest;
use llm_quantize::device::Backend;
use llm_quantize::files::model_directory::{DirectoryWriter, SideFile, TensorSlot};
use llm_quantize::files::packed::{W8A8Config, w8a8};
use llm_quantize::graph::Decoder;
use llm_quantize::measure::Perplexity;
use llm_quantize::model::companions::{companions, config_with};
use llm_quantize::model::{LocalModel, open_local};
use llm_quantize::text::{EvaluationWindows, Protocol};
use safetensors::Dtype;

/// Runs the binary, which must succeed.
fn run(folder: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_llm-quantize"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
}

/// Text to measure with, and how many windows of how many tokens.
pub(crate) struct Measure {
    pub(crate) text: String,
    pub(crate) length: usize,
    pub(crate) windows: usize,
}

impl Measure {
    fn perplexity(&self, path: &Path) -> f64 {
        let model = open_local(path).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let tokens = tokenizer.encode(&self.text, true).unwrap();
        let protocol = Protocol::Papers { length: self.length };
        let windows =
            EvaluationWindows::from_stream(tokens, None, protocol, Some(self.windows)).unwrap();
        let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
        Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap().perplexity
    }
}

/// A W8A8 checkpoint of a model: every linear layer rounded, one scale per row.
fn write_w8a8(model: &LocalModel, target: &Path) {
    let is_linear = |name: &str| name.ends_with("_proj.weight");
    let mut slots = Vec::new();
    for (name, weight) in &model.weights {
        if is_linear(name) {
            let layer = name.strip_suffix(".weight").unwrap();
            slots.extend(w8a8::slots(layer, weight.rows(), weight.cols(), Dtype::F16));
        } else {
            let (name, shape) = (name.clone(), weight.shape());
            slots.push(TensorSlot { name, dtype: Dtype::F16, shape });
        }
    }
    let mut writer = DirectoryWriter::create(target, slots, 1 << 40, IndexMap::new()).unwrap();
    for (name, weight) in &model.weights {
        let mut values = vec![0.0; weight.elements()];
        weight.read_rows(0..weight.rows(), &mut values);
        if is_linear(name) {
            let layer = name.strip_suffix(".weight").unwrap();
            let rows = nearest::round_rows(&values, weight.cols(), Dtype::F16).unwrap();
            for part in w8a8::pack(&rows, Dtype::F16).unwrap().parts() {
                writer.put(&part.slot(layer).name, &part.bytes).unwrap();
            }
        } else {
            let halves: Vec<u8> =
                values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
            writer.put(name, &halves).unwrap();
        }
    }
    let config = W8A8Config { ignore: vec!["lm_head".to_owned()] }.to_json();
    let config = config_with(model, Some(&config), Some("float16")).unwrap();
    let mut side = companions(model).unwrap();
    side.push(SideFile::text("config.json", config));
    writer.finish(&side).unwrap();
}

/// What a conversion may do to the perplexity.
#[derive(Clone, Copy, PartialEq)]
enum May {
    /// Layers keep their values; an embedding may have been rounded to halves.
    Nothing,
    /// Layers are rounded again, to 4 bits or more.
    Lose,
    /// To 3 bits, which costs about ten times as much.
    LoseMuch,
}

/// Every pair: source, arguments, name of the result.
const PAIRS: [(&str, &[&str], &str, May); 17] = [
    ("q4.gguf", &["gptq"], "q4-gptq", May::Nothing),
    ("q4.gguf", &["awq"], "q4-awq", May::Nothing),
    ("q8.gguf", &["gptq"], "q8-gptq", May::Nothing),
    ("q8.gguf", &["gptq", "-q", "4bit"], "q8-gptq4", May::Lose),
    ("q8.gguf", &["gptq", "-q", "3bit"], "q8-gptq3", May::LoseMuch),
    ("q8.gguf", &["awq"], "q8-awq", May::Lose),
    ("q8.gguf", &["hf"], "q8-hf", May::Nothing),
    ("q4-gptq", &["gguf"], "q4-gptq.gguf", May::Nothing),
    ("q4-gptq", &["awq"], "q4-gptq-awq", May::Nothing),
    ("q4-gptq", &["gguf", "-q", "Q4_K_M"], "q4-gptq-k.gguf", May::Lose),
    ("q8-gptq", &["gguf"], "q8-gptq.gguf", May::Nothing),
    ("q8-gptq", &["awq"], "q8-gptq-awq", May::Lose),
    ("q8-awq", &["gguf"], "q8-awq.gguf", May::Nothing),
    ("q8-awq", &["gptq"], "q8-awq-gptq", May::Nothing),
    ("w8a8", &["gguf"], "w8a8.gguf", May::Nothing),
    ("w8a8", &["gptq"], "w8a8-gptq", May::Nothing),
    ("w8a8", &["awq"], "w8a8-awq", May::Lose),
];

/// Converts all pairs and prints and checks what became of the perplexity.
pub(crate) fn all_pairs(model: &Path, measure: &Measure, four_bits: f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let source = model.to_str().unwrap();
    for (level, name) in [("Q4_0", "q4.gguf"), ("Q8_0", "q8.gguf")] {
        let options = ["-q", level, "-n", name, "--no-checkpoints", "--allow-requantize"];
        run(folder.path(), &[&["quantize", source, "gguf"], &options[..]].concat());
    }
    write_w8a8(&open_local(model).unwrap(), &path("w8a8"));
    let mut known: IndexMap<String, f64> = IndexMap::new();
    for name in ["q4.gguf", "q8.gguf", "w8a8"] {
        known.insert(name.to_owned(), measure.perplexity(&path(name)));
    }
    let original = measure.perplexity(model);
    eprintln!("{original:.4} original; {known:?}");
    // Rounding weights and activations to 8 bits changes little. Nothing is smoothed here, and
    // models with massive activations lose a few percent by that (SmolLM2: 3 %).
    assert!((known["w8a8"] / original - 1.0).abs() < 0.05, "{}", known["w8a8"]);
    for (from, arguments, to, may) in PAIRS {
        run(folder.path(), &[&["convert", from], arguments, &["--force", "-n", to]].concat());
        let (before, after) = (known[from], measure.perplexity(&path(to)));
        eprintln!(
            "{from:<10} {before:>9.4} → {:<24} {after:>9.4} ({:+.3} %)",
            format!("{to} {}", arguments.join(" ")),
            (after / before - 1.0) * 100.0
        );
        let limit = match may {
            // Of W8A8 only the weights are carried over: what they are converted to does not round
            // activations.
            May::Nothing if from == "w8a8" => 0.05,
            May::Nothing => 0.002,
            May::Lose => four_bits,
            May::LoseMuch => 10.0 * four_bits,
        };
        assert!((after / before - 1.0).abs() < limit, "{from} → {to}: {before} {after}");
        known.insert(to.to_owned(), after);
    }
}
