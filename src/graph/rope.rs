//! Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Hugging Face:
//! dimension `i` of a head pairs with `i + d/2`, and the pair turns by `position · f_i`.
//!
//! The frequencies `f_i = θ^(-2i/d)` and what the scaling schemes make of them follow
//! `transformers`' `modeling_rope_utils.py`. They are computed in f64 and rounded once.

use std::borrow::Cow;
use std::collections::HashMap;
use std::f64::consts::{PI, TAU};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Device, Tensor};

use super::slices::for_rows;
use crate::arch::ModelConfig;
use crate::arch::config::{RopeConfig, RopeScaling};
use crate::arch::spec::RopeOf;
use crate::{Error, Result};

/// Frequencies of a model's rotary embedding.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Radians per token, `[head_dim / 2]`.
    frequencies: Vec<f64>,
    /// Factor on cos and sin (`YaRN`'s attention factor), 1 otherwise.
    magnitude: f64,
    /// What holds beyond the trained context instead.
    beyond: Option<Beyond>,
    /// Width of a head, of which the first values may turn alone.
    head_dim: usize,
}

/// Frequencies of texts that are longer than the trained context.
#[derive(Debug, Clone)]
struct Beyond {
    /// Tokens up to which `frequencies` hold.
    context: usize,
    kind: BeyondKind,
}

#[derive(Debug, Clone)]
enum BeyondKind {
    /// The base grows with the length.
    Dynamic { theta: f64, factor: f64 },
    /// Other frequencies, whatever the length.
    Fixed(Vec<f64>),
}

impl Rope {
    /// Frequencies for heads of `head_dim` values.
    ///
    /// # Errors
    /// If `head_dim` is odd, or the scaling has another number of factors or unusable parameters.
    pub fn new(config: &RopeConfig, head_dim: usize) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::General(format!(
                "rotary positions need an even head width, not {head_dim}"
            )));
        }
        if !(config.theta.is_finite() && config.theta > 0.0) {
            return Err(Error::General(format!("rotary base {} is not positive", config.theta)));
        }
        let turning = config.width.unwrap_or(head_dim);
        if turning == 0 || turning > head_dim || !turning.is_multiple_of(2) {
            return Err(Error::General(format!("{turning} rotating values of {head_dim}")));
        }
        let plain = plain(config.theta, turning);
        let mut magnitude = 1.0;
        let mut beyond = None;
        let frequencies = match &config.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => {
                let factor = positive("linear", *factor)?;
                plain.iter().map(|f| f / factor).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let factor = positive("llama3", *factor)?;
                let (low, high) = (positive("llama3", *low_freq_factor)?, *high_freq_factor);
                let context = *original_context as f64;
                plain.iter().map(|&f| llama3(f, factor, low, high, context)).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let factor = positive("yarn", *factor)?;
                let bounds = yarn_bounds(
                    config.theta,
                    turning,
                    *original_context as f64,
                    positive("yarn", *beta_fast)?,
                    positive("yarn", *beta_slow)?,
                    *truncate,
                );
                magnitude = attention_factor.unwrap_or(if factor > 1.0 {
                    0.1 * factor.ln() + 1.0
                } else {
                    1.0
                });
                let scaled = |(i, f): (usize, &f64)| {
                    let kept = 1.0 - ramp(bounds, i as f64);
                    f * kept + f / factor * (1.0 - kept)
                };
                plain.iter().enumerate().map(scaled).collect()
            }
            RopeScaling::Dynamic { factor, original_context } => {
                let kind = BeyondKind::Dynamic {
                    theta: config.theta,
                    factor: positive("dynamic", *factor)?,
                };
                if turning == 2 {
                    return Err(Error::General(
                        "dynamic rotary scaling of heads of width 2".into(),
                    ));
                }
                beyond = Some(Beyond { context: *original_context, kind });
                plain
            }
            RopeScaling::LongRope { short, long, original_context, attention_factor } => {
                magnitude = *attention_factor;
                let kind = BeyondKind::Fixed(divided(&plain, long)?);
                beyond = Some(Beyond { context: *original_context, kind });
                divided(&plain, short)?
            }
            RopeScaling::Factors(factors) => divided(&plain, factors)?,
        };
        Ok(Self { frequencies, magnitude, beyond, head_dim })
    }

    /// Radians per token of each pair of dimensions, `[head_dim / 2]`, within the trained context.
    #[must_use]
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Whether the rotations of a token depend on the length of its text: then a text must not be
    /// run in pieces.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        self.beyond.is_some()
    }

    /// The frequencies of a text of so many tokens, as transformers chooses them.
    fn frequencies_up_to(&self, tokens: usize) -> Cow<'_, [f64]> {
        let Some(beyond) = self.beyond.as_ref().filter(|beyond| tokens > beyond.context) else {
            return Cow::Borrowed(&self.frequencies);
        };
        match &beyond.kind {
            BeyondKind::Fixed(frequencies) => Cow::Borrowed(frequencies),
            BeyondKind::Dynamic { theta, factor } => {
                let head_dim = 2 * self.frequencies.len();
                let stretch = factor * tokens as f64 / beyond.context as f64 - (factor - 1.0);
                let power = head_dim as f64 / (head_dim as f64 - 2.0);
                Cow::Owned(plain(theta * stretch.powf(power), head_dim))
            }
        }
    }

    /// The rotations of `seq` positions from `start` on.
    fn turns(&self, seq: usize, start: usize) -> Turns {
        let half = self.frequencies.len();
        let frequencies = self.frequencies_up_to(start + seq);
        let (mut cos, mut sin) = (Vec::with_capacity(seq * half), Vec::with_capacity(seq * half));
        for position in start..start + seq {
            for frequency in frequencies.iter() {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push((c * self.magnitude) as f32);
                sin.push((s * self.magnitude) as f32);
            }
        }
        Turns { cos, sin, half, head_dim: self.head_dim, seq, tensors: OnceLock::new() }
    }

    /// The rotations of `batch` sequences that each cover positions `start..start + seq`, in a model
    /// that has no others.
    #[must_use]
    pub fn positions(&self, batch: usize, seq: usize, start: usize) -> Positions {
        Positions::new((batch, seq, start), Arc::new(self.turns(seq, start)), None)
    }
}

