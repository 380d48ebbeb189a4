//! The decoder as something that can be measured.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::{Decoding, LanguageModel, TextGenerator};
use crate::graph::{CacheType, Decoder, Generator, Sampling};
use crate::{Error, Result};

impl LanguageModel for Decoder {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn context(&self) -> usize {
        self.config().max_positions
    }

    fn hidden(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        self.hidden(tokens, batch, None, None)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.logits(hidden)
    }
}

impl From<Decoding> for Sampling {
    fn from(decoding: Decoding) -> Self {
        match decoding {
            Decoding::Greedy => Self::default(),
            Decoding::Sampled { temperature, top_p, seed } => {
                Self { temperature, top_p: Some(top_p), top_k: None, seed }
            }
        }
    }
}

impl TextGenerator for Decoder {
    fn generate(&self, prompt: &[u32], tokens: usize, decoding: Decoding) -> Result<Vec<u32>> {
        let mut generator = Generator::new(self, &decoding.into(), CacheType::F32)?;
        let mut text = Vec::with_capacity(tokens);
        let mut input = prompt.to_vec();
        while text.len() < tokens {
            let wanted = tokens - text.len();
            let generated = generator.generate(&input, wanted, |_| ControlFlow::Continue(()))?;
            text.extend(&generated.tokens);
            if generated.tokens.len() == wanted {
                break;
            }
            // The text ended; go on behind the end.
            let end = self.config().eos_token_ids.first().copied().ok_or_else(|| {
                let stop = generated.stop;
                Error::General(format!("the generation stopped early ({stop:?})"))
            })?;
            text.push(end);
            input = vec![end];
        }
        Ok(text)
    }
}
