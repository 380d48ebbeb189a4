//! Perplexity and divergence of models whose probabilities are known.

use llm_quantize::Error;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::measure::{Comparison, LanguageModel, Perplexity};
use llm_quantize::text::{EvaluationWindows, Protocol};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::models::{Recorder, TableModel};

fn tokens(vocab: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(0..vocab as u32)).collect()
}

fn papers(tokens: Vec<u32>, length: usize) -> EvaluationWindows {
    EvaluationWindows::from_stream(tokens, None, Protocol::Papers { length }, None).unwrap()
}

fn measure(model: &dyn LanguageModel, windows: &EvaluationWindows) -> Perplexity {
    Perplexity::measure(model, windows, "test", &NullProgress).unwrap()
}

/// Losses of all scored tokens by the definition, one token at a time.
fn brute_force(model: &TableModel, windows: &EvaluationWindows) -> Vec<f64> {
    windows
        .iter()
        .flat_map(|window| {
            (windows.first_target..window.len())
                .map(|at| -model.probabilities(&window[..at])[window[at] as usize].ln())
        })
        .collect()
}

#[test]
fn a_model_without_an_opinion_has_the_perplexity_of_its_vocabulary() {
    let windows = papers(tokens(91, 2000, 1), 128);
    let result = measure(&TableModel::uniform(91), &windows);
    assert!((result.perplexity - 91.0).abs() < 1e-9 * 91.0, "{}", result.perplexity);
    assert!(result.standard_error < 1e-9);
    assert_eq!((result.tokens, result.windows), (15 * 127, 15));
}

#[test]
fn perplexity_and_its_error_are_those_of_the_definition() {
    let model = TableModel::random(67, 3);
    // Windows of 16 go through the model 128 at a time: 150 of them are two batches.
    for (length, count) in [(16, 150), (100, 21), (2, 40)] {
        let windows = papers(tokens(67, length * count + length - 1, 9), length);
        assert_eq!(windows.count(), count);
        let result = measure(&model, &windows);
        let losses = brute_force(&model, &windows);
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        // llama-perplexity: sqrt((E[x²] − E[x]²) / (n − 1)), times the perplexity.
        let squares = losses.iter().map(|x| x * x).sum::<f64>() / n;
        let error = ((squares - mean * mean) / (n - 1.0)).sqrt() * mean.exp();
        assert_eq!(result.tokens as usize, losses.len());
        assert!((result.mean_loss - mean).abs() < 1e-6, "{} {mean}", result.mean_loss);
        assert!((result.perplexity - mean.exp()).abs() < 1e-6 * mean.exp());
        assert!((result.standard_error - error).abs() < 1e-5 * error);
        for (kept, loss) in result.losses.iter().zip(&losses) {
            assert!((f64::from(*kept) - loss).abs() < 1e-5);
        }
    }
}

#[test]
fn llama_cpp_windows_score_the_tokens_behind_their_middle() {
    let model = TableModel::random(31, 5);
    let protocol = Protocol::LlamaCpp { length: 64 };
    let stream = tokens(31, 64 * 5 + 20, 4);
    let windows = EvaluationWindows::from_stream(stream, Some(7), protocol, Some(3)).unwrap();
    let result = measure(&model, &windows);
    // Of 64 tokens, 33..=63 are scored: n_ctx − n_ctx/2 − 1.
    assert_eq!((result.windows, result.tokens), (3, 3 * 31));
    let losses = brute_force(&model, &windows);
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((result.mean_loss - mean).abs() < 1e-6);
}

#[test]
fn vocabularies_larger_than_a_block_of_logits_are_measured_in_blocks() {
    // 2^17 columns of f32 leave 128 rows to a block of 64 MiB; windows of 300 take three.
    struct Wide;
    impl LanguageModel for Wide {
        fn vocab_size(&self) -> usize {
            1 << 17
        }
        fn context(&self) -> usize {
            300
        }
        fn hidden(&self, tokens: &[u32], _: usize) -> llm_quantize::Result<candle_core::Tensor> {
            let rows: Vec<f32> = tokens.iter().map(|&token| token as f32).collect();
            Ok(candle_core::Tensor::from_vec(rows, (tokens.len(), 1), &candle_core::Device::Cpu)?)
        }
        /// The token itself has logit 12, all others 0.
        fn logits(
            &self,
            hidden: &candle_core::Tensor,
        ) -> llm_quantize::Result<candle_core::Tensor> {
            let rows = hidden.flatten_all()?.to_vec1::<f32>()?;
            assert!(rows.len() <= 128, "{} rows at once", rows.len());
            let mut logits = vec![0f32; rows.len() << 17];
            for (row, token) in rows.iter().enumerate() {
                logits[(row << 17) + *token as usize] = 12.0;
            }
            let shape = (rows.len(), 1 << 17);
            Ok(candle_core::Tensor::from_vec(logits, shape, &candle_core::Device::Cpu)?)
        }
    }
    let sum = (((1 << 17) - 1) as f64 + 12f64.exp()).ln();
    let repeated = measure(&Wide, &papers(vec![99_999; 300], 300));
    assert!((repeated.mean_loss - (sum - 12.0)).abs() < 1e-6);
    let alternating: Vec<u32> = (0..300).collect();
    assert!((measure(&Wide, &papers(alternating, 300)).mean_loss - sum).abs() < 1e-6);
}

