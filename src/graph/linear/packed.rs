//! Linear layers over the packed integers of GPTQ, AWQ and W8A8 checkpoints.
//!
//! On the CPU a few rows at a time are decoded to f32 from the bytes of the file and multiplied, each
//! chunk by one thread, so results do not depend on the number of threads. W8A8 layers round their
//! input to 8 bits token by token, as the runtimes of such checkpoints do, and multiply integers (as
//! f32, which holds their sums exactly up to 2^24) before the scales.

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::LinearLayer;
use super::stored::{DevicePrecision, StoredLinear};
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::codec::affine::int8::round_token;
use crate::codec::vector::kernels;
use crate::graph::slices::with_f32;
use crate::weight::{PackedKind, PackedTensor, StoredTensor};
use crate::{Error, Result};

/// Up to this many tokens, outputs are dot products.
const FEW_TOKENS: usize = 8;
/// Values that a thread decodes for a few tokens: they stay in its cache.
const FEW_VALUES: usize = 1 << 15;
/// Values and rows that a thread decodes for many tokens.
const CHUNK_VALUES: usize = 1 << 20;
const CHUNK_ROWS: usize = 256;
/// Rows are decoded in multiples of this, which are whole words of every layout.
const STEP_ROWS: usize = 16;

/// A packed weight `[out, in]`.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    weight: PackedTensor,
    /// The decoded weight on a device other than the CPU.
    decoded: Option<StoredLinear>,
}

impl PackedLinear {
    /// A layer on `device`: the bytes themselves on the CPU, a decoded copy elsewhere.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub(crate) fn on_device(
        weight: &PackedTensor,
        device: &Device,
        precision: DevicePrecision,
    ) -> Result<Self> {
        let decoded = if device.is_cpu() {
            None
        } else {
            let bytes: Vec<u8> = bytemuck::cast_slice(&weight.to_f32()).to_vec();
            let shape = vec![weight.rows(), weight.cols()];
            let dense = StoredTensor::new(shape, StoredType::F32, SharedBytes::from_vec(bytes))?;
            Some(StoredLinear::on_device(dense, device, precision)?)
        };
        Ok(Self { weight: weight.clone(), decoded })
    }
}

impl LinearLayer for PackedLinear {
    fn dims(&self) -> (usize, usize) {
        (self.weight.rows(), self.weight.cols())
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let (outputs, inputs) = self.dims();
        if width != inputs {
            return Err(Error::General(format!(
                "activations of width {width} for a layer of {outputs} x {inputs}"
            )));
        }
        let rounds = self.weight.kind() == PackedKind::W8A8;
        if let Some(decoded) = &self.decoded {
            return if rounds { decoded.forward(&rounded(x)?) } else { decoded.forward(x) };
        }
        let mut out = vec![0.0; tokens * outputs];
        with_f32(x, |x| {
            if rounds {
                integers(&self.weight, x, &mut out);
            } else {
                multiply(&self.weight, x, &mut out, &PackedTensor::read_rows);
            }
        })?;
        Ok(Tensor::from_vec(out, (tokens, outputs), x.device())?)
    }
}

/// Each token of `x` rounded to 255 steps, with candle operations.
fn rounded(x: &Tensor) -> Result<Tensor> {
    let scale = ((x.abs()?.max_keepdim(1)? / 127.0)? + f64::from(f32::MIN_POSITIVE))?;
    Ok(x.broadcast_div(&scale)?.round()?.broadcast_mul(&scale)?)
}

/// `out = x Wᵀ` on rounded activations: integers are multiplied, scales come last.
fn integers(weight: &PackedTensor, x: &[f32], out: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut q = vec![0.0f32; x.len()];
    let scales: Vec<f32> = q
        .par_chunks_exact_mut(cols)
        .zip(x.par_chunks_exact(cols))
        .map_init(
            || vec![0i8; cols],
            |buffer, (q, x)| {
                let scale = round_token(x, buffer);
                q.iter_mut().zip(&*buffer).for_each(|(q, &i)| *q = f32::from(i));
                scale
            },
        )
        .collect();
    multiply(weight, &q, out, &|weight, rows, out| {
        let stored = rows.flat_map(|row| weight.int8_row(row).iter());
        out.iter_mut().zip(stored).for_each(|(out, &q)| *out = f32::from(q as i8));
    });
    let of_rows: Vec<f32> = (0..rows).map(|row| weight.scale(row, 0)).collect();
    for (out, of_token) in out.chunks_exact_mut(rows).zip(scales) {
        for (out, of_row) in out.iter_mut().zip(&of_rows) {
            *out *= of_token * of_row;
        }
    }
}

/// Decodes rows into `[rows, cols]`.
type ReadRows<'a> = &'a (dyn Fn(&PackedTensor, std::ops::Range<usize>, &mut [f32]) + Sync);

