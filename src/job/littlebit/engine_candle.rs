//! The alternation on a candle device: the matrix and both factors stay there, and only diagonal
//! blocks of the small least squares problems visit the host.

use candle_core::{D, DType, Device, Tensor};
use faer::Mat;

use super::engine::{Alternation, Engine, FactorState, Side};
use crate::linalg::cholesky::Cholesky;
use crate::{Error, Result};

/// Diagonal blocks of this size are inverted on the host, in double precision; larger matrices
/// are put together from them by products on the device.
const HOST_BLOCK: usize = 256;

/// A candle device (CUDA, or the processor through candle's own products).
#[derive(Debug, Clone)]
pub struct CandleEngine {
    device: Device,
}

impl CandleEngine {
    /// Runs on `device`.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device }
    }
}

impl Engine for CandleEngine {
    fn start<'a>(
        &'a self,
        matrix: &'a [f32],
        shape: (usize, usize),
        rank: usize,
        signs: [Vec<f32>; 2],
    ) -> Result<Box<dyn Alternation + 'a>> {
        let [left, right] = signs;
        Ok(Box::new(CandleAlternation {
            matrix: Tensor::from_slice(matrix, shape, &self.device)?,
            factors: [
                CandleFactor::new(left, (shape.0, rank), &self.device)?,
                CandleFactor::new(right, (shape.1, rank), &self.device)?,
            ],
            unit: Tensor::eye(rank, DType::F32, &self.device)?,
        }))
    }
}

/// One factor's variables, named as in the host engine.
struct CandleFactor {
    /// `diag(u) · S`, `[rows, rank]`.
    regressors: Tensor,
    /// `Λ`, `[rows, rank]`.
    dual: Tensor,
    /// `u`, `[rows, 1]`.
    rows: Tensor,
    /// `v`, `[1, rank]`.
    latent: Tensor,
}

impl CandleFactor {
    fn new(signs: Vec<f32>, shape: (usize, usize), device: &Device) -> Result<Self> {
        let signs = Tensor::from_vec(signs, shape, device)?;
        let magnitude = 1.0 / (shape.0.max(1) as f64).sqrt();
        Ok(Self {
            dual: signs.zeros_like()?,
            rows: (Tensor::ones((shape.0, 1), DType::F32, device)? * magnitude)?,
            latent: Tensor::ones((1, shape.1), DType::F32, device)?,
            regressors: (signs * magnitude)?,
        })
    }
}

struct CandleAlternation {
    matrix: Tensor,
    factors: [CandleFactor; 2],
    unit: Tensor,
}

