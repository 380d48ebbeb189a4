//! The values of a learning layer on a device, where candle's operations find the gradients. What
//! they are multiplied by, and what a step does to them, is what [`layer`](super::layer) and
//! [`adam`](super::adam) say; products are in f32.

use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};

use super::adam::{Estimator, Moments, Rates, Rule, update};
use super::layer::{Learning, PathValues};
use crate::codec::signs::BitMatrix;
use crate::graph::tracked;
use crate::{Error, Result};

/// One path of a layer.
#[derive(Debug)]
pub(super) struct PlacedPath {
    rank: usize,
    /// As in [`PathValues::arrays`]: both latents, which are empty where there are bits, then the
    /// scales.
    arrays: Vec<PlacedArray>,
    /// Signs that do not learn.
    bits: Option<[PlacedBits; 2]>,
}

/// One array.
#[derive(Debug)]
struct PlacedArray {
    /// `[1, n]`: the values; `[3, n]` with both moments below them while they learn.
    state: Tensor,
    /// What products since the last step were computed from; gradients are found under these.
    leaves: Mutex<Vec<Var>>,
}

impl PlacedArray {
    fn new(values: &[f32], moments: Option<&Moments>, device: &Device) -> Result<Self> {
        let moments = moments.filter(|moments| !moments.is_empty());
        let rows = if moments.is_some() { 3 } else { 1 };
        let mut state = Vec::with_capacity(rows * values.len());
        state.extend_from_slice(values);
        if let Some(moments) = moments {
            state.extend_from_slice(moments.first());
            state.extend_from_slice(moments.second());
        }
        let state = Tensor::from_vec(state, (rows, values.len()), device)?;
        Ok(Self { state, leaves: Mutex::default() })
    }

    fn value(&self) -> Result<Tensor> {
        Ok(self.state.narrow(0, 0, 1)?)
    }