#[test]
fn a_model_that_gives_nan_is_an_error_that_says_where() {
    let mut model = TableModel::random(20, 6);
    model.table[13 * 20 + 4] = f32::NAN;
    let mut stream = vec![1; 64];
    stream[40] = 13;
    let windows = papers(stream, 32);
    let error = Perplexity::measure(&model, &windows, "test", &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let message = error.to_string();
    // Behind position 8 of window 1 the model says NaN, so token 9 has no probability.
    assert!(message.contains("token 9 of window 1"), "{message}");
    let good = TableModel::random(20, 6);
    let error = Comparison::measure(&good, &model, &windows, "test", &NullProgress).unwrap_err();
    assert!(error.to_string().contains("the compressed model"), "{error}");
}

#[test]
fn tokens_of_another_vocabulary_are_refused() {
    let windows = papers(vec![3, 4, 25, 1], 4);
    let error = Perplexity::measure(&TableModel::uniform(20), &windows, "test", &NullProgress);
    assert!(error.unwrap_err().to_string().contains("token 25"));
}

#[test]
fn a_stop_request_ends_the_measurement() {
    let windows = papers(tokens(20, 640, 2), 32);
    let progress = Recorder { stop: true, ..Recorder::default() };
    let result = Perplexity::measure(&TableModel::uniform(20), &windows, "test", &progress);
    assert!(matches!(result, Err(Error::Interrupted { .. })));
}

#[test]
fn two_models_are_compared_by_the_definition() {
    let (p, q) = (TableModel::random(50, 1), TableModel::random(50, 2));
    let windows = papers(tokens(50, 700, 3), 70);
    let comparison = Comparison::measure(&p, &q, &windows, "test", &NullProgress).unwrap();
    let alone = (measure(&p, &windows), measure(&q, &windows));
    assert!((comparison.original.mean_loss - alone.0.mean_loss).abs() < 1e-12);
    assert!((comparison.compressed.mean_loss - alone.1.mean_loss).abs() < 1e-12);
    let delta = (alone.1.perplexity / alone.0.perplexity - 1.0) * 100.0;
    assert!((comparison.delta_percent - delta).abs() < 1e-6 * delta.abs());

    let (mut kl, mut same) = (Vec::new(), 0.0);
    let top = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
    for window in windows.iter() {
        for at in 1..window.len() {
            let (p, q) = (p.probabilities(&window[..at]), q.probabilities(&window[..at]));
            kl.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            same += f64::from(u8::from(top(&p) == top(&q)));
        }
    }
    let n = kl.len() as f64;
    let mean = kl.iter().sum::<f64>() / n;
    let variance = kl.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let divergence = comparison.divergence.unwrap();
    assert_eq!(divergence.tokens as usize, kl.len());
    assert!((divergence.mean - mean).abs() < 1e-5 * mean);
    assert!((divergence.standard_error - (variance / (n - 1.0)).sqrt()).abs() < 1e-6);
    assert!((divergence.same_top_percent - same / n * 100.0).abs() < 1e-9);
    kl.sort_by(f64::total_cmp);
    assert!((divergence.median - kl[kl.len() / 2]).abs() < 0.05);
    assert!(
        divergence.percentile_99 > divergence.median
            && divergence.percentile_99 <= kl[kl.len() - 1] + 1e-5
    );

    // The error of the change is that of the mean difference of paired losses.
    let differences: Vec<f64> = brute_force(&q, &windows)
        .iter()
        .zip(brute_force(&p, &windows))
        .map(|(after, before)| after - before)
        .collect();
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let error = (variance / (n - 1.0)).sqrt() * mean.exp() * 100.0;
    assert!((comparison.delta_standard_error - error).abs() < 1e-4 * error);
    let paired = Comparison::of(alone.0, alone.1).unwrap();
    assert!((paired.delta_percent - comparison.delta_percent).abs() < 1e-9);
    assert!(paired.divergence.is_none());
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let model = TableModel::random(40, 8);
    let windows = papers(tokens(40, 400, 3), 40);
    let comparison = Comparison::measure(&model, &model, &windows, "test", &NullProgress).unwrap();
    let divergence = comparison.divergence.unwrap();
    assert!(comparison.delta_percent.abs() < 1e-12 && comparison.delta_standard_error < 1e-12);
    assert!(divergence.mean.abs() < 1e-12);
    assert!((divergence.same_top_percent - 100.0).abs() < 1e-12);

    let other = TableModel::uniform(41);
    let error = Comparison::measure(&model, &other, &windows, "test", &NullProgress).unwrap_err();
    assert!(error.to_string().contains("40 and 41"), "{error}");
    let fewer = measure(&model, &papers(tokens(40, 80, 3), 40));
    assert!(Comparison::of(comparison.original, fewer).is_err());
}
