//! Linear layers over weights as they are stored.
//!
//! On the CPU nothing is unpacked ahead: products are computed from the mapped bytes. For few
//! tokens each output is a dot product of a stored row with the activations; for many, chunks of
//! rows are decoded to f32 and multiplied as matrices. Chunks depend on the shape alone and each
//! is computed by one thread, so results do not depend on the number of threads.
//!
//! On another device the weight is decoded once, when the layer is made.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::LinearLayer;
use crate::codec::vector::kernels;
use crate::codec::{StoredType, ggml};
use crate::graph::slices::with_f32;
use crate::weight::{RowOrder, StoredTensor};
use crate::{Error, Result};

/// Up to this many tokens, outputs are dot products; beyond, packing matrices pays off.
const FEW_TOKENS: usize = 8;

/// Bytes of weights that a task of dot products reads: long enough to be worth a task, short
/// enough to stay in the cache for the next token.
const TASK_BYTES: usize = 64 << 10;

/// Values that a thread decodes at a time (4 MiB of f32) and the rows of such a chunk.
const CHUNK_VALUES: usize = 1 << 20;
const CHUNK_ROWS: usize = 256;

thread_local! {
    /// Buffer for decoded rows, taken and put back.
    static DECODED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Element type of dense weights on a device other than the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePrecision {
    /// Exact; for models that fit easily.
    F32,
    /// Half the memory and tensor cores. Activations are divided by 16 on the way in, which keeps
    /// the outliers of large models (thousands) far from the largest half (65504).
    F16,
}

/// What activations are divided by before they become halves.
const HALF_RANGE: f64 = 16.0;

/// A dense or block-quantized weight, `[out, in]`.
#[derive(Debug, Clone)]
pub struct StoredLinear {
    out_features: usize,
    in_features: usize,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// The stored bytes.
    Bytes(StoredTensor),
    /// `[out, in]` on a device, f32 or f16.
    Device(Tensor),
}

impl StoredLinear {
    /// A layer on the CPU over `weight`, `[out, in]`.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn new(weight: StoredTensor) -> Result<Self> {
        let [out_features, in_features] = weight.shape[..] else {
            return Err(Error::General(format!(
                "a linear layer needs a matrix, not a tensor of shape {:?}",
                weight.shape
            )));
        };
        if out_features == 0 || in_features == 0 {
            return Err(Error::General(format!(
                "a linear layer of {out_features} x {in_features}"
            )));
        }
        if let RowOrder::RopePairs { heads } = weight.row_order
            && (heads == 0 || !out_features.is_multiple_of(2 * heads))
        {
            return Err(Error::General(format!(
                "{out_features} rows are not {heads} heads of pairs"
            )));
        }
        Ok(Self { out_features, in_features, place: Place::Bytes(weight) })
    }

    /// A layer on `device`: the bytes themselves on the CPU, a decoded copy elsewhere.
    pub fn on_device(
        weight: StoredTensor,
        device: &Device,
        precision: DevicePrecision,
    ) -> Result<Self> {
        let mut layer = Self::new(weight)?;
        if let (Place::Bytes(weight), false) = (&layer.place, device.is_cpu()) {
            layer.place = Place::Device(upload(weight, device, precision)?);
        }
        Ok(layer)
    }
}

/// Decodes a matrix in parallel and copies it to `device`.
fn upload(weight: &StoredTensor, device: &Device, precision: DevicePrecision) -> Result<Tensor> {
    let cols = weight.cols();
    let mut values = vec![0.0f32; weight.elements()];
    values.par_chunks_mut(cols * 64).enumerate().for_each(|(chunk, out)| {
        weight.read_rows(chunk * 64..chunk * 64 + out.len() / cols, out);
    });
    let shape = (weight.rows(), cols);
    Ok(match precision {
        DevicePrecision::F32 => Tensor::from_vec(values, shape, device)?,
        DevicePrecision::F16 => {
            let mut halves = vec![half::f16::ZERO; values.len()];
            halves.par_chunks_mut(1 << 16).zip(values.par_chunks(1 << 16)).for_each(
                |(out, values)| {
                    half::slice::HalfFloatSliceExt::convert_from_f32_slice(out, values);
                },
            );
            Tensor::from_vec(halves, shape, device)?
        }
    })
}

