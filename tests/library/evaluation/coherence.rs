//! The coherence test tells sense from nonsense. The "original" here is a model of word pairs
//! counted in the built-in text: it writes recognisable English, and its probabilities are known.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use llm_quantize::Result;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::measure::coherence::CoherenceSettings;
use llm_quantize::measure::prompts::PROMPTS;
use llm_quantize::measure::{
    CoherenceReport, CoherenceTest, Decoding, LanguageModel, TextGenerator,
};
use llm_quantize::text::{TextCodec, builtin};

use super::models::TableModel;

const WORDS: usize = 1500;

/// A token for each of the most frequent words; 0 is any other.
struct WordCodec {
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

impl WordCodec {
    fn new() -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for prompt in PROMPTS {
            prompt.split_whitespace().for_each(|word| *counts.entry(word).or_default() += 1000);
        }
        builtin::CALIBRATION
            .split_whitespace()
            .for_each(|word| *counts.entry(word).or_default() += 1);
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_by_key(|&(word, count)| (std::cmp::Reverse(count), word));
        let mut words = vec!["\u{fffd}".to_owned()];
        words.extend(ranked.iter().take(WORDS - 1).map(|(word, _)| (*word).to_owned()));
        let ids = words.iter().zip(0..).map(|(word, id)| (word.clone(), id)).collect();
        Self { words, ids }
    }
}

impl TextCodec for WordCodec {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
        Ok(text.split_whitespace().map(|word| self.ids.get(word).copied().unwrap_or(0)).collect())
    }
    fn decode(&self, tokens: &[u32]) -> Result<String> {
        let words: Vec<&str> = tokens.iter().map(|&id| self.words[id as usize].as_str()).collect();
        Ok(words.join(" "))
    }
    fn leading_token(&self) -> Option<u32> {
        None
    }
    fn separator(&self) -> Option<u32> {
        None
    }
}

/// `ln(count of the pair + a little)`; words outside the vocabulary are never written.
fn pairs(codec: &WordCodec) -> TableModel {
    let mut table = vec![0.02f32; WORDS * WORDS];
    let tokens = codec.encode(builtin::CALIBRATION, false).unwrap();
    for pair in tokens.windows(2) {
        table[pair[0] as usize * WORDS + pair[1] as usize] += 1.0;
    }
    for count in &mut table {
        *count = count.ln();
    }
    (0..WORDS).for_each(|word| table[word * WORDS] = -30.0);
    TableModel { vocab: WORDS, table }
}

fn judge<C: LanguageModel + TextGenerator>(model: &C) -> CoherenceReport {
    let codec = WordCodec::new();
    let original = pairs(&codec);
    CoherenceTest::new(&original, &codec, CoherenceSettings::default(), &NullProgress)
        .unwrap()
        .judge(model, &NullProgress)
        .unwrap()
}

#[test]
fn the_original_passes_its_own_test() {
    let report = judge(&pairs(&WordCodec::new()));
    assert!(report.passed() && report.coherent() >= 9, "{report:#?}");
    assert!(report.score() > 0.75, "{}", report.score());
    assert_eq!(report.summary(), format!("PASSED ({}/10 prompts coherent)", report.coherent()));
    assert_eq!(report.tokens, 10 * 2 * 48);
}

#[test]
fn random_weights_fail_it_however_sharp_they_are() {
    for scale in [0.01, 1.0, 4.0] {
        let mut model = TableModel::random(WORDS, 1);
        model.table.iter_mut().for_each(|logit| *logit *= scale);
        let report = judge(&model);
        assert_eq!(report.coherent(), 0, "scale {scale}: {report:#?}");
        assert!(report.score() < 0.1);
        assert_eq!(report.summary(), "FAILED (0/10 prompts coherent)");
    }
}

/// Writes the same word for ever, and is sure of it.
struct Stuck;

impl LanguageModel for Stuck {
    fn vocab_size(&self) -> usize {
        WORDS
    }
    fn context(&self) -> usize {
        512
    }
    fn hidden(&self, tokens: &[u32], _: usize) -> Result<Tensor> {
        Ok(Tensor::zeros((tokens.len(), 1), candle_core::DType::F32, &Device::Cpu)?)
    }
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut row = vec![0f32; WORDS];
        row[5] = 30.0;
        Ok(Tensor::from_vec(row, (1, WORDS), &Device::Cpu)?.repeat((hidden.dim(0)?, 1))?)
    }
}

impl TextGenerator for Stuck {
    fn generate(&self, _: &[u32], tokens: usize, _: Decoding) -> Result<Vec<u32>> {
        Ok(vec![5; tokens])
    }
}

#[test]
fn a_loop_fails_although_its_words_are_words() {
    let report = judge(&Stuck);
    assert_eq!(report.coherent(), 0);
    for prompt in &report.prompts {
        assert!(prompt.variety < 1e-9 && prompt.certainty < 1e-9);
        assert!(prompt.vocabulary > 0.99, "{prompt:?}");
    }
}

#[test]
fn the_right_words_in_no_order_fail() {
    // Every word as often as in the text, whatever stands before it.
    let codec = WordCodec::new();
    let mut counts = vec![0.02f32; WORDS];
    codec
        .encode(builtin::CALIBRATION, false)
        .unwrap()
        .iter()
        .for_each(|&token| counts[token as usize] += 1.0);
    let mut row: Vec<f32> = counts.iter().map(|count| count.ln()).collect();
    row[0] = -30.0;
    // Both rows that a position adds up are the same; two thirds make one.
    let scaled = row.iter().map(|logit| logit / 1.5);
    let table = scaled.clone().cycle().take(WORDS * WORDS).collect();
    let report = judge(&TableModel { vocab: WORDS, table });
    assert!(!report.passed(), "{report:#?}");
    let agreement: f64 = report.prompts.iter().map(|prompt| prompt.agreement).sum::<f64>() / 10.0;
    assert!(agreement < 0.3, "{agreement}");
    assert!(report.prompts.iter().all(|prompt| prompt.vocabulary > 0.9));
}

#[test]
fn an_original_that_knows_nothing_vouches_for_nobody() {
    let codec = WordCodec::new();
    let original = TableModel::uniform(WORDS);
    let test =
        CoherenceTest::new(&original, &codec, CoherenceSettings::default(), &NullProgress).unwrap();
    let report = test.judge(&original, &NullProgress).unwrap();
    assert_eq!(report.coherent(), 0, "{report:#?}");
}

#[test]
fn a_little_noise_is_tolerated_and_much_is_not() {
    let codec = WordCodec::new();
    let noisy = |amount: f32| {
        let mut model = pairs(&codec);
        let noise = TableModel::random(WORDS, 9);
        model.table.iter_mut().zip(&noise.table).for_each(|(x, noise)| *x += amount * noise);
        judge(&model)
    };
    let (little, much) = (noisy(0.1), noisy(2.0));
    assert!(little.passed(), "{little:#?}");
    assert!(!much.passed(), "{much:#?}");
    assert!(little.score() > much.score() + 0.3);
}