/// The rotary embeddings of a model: that of layers that see everything, and that of layers with a
/// window where it is another.
#[derive(Debug, Clone)]
pub struct Ropes {
    model: Rope,
    window: Option<Rope>,
}

impl Ropes {
    /// Those of a model.
    ///
    /// # Errors
    /// As [`Rope::new`].
    pub fn new(config: &ModelConfig) -> Result<Self> {
        let window = config.window_rope.as_ref().map(|rope| Rope::new(rope, config.head_dim));
        Ok(Self { model: Rope::new(&config.rope, config.head_dim)?, window: window.transpose()? })
    }

    /// The rotations of `batch` sequences that each cover positions `start..start + seq`.
    #[must_use]
    pub fn positions(&self, batch: usize, seq: usize, start: usize) -> Positions {
        let turns = |rope: &Rope| Arc::new(rope.turns(seq, start));
        let window = self.window.as_ref().map(turns);
        Positions::new((batch, seq, start), turns(&self.model), window)
    }

    /// Whether the rotations of a token depend on the length of its text.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        self.model.depends_on_length() || self.window.as_ref().is_some_and(Rope::depends_on_length)
    }
}

/// The geometric series of frequencies.
fn plain(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Each frequency over its own divisor.
fn divided(plain: &[f64], factors: &[f32]) -> Result<Vec<f64>> {
    if factors.len() != plain.len() {
        return Err(Error::General(format!(
            "{} rotary factors for heads of {}: {} are needed",
            factors.len(),
            2 * plain.len(),
            plain.len()
        )));
    }
    let divide = |(f, factor): (&f64, &f32)| Ok(f / positive("per-dimension", f64::from(*factor))?);
    plain.iter().zip(factors).map(divide).collect()
}

fn positive(scheme: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(Error::General(format!("{scheme} rotary scaling with the parameter {value}")))
    }
}

