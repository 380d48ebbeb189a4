//! Text to calibrate on and to measure with: where it comes from ([`source`]), and how it is cut into
//! tokens ([`windows`]).

pub mod builtin;
mod codec;
pub mod documents;
pub(crate) mod options;
pub(crate) mod source;
pub mod wikitext;
pub(crate) mod windows;
mod zip;

pub use options::TextOptions;

use crate::Result;

pub use source::{TextRequest, TextSource};
pub use windows::{CalibrationWindows, EvaluationWindows, Protocol};

/// What this module and [`crate::measure`] need of a tokenizer.
pub trait TextCodec {
    /// Tokens of a text; with `add_special`, framed as the tokenizer's own rule says.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>>;

    /// Text of tokens, special tokens left out.
    fn decode(&self, tokens: &[u32]) -> Result<String>;

    /// The token that [`Self::encode`] puts first when it adds special tokens, if it does.
    fn leading_token(&self) -> Option<u32>;

    /// The token that ends a document, put between two documents when the tokenizer does not frame
    /// them itself.
    fn separator(&self) -> Option<u32>;
}
