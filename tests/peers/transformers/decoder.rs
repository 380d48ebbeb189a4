//! Models of transformers' own classes with what transformers answers.
//! `LLM_QUANTIZE_TEST_ARCHITECTURES` names a folder of them: `NAME/config.json`, the same as
//! transformers 4 spelled it in `config.v4.json`, `model.safetensors`, and `reference.safetensors` with
//! `input_ids` and `nll` (nats, of token t + 1 after the tokens up to t).
//!
//! Every model gives these answers or is refused by name.

use std::path::Path;

use candle_core::Device;
use llm_quantize::Error;
use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::job::gguf::{SourceOptions, open};
use llm_quantize::model::{self, LocalModel};

use crate::needs;

/// What the decoder computes: it must not be refused.
const COMPUTED: [&str; 44] = [
    "fee-phi-attnfactor",
    "gemma2",
    "gemma2-layertypes",
    "gemma2-nosoftcap",
    "gemma2-qpas",
    "gemma2-untied",
    "gemma3-linear8",
    "gemma3-pattern2",
    "gemma3-qpas",
    "gemma3-text",
    "gemma3-untied",
    "gemma3-wrap",
    "llama-bias",
    "llama-dynamic-beyond",
    "llama-headdim",
    "llama-linear",
    "llama-longrope",
    "llama-mlpbias",
    "llama-yarn",
    "llama-yarn-mscale",
    "llama-yarn-notrunc",
    "llama2",
    "llama3",
    "llava-llama",
    "ministral",
    "mistral-sw",
    "mistral3-wrap",
    "mixtral",
    "mixtral-sw",
    "phi3",
    "phi3-longrope",
    "phi4-mini",
    "qwen2-layertypes",
    "qwen2-sw",
    "qwen2.5",
    "qwen2.5-vl",
    "qwen2moe",
    "qwen3",
    "qwen3-bias",
    "qwen3-sw",
    "qwen3-vl",
    "qwen3moe",
    "qwen3moe-nonorm",
    "seed-oss",
];

fn open_with(folder: &Path, config: &str) -> Result<LocalModel, Error> {
    let place = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join(config), place.path().join("config.json")).unwrap();
    std::fs::copy(folder.join("model.safetensors"), place.path().join("model.safetensors"))
        .unwrap();
    // The weights stay mapped when the directory is gone.
    model::open_local(place.path())
}

/// Mean of the nats per token and the largest difference of one.
fn compare(model: &LocalModel, ids: &[u32], nll: &[f32]) -> (f64, f64) {
    let decoder = Decoder::new(model, &Backend::cpu()).unwrap();
    let hidden = decoder.hidden(ids, 1, None, None).unwrap();
    let logits = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    let (mut sum, mut wanted, mut worst) = (0.0, 0.0, 0.0f64);
    for (t, &want) in nll.iter().enumerate() {
        let row = &logits[t];
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = row.iter().map(|&value| f64::from(value - top).exp()).sum();
        let got = total.ln() - f64::from(row[ids[t + 1] as usize] - top);
        sum += got;
        wanted += f64::from(want);
        worst = worst.max((got - f64::from(want)).abs());
    }
    ((sum - wanted).abs() / nll.len() as f64, worst)
}

/// Token ids of a model's reference, and the nats that transformers gives each of them but the first.
fn reference(place: &Path) -> (Vec<u32>, Vec<f32>) {
    let reference =
        candle_core::safetensors::load(place.join("reference.safetensors"), &Device::Cpu).unwrap();
    let ids = reference["input_ids"].flatten_all().unwrap();
    let ids = ids.to_dtype(candle_core::DType::U32).unwrap().to_vec1().unwrap();
    (ids, reference["nll"].flatten_all().unwrap().to_vec1().unwrap())
}

/// What the export to GGUF does not warn of, the GGUF file made of it still computes.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_ARCHITECTURES (answers of transformers)"]
fn gguf_files_give_the_answers_of_their_directories() {
    let folder = needs::architectures();
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for name in COMPUTED {
        let place = folder.join(name);
        let (ids, nll) = reference(&place);
        let directory = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(place.join(file), directory.path().join(file)).unwrap();
        }
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(tiny.join(file), directory.path().join(file)).unwrap();
        }
        let source = match open(directory.path(), &SourceOptions::default()) {
            Ok(source) => source,
            Err(error) => {
                eprintln!("{name}: not exported, {error}");
                continue;
            }
        };
        let limited = ["sliding window", "\"dynamic\""];
        if source.warnings.iter().any(|warning| limited.iter().any(|word| warning.contains(word))) {
            continue;
        }
        let file = directory.path().join("model.gguf");
        crate::export::write(&source, &file, StoredType::F32);
        let model = model::open_local(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (mean, worst) = compare(&model, &ids, &nll);
        eprintln!("{name}: mean differs by {mean:.1e}, a token by {worst:.1e}");
        if mean > 1e-5 || worst > 1e-3 {
            wrong.push(format!("{name}: {mean} {worst}"));
        }
        compared += 1;
    }
    assert!(compared > 20, "{compared} compared");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_ARCHITECTURES (answers of transformers)"]
fn models_give_the_answers_of_transformers_or_are_refused() {
    let folder = needs::architectures();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| folder.join(name).join("reference.safetensors").is_file())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no models in {}", folder.display());
    for name in COMPUTED {
        assert!(names.iter().any(|there| there == name), "{name} is missing");
    }
    let mut wrong = Vec::new();
    let mut compared = 0;
    for name in &names {
        let place = folder.join(name);
        let (ids, nll) = reference(&place);
        let spellings = ["config.json", "config.v4.json"];
        for config in spellings.into_iter().filter(|config| place.join(config).is_file()) {
            match open_with(&place, config) {
                Ok(model) => {
                    let (mean, worst) = compare(&model, &ids, &nll);
                    eprintln!(
                        "{name} {config}: mean differs by {mean:.1e}, a token by {worst:.1e}"
                    );
                    if mean > 1e-5 || worst > 1e-3 {
                        wrong.push(format!("{name} {config}: {mean} {worst}"));
                    }
                    compared += 1;
                }
                Err(Error::Unsupported { message, .. }) if !COMPUTED.contains(&name.as_str()) => {
                    eprintln!("{name} {config}: refused, {message}");
                }
                Err(error) => wrong.push(format!("{name} {config}: {error}")),
            }
        }
    }
    assert!(compared > 0, "nothing was compared");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
