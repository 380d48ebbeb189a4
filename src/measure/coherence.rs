//! The coherence test: does the compressed model still write text that makes sense?
//!
//! Both models continue the same fixed prompts, greedily and by sampling, and rules judge the
//! result ([`super::criteria`]). The strongest judge is the original itself: it reads what the
//! compressed model wrote and says how likely each token was. Its own continuations give the upper
//! end of that scale, and the same continuations with their tokens shuffled the lower end: the
//! right words in no order. What is measured is thus what compression lost, whatever the original's
//! own level is. `docs/evaluation.md` has the rules in full.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::criteria::{self, WordList};
use super::prompts::PROMPTS;
use super::{Decoding, LanguageModel, TextGenerator, rows};
use crate::base::progress::Progress;
use crate::text::{TextCodec, builtin};
use crate::{Error, Result};

/// Score from which a prompt's continuations count as coherent.
pub const COHERENT_FROM: f64 = 0.5;
/// Prompts that must be coherent to pass, percent.
pub const PASS_PERCENT: usize = 70;
/// Least difference of the original's mean log-probability between its own text and the same text
/// shuffled, nats a token. A model below it cannot judge (random weights).
const LEAST_SCALE: f64 = 0.5;
/// Share of the original's words that must be on the built-in list before its other words are
/// taken for words, too.
const RECOGNISABLE: f64 = 0.5;
/// Fewest tokens of a continuation that can be judged.
const FEWEST_TOKENS: usize = 16;

/// How continuations are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoherenceSettings {
    /// Tokens of a continuation (fewer when the context is shorter).
    pub tokens: usize,
    /// Temperature of the sampled ones.
    pub temperature: f64,
    /// Probability mass that is sampled from.
    pub top_p: f64,
    /// Seed of the first prompt; the others follow.
    pub seed: u64,
}

impl Default for CoherenceSettings {
    fn default() -> Self {
        Self { tokens: 48, temperature: 0.8, top_p: 0.95, seed: 20_240_613 }
    }
}

/// The judgement on one prompt. Criteria and score go from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptReport {
    /// The prompt.
    pub prompt: String,
    /// How the model continued it greedily.
    pub greedy: String,
    /// How it continued it by sampling.
    pub sampled: String,
    /// How likely the original finds the sampled continuation.
    pub agreement: f64,
    /// Freedom from repetition.
    pub variety: f64,
    /// How normal the model's uncertainty is.
    pub certainty: f64,
    /// Words that are words.
    pub vocabulary: f64,
    /// The lowest of the four: a loop of common words is no better for its vocabulary.
    pub score: f64,
}

impl PromptReport {
    /// Whether the score reaches [`COHERENT_FROM`].
    #[must_use]
    pub fn coherent(&self) -> bool {
        self.score >= COHERENT_FROM
    }
}

/// The judgement on a model.
#[derive(Debug, Clone, PartialEq)]
pub struct CoherenceReport {
    /// One entry for each prompt, in order.
    pub prompts: Vec<PromptReport>,
    /// Tokens that the model wrote and that were judged.
    pub tokens: u64,
}

impl CoherenceReport {
    /// Prompts with a coherent continuation.
    #[must_use]
    pub fn coherent(&self) -> usize {
        self.prompts.iter().filter(|prompt| prompt.coherent()).count()
    }

    /// Mean score of the prompts, 0 to 1.
    #[must_use]
    pub fn score(&self) -> f64 {
        let sum: f64 = self.prompts.iter().map(|prompt| prompt.score).sum();
        sum / self.prompts.len().max(1) as f64
    }

    /// Whether at least [`PASS_PERCENT`] of the prompts are coherent.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.coherent() * 100 >= self.prompts.len() * PASS_PERCENT
    }

    /// `PASSED (7/10 prompts coherent)`.
    #[must_use]
    pub fn summary(&self) -> String {
        let word = if self.passed() { "PASSED" } else { "FAILED" };
        format!("{word} ({}/{} prompts coherent)", self.coherent(), self.prompts.len())
    }
}

/// The test, prepared with the original; any number of models can take it.
pub struct CoherenceTest<'a, M: ?Sized> {
    original: &'a M,
    codec: &'a dyn TextCodec,
    settings: CoherenceSettings,
    prompts: Vec<Vec<u32>>,
    /// The original's freedom from repetition in each greedy continuation.
    greedy_variety: Vec<f64>,
    words: WordList,
    /// Mean log-probability that the original gives to its own text and to it shuffled, nats.
    own: f64,
    shuffled: f64,
    /// Mean entropy of the original on its own text, nats.
    entropy: f64,
}

