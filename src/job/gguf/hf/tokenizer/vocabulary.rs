//! Tokens with their types and scores, one per row of the embedding.

use super::files::{AddedToken, looks_special};
use crate::base::lists;

/// Values of `tokenizer.ggml.token_type`.
pub(super) mod kind {
    pub(in super::super) const NORMAL: i32 = 1;
    pub(in super::super) const UNKNOWN: i32 = 2;
    pub(in super::super) const CONTROL: i32 = 3;
    pub(in super::super) const USER_DEFINED: i32 = 4;
    pub(in super::super) const UNUSED: i32 = 5;
    pub(in super::super) const BYTE: i32 = 6;
}

/// Scores of ids that have no token, and of tokens that were added later.
pub(super) const UNUSED_SCORE: f32 = -10_000.0;
const ADDED_SCORE: f32 = -1000.0;

/// A vocabulary under construction: every id has a token from the start, `[PAD{id}]`.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<Vec<u8>>,
    pub(super) kinds: Vec<i32>,
    pub(super) scores: Vec<f32>,
}

impl Vocabulary {
    /// `size` unused tokens.
    pub(super) fn unused(size: usize) -> Self {
        Self {
            tokens: (0..size).map(|id| format!("[PAD{id}]").into_bytes()).collect(),
            kinds: vec![kind::UNUSED; size],
            scores: vec![UNUSED_SCORE; size],
        }
    }

    /// Sets a token; `false` if the embedding has no row for it.
    pub(super) fn set(&mut self, id: usize, token: &[u8], kind: i32, score: f32) -> bool {
        if id >= self.tokens.len() {
            return false;
        }
        self.tokens[id] = token.to_vec();
        self.kinds[id] = kind;
        self.scores[id] = score;
        true
    }

    /// Sets the added tokens: special ones steer the model, others stand for their text, with blanks
    /// as blanks. One that the vocabulary calls unknown stays so.
    pub(super) fn add(&mut self, added: &[AddedToken], warnings: &mut Vec<String>) {
        let mut outside = Vec::new();
        for AddedToken { id, content, special } in added {
            let before = self.kinds.get(*id).copied();
            let (text, kind) = if before == Some(kind::UNKNOWN) {
                (content.clone(), kind::UNKNOWN)
            } else if *special || looks_special(content) {
                (content.clone(), kind::CONTROL)
            } else {
                (content.replace('▁', " "), kind::USER_DEFINED)
            };
            if !self.set(*id, text.as_bytes(), kind, ADDED_SCORE) {
                outside.push(content.as_str());
            }
        }
        if !outside.is_empty() {
            warnings.push(format!(
                "{} added tokens have ids beyond the {} rows of the embedding and are left out: {}",
                outside.len(),
                self.tokens.len(),
                lists::some_of(&outside)
            ));
        }
    }

    /// Makes texts unique, as loaders want them: a text that an earlier id has becomes `[PAD{id}]`.
    pub(super) fn deduplicate(&mut self, warnings: &mut Vec<String>) {
        let mut seen = std::collections::HashSet::new();
        let mut twice = 0;
        for id in 0..self.tokens.len() {
            if !seen.insert(self.tokens[id].clone()) {
                twice += 1;
                self.tokens[id] = format!("[PAD{id}]").into_bytes();
                self.kinds[id] = kind::UNUSED;
            }
        }
        if twice > 0 {
            warnings.push(format!(
                "{twice} tokens have the text of an earlier one and are marked as unused"
            ));
        }
    }

    /// The id of a token by its text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let at = self.tokens.iter().position(|token| token == text.as_bytes())?;
        u32::try_from(at).ok()
    }
}
