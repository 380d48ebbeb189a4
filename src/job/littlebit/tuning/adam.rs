//! Adam (Kingma and Ba, arXiv 1412.6980), in place: one pass over value, gradient and both moments.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::layer::{Learning, LearningLayer, PathValues};
use crate::Result;

/// Decay of the two moments and the term that keeps the division finite.
pub(crate) const BETA: (f32, f32) = (0.9, 0.99);
pub(crate) const EPSILON: f32 = 1e-12;

/// Values that a thread works on at a time.
const CHUNK: usize = 1 << 14;

/// How the derivative of the sign function is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// As 1 everywhere (straight-through).
    Identity,
    /// As that of `tanh(x)` for a latent `x` in units of the layer's mean magnitude: signs that are
    /// firmly set move slowly (SmoothSign).
    SmoothSign,
}

/// First and second moments of an array.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Moments {
    pub(super) fn of(length: usize) -> Self {
        Self::from([vec![0.0; length], vec![0.0; length]])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub(super) fn first(&self) -> &[f32] {
        &self.first
    }

    pub(super) fn second(&self) -> &[f32] {
        &self.second
    }

    pub(super) fn both(&mut self) -> [&mut [f32]; 2] {
        [&mut self.first, &mut self.second]
    }
}

impl From<[Vec<f32>; 2]> for Moments {
    fn from([first, second]: [Vec<f32>; 2]) -> Self {
        Self { first, second }
    }
}

/// Learning rates of a step: of the latents, in units of their mean magnitude, and of the
/// logarithms of the scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Of latents.
    pub signs: f32,
    /// Of scales.
    pub scales: f32,
}

/// The optimiser of a set of layers.
#[derive(Debug)]
pub(crate) struct Adam {
    layers: Vec<LearningLayer>,
    /// By layer and path, an array each as in [`PathValues::arrays`]; latents have none while only
    /// scales learn.
    moments: Vec<Vec<Vec<Moments>>>,
    estimator: Estimator,
    steps: i32,
}

impl Adam {
    /// An optimiser that has seen nothing yet.
    #[must_use]
    pub(crate) fn new(layers: Vec<LearningLayer>, estimator: Estimator) -> Self {
        let moments = layers
            .iter()
            .map(|layer| {
                let signs = layer.learning() == Learning::All;
                layer.paths().iter().map(|path| moments_of(path, signs)).collect()
            })
            .collect();
        Self { layers, moments, estimator, steps: 0 }
    }

    /// First and second moments of all arrays that learn, layer by layer, in a fixed order.
    pub(crate) fn moments_mut(&mut self) -> impl Iterator<Item = [&mut Vec<f32>; 2]> {
        self.moments
            .iter_mut()
            .flatten()
            .flatten()
            .map(|Moments { first, second }| [first, second])
            .filter(|[first, _]| !first.is_empty())
    }

    /// Says how many steps the moments are from.
    pub(crate) fn set_steps(&mut self, steps: usize) {
        self.steps = i32::try_from(steps).unwrap_or(i32::MAX);
    }

    /// Copies values and moments to a device, where steps are done from then on.
    pub(crate) fn place(&self, device: &Device) -> Result<()> {
        let layers = self.layers.iter().zip(&self.moments);
        layers.into_iter().try_for_each(|(layer, moments)| layer.place(device, Some(moments)))
    }

    /// Copies values and moments back from where they were placed; they stay there as well.
    pub(crate) fn fetch(&mut self) -> Result<()> {
        let layers = self.layers.iter().zip(&mut self.moments);
        layers.into_iter().try_for_each(|(layer, moments)| layer.fetch(Some(moments)))
    }

    /// One step against the gradient of `loss`.
    pub(crate) fn descend(&mut self, loss: &Tensor, rates: Rates) -> Result<()> {
        let gradients = loss.backward()?;
        self.count_step();
        self.update(0..self.layers.len(), rates, &gradients)
    }

    /// Counts a step that is done in parts.
    pub(super) fn count_step(&mut self) {
        self.steps += 1;
    }