impl<'a, M: LanguageModel + TextGenerator + ?Sized> CoherenceTest<'a, M> {
    /// Lets the original write and read its own continuations.
    ///
    /// # Errors
    /// [`Error::General`] when the context is too short for prompt and continuation or the model
    /// gives NaN; whatever the model and the tokenizer fail with.
    pub fn new(
        original: &'a M,
        codec: &'a dyn TextCodec,
        mut settings: CoherenceSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let prompts =
            PROMPTS.iter().map(|prompt| codec.encode(prompt, true)).collect::<Result<Vec<_>>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        settings.tokens = settings.tokens.min(original.context().saturating_sub(longest));
        if settings.tokens < FEWEST_TOKENS || prompts.iter().any(Vec::is_empty) {
            return Err(Error::General(format!(
                "a context of {} tokens is too short for the coherence test (prompts of {longest} \
                 tokens, continuations of at least {FEWEST_TOKENS})",
                original.context()
            )));
        }
        let mut words = WordList::default();
        words.add(builtin::CALIBRATION);
        words.add(builtin::HELD_OUT);
        for prompt in PROMPTS {
            words.add(prompt);
        }
        let mut test = Self {
            original,
            codec,
            settings,
            prompts,
            greedy_variety: Vec::new(),
            words,
            own: 0.0,
            shuffled: 0.0,
            entropy: 0.0,
        };
        test.prepare(progress)?;
        Ok(test)
    }

    fn prepare(&mut self, progress: &dyn Progress) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        let mut text = String::new();
        let count = self.prompts.len() as f64;
        progress.start("Coherence (original)", self.prompts.len() as u64, "prompts");
        for (index, prompt) in self.prompts.iter().enumerate() {
            check_stop(progress)?;
            let [greedy, sampled] = self.write(self.original, index)?;
            self.greedy_variety.push(criteria::variety(&greedy));
            let own = read(self.original, prompt, &sampled)?;
            self.own += own.log_probability / count;
            self.entropy += own.entropy / count;
            let mut shuffled = sampled.clone();
            shuffled.shuffle(&mut random);
            self.shuffled += read(self.original, prompt, &shuffled)?.log_probability / count;
            for continuation in [&greedy, &sampled] {
                text.push_str(&whole_words(&self.continuation(prompt, continuation)?));
                text.push(' ');
            }
            progress.advance(1);
        }
        progress.finish();
        if self.words.known(&text) >= RECOGNISABLE {
            self.words.add(&text);
        }
        Ok(())
    }

    /// Lets a model take the test.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn judge<C: LanguageModel + TextGenerator + ?Sized>(
        &self,
        model: &C,
        progress: &dyn Progress,
    ) -> Result<CoherenceReport> {
        let mut report = CoherenceReport { prompts: Vec::new(), tokens: 0 };
        progress.start("Coherence", self.prompts.len() as u64, "prompts");
        for (index, prompt) in self.prompts.iter().enumerate() {
            check_stop(progress)?;
            let [greedy, sampled] = self.write(model, index)?;
            report.tokens += (greedy.len() + sampled.len()) as u64;
            let judged = self.judge_prompt(model, index, prompt, &greedy, &sampled)?;
            progress.debug(&format!(
                "coherence {:.2}: {}{}",
                judged.score,
                judged.prompt,
                judged.sampled.escape_debug()
            ));
            report.prompts.push(judged);
            progress.advance(1);
        }
        progress.finish();
        Ok(report)
    }

    fn judge_prompt<C: LanguageModel + ?Sized>(
        &self,
        model: &C,
        index: usize,
        prompt: &[u32],
        greedy: &[u32],
        sampled: &[u32],
    ) -> Result<PromptReport> {
        let by_original = read(self.original, prompt, sampled)?;
        let by_itself = read(model, prompt, sampled)?;
        let scale = self.own - self.shuffled;
        let agreement = if scale < LEAST_SCALE {
            0.0
        } else {
            criteria::ramp(by_original.log_probability, (self.shuffled, self.own))
        };
        // Small models loop when they decode greedily, also healthy ones: only looping where the
        // original does not is held against a model.
        let limit = self.greedy_variety[index];
        let greedy_variety = criteria::variety(greedy);
        let relative = if greedy_variety >= limit { 1.0 } else { greedy_variety / limit };
        let even = (model.vocab_size() as f64).ln();
        let [greedy, sampled_text] =
            [self.continuation(prompt, greedy)?, self.continuation(prompt, sampled)?];
        let known = |text: &str| self.words.known(&whole_words(text));
        let criteria = [
            agreement,
            criteria::variety(sampled).min(relative),
            criteria::certainty(by_itself.entropy, self.entropy, even),
            criteria::ramp(known(&greedy).min(known(&sampled_text)), criteria::KNOWN_WORDS),
        ];
        let [agreement, variety, certainty, vocabulary] = criteria;
        Ok(PromptReport {
            prompt: PROMPTS[index].to_owned(),
            greedy,
            sampled: sampled_text,
            agreement,
            variety,
            certainty,
            vocabulary,
            score: criteria.into_iter().fold(1.0, f64::min),
        })
    }

    /// A model's greedy and its sampled continuation of a prompt.
    fn write<C: TextGenerator + ?Sized>(&self, model: &C, index: usize) -> Result<[Vec<u32>; 2]> {
        let CoherenceSettings { tokens, temperature, top_p, seed } = self.settings;
        let seed = seed.wrapping_add(index as u64);
        let generate = |decoding| {
            let continuation = model.generate(&self.prompts[index], tokens, decoding)?;
            if continuation.len() == tokens {
                return Ok(continuation);
            }
            Err(Error::General(format!(
                "the model wrote {} tokens instead of {tokens}",
                continuation.len()
            )))
        };
        Ok([generate(Decoding::Greedy)?, generate(Decoding::Sampled { temperature, top_p, seed })?])
    }

    /// Text of a continuation with the space that separates it from its prompt, which a tokenizer
    /// may leave out when it decodes the continuation alone.
    fn continuation(&self, prompt: &[u32], continuation: &[u32]) -> Result<String> {
        let before = self.codec.decode(prompt)?;
        let whole = self.codec.decode(&[prompt, continuation].concat())?;
        match whole.strip_prefix(&before) {
            Some(text) => Ok(text.to_owned()),
            None => self.codec.decode(continuation),
        }
    }
}

