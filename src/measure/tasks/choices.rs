//! Questions with several choices, answered by how likely a model finds each choice as a
//! continuation. Two published ways to decide, from one pass:
//!
//! - lm-evaluation-harness: a choice is worth the sum of the log-probabilities of its tokens behind
//!   the context (`acc`), divided by its length in characters (`acc_norm`) or bytes (`acc_bytes`).
//! - llama-perplexity: the mean log-probability of the tokens behind what all choices have in
//!   common.
//!
//! A choice follows its context after a space; tokens are those of both together, from the number
//! of tokens on that the context alone has. The sequence begins with the tokenizer's leading token,
//! if it has one.

use candle_core::Tensor;
use serde::Serialize;

use crate::base::progress::Progress;
use crate::measure::{LanguageModel, rows};
use crate::text::TextCodec;
use crate::{Error, Result};

/// Tokens that go through the model together, padding included.
const BATCH_TOKENS: usize = 2048;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is to be continued.
    pub context: String,
    /// Possible continuations, without the space before them.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

/// What a model prefers, question by question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers {
    /// Per question and rule: whether the answer is right.
    right: Vec<[bool; 4]>,
    /// Per question: the answer by `acc_norm`.
    normalized: Vec<usize>,
    /// Sequences that were longer than the context and lost their beginning.
    truncated: usize,
}

/// Shares of right answers, 0 to 1, with their standard errors `√(p (1 − p) / (n − 1))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChoiceScores {
    /// By the sum of log-probabilities.
    pub acc: f64,
    /// Standard error of `acc`.
    pub acc_stderr: f64,
    /// By the sum over the choice's length in characters.
    pub acc_norm: f64,
    /// Standard error of `acc_norm`.
    pub acc_norm_stderr: f64,
    /// By the sum over the choice's length in bytes.
    pub acc_bytes: f64,
    /// Standard error of `acc_bytes`.
    pub acc_bytes_stderr: f64,
    /// By llama-perplexity's rule.
    pub llama_cpp_score: f64,
    /// Standard error of `llama_cpp_score`.
    pub llama_cpp_score_stderr: f64,
    /// Sequences that were longer than the model's context and lost their beginning.
    pub truncated: usize,
}

/// Difference between two models on the same questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Share of questions with the same answer.
    pub same_answer: f64,
    /// Change of `acc_norm`, fraction.
    pub change: f64,
    /// Standard error of it.
    pub standard_error: f64,
}

impl Answers {
    /// Questions answered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.right.len()
    }

    /// Shares of right answers.
    #[must_use]
    pub fn scores(&self) -> ChoiceScores {
        let count = self.count().max(1) as f64;
        let share = |rule: usize| {
            let right = self.right.iter().filter(|right| right[rule]).count() as f64 / count;
            (right, (right * (1.0 - right) / (count - 1.0).max(1.0)).sqrt())
        };
        let [sum, characters, bytes, llama] = std::array::from_fn(share);
        ChoiceScores {
            acc: sum.0,
            acc_stderr: sum.1,
            acc_norm: characters.0,
            acc_norm_stderr: characters.1,
            acc_bytes: bytes.0,
            acc_bytes_stderr: bytes.1,
            llama_cpp_score: llama.0,
            llama_cpp_score_stderr: llama.1,
            truncated: self.truncated,
        }
    }

    /// How another model's answers to the same questions differ, by `acc_norm`.
    #[must_use]
    pub fn change(&self, other: &Self) -> Change {
        let count = self.count().max(1) as f64;
        let same = self.normalized.iter().zip(&other.normalized).filter(|(a, b)| a == b).count();
        let differences: Vec<f64> = self
            .right
            .iter()
            .zip(&other.right)
            .map(|(a, b)| f64::from(i8::from(b[1]) - i8::from(a[1])))
            .collect();
        let change = differences.iter().sum::<f64>() / count;
        let variance = differences.iter().map(|d| (d - change).powi(2)).sum::<f64>() / count;
        Change {
            same_answer: same as f64 / count,
            change,
            standard_error: (variance / (count - 1.0).max(1.0)).sqrt(),
        }
    }
}

/// A choice as tokens.
struct Sequence {
    question: usize,
    choice: usize,
    tokens: Vec<u32>,
    /// First token behind the context.
    continuation: usize,
    /// First token that is not common to all choices.
    different: usize,
}

/// How likely a model finds every choice of every question, and the number of sequences that lost
/// their beginning. Sequences of similar length run together.
///
/// # Errors
/// [`Error::General`] when the model gives NaN or does not know a token; [`Error::Interrupted`].
pub fn likelihoods(
    model: &dyn LanguageModel,
    codec: &dyn TextCodec,
    questions: &[Question],
    stage: &str,
    progress: &dyn Progress,
) -> Result<(Vec<Vec<Likelihood>>, usize)> {
    let mut truncated = 0;
    let mut sequences = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        truncated += encode(question, index, codec, model.context(), &mut sequences)?;
    }
    sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.tokens.len()));
    let mut worth: Vec<Vec<Likelihood>> =
        questions.iter().map(|q| vec![Likelihood::default(); q.choices.len()]).collect();
    progress.start(stage, sequences.len() as u64, "choices");
    let mut rest = sequences.as_slice();
    while let Some(longest) = rest.first().map(|sequence| sequence.tokens.len()) {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        let count = (BATCH_TOKENS / longest).clamp(1, rest.len());
        let (batch, later) = rest.split_at(count);
        for (sequence, value) in batch.iter().zip(run(model, batch, longest)?) {
            worth[sequence.question][sequence.choice] = value;
        }
        progress.advance(count as u64);
        rest = later;
    }
    progress.finish();
    Ok((worth, truncated))
}

