//! Token windows: samples to calibrate on, taken from everywhere in the text, and windows to
//! measure with, cut the way the papers or llama.cpp do.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TextCodec;
use crate::{Error, Result};

/// Text encoded for one calibration window when the text is much longer than the windows, bytes
/// per token of the window. English takes four to five.
const BYTES_PER_TOKEN: usize = 12;

/// Samples to calibrate on, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationWindows {
    /// All windows one after the other, `[count, length]`.
    pub tokens: Vec<u32>,
    /// Tokens of a window.
    pub length: usize,
}

impl CalibrationWindows {
    /// Takes up to `count` windows of `length` tokens that do not overlap: the text is divided into
    /// `count` equal parts and each gives one window, from a place drawn with `seed`. A window
    /// begins with the tokenizer's leading token, if it has one, as every text does that the model
    /// will see. A text that is too short gives fewer windows.
    ///
    /// # Errors
    /// [`Error::Calibration`] when the text does not fill a single window.
    pub fn sample(
        documents: &[String],
        codec: &dyn TextCodec,
        count: usize,
        length: usize,
        seed: u64,
    ) -> Result<Self> {
        if count == 0 || length < 2 {
            return Err(Error::InvalidArgument(format!(
                "{count} calibration windows of {length} tokens are nothing to calibrate on"
            )));
        }
        let lead = codec.leading_token();
        let body = length - usize::from(lead.is_some());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let total: usize = documents.iter().map(String::len).sum();
        let mut windows = Self { tokens: Vec::new(), length };
        if total / count >= BYTES_PER_TOKEN.saturating_mul(length) {
            for part in 0..count {
                let part = share(total, part, count)..share(total, part + 1, count);
                let tokens = sample_part(documents, codec, part, body, &mut random)?;
                windows.push(lead, &tokens);
            }
        }
        if windows.tokens.is_empty() {
            let stream = encode(documents, codec, false)?;
            let count = count.min(stream.len() / body);
            for part in 0..count {
                let part = share(stream.len(), part, count)..share(stream.len(), part + 1, count);
                let start = random.random_range(part.start..=part.end - body);
                windows.push(lead, &stream[start..start + body]);
            }
        }
        if windows.tokens.is_empty() {
            return Err(Error::Calibration(format!(
                "the calibration text is shorter than one window of {length} tokens"
            )));
        }
        Ok(windows)
    }

    fn push(&mut self, lead: Option<u32>, body: &[u32]) {
        if body.len() + usize::from(lead.is_some()) == self.length {
            self.tokens.extend(lead);
            self.tokens.extend_from_slice(body);
        }
    }

    /// Number of windows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// The windows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.length)
    }
}

/// Where a window for measuring is cut and which of its tokens are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// As published perplexities are measured: consecutive windows of the whole tokenized text,
    /// every token after the first of a window scored.
    Papers {
        /// Tokens of a window: the model's context, at most 2,048.
        length: usize,
    },
    /// As llama-perplexity measures: each window begins with the leading token (in place of its own
    /// first token), and the tokens after the middle are scored, so that each has at least half a
    /// window before it.
    LlamaCpp {
        /// Tokens of a window (512 by default there).
        length: usize,
    },
}

impl Protocol {
    /// The papers' protocol for a model with this context.
    #[must_use]
    pub fn papers(context: usize) -> Self {
        Self::Papers { length: context.clamp(2, 2048) }
    }

    /// Tokens of a window.
    #[must_use]
    pub fn length(self) -> usize {
        match self {
            Self::Papers { length } | Self::LlamaCpp { length } => length,
        }
    }

    /// First token of a window that is scored.
    #[must_use]
    pub fn first_target(self) -> usize {
        match self {
            Self::Papers { .. } => 1,
            Self::LlamaCpp { length } => length / 2 + 1,
        }
    }
}

/// Windows to measure with, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationWindows {
    /// All windows one after the other, `[count, length]`.
    pub tokens: Vec<u32>,
    /// Tokens of a window.
    pub length: usize,
    /// First token of a window that is scored, at least 1; it and all behind it are.
    pub first_target: usize,
    /// Windows that the whole text gives; more than [`Self::count`] when the number was limited.
    pub available: usize,
}

