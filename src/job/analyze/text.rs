//! The tokens that an analysis reads.

use sha2::{Digest, Sha256};

use super::request::{AnalyzeRequest, Samples};
use crate::base::progress::Progress;
use crate::files::checkpoint::hexadecimal;
use crate::text::documents::{ChatRenderer, Coverage, DocumentFile};
use crate::text::options::open_text;
use crate::text::{CalibrationWindows, TextCodec, windows};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::ChatMessage;
use crate::{Error, Result};

/// Bytes of text that are read for a token that is wanted, and the least and the most of a file.
const BYTES_PER_TOKEN: usize = 64;
const LEAST_TEXT: usize = 4 << 20;
const MOST_TEXT: usize = 256 << 20;

/// Chunks of text, all of one length.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    /// `[count, length]`.
    pub(super) tokens: Vec<u32>,
    /// Tokens of a chunk.
    pub(super) length: usize,
    /// Where the text comes from: `wikitext-2 train`, `built-in`, or a file name.
    pub(super) dataset: String,
    /// SHA-256 of the documents.
    pub(super) sha256: String,
}

impl Chunks {
    /// Number of chunks.
    pub(super) fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// SHA-256 of the tokens: what decides the result.
    pub(super) fn token_hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.length as u64).to_le_bytes());
        for token in &self.tokens {
            hash.update(token.to_le_bytes());
        }
        hexadecimal(&hash.finalize())
    }
}

/// Opens the text and cuts it.
///
/// # Errors
/// [`Error::Calibration`] when the text cannot be read or does not fill a chunk;
/// [`Error::InvalidArgument`] for chunks that the model cannot read.
pub(super) fn read(
    request: &AnalyzeRequest,
    tokenizer: &Tokenizer,
    length: usize,
    progress: &dyn Progress,
) -> Result<Chunks> {
    let (documents, dataset) = documents(request, tokenizer, length, progress)?;
    let (tokens, wanted) = match request.samples {
        Samples::Spread(count) => {
            let windows =
                CalibrationWindows::sample(&documents, tokenizer, count, length, request.seed)?;
            (windows.tokens, Some(count))
        }
        Samples::First(limit) => (consecutive(&documents, tokenizer, length, limit)?, limit),
    };
    let chunks = Chunks { tokens, length, dataset, sha256: hash(&documents) };
    if let Some(wanted) = wanted
        && chunks.count() < wanted
    {
        progress.warn(&format!(
            "{} gives {} of {wanted} samples of {length} tokens",
            chunks.dataset,
            chunks.count()
        ));
    }
    Ok(chunks)
}

fn documents(
    request: &AnalyzeRequest,
    tokenizer: &Tokenizer,
    length: usize,
    progress: &dyn Progress,
) -> Result<(Vec<String>, String)> {
    let (coverage, samples) = match request.samples {
        Samples::Spread(count) => (Coverage::Spread, count),
        Samples::First(limit) => (Coverage::First, limit.unwrap_or(usize::MAX)),
    };
    let Some(path) = &request.text.calibration else {
        let tokens = samples.min(1 << 20).saturating_mul(length);
        let source = open_text(&request.text, tokenizer, tokens, Some(length), progress)?;
        return Ok((source.calibration, source.name));
    };
    let render = tokenizer
        .chat_template()
        .map(|template| |messages: &[ChatMessage]| template.render(messages, false));
    let file = DocumentFile::open(path, render.as_ref().map(|r| r as ChatRenderer<'_>))?;
    let limit = samples.saturating_mul(length).saturating_mul(BYTES_PER_TOKEN);
    let documents = file.read(coverage, limit.clamp(LEAST_TEXT, MOST_TEXT))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok((documents, name))
}

/// The chunks of `llama-imatrix`: the text as one stream, cut every `length` tokens, the first token
/// of each chunk replaced by the leading one.
fn consecutive(
    documents: &[String],
    codec: &dyn TextCodec,
    length: usize,
    limit: Option<usize>,
) -> Result<Vec<u32>> {
    let mut tokens = windows::encode(documents, codec, true)?;
    let count = (tokens.len() / length).min(limit.unwrap_or(usize::MAX));
    if count == 0 {
        return Err(Error::Calibration(format!(
            "the calibration text has {} tokens, less than one sample of {length}",
            tokens.len()
        )));
    }
    tokens.truncate(count * length);
    if let Some(lead) = codec.leading_token() {
        tokens.iter_mut().step_by(length).for_each(|token| *token = lead);
    }
    Ok(tokens)
}

/// SHA-256 of a single document's bytes; of several, each preceded by its length.
fn hash(documents: &[String]) -> String {
    let mut hash = Sha256::new();
    for document in documents {
        if documents.len() > 1 {
            hash.update((document.len() as u64).to_le_bytes());
        }
        hash.update(document);
    }
    hexadecimal(&hash.finalize())
}