impl Alternation for CandleAlternation {
    fn update(&mut self, side: Side, penalty: f32, ridge: f32) -> Result<()> {
        let [left, right] = &mut self.factors;
        let (own, other, matrix) = match side {
            Side::Left => (left, &*right, self.matrix.clone()),
            Side::Right => (right, &*left, self.matrix.t()?),
        };
        let regressors = &other.regressors;
        let shift = (&self.unit * f64::from(penalty + ridge))?;
        let gram = (regressors.t()?.matmul(regressors)? + shift)?;
        let projection = own.regressors.broadcast_mul(&own.latent)?;
        let pull = ((projection - &own.dual)? * f64::from(penalty))?;
        let solved = (matrix.matmul(regressors)? + pull)?.matmul(&inverse(&gram)?)?;
        let y = (solved + &own.dual)?;
        let magnitude = y.abs()?;
        let rows = magnitude.matmul(&own.latent.t()?)?;
        // The bound only keeps a zero matrix from dividing zero by zero.
        let norm = rows.sqr()?.sum_all()?.sqrt()?.maximum(f32::MIN_POSITIVE)?;
        own.rows = rows.broadcast_div(&norm)?;
        own.latent = own.rows.t()?.matmul(&magnitude)?;
        let signs = ((y.ge(0.0f32)?.to_dtype(DType::F32)? * 2.0)? - 1.0)?;
        own.regressors = signs.broadcast_mul(&own.rows)?;
        own.dual = (y - own.regressors.broadcast_mul(&own.latent)?)?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<[FactorState; 2]> {
        let [left, right] = self.factors;
        Ok([state(&left)?, state(&right)?])
    }
}

fn state(factor: &CandleFactor) -> Result<FactorState> {
    let latents = (factor.regressors.broadcast_mul(&factor.latent)? + &factor.dual)?;
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    Ok(FactorState {
        latents: values(&latents)?,
        row_envelope: values(&factor.rows)?,
        latent_envelope: values(&factor.latent)?,
    })
}

/// Inverse of a symmetric positive definite matrix. Blocks `[[A, Bᵀ], [B, D]]` with the Schur
/// complement `S = D − B A⁻¹ Bᵀ` give `[[A⁻¹ + Tᵀ S⁻¹ T, −Tᵀ S⁻¹], [−S⁻¹ T, S⁻¹]]`, `T = B A⁻¹`.
fn inverse(matrix: &Tensor) -> Result<Tensor> {
    let size = matrix.dim(D::Minus1)?;
    if size <= HOST_BLOCK {
        return inverse_on_host(matrix, size);
    }
    let half = size / 2;
    let rest = size - half;
    let a = matrix.narrow(0, 0, half)?.narrow(1, 0, half)?;
    let b = matrix.narrow(0, half, rest)?.narrow(1, 0, half)?.contiguous()?;
    let d = matrix.narrow(0, half, rest)?.narrow(1, half, rest)?;
    let a_inverse = inverse(&a)?;
    let t = b.matmul(&a_inverse)?;
    let s_inverse = inverse(&(d - t.matmul(&b.t()?)?)?)?;
    let low = s_inverse.matmul(&t)?.neg()?;
    let top = (a_inverse - t.t()?.matmul(&low)?)?;
    let upper = Tensor::cat(&[&top, &low.t()?.contiguous()?], 1)?;
    let lower = Tensor::cat(&[&low, &s_inverse], 1)?;
    Ok(Tensor::cat(&[&upper, &lower], 0)?)
}

fn inverse_on_host(matrix: &Tensor, size: usize) -> Result<Tensor> {
    let values = matrix.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
    let wide = Mat::from_fn(size, size, |i, j| f64::from(values[i * size + j]));
    let mut cholesky = Cholesky::<f64>::new(size);
    cholesky.factorize(wide.as_ref(), 0.0).map_err(|_| Error::Factorization {
        message: "the least squares problem is not finite".into(),
    })?;
    let mut inverse = Mat::zeros(size, size);
    cholesky.inverse(inverse.as_mut());
    let narrow: Vec<f32> =
        (0..size * size).map(|at| inverse[(at / size, at % size)] as f32).collect();
    Ok(Tensor::from_vec(narrow, (size, size), matrix.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::littlebit::engine::HostEngine;

    fn wave(i: usize) -> f32 {
        ((i * i * 3 + 7 * i + 1) as f32 * 0.37).sin()
    }

    #[test]
    fn blocks_put_an_inverse_together() {
        let size = 600;
        let rows: Vec<f32> = (0..size * 700).map(wave).collect();
        let x = Tensor::from_vec(rows, (size, 700), &Device::Cpu).unwrap();
        let eye = Tensor::eye(size, DType::F32, &Device::Cpu).unwrap();
        let gram = (x.matmul(&x.t().unwrap()).unwrap() / 700.0).unwrap();
        let matrix = (gram + (&eye * 0.1).unwrap()).unwrap();
        let product = matrix.matmul(&inverse(&matrix).unwrap()).unwrap();
        let off = (product - eye).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-3);
    }

    /// The iteration is chaotic, so that trajectories cannot be compared: one update from the
    /// same state can.
    #[test]
    fn an_update_agrees_with_the_host() {
        let (m, n, rank) = (48, 300, 270);
        let matrix: Vec<f32> = (0..m * n).map(|i| wave(i) * 1.4).collect();
        let sign = |i: usize| if wave(i * 5 + 3) >= 0.0 { 1.0f32 } else { -1.0 };
        let start = || {
            [(0..m * rank).map(sign).collect(), (0..n * rank).map(|i| sign(i + 77_777)).collect()]
        };
        let candle = CandleEngine::new(Device::Cpu);
        for (side, penalty) in [(Side::Left, 0.0), (Side::Right, 0.4)] {
            let run = |engine: &dyn Engine| {
                let mut alternation = engine.start(&matrix, (m, n), rank, start()).unwrap();
                alternation.update(side, penalty, 0.03).unwrap();
                alternation.finish().unwrap()
            };
            let (host, device) = (run(&HostEngine), run(&candle));
            for (host, device) in host.iter().zip(&device) {
                for (a, b) in [
                    (&host.latents, &device.latents),
                    (&host.row_envelope, &device.row_envelope),
                    (&host.latent_envelope, &device.latent_envelope),
                ] {
                    let scale = a.iter().fold(0.0f32, |s, v| s.max(v.abs()));
                    for (a, b) in a.iter().zip(b) {
                        assert!((a - b).abs() < 2e-4 * scale, "{a} {b} of {scale}");
                    }
                }
            }
        }
    }

    #[test]
    fn zero_stays_zero() {
        let engine = CandleEngine::new(Device::Cpu);
        let start = [vec![1.0; 8], vec![-1.0; 10]];
        let mut alternation = engine.start(&[0.0; 20], (4, 5), 2, start).unwrap();
        for _ in 0..3 {
            alternation.update(Side::Left, 0.5, 0.03).unwrap();
            alternation.update(Side::Right, 0.5, 0.03).unwrap();
        }
        let states = alternation.finish().unwrap();
        assert!(states.iter().all(|s| s.latents.iter().all(|v| v.is_finite())));
    }
}
