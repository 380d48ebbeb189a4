//! Text to token ids and back, with the model's own `tokenizer.json`.

mod charsmap;
pub mod chat;
mod chat_functions;
mod chat_size;
pub(crate) mod gguf_tokenizer;
pub(crate) mod library;
pub(crate) mod pre_tokenizers;
mod rules;
mod text_pieces;

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use crate::base::json;
use crate::{Error, Result};
use chat::{ChatMessage, ChatTemplate};
use library::Library;
use text_pieces::Cutter;

/// The tokenizer of a model.
pub struct Tokenizer {
    inner: Library,
    /// How long texts may be cut, and the tokenizer of the later pieces where that differs (it
    /// puts no blank in front).
    cutter: Arc<Cutter>,
    continuation: Option<Library>,
    /// What the model wants around a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    end_tokens: Vec<u32>,
    template: Option<ChatTemplate>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.vocab_size())
            .field("cutter", &self.cutter)
            .field("bos", &self.bos)
            .field("end_tokens", &self.end_tokens)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// A tokenizer from the text of `tokenizer.json` and, if there is one, of
    /// `tokenizer_config.json` (special tokens, chat template). `path` is for messages.
    pub fn from_json(json: &str, config: Option<&str>, path: &Path) -> Result<Self> {
        let damaged = |e: String| Error::damaged(path, format!("tokenizer.json: {e}"));
        let root: Value = json::read(json).map_err(|e| damaged(e.to_string()))?;
        let inner = Library::load(json, &root, path)?;
        let (cutter, continued) = Cutter::of(&root);
        let continuation =
            continued.map(|root| Library::load(&root.to_string(), &root, path)).transpose()?;
        let framed = frame(&inner).map_err(|error| match error {
            Error::General(message) => damaged(message),
            other => other,
        })?;
        let (prefix, suffix) = framed
            .ok_or_else(|| damaged("the post-processor changes the tokens of a text".to_owned()))?;
        let config: Value = match config {
            None => Value::Null,
            Some(text) => json::read(text)
                .map_err(|e| Error::damaged(path, format!("tokenizer_config.json: {e}")))?,
        };
        let special = |name: &str| special_token(&config, name);
        let id = |name: &str| special(name).and_then(|text| inner.vocabulary().token_to_id(&text));
        let (bos, eos) = (id("bos_token"), id("eos_token"));
        let template = ChatTemplate::from_config(&config);
        Ok(Self {
            bos,
            end_tokens: eos.into_iter().collect(),
            inner,
            cutter: Arc::new(cutter),
            continuation,
            prefix,
            suffix,
            template,
        })
    }

    /// With the model's first token, if it names one, and its end tokens before those that the
    /// tokenizer names.
    #[must_use]
    pub fn with_model_tokens(mut self, bos: Option<u32>, end_tokens: &[u32]) -> Self {
        if bos.is_some() {
            self.bos = bos;
        }
        let own = std::mem::replace(&mut self.end_tokens, end_tokens.to_vec());
        for id in own {
            if !self.end_tokens.contains(&id) {
                self.end_tokens.push(id);
            }
        }
        self
    }

    /// Token ids of a text. With `add_special` the model's BOS and EOS tokens are put around it,
    /// if the model was trained so.
    ///
    /// Texts are cut at places that no token can span: long ones into pieces that are encoded in
    /// parallel, pieces into words that are encoded once. The ids are those of the whole text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let pieces = self.cutter.pieces(text, rayon::current_num_threads());
        let encoded: Vec<Vec<u32>> = pieces
            .par_iter()
            .enumerate()
            .map(|(i, piece)| {
                let tokenizer = match &self.continuation {
                    Some(continuation) if i > 0 => continuation,
                    _ => &self.inner,
                };
                tokenizer.encode_words(&self.cutter, piece)
            })
            .collect::<Result<_>>()?;
        let (prefix, suffix): (&[u32], &[u32]) =
            if add_special { (&self.prefix, &self.suffix) } else { (&[], &[]) };
        let length = encoded.iter().map(Vec::len).sum::<usize>() + prefix.len() + suffix.len();
        let mut ids = Vec::with_capacity(length);
        ids.extend_from_slice(prefix);
        for piece in encoded {
            ids.extend_from_slice(&piece);
        }
        ids.extend_from_slice(suffix);
        Ok(ids)
    }

    /// The text of token ids, without special tokens if `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special)
    }

    /// Text of tokens as they are generated.
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// Number of token ids, added tokens included. The model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.vocabulary().get_vocab_size(true)
    }

    /// The token that begins a text, if the model has one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether [`Self::encode`] with `add_special` begins with [`Self::bos`].
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some() && self.prefix.first().copied() == self.bos
    }

    /// The first of the tokens that end a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.end_tokens.first().copied()
    }

    /// All tokens that end a generation.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The id of a token by its text.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.vocabulary().token_to_id(token)
    }

    /// The text of one token as it stands in the vocabulary.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.vocabulary().id_to_token(id)
    }

    /// The chat template, if the model has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Token ids of a conversation, in the model's chat format, ready for the assistant's answer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no chat template, [`Error::InvalidArgument`] if the
    /// template refuses the messages.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| Error::Unsupported {
            message: "the model has no chat template".to_owned(),
            suggestion: "Give a plain prompt instead of a chat".to_owned(),
        })?;
        // The template writes the special tokens itself.
        self.encode(&template.render(messages, true)?, false)
    }
}

/// What the post-processor puts around a text, seen on a short one; `None` if it changes the text.
fn frame(tokenizer: &Library) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    let bare = tokenizer.encode("a", false)?;
    let framed = tokenizer.encode("a", true)?;
    let at = framed.windows(bare.len().max(1)).position(|window| window == bare);
    Ok(match at {
        Some(at) => Some((framed[..at].to_vec(), framed[at + bare.len()..].to_vec())),
        // A vocabulary without "a" gives no tokens to look for.
        None if bare.is_empty() => Some((framed, Vec::new())),
        None => None,
    })
}

/// A special token of `tokenizer_config.json`: a text, or an object with `content`.
pub(crate) fn special_token(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// Decodes tokens one by one. A character whose bytes are spread over several tokens appears when
/// it is complete.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The tokens of the last text that appeared and those after it: how a token reads depends on
    /// its neighbours.
    ids: Vec<u32>,
    /// How many of `ids` have appeared.
    shown: usize,
}

impl TextStream<'_> {
    /// The text that a further token completes; empty if it completes none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, now) = self.texts()?;
        if now.len() <= before.len() || now.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let text = now.get(before.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }

    /// What is left at the end: an incomplete character, as replacement characters.
    pub fn finish(self) -> Result<String> {
        let (before, now) = self.texts()?;
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    fn texts(&self) -> Result<(String, String)> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip_special);
        Ok((decode(&self.ids[..self.shown])?, decode(&self.ids)?))
    }
}
