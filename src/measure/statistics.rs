//! What the linear layers of a model receive: the mean square of every input channel, by which a
//! factorization weighs its errors (a column that carries large activations must be exact).
//!
//! Two guards, as in arXiv 2602.06694: single tokens with enormous activations (the first one of a
//! text, mostly) are scaled down so that they do not decide everything, and the result is drawn a
//! little towards its mean. Sums are f64 and are made in the order of the tokens, so the figures do
//! not depend on the number of threads.

use candle_core::Tensor;
use indexmap::IndexMap;
use rayon::prelude::*;

use crate::graph::Observer;
use crate::graph::slices::with_f32;
use crate::{Error, Result};

/// Norm, as a quantile of the tokens of a batch, above which a token is scaled down.
pub const CLIP_QUANTILE: f64 = 0.999;
/// How far [`ChannelStatistics::weights`] are drawn towards their mean.
pub const SHRINKAGE: f64 = 0.2;

/// First bytes of the stored form.
const MAGIC: &[u8; 8] = b"lqstats1";
/// Channels that a thread sums together.
const BLOCK: usize = 256;

/// Statistics of one linear layer's inputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChannelStatistics {
    /// Sum over the tokens of the squared (clipped) input, one for each input channel.
    pub sum_squares: Vec<f64>,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens that were scaled down.
    pub clipped_tokens: u64,
    /// Largest batch quantile so far: the norm to which tokens are scaled down.
    pub clip_norm: f64,
}

impl ChannelStatistics {
    /// Mean square of each input channel.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f64> {
        let count = self.tokens.max(1) as f64;
        self.sum_squares.iter().map(|sum| sum / count).collect()
    }

    /// Weights for a factorization: mean squares drawn towards their mean,
    /// `0.8 d + 0.2 mean(d)`, so that no channel counts for nothing.
    #[must_use]
    pub fn weights(&self) -> Vec<f64> {
        shrink(&self.mean_squares(), SHRINKAGE)
    }
}

/// `(1 − amount) d + amount · mean(d)`.
#[must_use]
pub fn shrink(values: &[f64], amount: f64) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter().map(|value| (1.0 - amount) * value + amount * mean).collect()
}

/// Collects [`ChannelStatistics`] for every linear layer of a model while it reads text.
#[derive(Debug, Default)]
pub struct InputStatistics {
    /// By name of the linear layer (`model.layers.0.mlp.up_proj`), in the order of first sight.
    pub layers: IndexMap<String, ChannelStatistics>,
    /// Whether tokens with enormous norms are counted as they are.
    unclipped: bool,
}

/// What one input adds.
#[derive(Debug, Clone)]
struct Batch {
    sums: Vec<f64>,
    clip_norm: f64,
    clipped: u64,
}

impl InputStatistics {
    /// With clipping.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts every token as it is.
    #[must_use]
    pub fn without_clipping() -> Self {
        Self { unclipped: true, ..Self::default() }
    }

    /// Adds the input that the named linear layers share, f32 `[tokens, in]`.
    ///
    /// # Errors
    /// [`Error::General`] naming the layer when a value is not finite or the number of channels
    /// changes.
    pub fn add(&mut self, names: &[&str], input: &Tensor) -> Result<()> {
        let (tokens, channels) = input.dims2()?;
        let Some(first) = names.first().filter(|_| tokens > 0 && channels > 0) else {
            return Ok(());
        };
        // Layers that share their inputs have the same norm to clip at.
        let clip_norm = self.layers.get(*first).map_or(0.0, |layer| layer.clip_norm);
        let batch = Batch::of(input, (!self.unclipped).then_some(clip_norm))
            .map_err(|error| Error::General(format!("input of {first}: {error}")))?;
        for name in names {
            let layer = self.layers.entry((*name).to_owned()).or_default();
            if layer.tokens == 0 {
                layer.sum_squares = vec![0.0; channels];
            } else if layer.sum_squares.len() != channels {
                return Err(Error::General(format!(
                    "{name}: input of {channels} channels after inputs of {}",
                    layer.sum_squares.len()
                )));
            }
            for (sum, add) in layer.sum_squares.iter_mut().zip(&batch.sums) {
                *sum += add;
            }
            layer.tokens += tokens as u64;
            layer.clipped_tokens += batch.clipped;
            layer.clip_norm = batch.clip_norm;
        }
        Ok(())
    }

    /// The statistics as bytes, the same for the same text and model: a magic number, the number
    /// of layers, and for each its name, counts, clip norm and sums, all little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.layers.len() as u64).to_le_bytes());
        for (name, layer) in &self.layers {
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(layer.tokens.to_le_bytes());
            bytes.extend(layer.clipped_tokens.to_le_bytes());
            bytes.extend(layer.clip_norm.to_le_bytes());
            bytes.extend((layer.sum_squares.len() as u64).to_le_bytes());
            layer.sum_squares.iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; further input can be added.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the bytes are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::Checkpoint("the saved activation statistics are damaged".into());
        let mut reader = Reader { rest: bytes };
        let mut statistics = Self::new();
        if reader.take(MAGIC.len()) != Some(MAGIC) {
            return Err(damaged());
        }
        let layers = reader.number().ok_or_else(damaged)?;
        for _ in 0..layers {
            let (name, layer) = reader.layer().ok_or_else(damaged)?;
            if statistics.layers.insert(name, layer).is_some() {
                return Err(damaged());
            }
        }
        if reader.rest.is_empty() { Ok(statistics) } else { Err(damaged()) }
    }
}

