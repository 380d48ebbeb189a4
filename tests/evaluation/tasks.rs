//! HellaSwag's score beside llama.cpp's logits of the same sequences.
//!
//! `LLM_QUANTIZE_TEST_MODEL` names a GGUF file of SmolLM2-135M-Instruct, `LLM_QUANTIZE_TEST_LLAMA_LIB`
//! the folder of llama.cpp's shared libraries, `LLM_QUANTIZE_TEST_DATA` a folder with
//! `tasks/hellaswag_val_1000.txt` (the first tasks of HellaSwag, six lines each). Without them the test says
//! that it is skipped.

use std::path::{Path, PathBuf};

use llm_quantize::base::progress::NullProgress;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::tasks::{choices, data};
use llm_quantize::model::open_local;

use crate::llama_library::{Attention, F16, LlamaCpp};

/// Tasks that are compared: llama.cpp opens the model for each choice.
const TASKS: usize = 4;

#[test]
fn choices_are_worth_what_llama_cpp_finds() {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(model), Some(library), Some(folder)) = (
        variable("LLM_QUANTIZE_TEST_MODEL"),
        variable("LLM_QUANTIZE_TEST_LLAMA_LIB"),
        variable("LLM_QUANTIZE_TEST_DATA"),
    ) else {
        eprintln!(
            "skipped: LLM_QUANTIZE_TEST_MODEL, LLM_QUANTIZE_TEST_LLAMA_LIB and \
             LLM_QUANTIZE_TEST_DATA are not all set"
        );
        return;
    };
    let library = LlamaCpp::open(Path::new(&library));
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join("half.gguf");
    library.write(&model, &half, F16);

    let mut questions = data::read(&folder.join("tasks/hellaswag_val_1000.txt")).unwrap();
    questions.truncate(TASKS);
    let opened = open_local(&half).unwrap();
    let tokenizer = opened.tokenizer().unwrap();
    let decoder = Decoder::new(&opened, &Backend::cpu()).unwrap();
    let (worth, _) =
        choices::likelihoods(&decoder, &tokenizer, &questions, "test", &NullProgress).unwrap();
    for (question, worth) in questions.iter().zip(&worth) {
        let sequences: Vec<Vec<u32>> = question
            .choices
            .iter()
            .map(|choice| {
                tokenizer.encode(&format!("{} {choice}", question.context), true).unwrap()
            })
            .collect();
        let common = (0..sequences[0].len())
            .take_while(|&at| {
                sequences.iter().all(|s| s.get(at).is_some_and(|token| *token == sequences[0][at]))
            })
            .count();
        for (tokens, worth) in sequences.iter().zip(worth) {
            let vocabulary = opened.config.vocab_size;
            let logits = library.logits(&half, tokens, vocabulary, Attention::Exact);
            let sum: f64 = (common..tokens.len())
                .map(|at| {
                    let row = &logits[at - 1];
                    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                    f64::from(row[tokens[at] as usize]) - sum.ln()
                })
                .sum();
            assert_eq!(worth.tokens, tokens.len() - common);
            // llama.cpp rounds activations to f16 (0.05 in a logit at most).
            let difference = (worth.different - sum).abs() / worth.tokens as f64;
            assert!(difference < 0.02, "{} {sum}", worth.different);
        }
    }
}