    /// `value`, so that its gradient will be known if it is `learning`.
    fn leaf(&self, value: Tensor, learning: bool) -> Result<Tensor> {
        if !learning {
            return Ok(value);
        }
        let leaf = Var::from_tensor(&value)?;
        let tensor = leaf.as_tensor().clone();
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner).push(leaf);
        Ok(tensor)
    }

    /// Signs of latents, `[rows, cols]`; their gradient is that of the latents.
    fn signs(&self, (rows, cols): (usize, usize), learning: bool) -> Result<Tensor> {
        let latents = self.value()?.reshape((rows, cols))?;
        let signs = latents.ge(0f32)?.to_dtype(DType::F32)?.affine(2.0, -1.0)?;
        self.leaf(signs, learning)
    }

    /// Scales, `[1, n]`.
    fn scale(&self, learning: bool) -> Result<Tensor> {
        let value = self.value()?;
        // A copy: a step changes the values in place.
        self.leaf(if learning { value.copy()? } else { value }, learning)
    }

    fn step(&self, gradients: &GradStore, adam: &AdamStep) -> Result<()> {
        let leaves =
            std::mem::take(&mut *self.leaves.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sum: Option<Tensor> = None;
        for leaf in &leaves {
            let gradient = gradients
                .get(leaf.as_tensor())
                .ok_or_else(|| Error::General("a value that learns has no gradient".into()))?;
            sum = Some(match sum {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        match sum {
            Some(sum) => Ok(self.state.inplace_op2(&sum.contiguous()?, adam)?),
            None => Ok(()),
        }
    }

    fn fetch(&self, values: &mut Vec<f32>, moments: Option<&mut Moments>) -> Result<()> {
        let mut rows = self.state.to_vec2::<f32>()?.into_iter();
        *values = rows.next().unwrap_or_default();
        if let (Some(first), Some(second), Some(moments)) = (rows.next(), rows.next(), moments) {
            *moments = Moments::from([first, second]);
        }
        Ok(())
    }
}

impl PlacedPath {
    /// Copies a path, with the moments of its arrays if it is to learn.
    pub(super) fn new(
        path: &PathValues,
        rank: usize,
        moments: Option<&[Moments]>,
        device: &Device,
    ) -> Result<Self> {
        let arrays = path
            .arrays()
            .enumerate()
            .map(|(at, values)| PlacedArray::new(values, moments.map(|all| &all[at]), device))
            .collect::<Result<_>>()?;
        let bits = match &path.bits {
            Some([left, right]) => {
                Some([PlacedBits::new(left, device)?, PlacedBits::new(right, device)?])
            }
            None => None,
        };
        Ok(Self { rank, arrays, bits })
    }

    /// `h ∘ (sign(U) (l ∘ (sign(V) (g ∘ x))))` for each row of `x`, `[tokens, in]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        (outputs, inputs): (usize, usize),
        learning: Learning,
    ) -> Result<Tensor> {
        let (signs, scales) = (learning == Learning::All, learning != Learning::Nothing);
        let [left, right, row, column, latent @ ..] = self.arrays.as_slice() else {
            return Err(Error::General("a path without scales".into()));
        };
        let [left, right] = match &self.bits {
            Some([left, right]) => [left.unpacked()?, right.unpacked()?],
            None => {
                [left.signs((outputs, self.rank), signs)?, right.signs((self.rank, inputs), signs)?]
            }
        };
        let scaled = x.broadcast_mul(&column.scale(scales)?)?;
        let mut inner = scaled.matmul(&right.t()?)?;
        if let Some(latent) = latent.first() {
            inner = inner.broadcast_mul(&latent.scale(scales)?)?;
        }
        let y = inner.matmul(&left.t()?)?;
        Ok(y.broadcast_mul(&row.scale(scales)?)?)
    }

    /// One step of every array that took part since the last one; `steps` counts from 1.
    pub(super) fn step(
        &self,
        gradients: &GradStore,
        rates: Rates,
        estimator: Estimator,
        steps: i32,
    ) -> Result<()> {
        for (index, array) in self.arrays.iter().enumerate() {
            let rate = if index < 2 { rates.signs } else { rates.scales };
            let adam = AdamStep { rate, steps, rule: Rule::of(index, estimator) };
            array.step(gradients, &adam)?;
        }
        Ok(())
    }

    /// Copies values and moments back.
    pub(super) fn fetch(
        &self,
        path: &mut PathValues,
        mut moments: Option<&mut [Moments]>,
    ) -> Result<()> {
        for (at, (array, values)) in self.arrays.iter().zip(path.arrays_mut()).enumerate() {
            if self.bits.is_some() && at < 2 {
                continue;
            }
            array.fetch(values, moments.as_mut().map(|all| &mut all[at]))?;
        }
        Ok(())
    }
}

/// A matrix of signs in the layout of [`BitMatrix`].
#[derive(Debug)]
struct PlacedBits {
    rows: usize,
    cols: usize,
    /// U8 `[groups, rows]`: bit `j` of byte `(c, i)` is the sign of row `i` and column `8c + j`.
    bytes: Tensor,
}

impl PlacedBits {
    fn new(bits: &BitMatrix, device: &Device) -> Result<Self> {
        let bytes = Tensor::from_slice(&bits.bytes, (bits.groups(), bits.rows), device)?;
        Ok(Self { rows: bits.rows, cols: bits.cols, bytes })
    }

    /// 1 and -1, f32 `[rows, cols]`.
    fn unpacked(&self) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if self.bytes.device().is_cuda() {
            return Ok(crate::graph::linear::cuda::unpack(&self.bytes, self.rows, self.cols)?);
        }
        let (groups, _) = self.bytes.dims2()?;
        let powers =
            Tensor::new(&[1f32, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0], self.bytes.device())?;
        let shifted =
            self.bytes.to_dtype(DType::F32)?.unsqueeze(2)?.broadcast_div(&powers)?.floor()?;
        let odd = (&shifted - ((&shifted * 0.5)?.floor()? * 2.0)?)?;
        let signs = odd.affine(2.0, -1.0)?.permute((1, 0, 2))?.reshape((self.rows, 8 * groups))?;
        Ok(signs.narrow(1, 0, self.cols)?.contiguous()?)
    }
}

/// A step of values and moments, `[3, n]`, by a gradient of `n` values.
struct AdamStep {
    rate: f32,
    steps: i32,
    rule: Rule,
}

impl InplaceOp2 for AdamStep {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(
        &self,
        state: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let mut gradient = tracked::values(gradient, gradient_layout)?.to_vec();
        let CpuStorage::F32(state) = state else {
            candle_core::bail!("values that learn are f32");
        };
        let state = &mut state[layout.start_offset()..][..layout.shape().elem_count()];
        let (values, moments) = state.split_at_mut(gradient.len());
        let (first, second) = moments.split_at_mut(values.len());
        if let Rule::Relative = self.rule {
            gradient.iter_mut().zip(&*values).for_each(|(gradient, value)| *gradient *= value);
        }
        update(values, &mut gradient, [first, second], self.rate, self.steps, self.rule);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        state: &mut candle_core::CudaStorage,
        layout: &Layout,
        gradient: &candle_core::CudaStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        super::cuda_adam::step(
            (state, layout),
            (gradient, gradient_layout),
            self.rate,
            self.steps,
            self.rule,
        )
    }
}
