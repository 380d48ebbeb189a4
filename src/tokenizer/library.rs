//! The `tokenizers` library behind checks: it takes files at their word, and panics or never ends on
//! those that lie. See [`crate::confine`].

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::rules::{self, Tame};
use super::text_pieces::Cutter;
use crate::confine::{self, Fault, Limits};
use crate::{Error, Result};

const STACK: usize = 64 << 20;
/// Bytes for each byte of the file: the library keeps vocabulary and merges in hash tables, and all
/// of the file twice while it reads.
const MEMORY_PER_BYTE: usize = 50;
const LEAST_MEMORY: usize = 256 << 20;
/// Bytes for each byte of a text: offsets of all its bytes, twice, and its tokens.
const MEMORY_PER_BYTE_OF_TEXT: usize = 1000;
const LEAST_TIME: Duration = Duration::from_secs(5);
/// The library reads several megabytes a second, and encodes about one.
const TIME_PER_BYTE: Duration = Duration::from_micros(20);

/// A tokenizer of the library.
#[derive(Clone)]
pub(crate) struct Library {
    inner: Arc<tokenizers::Tokenizer>,
    tame: Tame,
    path: Arc<PathBuf>,
}

fn limits(bytes: usize, memory_per_byte: usize) -> Limits {
    Limits {
        memory: LEAST_MEMORY.saturating_add(bytes.saturating_mul(memory_per_byte)),
        stack: STACK,
        time: LEAST_TIME + TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX),
    }
}

impl Library {
    /// Reads a `tokenizer.json`, whose parsed text is `root`. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::ValidationFailed`].
    pub(crate) fn load(text: &str, root: &Value, path: &Path) -> Result<Self> {
        let damaged = |e: String| Error::damaged(path, format!("tokenizer.json: {e}"));
        rules::check(root).map_err(damaged)?;
        let own = text.to_owned();
        let inner = confine::run(limits(text.len(), MEMORY_PER_BYTE), move || {
            let mut inner = tokenizers::Tokenizer::from_bytes(own)?;
            // Some checkpoints keep the settings of their last training run.
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok::<_, tokenizers::Error>(inner)
        });
        let inner = match inner {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Err(fault) => return Err(damaged(format!("it cannot be read: {fault}"))),
        };
        Ok(Self {
            inner: Arc::new(inner),
            tame: Tame::of(root),
            path: Arc::new(path.to_path_buf()),
        })
    }

    /// What the library knows of the vocabulary.
    pub(super) fn vocabulary(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Token ids of a text.
    pub(crate) fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encode = move |inner: &tokenizers::Tokenizer, text: &str| {
            Ok(inner.encode_fast(text, add_special)?.get_ids().to_vec())
        };
        let done = if self.tame.encoding {
            confine::catch(|| encode(&self.inner, text))
        } else {
            let (inner, text) = (Arc::clone(&self.inner), text.to_owned());
            confine::run(limits(text.len(), MEMORY_PER_BYTE_OF_TEXT), move || encode(&inner, &text))
        };
        self.outcome(done, "text cannot be tokenized")
    }

    /// Token ids of a piece of text, word by word; each different word is encoded once.
    pub(super) fn encode_words(&self, cutter: &Arc<Cutter>, piece: &str) -> Result<Vec<u32>> {
        let done = if self.tame.encoding {
            confine::catch(|| encode_words(&self.inner, cutter.words(piece)))
        } else {
            let (inner, cutter) = (Arc::clone(&self.inner), Arc::clone(cutter));
            let piece = piece.to_owned();
            confine::run(limits(piece.len(), MEMORY_PER_BYTE_OF_TEXT), move || {
                encode_words(&inner, cutter.words(&piece))
            })
        };
        self.outcome(done, "text cannot be tokenized")
    }

    /// The text of token ids.
    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        // One of the library's decoders takes it for granted that there is a token.
        if ids.is_empty() {
            return Ok(String::new());
        }
        let done = if self.tame.decoding {
            confine::catch(|| self.inner.decode(ids, skip_special))
        } else {
            let (inner, ids) = (Arc::clone(&self.inner), ids.to_vec());
            confine::run(limits(ids.len() * 16, MEMORY_PER_BYTE_OF_TEXT), move || {
                inner.decode(&ids, skip_special)
            })
        };
        self.outcome(done, "token ids cannot be decoded")
    }

    fn outcome<T>(
        &self,
        done: std::result::Result<tokenizers::Result<T>, Fault>,
        what: &str,
    ) -> Result<T> {
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::General(format!("{what}: {error}"))),
            Err(fault) => {
                Err(Error::damaged(&*self.path, format!("tokenizer.json: {what} with it: {fault}")))
            }
        }
    }
}

fn encode_words(
    tokenizer: &tokenizers::Tokenizer,
    words: Vec<&str>,
) -> tokenizers::Result<Vec<u32>> {
    let mut ids = Vec::new();
    // Where the ids of a word were put first.
    let mut known: HashMap<&str, Range<usize>> = HashMap::new();
    for word in words {
        if let Some(range) = known.get(word) {
            ids.extend_from_within(range.clone());
            continue;
        }
        let encoding = tokenizer.encode_fast(word, false)?;
        let start = ids.len();
        ids.extend_from_slice(encoding.get_ids());
        known.insert(word, start..ids.len());
    }
    Ok(ids)
}