/// The text without a first and a last word that may have been cut.
fn whole_words(text: &str) -> String {
    let start = text.find(char::is_whitespace).unwrap_or(text.len());
    let end = text.rfind(char::is_whitespace).unwrap_or(start);
    text.get(start..end).unwrap_or("").to_owned()
}

fn check_stop(progress: &dyn Progress) -> Result<()> {
    if progress.stop_requested() { Err(Error::Interrupted { resume: None }) } else { Ok(()) }
}

/// What a model thinks of a continuation, means over its tokens in nats.
struct Reading {
    log_probability: f64,
    entropy: f64,
}

fn read<C: LanguageModel + ?Sized>(
    model: &C,
    prompt: &[u32],
    continuation: &[u32],
) -> Result<Reading> {
    let tokens = [prompt, continuation].concat();
    rows::check_tokens(&tokens, model.vocab_size())?;
    let hidden = model.hidden(&tokens, 1)?;
    let mut reading = Reading { log_probability: 0.0, entropy: 0.0 };
    let block = rows::rows_per_block(model.vocab_size());
    for (index, targets) in continuation.chunks(block).enumerate() {
        let first = prompt.len() - 1 + index * block;
        let logits = model.logits(&hidden.narrow(0, first, targets.len())?.contiguous()?)?;
        let (_, columns) = logits.dims2()?;
        rows::with_values(&logits, |values| {
            for (row, &target) in values.chunks_exact(columns).zip(targets) {
                let log_sum = rows::log_sum_exp(row);
                reading.log_probability += f64::from(row[target as usize]) - log_sum;
                reading.entropy += rows::entropy(row, log_sum);
            }
            Ok(())
        })?;
    }
    let count = continuation.len() as f64;
    reading.log_probability /= count;
    reading.entropy /= count;
    if reading.entropy.is_finite() && !reading.log_probability.is_nan() {
        // A token that a model excludes altogether would make every mean infinite.
        reading.log_probability = reading.log_probability.max(f64::MIN);
        return Ok(reading);
    }
    Err(Error::General("a model gives NaN logits while it writes text".into()))
}
