//! Text to calibrate on and to measure with: where it comes from ([`text`]), how it is cut into
//! tokens ([`windows`]), and what a model's linear layers receive while they read it
//! ([`statistics`]).

pub mod builtin;
mod codec;
pub mod documents;
pub mod options;
pub mod statistics;
pub mod text;
pub mod wikitext;
pub mod windows;
mod zip;

use crate::Result;

pub use statistics::{ChannelStatistics, InputStatistics};
pub use text::{TextRequest, TextSource};
pub use windows::{CalibrationWindows, EvaluationWindows, Protocol};

/// What this module and [`crate::eval`] need of a tokenizer.
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
