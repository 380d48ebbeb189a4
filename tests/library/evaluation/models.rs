//! Models whose next-token probabilities can be written down, and helpers.

use std::sync::Mutex;

use candle_core::{Device, Tensor};
use llm_quantize::base::progress::Progress;
use llm_quantize::measure::{Decoding, LanguageModel, TextGenerator};
use llm_quantize::text::TextCodec;
use llm_quantize::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Logits that depend on the last two tokens: `table[last] + 0.5 · table[one before]`, where the
/// token before a sequence is none. The hidden state is the logits; the head is the identity.
pub(crate) struct TableModel {
    pub(crate) vocab: usize,
    pub(crate) table: Vec<f32>,
}

impl TableModel {
    pub(crate) fn random(vocab: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let table = (0..vocab * vocab).map(|_| random.random_range(-4.0f32..4.0)).collect();
        Self { vocab, table }
    }

    pub(crate) fn uniform(vocab: usize) -> Self {
        Self { vocab, table: vec![0.5; vocab * vocab] }
    }

    fn row(&self, token: u32) -> &[f32] {
        &self.table[token as usize * self.vocab..][..self.vocab]
    }

    /// Logits behind the last token of a sequence.
    pub(crate) fn next(&self, sequence: &[u32]) -> Vec<f32> {
        let [.., last] = sequence else { panic!("empty sequence") };
        let mut logits = self.row(*last).to_vec();
        if let [.., before, _] = sequence {
            logits.iter_mut().zip(self.row(*before)).for_each(|(x, y)| *x += 0.5 * y);
        }
        logits
    }

    /// Probabilities behind a sequence, by the definition of softmax in f64.
    pub(crate) fn probabilities(&self, sequence: &[u32]) -> Vec<f64> {
        softmax(&self.next(sequence))
    }
}

pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    let exponentials: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|x| x / sum).collect()
}

impl LanguageModel for TableModel {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        512
    }

    fn hidden(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        let length = tokens.len() / batch;
        let rows: Vec<f32> = tokens
            .chunks_exact(length)
            .flat_map(|window| (1..=length).flat_map(|end| self.next(&window[..end])))
            .collect();
        Ok(Tensor::from_vec(rows, (tokens.len(), self.vocab), &Device::Cpu)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.clone())
    }
}

impl TextGenerator for TableModel {
    fn generate(&self, prompt: &[u32], tokens: usize, decoding: Decoding) -> Result<Vec<u32>> {
        let mut sequence = prompt.to_vec();
        let seed = match decoding {
            Decoding::Greedy => 0,
            Decoding::Sampled { seed, .. } => seed,
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..tokens {
            let logits = self.next(&sequence);
            let token = match decoding {
                Decoding::Greedy => {
                    (0..self.vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                }
                Decoding::Sampled { temperature, .. } => {
                    let cooled: Vec<f32> = logits.iter().map(|x| x / temperature as f32).collect();
                    let mut left: f64 = random.random();
                    softmax(&cooled).iter().position(|p| {
                        left -= p;
                        left <= 0.0
                    })
                }
            };
            sequence.push(token.unwrap_or(self.vocab - 1) as u32);
        }
        Ok(sequence.split_off(prompt.len()))
    }
}

/// One token per character below 128; others are 0. `lead` is put first when asked for.
pub(crate) struct Characters {
    pub(crate) lead: Option<u32>,
    pub(crate) separator: Option<u32>,
}

impl TextCodec for Characters {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let lead = self.lead.filter(|_| add_special);
        let known = |c: char| if c.is_ascii() { c as u32 } else { 0 };
        Ok(lead.into_iter().chain(text.chars().map(known)).collect())
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        Ok(tokens.iter().filter_map(|&token| char::from_u32(token)).collect())
    }

    fn leading_token(&self) -> Option<u32> {
        self.lead
    }

    fn separator(&self) -> Option<u32> {
        self.separator
    }
}

/// Remembers notes and stops after a number of steps.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) notes: Mutex<Vec<String>>,
    pub(crate) stop: bool,
}

impl Recorder {
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }
}

impl Progress for Recorder {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
    fn detail(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.stop
    }
}

/// The message of a calibration error (exit status 15); anything else fails the test.
pub(crate) fn calibration_error<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Calibration(message)) => message,
        other => panic!("expected a calibration error, got {other:?}"),
    }
}
