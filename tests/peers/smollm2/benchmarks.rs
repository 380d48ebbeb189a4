//! HellaSwag's score beside llama.cpp's logits of the same sequences.

use llm_quantize::base::progress::NullProgress;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::tasks::{choices, data};
use llm_quantize::model::open_local;

use crate::llama_cpp::library::{Attention, F16};
use crate::needs;

/// Tasks in HellaSwag's form: context, index of the right ending, four endings.
const TASKS: &str = "\
Baking bread: A woman kneads dough on a table and puts it into a bowl. she
2
throws the bowl out of the window.
reads a newspaper to the table.
covers the bowl with a cloth and lets the dough rise.
paints the dough blue.
Changing a tire: A man lifts a car with a jack and loosens the nuts of a wheel. the man
0
takes the wheel off and puts it aside.
drinks the jack.
sings to an audience of nuts.
dives into the pool with a splash.
Fishing: Two children sit at the river with their rods. one of the floats goes under, and
1
the river is folded and put away.
a child pulls up the rod with a small fish on it.
the rods begin to play the piano.
both children are elected.
Playing chess: The old man looks at the board for a long time. he
3
mows the board with a lawn mower.
swims to the other side of the queen.
is a kind of cheese.
moves his knight and takes a pawn.
";

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn choices_are_worth_what_llama_cpp_finds() {
    let (model, library) = (needs::smollm2(), needs::llama_cpp());
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join("half.gguf");
    library.write(&model, &half, F16);

    let tasks = directory.path().join("tasks.txt");
    std::fs::write(&tasks, TASKS).unwrap();
    let questions = data::read(&tasks).unwrap();
    assert_eq!(questions.len(), 4);
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
