use std::path::Path;

use super::*;
use crate::base::SharedBytes;
use crate::base::progress::NullProgress;
use crate::codec::{StoredType, ggml};
use crate::device::Backend;
use crate::graph::Decoder;
use crate::job::quality::statistics::Collector;
use crate::measure::Comparison;
use crate::model::{LocalModel, open_local};
use crate::text::{Protocol, TextSource};
use crate::weight::{StoredTensor, Weight};

fn tiny() -> LocalModel {
    open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
}

/// The tiny model with every matrix in another type.
fn quantized(dtype: StoredType) -> LocalModel {
    let mut model = tiny();
    for weight in model.weights.values_mut() {
        let Weight::Stored(tensor) = &*weight else { continue };
        if tensor.shape.len() != 2 {
            continue;
        }
        let length = dtype.byte_length(&tensor.shape).unwrap();
        let mut bytes = vec![0; length];
        ggml::encode_rows(dtype, &tensor.to_f32(), tensor.cols(), None, &mut bytes);
        let bytes = SharedBytes::from_vec(bytes);
        *weight = Weight::Stored(StoredTensor::new(tensor.shape.clone(), dtype, bytes).unwrap());
    }
    model
}

fn windows(model: &LocalModel, count: usize) -> EvaluationWindows {
    let tokenizer = model.tokenizer().unwrap();
    let text = TextSource::builtin().evaluation;
    let protocol = Protocol::LlamaCpp { length: 64 };
    EvaluationWindows::cut(&text, &tokenizer, protocol, Some(count)).unwrap()
}

/// Models in turns, block by block, say what whole decoders say.
#[test]
fn blocks_in_turns_are_the_whole_models() {
    let (original, four, eight) =
        (tiny(), quantized(StoredType::Q4_0), quantized(StoredType::Q8_0));
    let backend = Backend::cpu();
    // More than a batch, and no whole number of batches.
    let windows = windows(&original, 40);
    let models =
        [&original, &four, &eight].map(|model| StreamedDecoder::new(model, &backend).unwrap());
    let figures = |group: usize| {
        let mut collector = Collector::new(2);
        run_in_groups(&models, &windows, group, &NullProgress, &mut collector).unwrap();
        collector.finish()
    };
    let (before, others) = figures(64);
    assert_eq!(figures(32), (before, others.clone()), "a smaller group changes the figures");

    let decoder = |model| Decoder::new(model, &backend).unwrap();
    let whole = decoder(&original);
    for (other, figures) in [&four, &eight].into_iter().zip(&others) {
        let expected =
            Comparison::measure(&whole, &decoder(other), &windows, "test", &NullProgress).unwrap();
        let divergence = expected.divergence.unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5 * b.abs() + 1e-9, "{a} {b}");
        close(before.perplexity, expected.original.perplexity);
        assert_eq!(before.tokens, expected.original.tokens);
        close(figures.perplexity, expected.compressed.perplexity);
        close(figures.perplexity_stderr, expected.compressed.standard_error);
        close(100.0 * figures.ln_ratio.exp_m1(), expected.delta_percent);
        close(
            100.0 * figures.ln_ratio.exp() * figures.ln_ratio_stderr,
            expected.delta_standard_error,
        );
        close(figures.divergence.mean, divergence.mean);
        close(figures.divergence.stderr, divergence.standard_error);
        close(figures.same_top, divergence.same_top_percent);
        assert_eq!(figures.hidden_errors.len(), 4);
        assert!(figures.hidden_errors.iter().all(|error| *error > 0.0 && *error < 0.5));
    }
    assert!(others[0].divergence.mean > 10.0 * others[1].divergence.mean);
}

#[test]
fn a_model_beside_itself_has_no_error() {
    let original = tiny();
    let backend = Backend::cpu();
    let models = [&original; 2].map(|model| StreamedDecoder::new(model, &backend).unwrap());
    let mut collector = Collector::new(1);
    run(&models, &windows(&original, 3), &NullProgress, &mut collector).unwrap();
    let (_, others) = collector.finish();
    let figures = &others[0];
    assert!(figures.divergence.max < 1e-6 && figures.ln_ratio.abs() < 1e-12, "{figures:?}");
    assert!((figures.same_top - 100.0).abs() < 1e-9 && figures.probability_rms < 1e-9);
    assert!(figures.hidden_errors.iter().all(|error| error.abs() < 1e-12));
    assert!((figures.correlation - 1.0).abs() < 1e-9);
}

#[test]
fn text_of_another_tokenizer_is_refused() {
    let original = tiny();
    let backend = Backend::cpu();
    let models = [&original; 2].map(|model| StreamedDecoder::new(model, &backend).unwrap());
    let mut windows = windows(&original, 1);
    windows.tokens[5] = 9_999_999;
    let error = run(&models, &windows, &NullProgress, &mut Collector::new(1)).unwrap_err();
    assert!(error.to_string().contains("9999999"), "{error}");
}