    /// The part of a step that concerns some of the layers: moves every value against its gradient
    /// and clears the gradients. Those of placed layers are in `gradients`.
    pub(super) fn update(
        &mut self,
        layers: Range<usize>,
        rates: Rates,
        gradients: &GradStore,
    ) -> Result<()> {
        self.layers[layers.clone()].par_iter().for_each(LearningLayer::complete_gradients);
        for (layer, moments) in self.layers[layers.clone()].iter().zip(&mut self.moments[layers]) {
            if let Some(placed) = layer.placed() {
                for path in &*placed {
                    path.step(gradients, rates, self.estimator, self.steps)?;
                }
                continue;
            }
            let mut paths = layer.paths_mut();
            let mut gradients = layer.gradients();
            for ((path, gradient), moments) in paths.iter_mut().zip(&mut *gradients).zip(moments) {
                let arrays = path.arrays_mut().zip(gradient.arrays_mut()).zip(moments);
                for (index, ((values, gradients), moments)) in arrays.enumerate() {
                    if moments.is_empty() {
                        continue;
                    }
                    let rule = Rule::of(index, self.estimator);
                    let rate = if index < 2 { rates.signs } else { rates.scales };
                    update(values, gradients, moments.both(), rate, self.steps, rule);
                }
            }
        }
        Ok(())
    }
}

fn moments_of(path: &PathValues, signs: bool) -> Vec<Moments> {
    path.arrays()
        .enumerate()
        .map(
            |(index, values)| {
                if index < 2 && !signs { Moments::default() } else { Moments::of(values.len()) }
            },
        )
        .collect()
}

/// What a step does to a value.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Rule {
    /// `x − step`.
    Plain,
    /// The gradient times `1 − tanh²(x)` first.
    Smooth,
    /// `x · exp(−step)`: the gradient is that of the logarithm.
    Relative,
}

impl Rule {
    /// That of array `index` of [`PathValues::arrays`].
    pub(super) fn of(index: usize, estimator: Estimator) -> Self {
        match (index < 2, estimator) {
            (false, _) => Self::Relative,
            (true, Estimator::Identity) => Self::Plain,
            (true, Estimator::SmoothSign) => Self::Smooth,
        }
    }
}

/// One step of an array; `steps` counts from 1.
pub(super) fn update(
    values: &mut [f32],
    gradients: &mut [f32],
    [first, second]: [&mut [f32]; 2],
    rate: f32,
    steps: i32,
    rule: Rule,
) {
    let correction = (1.0 - BETA.0.powi(steps), 1.0 - BETA.1.powi(steps));
    values
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks_mut(CHUNK))
        .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
        .for_each(|((values, gradients), (first, second))| {
            if let Rule::Smooth = rule {
                for (g, x) in gradients.iter_mut().zip(&*values) {
                    *g *= 1.0 - x.tanh().powi(2);
                }
            }
            let length = values.len();
            let (gradients, first) = (&mut gradients[..length], &mut first[..length]);
            let second = &mut second[..length];
            let rate = rate / correction.0;
            let unbias = 1.0 / correction.1;
            for i in 0..length {
                let g = gradients[i];
                first[i] = BETA.0 * first[i] + (1.0 - BETA.0) * g;
                second[i] = BETA.1 * second[i] + (1.0 - BETA.1) * g * g;
                // The gradient's room takes the step.
                gradients[i] = rate * first[i] / ((second[i] * unbias).sqrt() + EPSILON);
            }
            match rule {
                Rule::Relative => {
                    for (x, step) in values.iter_mut().zip(&*gradients) {
                        *x *= (-step).exp();
                    }
                }
                Rule::Plain | Rule::Smooth => {
                    for (x, step) in values.iter_mut().zip(&*gradients) {
                        *x -= step;
                    }
                }
            }
            gradients.fill(0.0);
        });
}

/// Share of the full rate at step `at` of `total`: a linear rise over the first `warmup`, then a
/// half cosine down to a hundredth.
#[must_use]
pub(crate) fn schedule(at: usize, total: usize, warmup: usize) -> f32 {
    if at < warmup {
        return (at + 1) as f32 / warmup as f32;
    }
    let progress = (at - warmup) as f32 / (total - warmup).max(1) as f32;
    0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
}