/// Answers questions.
///
/// # Errors
/// As [`likelihoods`].
pub fn answer(
    model: &dyn LanguageModel,
    codec: &dyn TextCodec,
    questions: &[Question],
    stage: &str,
    progress: &dyn Progress,
) -> Result<Answers> {
    let (worth, truncated) = likelihoods(model, codec, questions, stage, progress)?;
    let mut answers = Answers { truncated, ..Answers::default() };
    for (question, worth) in questions.iter().zip(&worth) {
        let by = |rule: &dyn Fn(&Likelihood, &str) -> f64| {
            let values: Vec<f64> =
                worth.iter().zip(&question.choices).map(|(w, c)| rule(w, c)).collect();
            best(&values)
        };
        let picks = [
            by(&|worth, _| worth.sum),
            by(&|worth, choice| worth.sum / choice.chars().count().max(1) as f64),
            by(&|worth, choice| worth.sum / choice.len().max(1) as f64),
            by(&|worth, _| worth.different / worth.tokens.max(1) as f64),
        ];
        answers.right.push(picks.map(|pick| pick == question.gold));
        answers.normalized.push(picks[1]);
    }
    Ok(answers)
}

/// Index of the largest value, the first of equals.
fn best(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// Adds the sequences of a question; the number of those that had to be cut.
fn encode(
    question: &Question,
    index: usize,
    codec: &dyn TextCodec,
    context: usize,
    sequences: &mut Vec<Sequence>,
) -> Result<usize> {
    let before = question.context.trim_end();
    let context_tokens = codec.encode(before, true)?.len();
    let all = question
        .choices
        .iter()
        .map(|choice| codec.encode(&format!("{before} {choice}"), true))
        .collect::<Result<Vec<_>>>()?;
    let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
    if shortest < 2 {
        return Err(Error::Calibration(format!("question {} has no text", index + 1)));
    }
    let common = (0..shortest)
        .position(|at| all.iter().any(|tokens| tokens[at] != all[0][at]))
        .unwrap_or(shortest)
        .clamp(1, shortest - 1);
    let mut truncated = 0;
    for (choice, mut tokens) in all.into_iter().enumerate() {
        // At least one token is predicted, from at least one before it.
        let mut continuation = context_tokens.clamp(1, tokens.len() - 1);
        let mut different = common;
        if tokens.len() > context {
            let cut = tokens.len() - context;
            tokens.drain(..cut);
            continuation = continuation.saturating_sub(cut).max(1);
            different = different.saturating_sub(cut).max(1);
            truncated += 1;
        }
        sequences.push(Sequence { question: index, choice, tokens, continuation, different });
    }
    Ok(truncated)
}

/// Log-probabilities of a choice, nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Likelihood {
    /// Sum over the tokens behind the context.
    pub sum: f64,
    /// Sum over the tokens behind what all choices have in common.
    pub different: f64,
    /// Number of those.
    pub tokens: usize,
}

/// Runs sequences side by side, padded to the longest. Padding is behind them, where no token that
/// counts can see it.
fn run(model: &dyn LanguageModel, batch: &[Sequence], longest: usize) -> Result<Vec<Likelihood>> {
    let mut tokens = Vec::with_capacity(batch.len() * longest);
    for sequence in batch {
        rows::check_tokens(&sequence.tokens, model.vocab_size())?;
        tokens.extend_from_slice(&sequence.tokens);
        let padding = sequence.tokens.last().copied().unwrap_or(0);
        tokens.resize(tokens.len() + longest - sequence.tokens.len(), padding);
    }
    let hidden = model.hidden(&tokens, batch.len())?;
    // Rows that predict a token that counts.
    let mut predicted = Vec::new();
    for (index, sequence) in batch.iter().enumerate() {
        let from = sequence.continuation.min(sequence.different);
        predicted.extend((from..sequence.tokens.len()).map(|at| (index, at)));
    }
    let mut worth = vec![Likelihood::default(); batch.len()];
    for part in predicted.chunks(rows::rows_per_block(model.vocab_size())) {
        let places: Vec<u32> =
            part.iter().map(|&(index, at)| (index * longest + at - 1) as u32).collect();
        let places = Tensor::new(places, hidden.device())?;
        let logits = model.logits(&hidden.index_select(&places, 0)?)?;
        let targets: Vec<u32> = part.iter().map(|&(index, at)| batch[index].tokens[at]).collect();
        let targets = rows::Targets { tokens: &targets, window: 0, position: 0 };
        let losses = rows::losses(&logits, &targets, "the model")?;
        for (&(index, at), loss) in part.iter().zip(losses) {
            let (sequence, worth) = (&batch[index], &mut worth[index]);
            if at >= sequence.continuation {
                worth.sum -= loss;
            }
            if at >= sequence.different {
                worth.different -= loss;
                worth.tokens += 1;
            }
        }
    }
    Ok(worth)
}

#[cfg(test)]
#[path = "choices_tests.rs"]
mod tests;
