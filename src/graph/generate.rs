//! Token by token generation.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use candle_transformers::generation::{LogitsProcessor, Sampling as Strategy};

use super::cache::{CacheType, KvCache};
use super::decoder::Decoder;
use super::slices::with_f32;
use crate::{Error, Result};

/// Tokens of a prompt that are run at a time: enough to be efficient, and a bound on the memory of
/// activations.
const PROMPT_CHUNK: usize = 512;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the smallest set of tokens whose probabilities reach this sum, in `(0, 1]`.
    pub top_p: Option<f64>,
    /// Only the most likely tokens.
    pub top_k: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: None, top_k: None, seed: 0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::InvalidArgument(format!(
                "temperature {} is not 0 or more",
                self.temperature
            )));
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return Err(Error::InvalidArgument(format!("top-p {p} is not in (0, 1]")));
        }
        if self.top_k == Some(0) {
            return Err(Error::InvalidArgument("top-k 0 leaves no token".into()));
        }
        Ok(())
    }

    fn strategy(&self) -> Strategy {
        let temperature = self.temperature;
        // Below this the softmax is a step anyway, and the division would overflow.
        if temperature < 1e-7 {
            return Strategy::ArgMax;
        }
        match (self.top_k, self.top_p) {
            (None, None) => Strategy::All { temperature },
            (Some(k), None) => Strategy::TopK { k, temperature },
            (None, Some(p)) => Strategy::TopP { p, temperature },
            (Some(k), Some(p)) => Strategy::TopKThenTopP { k, p, temperature },
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model gave one of its end tokens.
    EndOfText,
    /// As many tokens as asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller asked to stop.
    Cancelled,
}

/// What a generation gave.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt that were run.
    pub prompt_tokens: usize,
    /// Time for the prompt, the choice of the first token included.
    pub prompt_time: Duration,
    /// Time for all tokens after the first.
    pub generation_time: Duration,
    /// Bytes of the key/value cache at the end.
    pub cache_bytes: usize,
}

impl Generation {
    /// Tokens of the prompt per second.
    #[must_use]
    pub fn prompt_speed(&self) -> f64 {
        speed(self.prompt_tokens, self.prompt_time)
    }

    /// Generated tokens per second, counted from the second one on.
    #[must_use]
    pub fn generation_speed(&self) -> f64 {
        speed(self.tokens.len().saturating_sub(1), self.generation_time)
    }
}

fn speed(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// Generates text of one sequence. What has been seen stays in the cache, so a conversation goes
/// on where it stopped.
#[derive(Debug)]
pub struct Generator<'d> {
    decoder: &'d Decoder,
    cache: KvCache,
    processor: Processor,
    end_tokens: Vec<u32>,
}

struct Processor(LogitsProcessor);

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogitsProcessor")
    }
}

impl<'d> Generator<'d> {
    /// A generator with an empty cache that stops at the end tokens of the model's configuration.
    ///
    /// # Errors
    /// If `sampling` is out of range.
    pub fn new(decoder: &'d Decoder, sampling: &Sampling, cache: CacheType) -> Result<Self> {
        sampling.validate()?;
        Ok(Self {
            decoder,
            cache: decoder.cache(cache),
            processor: Processor(LogitsProcessor::from_sampling(
                sampling.seed,
                sampling.strategy(),
            )),
            end_tokens: decoder.config().eos_token_ids.clone(),
        })
    }

    /// Adds tokens that end a generation (a chat template's end of turn).
    pub fn stop_at(&mut self, tokens: &[u32]) {
        self.end_tokens.extend_from_slice(tokens);
    }

    /// Tokens seen so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.cache.len()
    }

    /// Runs `prompt` and generates up to `max_tokens` tokens. Each goes to `on_token` as soon as
    /// it is known; returning `Break` stops after it.
    ///
    /// # Errors
    /// If the prompt is empty or longer than the context, or the model gives logits that are not
    /// numbers.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if prompt.is_empty() {
            return Err(Error::InvalidArgument("the prompt has no tokens".into()));
        }
        let room = self.cache.capacity() - self.cache.len();
        if prompt.len() > room {
            return Err(Error::InvalidArgument(format!(
                "the prompt has {} tokens; the context has room for {room}",
                prompt.len()
            )));
        }
        let began = Instant::now();
        let mut last = None;
        let chunk =
            if self.decoder.depends_on_length() { prompt.len().max(1) } else { PROMPT_CHUNK };
        for chunk in prompt.chunks(chunk) {
            last = Some(self.decoder.hidden(chunk, 1, Some(&mut self.cache), None)?);
        }
        let mut generation = Generation {
            tokens: Vec::new(),
            stop: StopReason::MaxTokens,
            prompt_tokens: prompt.len(),
            prompt_time: Duration::ZERO,
            generation_time: Duration::ZERO,
            cache_bytes: 0,
        };
        let mut first_token_at = None;
        while let Some(hidden) = last.take() {
            if generation.tokens.len() == max_tokens {
                break;
            }
            let token = self.choose(&hidden)?;
            if generation.tokens.is_empty() {
                first_token_at = Some(Instant::now());
            }
            if self.end_tokens.contains(&token) {
                generation.stop = StopReason::EndOfText;
                break;
            }
            generation.tokens.push(token);
            if on_token(token).is_break() {
                generation.stop = StopReason::Cancelled;
            } else if generation.tokens.len() < max_tokens {
                if self.cache.len() < self.cache.capacity() {
                    last = Some(self.decoder.hidden(&[token], 1, Some(&mut self.cache), None)?);
                } else {
                    generation.stop = StopReason::ContextFull;
                }
            }
        }
        let now = Instant::now();
        let first_token_at = first_token_at.unwrap_or(now);
        generation.prompt_time = first_token_at.duration_since(began);
        generation.generation_time = now.duration_since(first_token_at);
        generation.cache_bytes = self.cache.bytes();
        Ok(generation)
    }

    /// The token after the last row of `hidden`.
    fn choose(&mut self, hidden: &Tensor) -> Result<u32> {
        let rows = hidden.dim(0)?;
        let logits = self.decoder.logits(&hidden.narrow(0, rows - 1, 1)?)?.squeeze(0)?;
        let logits = logits.to_device(&candle_core::Device::Cpu)?;
        if !with_f32(&logits, |logits| logits.iter().all(|logit| logit.is_finite()))? {
            return Err(Error::General(
                "the model computes logits that are not finite numbers; its weights are damaged or \
                 overflow"
                    .into(),
            ));
        }
        Ok(self.processor.0.sample(&logits)?)
    }
}
