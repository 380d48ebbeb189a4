//! What this machine does in a second, from a few tenths of a second of the same work on made-up
//! values: what a run will take follows from counts of operations.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{estimate, tuning};
use crate::Result;
use crate::arch::ModelConfig;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::graph::{LinearLayer, StoredLinear};
use crate::measure::rows;
use crate::weight::StoredTensor;

/// Time that each kind of work is measured for, at least.
const TIME: Duration = Duration::from_millis(50);

/// Speeds with all threads at work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Speed {
    /// Threads.
    pub(crate) threads: usize,
    /// Operations of the solver that one thread does a second.
    pub(crate) solver: f64,
    /// Operations of products in f32.
    pub(crate) products: f64,
    /// Operations of layers that are read as they are stored, for many tokens at once.
    pub(crate) layers: f64,
    /// The same for the tokens of 64 sequences that are written together.
    pub(crate) writing: f64,
    /// The same for one token.
    pub(crate) token: f64,
    /// Logits that are compared with others.
    pub(crate) logits: f64,
}

/// What small matrices take longer by: tokens, and the two sides of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    hidden: usize,
    inner: usize,
}

impl Shape {
    /// Of a model; larger ones are as fast as these.
    fn of(config: &ModelConfig) -> Self {
        Self {
            tokens: config.max_positions.clamp(2, 512),
            hidden: config.hidden_size.clamp(8, 1024),
            inner: config.intermediate_size.clamp(8, 2048),
        }
    }
}

impl Speed {
    /// For a model of that shape; measured once for the process.
    pub(crate) fn measured(config: &ModelConfig) -> Result<Self> {
        static SPEED: Mutex<Option<(Shape, Speed)>> = Mutex::new(None);
        let shape = Shape::of(config);
        let mut known = SPEED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, speed)) = known.filter(|(of, _)| *of == shape) {
            return Ok(speed);
        }
        let Shape { tokens, hidden, inner } = shape;
        let threads = rayon::current_num_threads();
        let speed = Self {
            threads,
            solver: estimate::calibrate(threads)?,
            products: tuning::estimate::calibrate((tokens, hidden, inner)),
            layers: stored((inner, hidden), tokens)?,
            writing: stored((inner, hidden), 64)?,
            // Too large for the caches, as the weights of a model are.
            token: stored((16_384, 2048), 1)?,
            logits: logits(),
        };
        *known = Some((shape, speed));
        Ok(speed)
    }
}

/// How often `work` is done in a second. The first time also finds the processor asleep and the memory
/// unmapped.
fn frequency(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < TIME {
        work()?;
        count += 1.0;
    }
    Ok(count / began.elapsed().as_secs_f64())
}

/// Operations of a layer of bfloat16 that reads `tokens` at a time.
fn stored((out, inputs): (usize, usize), tokens: usize) -> Result<f64> {
    // 0.5 in bfloat16.
    let bytes = [0x00, 0x3f].repeat(out * inputs);
    let weight =
        StoredTensor::new(vec![out, inputs], StoredType::BF16, SharedBytes::from_vec(bytes))?;
    let layer = StoredLinear::new(weight)?;
    let x = Tensor::full(0.25f32, (tokens, inputs), &Device::Cpu)?;
    let often = frequency(|| layer.forward(&x).map(drop))?;
    Ok(often * 2.0 * (out * inputs * tokens) as f64)
}

fn logits() -> f64 {
    const COLUMNS: usize = 4096;
    let rows = 4 * rayon::current_num_threads();
    let values: Vec<f32> = (0..rows * COLUMNS).map(|i| (i % 97) as f32 * 0.1).collect();
    let often = frequency(|| {
        let sum: f64 = values
            .par_chunks_exact(COLUMNS)
            .map(|row| {
                let log_sum = rows::log_sum_exp(row);
                rows::divergence(row, log_sum, row, log_sum)
            })
            .sum();
        std::hint::black_box(sum);
        Ok(())
    });
    often.map_or(f64::INFINITY, |often| often * values.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn speeds_are_plausible() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
        let config = crate::model::open_local(&folder).unwrap().config;
        let speed = Speed::measured(&config).unwrap();
        assert!(speed.threads > 0);
        for rate in [speed.solver, speed.products, speed.layers, speed.writing, speed.token] {
            assert!((1e6..1e15).contains(&rate), "{speed:?}");
        }
        assert!((1e4..1e13).contains(&speed.logits), "{speed:?}");
    }
}