impl LinearLayer for StoredLinear {
    fn dims(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        if width != self.in_features {
            return Err(Error::General(format!(
                "activations of width {width} for a layer of {} x {}",
                self.out_features, self.in_features
            )));
        }
        match &self.place {
            Place::Bytes(weight) => {
                let mut out = vec![0.0; tokens * self.out_features];
                with_f32(x, |x| multiply(weight, x, &mut out))?;
                Ok(Tensor::from_vec(out, (tokens, self.out_features), x.device())?)
            }
            Place::Device(weight) if weight.dtype() == DType::F16 => {
                let x = (x * (1.0 / HALF_RANGE))?.to_dtype(DType::F16)?;
                Ok((x.matmul(&weight.t()?)?.to_dtype(DType::F32)? * HALF_RANGE)?)
            }
            Place::Device(weight) => Ok(x.matmul(&weight.t()?)?),
        }
    }
}

/// `out = x Wᵀ` for `x`, `[tokens, in]`, and `out`, `[tokens, out]`.
fn multiply(weight: &StoredTensor, x: &[f32], out: &mut [f32]) {
    match x.len() / weight.cols() {
        0 => {}
        1..=FEW_TOKENS => few_tokens(weight, x, out),
        _ => many_tokens(weight, x, out),
    }
}

/// Outputs as dot products of stored rows, tasks of neighbouring rows of the file.
fn few_tokens(weight: &StoredTensor, x: &[f32], out: &mut [f32]) {
    let (all_rows, cols) = (weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    let bytes: &[u8] = &weight.bytes;
    let stride = bytes.len() / all_rows;
    let rows = (TASK_BYTES / stride).max(1);
    // Rows from `first` on, `out` is `[tokens, rows]`.
    let task = |first: usize, out: &mut [f32]| {
        let bytes = &bytes[first * stride..];
        let Some(kernel) = kernels().rows(weight.dtype) else {
            return decoded_rows(weight.dtype, bytes, stride, x, out, cols);
        };
        let count = out.len() / tokens;
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(count)) {
            kernel(bytes, stride, x, out);
        }
    };
    if tokens == 1 && weight.row_order == RowOrder::Plain {
        out.par_chunks_mut(rows).enumerate().for_each(|(index, out)| task(index * rows, out));
        return;
    }
    // A task's outputs are not neighbours in `out`: by task, token and row first.
    let mut by_task = vec![0.0; out.len()];
    by_task
        .par_chunks_mut(rows * tokens)
        .enumerate()
        .for_each(|(index, by_task)| task(index * rows, by_task));
    for (token, out) in out.chunks_exact_mut(all_rows).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            let row = weight.row_order.file_row(row, all_rows);
            let first = row / rows * rows;
            let count = rows.min(all_rows - first);
            *out = by_task[first * tokens + token * count + (row - first)];
        }
    }
}

/// The dot products of a task over a type without a kernel of its own: each row is decoded once.
fn decoded_rows(
    dtype: StoredType,
    bytes: &[u8],
    stride: usize,
    x: &[f32],
    out: &mut [f32],
    cols: usize,
) {
    let count = out.len() / (x.len() / cols);
    let mut buffer = DECODED.take();
    buffer.resize(cols.max(buffer.len()), 0.0);
    let decoded = &mut buffer[..cols];
    for (row, bytes) in bytes.chunks_exact(stride).take(count).enumerate() {
        ggml::decode(dtype, bytes, decoded);
        for (token, x) in x.chunks_exact(cols).enumerate() {
            out[token * count + row] = (kernels().dot_f32)(decoded, x);
        }
    }
    DECODED.set(buffer);
}

/// Decodes `count` rows from `first` on into the thread's buffer.
fn with_rows<R>(
    weight: &StoredTensor,
    first: usize,
    count: usize,
    read: impl FnOnce(&[f32]) -> R,
) -> R {
    let mut buffer = DECODED.take();
    let length = count * weight.cols();
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    weight.read_rows(first..first + count, &mut buffer[..length]);
    let result = read(&buffer[..length]);
    DECODED.set(buffer);
    result
}

