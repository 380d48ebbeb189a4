//! The model of the repository against the program that trained it.

use std::path::Path;

use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::coherence::CoherenceSettings;
use llm_quantize::measure::{CoherenceTest, Perplexity};
use llm_quantize::model::{LocalModel, open_local};
use llm_quantize::text::{EvaluationWindows, Protocol, TextSource};
use llm_quantize::weight::{StoredTensor, Weight};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

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
