//! Text that a model writes by itself: many sequences at once, so that weights are read once for a
//! token of each.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::decoder::Decoder;
use super::slices::{in_pool, with_f32};
use crate::arch::ModelConfig;
use crate::codec::vector::kernels;
use crate::{Error, Result};

/// Bytes of the keys and values that a sequence of `length` tokens has in the end.
#[must_use]
pub(crate) fn cache_bytes(config: &ModelConfig, length: usize) -> u64 {
    let width = config.num_kv_heads * config.head_dim;
    // Keys and values in f32; room is doubled as it grows.
    2 * 2 * 4 * (length * width * config.num_layers) as u64
}

/// Continues each of `prompts`, which are of one length, to `length` tokens by drawing from what
/// the model predicts (temperature 1, nothing cut off). Each sequence has a stream of random
/// numbers of its own, counted from `first`, so it does not depend on what is written beside it.
/// Gives `[prompts, length]` tokens. On the CPU only; [`cache_bytes`] says what it takes.
///
/// `after_token` is called after each token of all sequences and can stop it all.
///
/// # Errors
/// If prompts are empty, of several lengths or longer than `length`, or the model computes
/// something that is not a number.
pub(crate) fn continue_all(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    length: usize,
    (seed, first): (u64, u64),
    mut after_token: impl FnMut() -> Result<()>,
) -> Result<Vec<u32>> {
    let given = prompts.first().map_or(0, Vec::len);
    if given == 0 || given > length || prompts.iter().any(|prompt| prompt.len() != given) {
        return Err(Error::General(format!("prompts to continue to {length} tokens do not fit")));
    }
    let mut texts: Vec<Vec<u32>> = prompts.to_vec();
    let mut random: Vec<ChaCha8Rng> = (0..prompts.len() as u64)
        .map(|index| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(first + index);
            random
        })
        .collect();
    let mut seen = vec![vec![(Vec::new(), Vec::new()); prompts.len()]; decoder.blocks().len()];
    for position in 0..length - 1 {
        let tokens: Vec<u32> = texts.iter().map(|text| text[position]).collect();
        let hidden = decoder.step(&tokens, &mut seen, position)?;
        if position + 1 >= given {
            let vocabulary = decoder.config().vocab_size;
            let logits = decoder.logits(&hidden)?;
            let mut logits = with_f32(&logits, <[f32]>::to_vec)?;
            let draws: Vec<Option<u32>> = in_pool(|| {
                logits
                    .par_chunks_exact_mut(vocabulary)
                    .zip(&mut random)
                    .map(|(logits, random)| draw(logits, random.random()))
                    .collect()
            });
            for (text, token) in texts.iter_mut().zip(draws) {
                text.push(token.ok_or_else(|| {
                    Error::General("the model computes logits that are not finite numbers".into())
                })?);
            }
        }
        after_token()?;
    }
    Ok(texts.concat())
}

/// The token at `share` (0 to 1) of the probabilities laid end to end. The logits are used up.
fn draw(logits: &mut [f32], share: f32) -> Option<u32> {
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return None;
    }
    let largest = (kernels().max)(logits);
    let sum = (kernels().exp_sum)(logits, largest);
    let mut rest = share * sum;
    let mut last = 0;
    for (token, &weight) in logits.iter().enumerate() {
        if weight > 0.0 {
            last = token;
            if rest < weight {
                break;
            }
            rest -= weight;
        }
    }
    Some(last as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Backend;
    use crate::model::open_local;
    use std::path::Path;

    /// Against the graph without a cache: the same numbers are drawn from what it predicts.
    #[test]
    fn what_is_written_is_drawn_from_what_the_model_predicts() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
        let model = open_local(&folder).unwrap();
        let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
        let prompts: Vec<Vec<u32>> = (0..5).map(|i| vec![3 * i + 40, 7 * i + 60, 70]).collect();
        let length = 24;
        let mut calls = 0;
        let count = |calls: &mut usize| {
            *calls += 1;
            Ok(())
        };
        let texts =
            continue_all(&decoder, &prompts, length, (11, 0), || count(&mut calls)).unwrap();
        assert_eq!((texts.len(), calls), (5 * length, length - 1));
        let vocabulary = decoder.config().vocab_size;
        for (index, text) in texts.chunks_exact(length).enumerate() {
            assert_eq!(text[..3], prompts[index]);
            let logits = decoder.logits(&decoder.hidden(text, 1, None, None).unwrap()).unwrap();
            let mut logits = with_f32(&logits, <[f32]>::to_vec).unwrap();
            let mut random = ChaCha8Rng::seed_from_u64(11);
            random.set_stream(index as u64);
            for (at, logits) in logits.chunks_exact_mut(vocabulary).enumerate().skip(2) {
                let drawn = draw(logits, random.random());
                assert_eq!(drawn, text.get(at + 1).copied().or(drawn), "{index} at {at}");
            }
        }
        // Not changed by what is written beside it.
        let alone = continue_all(&decoder, &prompts[..1], length, (11, 0), || Ok(())).unwrap();
        assert_eq!(alone, texts[..length]);
        let last = continue_all(&decoder, &prompts[4..], length, (11, 4), || Ok(())).unwrap();
        assert_eq!(last, texts[4 * length..]);
        assert_ne!(
            continue_all(&decoder, &prompts[..1], length, (12, 0), || Ok(())).unwrap(),
            alone
        );
        // Refused, or stopped by the caller.
        let unequal = [vec![1], vec![1, 2]];
        assert!(continue_all(&decoder, &unequal, length, (1, 0), || Ok(())).is_err());
        assert!(continue_all(&decoder, &prompts, 2, (1, 0), || Ok(())).is_err());
        let stop = || Err(Error::Interrupted { resume: None });
        assert!(continue_all(&decoder, &prompts, length, (1, 0), stop).is_err());
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        // Probabilities 1/8, 1/2, 0, 3/8.
        let logits = [1.0f32.ln(), 4.0f32.ln(), f32::NEG_INFINITY, 3.0f32.ln()];
        let at = |share| draw(&mut logits.clone(), share).unwrap();
        for (share, token) in [(0.0f32, 0), (0.124, 0), (0.126, 1), (0.624, 1), (0.626, 3)] {
            assert_eq!(at(share), token, "{share}");
        }
        assert_eq!(at(1.0), 3);
        assert_eq!(draw(&mut [0.0, f32::NAN], 0.5), None);
        assert_eq!(draw(&mut [f32::INFINITY, 0.0], 0.5), None);
    }
}