fn many_tokens(weight: &StoredTensor, x: &[f32], out: &mut [f32]) {
    let (all_rows, cols) = (weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    let x = MatRef::from_row_major_slice(x, tokens, cols);
    let rows = (CHUNK_VALUES / cols).clamp(16, CHUNK_ROWS);
    MatMut::from_row_major_slice_mut(out, tokens, all_rows)
        .par_col_chunks_mut(rows)
        .enumerate()
        .for_each(|(chunk, out)| {
            let (first, count) = (chunk * rows, out.ncols());
            with_rows(weight, first, count, |decoded| {
                let decoded = MatRef::from_row_major_slice(decoded, count, cols);
                matmul(out, Accum::Replace, x, decoded.transpose(), 1.0, Par::Seq);
            });
        });
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::base::SharedBytes;

    /// Random bytes of a type. Bit 6 of every byte is clear, so that no half or float among them
    /// is infinite or large.
    fn random(dtype: StoredType, rows: usize, cols: usize, seed: u64) -> StoredTensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let length = dtype.byte_length(&[rows, cols]).unwrap();
        // One more byte in front: weights may lie at any address.
        let bytes: Vec<u8> = (0..=length).map(|_| rng.random::<u8>() & 0xbf).collect();
        let bytes = SharedBytes::from_vec(bytes).slice(1..length + 1).unwrap();
        StoredTensor::new(vec![rows, cols], dtype, bytes).unwrap()
    }

    fn check(weight: &StoredTensor, tokens: usize) {
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut rng = ChaCha8Rng::seed_from_u64(tokens as u64);
        let x: Vec<f32> = (0..tokens * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        let layer = StoredLinear::new(weight.clone()).unwrap();
        assert_eq!(layer.dims(), (rows, cols));
        let input = Tensor::from_slice(&x, (tokens, cols), &Device::Cpu).unwrap();
        let got = layer.forward(&input).unwrap().to_vec2::<f32>().unwrap();
        let dense = weight.to_f32();
        for (token, got) in got.iter().enumerate() {
            let x = &x[token * cols..(token + 1) * cols];
            for (row, got) in got.iter().enumerate() {
                let dense = &dense[row * cols..(row + 1) * cols];
                let terms = || dense.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                assert!(
                    (f64::from(*got) - want).abs() <= 2e-6 * size + 1e-30,
                    "{} row {row} token {token}: {got} instead of {want}",
                    weight.dtype.name()
                );
            }
        }
    }

    #[test]
    fn every_type_multiplies_like_its_decoded_values() {
        for (seed, dtype) in StoredType::writable().enumerate() {
            // 1030 columns of plain types leave a rest in every kernel; 1100 rows are several
            // chunks of both paths.
            let cols = if dtype.block().0 == 1 { 1030 } else { 1024 };
            let weight = random(dtype, 1100, cols, seed as u64);
            for tokens in [0, 1, 2, FEW_TOKENS, FEW_TOKENS + 1, 33] {
                check(&weight, tokens);
            }
        }
    }

    #[test]
    fn rows_in_pair_order_come_out_in_order() {
        let plain = random(StoredType::F16, 48, 64, 1);
        let mut paired = plain.clone();
        paired.row_order = RowOrder::RopePairs { heads: 3 };
        for tokens in [1, 3, 20] {
            check(&paired, tokens);
        }
        // Rows 0, 2, 4, … of a head in the file are its first half.
        let decoded = paired.to_f32();
        assert_eq!(decoded[64..128], plain.to_f32()[2 * 64..3 * 64]);
    }

    #[test]
    fn what_is_not_a_layer_is_refused() {
        let vector = random(StoredType::F32, 1, 8, 1);
        let vector = StoredTensor::new(vec![8], StoredType::F32, vector.bytes).unwrap();
        assert!(StoredLinear::new(vector).is_err());
        let mut odd = random(StoredType::F32, 9, 8, 1);
        odd.row_order = RowOrder::RopePairs { heads: 3 };
        assert!(StoredLinear::new(odd).is_err());
        let layer = StoredLinear::new(random(StoredType::F32, 9, 8, 1)).unwrap();
        let x = Tensor::zeros((1, 9), DType::F32, &Device::Cpu).unwrap();
        assert!(layer.forward(&x).is_err());
        let x = Tensor::zeros((1, 8), DType::F64, &Device::Cpu).unwrap();
        assert!(layer.forward(&x).is_err());
    }
}
