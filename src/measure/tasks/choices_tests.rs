use std::path::Path;

use super::*;
use crate::base::progress::NullProgress;
use crate::device::Backend;
use crate::graph::Decoder;
use crate::model::open_local;

fn question(context: &str, choices: &[&str], gold: usize) -> Question {
    Question {
        context: context.into(),
        choices: choices.iter().map(|&choice| choice.into()).collect(),
        gold,
    }
}

fn questions() -> Vec<Question> {
    vec![
        question(
            "The people of this country have",
            &["a right to be heard.", "a right.", "zebra zebra zebra zebra", "been patient"],
            0,
        ),
        question("In the year of our Lord ", &["we", "we the people of the United States"], 1),
        question("Question: What is a law?\nAnswer:", &["A rule", "A fish", "Blue"], 0),
    ]
}

/// Each choice alone, without padding, by the definition.
#[test]
fn choices_are_worth_what_they_are_alone() {
    let model = open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let questions = questions();
    let (worth, truncated) =
        likelihoods(&decoder, &tokenizer, &questions, "test", &NullProgress).unwrap();
    assert_eq!(truncated, 0);
    let encode = |text: &str| TextCodec::encode(&tokenizer, text, true).unwrap();
    for (question, worth) in questions.iter().zip(&worth) {
        let context = question.context.trim_end();
        let before = encode(context).len();
        let all: Vec<Vec<u32>> =
            question.choices.iter().map(|choice| encode(&format!("{context} {choice}"))).collect();
        let common = (0..).take_while(|&at| {
            all.iter().all(|tokens| tokens.get(at).is_some_and(|token| *token == all[0][at]))
        });
        let common = common.count();
        for (tokens, worth) in all.iter().zip(worth) {
            let hidden = decoder.hidden(tokens, 1, None, None).unwrap();
            let logits = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
            let likelihood = |at: usize| -> f64 {
                let row = &logits[at - 1];
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                f64::from(row[tokens[at] as usize]) - sum.ln()
            };
            let sum: f64 = (before..tokens.len()).map(likelihood).sum();
            assert!((worth.sum - sum).abs() < 1e-3, "{} {sum}", worth.sum);
            let from = common.min(tokens.len() - 1);
            let different: f64 = (from..tokens.len()).map(likelihood).sum();
            // A choice that another one continues has no token of its own; the last one counts.
            if common < all.iter().map(Vec::len).min().unwrap() {
                assert!((worth.different - different).abs() < 1e-3);
                assert_eq!(worth.tokens, tokens.len() - from);
            }
        }
    }
}

/// A model of three tokens whose likelihoods are known: the rules differ in what they prefer.
#[test]
fn each_rule_divides_by_its_own_length() {
    struct Known;
    impl TextCodec for Known {
        fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
            // A token per word; `a`, `bb…` and others.
            Ok(text
                .split(' ')
                .map(|word| match word.chars().next() {
                    Some('a') => 0,
                    Some('é') => 1,
                    _ => 2,
                })
                .collect())
        }
        fn decode(&self, _: &[u32]) -> Result<String> {
            Ok(String::new())
        }
        fn leading_token(&self) -> Option<u32> {
            None
        }
        fn separator(&self) -> Option<u32> {
            None
        }
    }
    impl LanguageModel for Known {
        fn vocab_size(&self) -> usize {
            3
        }
        fn context(&self) -> usize {
            16
        }
        fn hidden(&self, tokens: &[u32], _: usize) -> Result<Tensor> {
            Ok(Tensor::zeros(
                (tokens.len(), 1),
                candle_core::DType::F32,
                &candle_core::Device::Cpu,
            )?)
        }
        fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
            let row: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
            let rows = hidden.dim(0)?;
            Ok(Tensor::from_vec(row.repeat(rows), (rows, 3), &candle_core::Device::Cpu)?)
        }
    }
    let questions = [
        // By the sum: `é` ln 0.3 = −1.20; `a a a` 3 ln 0.5 = −2.08. By five characters against one,
        // and by the mean of the tokens, the other way round.
        question("x", &["é", "a a a"], 0),
        // `ééé` has three characters and six bytes, `aa` two and two: −1.20/3 < −0.69/2, but
        // −1.20/6 > −0.69/2.
        question("x", &["ééé", "aa"], 1),
    ];
    let answers = answer(&Known, &Known, &questions, "test", &NullProgress).unwrap();
    assert_eq!(answers.right, [[true, false, false, false], [true, true, false, true]]);
    let scores = answers.scores();
    assert!((scores.acc - 1.0).abs() < 1e-12 && scores.acc_stderr.abs() < 1e-12);
    assert!((scores.acc_norm - 0.5).abs() < 1e-12 && scores.acc_bytes.abs() < 1e-12);
    assert!((scores.llama_cpp_score - 0.5).abs() < 1e-12);
    assert!((scores.llama_cpp_score_stderr - 0.5).abs() < 1e-12);
    // Against a model that gets the first by acc_norm, too.
    let mut other = answers.clone();
    other.right[0][1] = true;
    other.normalized[0] = 0;
    let change = answers.change(&other);
    assert!((change.same_answer - 0.5).abs() < 1e-12 && (change.change - 0.5).abs() < 1e-12);
    assert!((change.standard_error - 0.5).abs() < 1e-12);
    // What is too long loses its beginning.
    let long = [question(&"x ".repeat(30), &["a", "é"], 0)];
    let answers = answer(&Known, &Known, &long, "test", &NullProgress).unwrap();
    assert_eq!((answers.truncated, answers.count()), (2, 1));
}
