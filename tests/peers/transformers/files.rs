//! What transformers computes for tiny models of many kinds, against llama.cpp on the files made from
//! them: the same, or refused or warned of by name.
//!
//! `LLM_QUANTIZE_TEST_ARCHITECTURES` names a folder with one folder for each model: `config.json` as
//! transformers 5 writes it, `config.v4.json` as transformers 4 did, `model.safetensors`, and
//! `reference.safetensors` with `input_ids` and the `nll` of each of them but the first.

use std::path::{Path, PathBuf};

use llm_quantize::codec::StoredType;
use llm_quantize::job::gguf::{SourceOptions, open};
use safetensors::SafeTensors;

use crate::export;
use crate::llama_cpp::library::{Attention, LlamaCpp};
use crate::needs;

/// What must come of a model.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// llama.cpp computes the same.
    Same,
    /// The same but for its GELU, which is a table of halves.
    SameWithTable,
    /// The file is written, and a warning has these words.
    Warned(&'static str),
    /// Refused with these words.
    Refused(&'static str),
}

use Outcome::{Refused, Same, SameWithTable, Warned};

const WINDOW: &str = "sliding window of 64 tokens";

const MODELS: [(&str, Outcome); 45] = [
    ("llama2", Same),
    ("llama3", Same),
    ("llama-act-gelu", Refused("`hidden_act` \"gelu\"")),
    ("llama-bias", Same),
    ("llama-dynamic-beyond", Warned("\"dynamic\" acts beyond 256 tokens")),
    ("llama-headdim", Same),
    ("llama-linear", Same),
    ("llama-longrope", Same),
    ("llama-mlpbias", Same),
    ("llama-partial", Refused("`partial_rotary_factor`")),
    ("llama-yarn", Same),
    ("llama-yarn-mscale", Same),
    ("llama-yarn-notrunc", Same),
    ("mistral-sw", Warned(WINDOW)),
    ("ministral", Refused("MinistralForCausalLM")),
    ("mixtral", Same),
    ("mixtral-sw", Warned(WINDOW)),
    ("qwen2-layertypes", Warned(WINDOW)),
    ("qwen2-sw", Warned(WINDOW)),
    ("qwen2.5", Same),
    ("qwen2moe", Same),
    ("qwen3", Same),
    ("qwen3-bias", Refused("`attention_bias`")),
    ("qwen3-sw", Warned(WINDOW)),
    ("qwen3moe", Same),
    ("qwen3moe-nonorm", Refused("`norm_topk_prob` false")),
    ("gemma2", SameWithTable),
    ("gemma2-layertypes", Refused("`layer_types`")),
    ("gemma2-nosoftcap", SameWithTable),
    ("gemma2-qpas", SameWithTable),
    ("gemma2-untied", Refused("lm_head.weight")),
    ("gemma3-text", SameWithTable),
    ("gemma3-bidir", Refused("`use_bidirectional_attention`")),
    ("gemma3-linear8", SameWithTable),
    ("gemma3-pattern2", SameWithTable),
    ("gemma3-qpas", SameWithTable),
    ("gemma3-untied", SameWithTable),
    ("gemma3-wrap", SameWithTable),
    ("phi3", Warned("sliding window of 256 tokens")),
    ("phi3-longrope", Same),
    ("phi4-mini", Same),
    ("fee-phi-attnfactor", Same),
    ("smollm3", Refused("SmolLM3ForCausalLM")),
    ("ministral3", Refused("Ministral3ForCausalLM")),
    ("glm4", Refused("Glm4ForCausalLM")),
];

fn tiny(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(file)
}

/// The model with one of its configurations, as a file or as the words of an error; and its warnings.
fn written(model: &Path, config: &str, folder: &Path) -> Result<(PathBuf, Vec<String>), String> {
    // No model of the name Phi-3, which llama.cpp wants to have the tokenizer of Phi-3.
    let source = folder.join(format!("source {config}"));
    std::fs::create_dir(&source).unwrap();
    std::fs::copy(model.join(config), source.join("config.json")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny(file), source.join(file)).unwrap();
    }
    let weights = "model.safetensors";
    std::os::unix::fs::symlink(model.join(weights), source.join(weights)).unwrap();
    let mut opened = open(&source, &SourceOptions::default()).map_err(|error| error.to_string())?;
    opened.metadata.insert("general.name".into(), "tiny".into());
    opened.metadata.retain(|key, _| key != "general.basename" && key != "general.finetune");
    let file = folder.join(format!("{config}.gguf"));
    export::write(&opened, &file, StoredType::F32);
    Ok((file, opened.warnings))
}

/// Mean and largest difference of llama.cpp's log-likelihoods from those of transformers.
fn differences(llama: &LlamaCpp, file: &Path, model: &Path) -> (f64, f64) {
    let bytes = std::fs::read(model.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let ids = reference.tensor("input_ids").unwrap();
    let width = ids.data().len() / ids.shape().iter().product::<usize>();
    let ids: Vec<u32> = ids
        .data()
        .chunks_exact(width)
        .map(|id| u32::from_le_bytes(id[..4].try_into().unwrap()))
        .collect();
    let nll: Vec<f64> = reference
        .tensor("nll")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap())))
        .collect();
    assert_eq!(nll.len() + 1, ids.len());
    let rows = llama.logits(file, &ids, 2048, Attention::Exact);
    let (mut sum, mut largest) = (0.0, 0.0f64);
    for ((row, next), expected) in rows.iter().zip(&ids[1..]).zip(&nll) {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        let own = total.ln() - f64::from(row[*next as usize] - top);
        sum += own - expected;
        largest = largest.max((own - expected).abs());
    }
    ((sum / nll.len() as f64).abs(), largest)
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_ARCHITECTURES (answers of transformers) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn llama_cpp_answers_as_transformers_does_or_the_difference_is_said() {
    let (folder, llama) = (needs::architectures(), needs::llama_cpp());
    let mut wrong = Vec::new();
    for (name, expected) in MODELS {
        let model = folder.join(name);
        let scratch = tempfile::tempdir().unwrap();
        let new = written(&model, "config.json", scratch.path());
        let old = written(&model, "config.v4.json", scratch.path());
        let fits = match (&new, &old, expected) {
            (Ok((new, warnings)), Ok((old, _)), Same | SameWithTable | Warned(_)) => {
                let same_file = std::fs::read(new).unwrap() == std::fs::read(old).unwrap();
                let (mean, largest) = differences(&llama, new, &model);
                eprintln!("{name}: {mean:.1e} in the mean, at most {largest:.1e}; {warnings:?}");
                same_file
                    && match expected {
                        Same => mean < 1e-5 && largest < 1e-3,
                        SameWithTable => mean < 1e-4 && largest < 1e-2,
                        Warned(words) => mean > 1e-4 && warnings.iter().any(|w| w.contains(words)),
                        Refused(_) => false,
                    }
            }
            (Err(new), Err(old), Refused(words)) => {
                eprintln!("{name}: {new}");
                new.contains(words) && old.contains(words)
            }
            _ => false,
        };
        if !fits {
            wrong.push(format!("{name}: {expected:?}, but {new:?} and {old:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