impl EvaluationWindows {
    /// Cuts the text into consecutive windows that do not overlap; what is left at the end is not
    /// used, unless the text is shorter than one window of the papers' protocol, which it then is.
    /// At most `limit` windows, the first ones, as llama-perplexity's `--chunks`.
    ///
    /// # Errors
    /// [`Error::Calibration`] when there is too little text to score a token, and for llama.cpp's
    /// protocol when it is less than the two windows that llama-perplexity asks for.
    pub fn cut(
        documents: &[String],
        codec: &dyn TextCodec,
        protocol: Protocol,
        limit: Option<usize>,
    ) -> Result<Self> {
        let stream = encode(documents, codec, true)?;
        Self::from_stream(stream, codec.leading_token(), protocol, limit)
    }

    /// [`Self::cut`] for text that is tokenized already.
    pub fn from_stream(
        mut tokens: Vec<u32>,
        leading_token: Option<u32>,
        protocol: Protocol,
        limit: Option<usize>,
    ) -> Result<Self> {
        let least = match protocol {
            Protocol::Papers { length } => length.min(2),
            Protocol::LlamaCpp { length } => 2 * length,
        };
        let mut length = protocol.length();
        let first_target = protocol.first_target();
        if length <= first_target || limit == Some(0) {
            return Err(Error::InvalidArgument(format!(
                "windows of {length} tokens, at most {limit:?}, score no token"
            )));
        }
        if tokens.len() < least {
            return Err(Error::Calibration(format!(
                "the text to measure with has {} tokens, {least} are needed",
                tokens.len()
            )));
        }
        if tokens.len() < length {
            length = tokens.len();
        }
        let available = tokens.len() / length;
        tokens.truncate(limit.unwrap_or(available).min(available) * length);
        if let (Protocol::LlamaCpp { .. }, Some(lead)) = (protocol, leading_token) {
            tokens.iter_mut().step_by(length).for_each(|token| *token = lead);
        }
        Ok(Self { tokens, length, first_target, available })
    }

    /// Number of windows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// Tokens of a window that are scored.
    #[must_use]
    pub fn targets_per_window(&self) -> usize {
        self.length - self.first_target
    }

    /// The windows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.length)
    }
}

/// Encodes documents into one stream. With `add_special` each is framed as the tokenizer's rule
/// says. Without, the leading token stands between documents, as it does in a framed stream; where
/// a tokenizer frames nothing, the separator does.
pub(crate) fn encode(
    documents: &[String],
    codec: &dyn TextCodec,
    add_special: bool,
) -> Result<Vec<u32>> {
    let framed = add_special && codec.leading_token().is_some();
    let between = codec.leading_token().or(codec.separator());
    let mut stream = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 && !framed {
            stream.extend(between);
        }
        stream.extend(codec.encode(document, add_special)?);
    }
    Ok(stream)
}

/// Tokens for one window out of a part (a byte range of all documents laid end to end), or fewer
/// when the part has not enough.
fn sample_part(
    documents: &[String],
    codec: &dyn TextCodec,
    part: Range<usize>,
    tokens: usize,
    random: &mut ChaCha8Rng,
) -> Result<Vec<u32>> {
    let mut bytes = BYTES_PER_TOKEN.saturating_mul(tokens).min(part.len());
    // Not after the place from which that many bytes are left.
    let start = random.random_range(part.start..=part.end - bytes);
    loop {
        let pieces = texts(documents, start..start + bytes);
        let mut stream = encode(&pieces, codec, false)?;
        let rest = part.end - start;
        if stream.len() >= tokens || bytes == rest {
            stream.truncate(tokens);
            return Ok(stream);
        }
        bytes = (2 * bytes).min(rest);
    }
}

/// The text of a byte range of all documents laid end to end, one piece for each document that it
/// touches. The beginning is moved to a line or at least a character.
fn texts(documents: &[String], range: Range<usize>) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for document in documents {
        let end = offset + document.len();
        if end > range.start && offset < range.end {
            let mut from = character_start(document, range.start.saturating_sub(offset));
            let to = character_start(document, (range.end - offset).min(document.len()));
            let text = document.get(from..to).unwrap_or("");
            if from > 0
                && let Some(line) = text.find('\n')
                // A line that begins far behind would leave too little of the range.
                && line < text.len() / 2
            {
                from += line + 1;
            }
            let text = document.get(from..to).unwrap_or("");
            if !text.is_empty() {
                pieces.push(text.to_owned());
            }
        }
        offset = end;
    }
    pieces
}

/// The first place at `at` or later where a character begins (or the end).
fn character_start(text: &str, at: usize) -> usize {
    (at..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
}

/// `total · part / parts` without overflow.
fn share(total: usize, part: usize, parts: usize) -> usize {
    (total as u128 * part as u128 / parts as u128) as usize
}