/// Llama 3.1: wavelengths beyond `context / low` are stretched, below `context / high` kept.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let wavelength = TAU / frequency;
    if wavelength < context / high {
        frequency
    } else if wavelength > context / low {
        frequency / factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// First and last dimension of `YaRN`'s ramp: where a wave makes `fast` and `slow` rotations within
/// the original context.
pub(crate) fn yarn_bounds(
    theta: f64,
    head_dim: usize,
    context: f64,
    fast: f64,
    slow: f64,
    truncate: bool,
) -> (f64, f64) {
    let dimension = |rotations: f64| {
        head_dim as f64 * (context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (dimension(fast), dimension(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
    // transformers keeps the division below finite in the same way.
    (low, if high - low == 0.0 { high + 0.001 } else { high })
}

/// Share of the stretching at a dimension, 0 to 1.
pub(crate) fn ramp((low, high): (f64, f64), dimension: f64) -> f64 {
    ((dimension - low) / (high - low)).clamp(0.0, 1.0)
}

/// Cosines and sines of a span of positions.
#[derive(Debug)]
pub(crate) struct Turns {
    /// `[seq, half]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    head_dim: usize,
    seq: usize,
    /// `[seq, 1, half]` on the device of the activations.
    tensors: OnceLock<(Tensor, Tensor)>,
}

impl Turns {
    /// Calls `prepare` on each head of each row of `data`, `[batch · seq, heads · d]`, and turns it: forwards for a `direction` of 1, and by the transposed rotation, which is that of
    /// gradients, for -1.
    pub(crate) fn apply(
        &self,
        data: &mut [f32],
        heads: usize,
        prepare: impl Fn(&mut [f32]) + Sync,
        direction: f32,
    ) {
        let half = self.half;
        for_rows(data, heads * self.head_dim, |row, values| {
            let at = row % self.seq * half;
            let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
            for head in values.chunks_exact_mut(self.head_dim) {
                prepare(head);
                let (low, high) = head[..2 * half].split_at_mut(half);
                for i in 0..half {
                    let (a, b, sin) = (low[i], high[i], direction * sin[i]);
                    low[i] = a * cos[i] - b * sin;
                    high[i] = b * cos[i] + a * sin;
                }
            }
        });
    }
}

/// Rotations of a batch of equally long sequences at the same positions. Rows of activations are
/// ordered `[batch, seq]`.
#[derive(Debug)]
pub struct Positions {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Position of the first token.
    pub start: usize,
    turns: Arc<Turns>,
    /// Those of layers with a window, where they are others.
    window: Option<Arc<Turns>>,
    /// Attention masks of this span, which all blocks share, by first query and window.
    masks: Mutex<HashMap<(usize, Option<usize>), Tensor>>,
}

impl Positions {
    fn new(
        (batch, seq, start): (usize, usize, usize),
        turns: Arc<Turns>,
        window: Option<Arc<Turns>>,
    ) -> Self {
        Self { batch, seq, start, turns, window, masks: Mutex::default() }
    }

    /// Tokens of a sequence and the position of its first one.
    pub(crate) fn span(&self) -> (usize, usize) {
        (self.seq, self.start)
    }

    /// Rows of activations: `batch · seq`.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// The rotations of a kind of layers.
    pub(crate) fn turns(&self, of: RopeOf) -> &Arc<Turns> {
        match (of, &self.window) {
            (RopeOf::Window, Some(window)) => window,
            _ => &self.turns,
        }
    }

    /// Turns `x`, `[batch, seq, heads, d]`, with candle operations that have gradients.
    pub(crate) fn ops(&self, x: &Tensor, of: RopeOf) -> Result<Tensor> {
        let turns = self.turns(of);
        let (half, head_dim) = (turns.half, turns.head_dim);
        let (cos, sin) = turns.tensors(x.device())?;
        let low = x.narrow(3, 0, half)?;
        let high = x.narrow(3, half, half)?;
        let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
        if 2 * half == head_dim {
            return Ok(Tensor::cat(&[turned_low, turned_high], 3)?);
        }
        let rest = x.narrow(3, 2 * half, head_dim - 2 * half)?;
        Ok(Tensor::cat(&[turned_low, turned_high, rest], 3)?)
    }

    /// The mask of that first query and window, made if it is not there yet.
    pub(crate) fn mask(
        &self,
        key: (usize, Option<usize>),
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = masks.get(&key) {
            return Ok(mask.clone());
        }
        let mask = make()?;
        masks.insert(key, mask.clone());
        Ok(mask)
    }
}

impl Turns {
    fn tensors(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some((cos, sin)) = self.tensors.get() {
            return Ok((cos.clone(), sin.clone()));
        }
        let shape = (self.seq, 1, self.half);
        let pair = (
            Tensor::from_slice(&self.cos, shape, device)?,
            Tensor::from_slice(&self.sin, shape, device)?,
        );
        Ok(self.tensors.get_or_init(|| pair).clone())
    }
}