/// `out = x Wᵀ` for `x`, `[tokens, in]`, and `out`, `[tokens, out]`.
fn multiply(weight: &PackedTensor, x: &[f32], out: &mut [f32], read: ReadRows<'_>) {
    let (all_rows, cols) = (weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    if tokens == 0 {
        return;
    }
    let few = tokens <= FEW_TOKENS;
    let (values, most) = if few { (FEW_VALUES, 64) } else { (CHUNK_VALUES, CHUNK_ROWS) };
    let rows = (values / cols).clamp(STEP_ROWS, most) / STEP_ROWS * STEP_ROWS;
    let x_all = MatRef::from_row_major_slice(x, tokens, cols);
    MatMut::from_row_major_slice_mut(out, tokens, all_rows)
        .par_col_chunks_mut(rows)
        .enumerate()
        .for_each_init(Vec::new, |decoded: &mut Vec<f32>, (chunk, mut out)| {
            let (first, count) = (chunk * rows, out.ncols());
            decoded.resize(count * cols, 0.0);
            read(weight, first..first + count, decoded);
            if few {
                for (token, x) in x.chunks_exact(cols).enumerate() {
                    for (row, decoded) in decoded.chunks_exact(cols).enumerate() {
                        out[(token, row)] = (kernels().dot_f32)(decoded, x);
                    }
                }
            } else {
                let decoded = MatRef::from_row_major_slice(decoded.as_slice(), count, cols);
                matmul(out, Accum::Replace, x_all, decoded.transpose(), 1.0, Par::Seq);
            }
        });
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::codec::affine::gptq::Version;
    use crate::codec::affine::nearest::{self, Grid};
    use crate::files::packed::{Part, awq, gptq, w8a8};
    use crate::weight::Scales;

    fn shared(part: &Part) -> SharedBytes {
        SharedBytes::from_vec(part.bytes.clone())
    }

    fn scales(part: &Part) -> Scales {
        Scales { dtype: part.dtype, bytes: shared(part) }
    }

    /// Layers of all kinds of a random weight `[out, inputs]`.
    fn layers(out: usize, inputs: usize) -> Vec<PackedTensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let weight: Vec<f32> =
            (0..out * inputs).map(|_| rng.random_range(-1.0f32..1.0).powi(3)).collect();
        let mut all = Vec::new();
        for bits in [2, 3, 4, 8] {
            let mut layer = nearest::round(&weight, inputs, 32, bits, Grid::Symmetric);
            if bits == 3 {
                let groups = layer.groups();
                layer.group_of = Some((0..inputs).map(|i| (i % groups) as u32).collect());
            }
            let packed = gptq::pack(&layer).unwrap();
            let parts = (shared(&packed.qweight), shared(&packed.qzeros), scales(&packed.scales));
            let g_idx = shared(&packed.g_idx);
            let size = [out, inputs];
            all.push(
                PackedTensor::gptq(size, (bits, 32), Version::V1, parts, Some(&g_idx)).unwrap(),
            );
        }
        let packed = awq::pack(&nearest::round(&weight, inputs, 32, 4, Grid::Asymmetric)).unwrap();
        let parts = (shared(&packed.qweight), shared(&packed.qzeros), scales(&packed.scales));
        all.push(PackedTensor::awq([out, inputs], 32, parts).unwrap());
        let scale = safetensors::Dtype::BF16;
        let rows = nearest::round_rows(&weight, inputs, scale).unwrap();
        let packed = w8a8::pack(&rows, scale).unwrap();
        let parts = (shared(&packed.weight), scales(&packed.weight_scale));
        all.push(PackedTensor::w8a8([out, inputs], parts.0, parts.1).unwrap());
        all
    }

    #[test]
    fn every_kind_multiplies_like_its_decoded_values() {
        let (out, inputs) = (352, 96);
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for weight in layers(out, inputs) {
            let dense = weight.to_f32();
            let layer =
                PackedLinear::on_device(&weight, &Device::Cpu, DevicePrecision::F32).unwrap();
            for tokens in [0, 1, 3, FEW_TOKENS + 1, 40] {
                let x: Vec<f32> =
                    (0..tokens * inputs).map(|_| rng.random_range(-2.0..2.0)).collect();
                let input = Tensor::from_slice(&x, (tokens, inputs), &Device::Cpu).unwrap();
                let got = layer.forward(&input).unwrap().to_vec2::<f32>().unwrap();
                for (x, got) in x.chunks_exact(inputs).zip(got) {
                    // What the input becomes, by the formula.
                    let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let rounded = |x: f32| match weight.kind() {
                        PackedKind::W8A8 => {
                            let scale = f64::from(most) / 127.0;
                            (f64::from(x) / scale).round() * scale
                        }
                        _ => f64::from(x),
                    };
                    for (row, got) in got.iter().enumerate() {
                        let terms = dense[row * inputs..(row + 1) * inputs]
                            .iter()
                            .zip(x)
                            .map(|(w, &x)| f64::from(*w) * rounded(x));
                        let want: f64 = terms.clone().sum();
                        let size: f64 = terms.map(f64::abs).sum();
                        assert!(
                            (f64::from(*got) - want).abs() <= 3e-6 * size + 1e-9,
                            "{} row {row}: {got} instead of {want}",
                            weight.type_name()
                        );
                    }
                }
            }
        }
    }

    /// A device without integers sees the same rounding, through candle's operations.
    #[test]
    fn rounding_by_operations_is_the_same() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let x: Vec<f32> = (0..5 * 64).map(|_| rng.random_range(-3.0f32..3.0)).collect();
        let input = Tensor::from_slice(&x, (5, 64), &Device::Cpu).unwrap();
        let got = rounded(&input).unwrap().to_vec2::<f32>().unwrap();
        let mut q = vec![0i8; 64];
        for (x, got) in x.chunks_exact(64).zip(got) {
            let scale = round_token(x, &mut q);
            for (got, &q) in got.iter().zip(&q) {
                assert!((got - f32::from(q) * scale).abs() < 1e-5, "{got}, {q} * {scale}");
            }
        }
    }

    #[test]
    fn activations_of_another_width_are_refused() {
        let weight = layers(64, 64).remove(0);
        let layer = PackedLinear::on_device(&weight, &Device::Cpu, DevicePrecision::F32).unwrap();
        let x = Tensor::zeros((1, 65), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(layer.forward(&x).is_err());
    }
}