impl Observer for InputStatistics {
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> Result<()> {
        self.add(names, x)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn float(&mut self) -> Option<f64> {
        let value = f64::from_bits(self.number()?);
        (value.is_finite() && value >= 0.0).then_some(value)
    }

    fn layer(&mut self) -> Option<(String, ChannelStatistics)> {
        let name_length = usize::try_from(self.number()?).ok()?;
        let name = std::str::from_utf8(self.take(name_length)?).ok()?.to_owned();
        let (tokens, clipped_tokens) = (self.number()?, self.number()?);
        let clip_norm = self.float()?;
        let channels = usize::try_from(self.number()?).ok()?;
        // The bytes must be there before anything is allocated for them.
        let mut sums = Reader { rest: self.take(channels.checked_mul(8)?)? };
        let sum_squares = (0..channels).map(|_| sums.float()).collect::<Option<_>>()?;
        Some((name, ChannelStatistics { sum_squares, tokens, clipped_tokens, clip_norm }))
    }
}

impl Batch {
    /// Sums of an input `[tokens, in]`. `clip_norm` is the norm that tokens were scaled down to so
    /// far; `None` counts them as they are.
    fn of(input: &Tensor, clip_norm: Option<f64>) -> Result<Self> {
        if input.device().is_cpu() {
            Self::on_host(input, clip_norm)
        } else {
            Self::on_device(input, clip_norm)
        }
    }

    fn on_host(input: &Tensor, clip_norm: Option<f64>) -> Result<Self> {
        let (_, channels) = input.dims2()?;
        with_f32(input, |values| {
            let norms: Vec<f64> = values
                .par_chunks_exact(channels.max(1))
                .map(|token| token.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt())
                .collect();
            let (scales, clip_norm, clipped) = scales(&norms, clip_norm)?;
            let mut sums = vec![0.0; channels];
            sums.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sums)| {
                let tokens = values.chunks_exact(channels).zip(&scales);
                for (token, scale) in tokens {
                    for (sum, &x) in sums.iter_mut().zip(&token[block * BLOCK..]) {
                        *sum += scale * f64::from(x) * f64::from(x);
                    }
                }
            });
            Ok(Self { sums, clip_norm, clipped })
        })?
    }

    /// The same with the tensor's own operations, so that only norms and sums cross the bus.
    fn on_device(input: &Tensor, clip_norm: Option<f64>) -> Result<Self> {
        let squares = input.sqr()?;
        let norms: Vec<f64> =
            squares.sum(1)?.to_vec1::<f32>()?.iter().map(|&sum| f64::from(sum).sqrt()).collect();
        let (scales, clip_norm, clipped) = scales(&norms, clip_norm)?;
        let scales: Vec<f32> = scales.into_iter().map(|scale| scale as f32).collect();
        let scales = Tensor::new(scales, input.device())?.unsqueeze(0)?;
        let sums = scales.matmul(&squares)?.squeeze(0)?.to_vec1::<f32>()?;
        Ok(Self { sums: sums.into_iter().map(f64::from).collect(), clip_norm, clipped })
    }
}

/// Factor for the squares of each token, the norm that tokens are scaled down to, and how many are.
fn scales(norms: &[f64], clip_norm: Option<f64>) -> Result<(Vec<f64>, f64, u64)> {
    if let Some(token) = norms.iter().position(|norm| !norm.is_finite()) {
        return Err(Error::General(format!("token {token} has values that are not finite")));
    }
    let Some(before) = clip_norm else { return Ok((vec![1.0; norms.len()], 0.0, 0)) };
    let mut sorted = norms.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    // The lower of the two neighbours of the quantile: with few tokens the largest one is clipped.
    let index = (CLIP_QUANTILE * (sorted.len() - 1) as f64).floor() as usize;
    let limit = sorted[index].max(before);
    let scales: Vec<f64> =
        norms.iter().map(|&norm| if norm > limit { (limit / norm).powi(2) } else { 1.0 }).collect();
    let clipped = norms.iter().filter(|&&norm| norm > limit).count() as u64;
    Ok((scales, limit, clipped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn both_ways_to_the_sums_agree() {
        let input = Tensor::randn(0f32, 2.0, (1500, 300), &Device::Cpu).unwrap();
        for clip_norm in [None, Some(0.0), Some(35.0)] {
            let host = Batch::on_host(&input, clip_norm).unwrap();
            let device = Batch::on_device(&input, clip_norm).unwrap();
            assert_eq!(host.clipped, device.clipped);
            assert!((host.clip_norm - device.clip_norm).abs() < 1e-4);
            for (a, b) in host.sums.iter().zip(&device.sums) {
                assert!((a - b).abs() < 1e-5 * a, "{a} {b}");
            }
        }
    }
}
