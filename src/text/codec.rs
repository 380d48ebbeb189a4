//! The model's tokenizer as what calibration and evaluation need.

use super::TextCodec;
use crate::Result;
use crate::tokenizer::Tokenizer;

impl TextCodec for Tokenizer {
    /// A text that begins with the leading token already, as a rendered conversation may, does not
    /// get it twice.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text, add_special)?;
        if add_special
            && let (Some(lead), [first, second, ..]) = (self.leading_token(), tokens.as_slice())
            && *first == lead
            && *second == lead
        {
            tokens.remove(0);
        }
        Ok(tokens)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.decode(tokens, true)
    }

    fn leading_token(&self) -> Option<u32> {
        self.bos().filter(|_| self.adds_bos())
    }

    fn separator(&self) -> Option<u32> {
        self.eos()
    }
}
