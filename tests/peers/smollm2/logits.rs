//! Logits of llama.cpp on a real model.

use std::ops::ControlFlow;
use std::path::Path;

use llm_quantize::device::Backend;
use llm_quantize::graph::{CacheType, Decoder, Generator, Sampling};
use llm_quantize::model::open_local;

use crate::llama_cpp::library::{Attention, F16, F32};
use crate::logits::{largest_difference, logits};
use crate::needs;

/// The Gettysburg address (1863), public domain.
const TEXT: &str = "Four score and seven years ago our fathers brought forth on this continent, a \
new nation, conceived in Liberty, and dedicated to the proposition that all men are created equal. \
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived \
and so dedicated, can long endure. We are met on a great battle-field of that war. We have come to \
dedicate a portion of that field, as a final resting place for those who here gave their lives \
that that nation might live. It is altogether fitting and proper that we should do this. But, in a \
larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The \
brave men, living and dead, who struggled here, have consecrated it, far above our poor power to \
add or detract. The world will little note, nor long remember what we say here, but it can never \
forget what they did here. It is for us the living, rather, to be dedicated here to the unfinished \
work which they who fought here have thus far so nobly advanced. It is rather for us to be here \
dedicated to the great task remaining before us -- that from these honored dead we take increased \
devotion to that cause for which they gave the last full measure of devotion -- that we here \
highly resolve that these dead shall not have died in vain -- that this nation, under God, shall \
have a new birth of freedom -- and that government of the people, by the people, for the people, \
shall not perish from the earth.";

const TOKENS: usize = 256;

/// Token ids of the text and our logits of it.
fn ours(path: &Path) -> (Vec<u32>, Vec<Vec<f32>>) {
    let model = open_local(path).unwrap();
    let mut ids = model.tokenizer().unwrap().encode(TEXT, true).unwrap();
    assert!(ids.len() >= TOKENS, "the text has {} tokens", ids.len());
    ids.truncate(TOKENS);
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let rows = logits(&decoder, &ids);
    (ids, rows)
}

/// Mean over tokens of the divergence of `b` from `a`, in nats.
fn mean_divergence(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
        row.iter().map(|v| f64::from(v - largest) - sum.ln()).collect()
    };
    let divergence = |(a, b): (&Vec<f32>, &Vec<f32>)| -> f64 {
        log_softmax(a).iter().zip(log_softmax(b)).map(|(a, b)| a.exp() * (a - b)).sum()
    };
    a.iter().zip(b).map(divergence).sum::<f64>() / a.len() as f64
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0)
}

/// Every token that greedy generation takes is llama.cpp's choice, or level with it.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn greedy_continuations_are_its_choice() {
    let (original, llama) = (needs::smollm2(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f32.gguf");
    llama.write(&original, &file, F32);
    // Ours runs the blocks of the original, with a cache of halves.
    let model = open_local(&original).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    for prompt in [
        "The capital of France is",
        "Once upon a time there was a little robot who",
        "Water boils at 100 degrees Celsius because",
        "def fibonacci(n):",
        "In the year 1969, astronauts",
    ] {
        let mut ids = tokenizer.encode(prompt, true).unwrap();
        let start = ids.len();
        let mut generator = Generator::new(&decoder, &Sampling::default(), CacheType::F16).unwrap();
        let generation = generator.generate(&ids, 40, |_| ControlFlow::Continue(())).unwrap();
        assert!(generation.tokens.len() > 5);
        eprintln!("{prompt}{}", tokenizer.decode(&generation.tokens, true).unwrap());
        ids.extend(&generation.tokens);
        let rows = llama.logits(&file, &ids, decoder.config().vocab_size, Attention::Exact);
        for (at, token) in ids.iter().enumerate().skip(start) {
            let row = &rows[at - 1];
            let (chosen, largest) = (row[*token as usize], row[best(row)]);
            assert!(largest - chosen <= 0.02, "token {at}: {chosen} instead of {largest}");
        }
    }
}

struct Comparison {
    largest: f64,
    divergence: f64,
    same_best: usize,
    within_5_hundredths: f64,
}

fn compare(what: &str, got: &[Vec<f32>], want: &[Vec<f32>]) -> Comparison {
    let differences =
        || got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs());
    let near = differences().filter(|difference| *difference <= 0.05).count();
    let comparison = Comparison {
        largest: largest_difference(got, want),
        divergence: mean_divergence(want, got),
        same_best: got.iter().zip(want).filter(|(a, b)| best(a) == best(b)).count(),
        within_5_hundredths: near as f64 / differences().count() as f64,
    };
    eprintln!(
        "{what}: largest difference of logits {:.4}, {:.5} % within 0.05, mean divergence {:.1e} \
         nats, {} of {TOKENS} best tokens the same",
        comparison.largest,
        100.0 * comparison.within_5_hundredths,
        comparison.divergence,
        comparison.same_best
    );
    comparison
}

/// Where llama.cpp computes in f32, the logits are the same up to rounding.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn logits_of_the_f32_file_are_equal() {
    let (original, llama) = (needs::smollm2(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f32.gguf");
    llama.write(&original, &file, F32);
    let (ids, got) = ours(&file);
    let want = llama.logits(&file, &ids, got[0].len(), Attention::Exact);
    let comparison = compare("f32 file", &got, &want);
    assert!(comparison.largest <= 1e-3 && comparison.divergence < 1e-8);
    assert!(comparison.same_best >= TOKENS - 1);

    // The blocks of the original decode to the same values.
    let (_, blocks) = ours(&original);
    assert!(compare("the original's blocks", &blocks, &got).largest <= 1e-3);
}

/// Where it rounds activations to f16 for a file of halves, they are as near as its own two ways to
/// compute attention are to each other.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn logits_of_the_f16_file_agree() {
    let (original, llama) = (needs::smollm2(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f16.gguf");
    llama.write(&original, &file, F16);
    let (ids, got) = ours(&file);
    let vocab = got[0].len();
    let default = llama.logits(&file, &ids, vocab, Attention::Default);
    let exact = llama.logits(&file, &ids, vocab, Attention::Exact);
    let own = compare("llama.cpp with f32 attention, its default", &exact, &default);
    for (what, want) in [("f16 file, f32 attention", &exact), ("f16 file, default", &default)] {
        let comparison = compare(what, &got, want);
        assert!(comparison.largest <= 1.5 * own.largest.max(0.05), "{}", comparison.largest);
        assert!(comparison.within_5_hundredths > 0.999, "{}", comparison.within_5_hundredths);
        assert!(comparison.divergence < 2e-5, "{}", comparison.divergence);
        assert!(comparison.same_best >= TOKENS - 3, "{}", comparison.same_best);
    }
}
