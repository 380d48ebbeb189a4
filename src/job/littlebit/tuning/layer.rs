//! A factorized layer whose signs and scales learn.
//!
//! The weight of a path is `diag(h) sign(U) diag(l) sign(V) diag(g)` with real latents `U`
//! `[out, rank]` and `V` `[rank, in]`. Forwards their signs count. Backwards the sign function is
//! taken for the identity (straight-through, Bengio et al., arXiv 1308.3432) or for
//! `tanh` (SmoothSign of LittleBit, arXiv 2506.13771). Scales learn in relative terms: the
//! gradients kept here are those of their logarithms.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor, Var};

use super::adam::Moments;
use super::placed::PlacedPath;
use crate::Result;
use crate::codec::signs::BitMatrix;
use crate::graph::LinearLayer;
use crate::graph::slices::{for_rows, with_f32};
use crate::graph::tracked::{values, wrap};
use crate::linalg::products::{Operand, multiply};

/// The values of one path, or their gradients.
#[derive(Debug, Clone)]
pub(crate) struct PathValues {
    /// Latents `U`, `[out, rank]`, row-major; about 1 in magnitude. None where there are bits.
    pub left: Vec<f32>,
    /// Latents `V`, `[rank, in]`; likewise.
    pub right: Vec<f32>,
    /// The signs of both, where they do not learn any more.
    pub bits: Option<[BitMatrix; 2]>,
    /// `h`, `[out]`; as a gradient, of its logarithm.
    pub row: Vec<f32>,
    /// `l`, `[rank]`, where the form has it; likewise.
    pub latent: Option<Vec<f32>>,
    /// `g`, `[in]`; likewise.
    pub column: Vec<f32>,
}

impl PathValues {
    fn zeros(&self) -> Self {
        Self {
            left: vec![0.0; self.left.len()],
            right: vec![0.0; self.right.len()],
            bits: None,
            row: vec![0.0; self.row.len()],
            latent: self.latent.as_ref().map(|latent| vec![0.0; latent.len()]),
            column: vec![0.0; self.column.len()],
        }
    }

    /// Keeps of the latents, of that rank, nothing but their signs.
    pub(crate) fn freeze(&mut self, rank: usize) {
        if self.bits.is_none() {
            let left = BitMatrix::from_signs(self.row.len(), rank, &self.left);
            let right = BitMatrix::from_signs(rank, self.column.len(), &self.right);
            (self.left, self.right, self.bits) = (Vec::new(), Vec::new(), Some([left, right]));
        }
    }

    /// `U` and `V` as numbers whose signs count: the latents, or 1 and -1.
    pub(crate) fn factors(&self) -> [Cow<'_, [f32]>; 2] {
        match &self.bits {
            None => [Cow::Borrowed(&self.left), Cow::Borrowed(&self.right)],
            Some(bits) => bits.each_ref().map(|bits| Cow::Owned(unpacked(bits))),
        }
    }

    /// The arrays: both latents, then the scales.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Vec<f32>> {
        [&self.left, &self.right].into_iter().chain(self.scales())
    }

    pub(super) fn scales(&self) -> impl Iterator<Item = &Vec<f32>> {
        [&self.row, &self.column].into_iter().chain(&self.latent)
    }

    pub(crate) fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let Self { left, right, bits: _, row, latent, column } = self;
        [left, right, row, column].into_iter().chain(latent)
    }
}

/// What of a layer learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learning {
    /// Nothing: products only.
    Nothing,
    /// Scales; signs stay.
    Scales,
    /// Signs and scales.
    All,
}

/// A layer that learns, shared between the decoder that runs it and the optimiser.
#[derive(Debug, Clone)]
pub(crate) struct LearningLayer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dims: (usize, usize),
    rank: usize,
    paths: RwLock<Vec<PathValues>>,
    /// Nothing while nothing learns.
    gradients: Mutex<Vec<PathValues>>,
    learning: RwLock<Learning>,
    /// The same values on a device, while they are there.
    placed: RwLock<Option<Vec<PlacedPath>>>,
    /// Makes candle follow the products although the weights are none of its tensors.
    anchor: Var,
}

impl LearningLayer {
    /// A layer `[out, in]` over paths of equal rank.
    ///
    /// # Errors
    /// Never on the CPU.
    pub(crate) fn new(dims: (usize, usize), rank: usize, paths: Vec<PathValues>) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            dims,
            rank,
            gradients: Mutex::default(),
            paths: RwLock::new(paths),
            learning: RwLock::new(Learning::Nothing),
            placed: RwLock::new(None),
            anchor: Var::zeros(1, DType::F32, &Device::Cpu)?,
        })))
    }

    /// Says what learns.
    pub(crate) fn set_learning(&self, learning: Learning) {
        *self.0.learning.write().unwrap_or_else(PoisonError::into_inner) = learning;
        let mut gradients = self.gradients();
        if learning == Learning::Nothing || self.placed().is_some() {
            *gradients = Vec::new();
        } else if gradients.is_empty() {
            *gradients = self.paths().iter().map(PathValues::zeros).collect();
        }
    }

    /// What learns.
    #[must_use]
    pub(crate) fn learning(&self) -> Learning {
        *self.0.learning.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rank of each path.
    #[must_use]
    pub(crate) fn rank(&self) -> usize {
        self.0.rank
    }

    /// The values.
    pub(crate) fn paths(&self) -> RwLockReadGuard<'_, Vec<PathValues>> {
        self.0.paths.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The values, to change them.
    pub(crate) fn paths_mut(&self) -> RwLockWriteGuard<'_, Vec<PathValues>> {
        self.0.paths.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums of the gradients since they were last cleared.
    pub(crate) fn gradients(&self) -> MutexGuard<'_, Vec<PathValues>> {
        self.0.gradients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps of the latents nothing but their signs: an eighth of a byte each. They cannot learn
    /// any more.
    pub(crate) fn freeze(&self) {
        self.paths_mut().iter_mut().for_each(|path| path.freeze(self.0.rank));
    }

    /// Copies the values to a device, with their moments if they are to learn there. Products are
    /// computed from the copy until it is dropped.
    pub(super) fn place(&self, device: &Device, moments: Option<&[Vec<Moments>]>) -> Result<()> {
        let paths = self
            .paths()
            .iter()
            .enumerate()
            .map(|(at, path)| {
                PlacedPath::new(path, self.0.rank, moments.map(|all| all[at].as_slice()), device)
            })
            .collect::<Result<_>>()?;
        *self.0.placed.write().unwrap_or_else(PoisonError::into_inner) = Some(paths);
        Ok(())
    }

    /// Copies the values back from where they were placed, if they were.
    pub(super) fn fetch(&self, mut moments: Option<&mut [Vec<Moments>]>) -> Result<()> {
        let Some(placed) = self.placed() else { return Ok(()) };
        for (at, (placed, path)) in placed.iter().zip(self.paths_mut().iter_mut()).enumerate() {
            placed.fetch(path, moments.as_mut().map(|all| all[at].as_mut_slice()))?;
        }
        Ok(())
    }

    /// Drops the copy on the device.
    pub(super) fn drop_placed(&self) {
        *self.0.placed.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The copy on the device.
    pub(super) fn placed(&self) -> Option<Placed<'_>> {
        let placed = self.0.placed.read().unwrap_or_else(PoisonError::into_inner);
        placed.is_some().then_some(Placed(placed))
    }

    fn apply(&self, x: &[f32], kept: &mut Vec<Vec<f32>>) -> Vec<f32> {
        let (outputs, inputs) = self.0.dims;
        let rank = self.0.rank;
        let tokens = x.len() / inputs;
        let mut sum = Vec::new();
        for path in &*self.paths() {
            let scaled = scaled(x, &path.column);
            let [left, right] = path.factors();
            let mut inner = vec![0.0; tokens * rank];
            let right = Operand::new(&right, rank, inputs).signs().t();
            multiply(&mut inner, Operand::new(&scaled, tokens, inputs), right, false);
            if let Some(latent) = &path.latent {
                scale(&mut inner, latent);
            }
            let mut out = vec![0.0; tokens * outputs];
            let left = Operand::new(&left, outputs, rank).signs().t();
            multiply(&mut out, Operand::new(&inner, tokens, rank), left, false);
            scale(&mut out, &path.row);
            kept.push(inner);
            if sum.is_empty() {
                sum = out;
            } else {
                sum.iter_mut().zip(out).for_each(|(sum, value)| *sum += value);
            }
        }
        sum
    }

    /// Adds to the gradients and gives that of `x`, `[tokens, in]`, if it is `wanted`. `kept` is
    /// what went into the left factors.
    fn pull_back(
        &self,
        x: &[f32],
        kept: &[Vec<f32>],
        dy: &[f32],
        wanted: bool,
    ) -> Option<Vec<f32>> {
        let (outputs, inputs) = self.0.dims;
        let (rank, signs) = (self.0.rank, self.learning() == Learning::All);
        let tokens = x.len() / inputs;
        let mut dx = wanted.then(|| vec![0.0; x.len()]);
        let paths = self.paths();
        let mut gradients = self.gradients();
        for ((path, inner), gradient) in paths.iter().zip(kept).zip(&mut *gradients) {
            let dz = scaled(dy, &path.row);
            let x = scaled(x, &path.column);
            let [left, right] = path.factors();
            let left = Operand::new(&left, outputs, rank).signs();
            let right = Operand::new(&right, rank, inputs).signs();
            let inner_rows = Operand::new(inner, tokens, rank);
            let dz_rows = Operand::new(&dz, tokens, outputs);
            let mut dinner = vec![0.0; tokens * rank];
            multiply(&mut dinner, dz_rows, left, false);
            if signs {
                multiply(&mut gradient.left, dz_rows.t(), inner_rows, true);
            } else {
                let mut z = vec![0.0; tokens * outputs];
                multiply(&mut z, inner_rows, left.t(), false);
                add_products(&mut gradient.row, &dz, &z);
            }
            if let (Some(latent), Some(gradient)) = (&path.latent, &mut gradient.latent) {
                add_products(gradient, &dinner, inner);
                scale(&mut dinner, latent);
            }
            let dinner_rows = Operand::new(&dinner, tokens, rank);
            if signs {
                let x_rows = Operand::new(&x, tokens, inputs);
                multiply(&mut gradient.right, dinner_rows.t(), x_rows, true);
            }
            if wanted || !signs {
                let mut dscaled = vec![0.0; tokens * inputs];
                multiply(&mut dscaled, dinner_rows, right, false);
                if !signs {
                    add_products(&mut gradient.column, &dscaled, &x);
                }
                if let Some(dx) = &mut dx {
                    add_scaled(dx, &dscaled, &path.column);
                }
            }
        }
        dx
    }

    /// Completes the gradients of row and column scales from those of the latents: with signs
    /// `U` and gradient `dU`, `Σ_k U_ik dU_ik` is what `dy · y` sums to.
    pub(super) fn complete_gradients(&self) {
        if self.learning() != Learning::All || self.placed().is_some() {
            return;
        }
        let (rank, inputs) = (self.0.rank, self.0.dims.1);
        let paths = self.paths();
        let mut gradients = self.gradients();
        for (path, gradient) in paths.iter().zip(&mut *gradients) {
            let rows = path.left.chunks_exact(rank).zip(gradient.left.chunks_exact(rank));
            for ((left, dleft), out) in rows.zip(&mut gradient.row) {
                *out = left.iter().zip(dleft).map(|(&u, &d)| signed(d, u)).sum();
            }
            gradient.column.fill(0.0);
            let rows = path.right.chunks_exact(inputs).zip(gradient.right.chunks_exact(inputs));
            for (right, dright) in rows {
                let sums = gradient.column.iter_mut().zip(right.iter().zip(dright));
                sums.for_each(|(out, (&v, &d))| *out += signed(d, v));
            }
        }
    }
}

impl LinearLayer for LearningLayer {
    fn dims(&self) -> (usize, usize) {
        self.0.dims
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(placed) = self.placed() {
            let mut sum: Option<Tensor> = None;
            for path in &*placed {
                let y = path.forward(x, self.0.dims, self.learning())?;
                sum = Some(match sum {
                    Some(sum) => (sum + y)?,
                    None => y,
                });
            }
            return sum.ok_or_else(|| crate::Error::General("a layer without paths".into()));
        }
        let op = Apply { layer: self.clone(), kept: Mutex::default() };
        let (x, anchor) = (x.contiguous()?, self.0.anchor.as_tensor());
        Ok(match self.learning() {
            Learning::Nothing => x.apply_op2_no_bwd(anchor, &op)?,
            Learning::Scales | Learning::All => x.apply_op2(anchor, op)?,
        })
    }
}

struct Apply {
    layer: LearningLayer,
    /// What the backward pass needs of the forward pass.
    kept: Mutex<Vec<Vec<f32>>>,
}

impl CustomOp2 for Apply {
    fn name(&self) -> &'static str {
        "binary-linear"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, _) = layout.shape().dims2()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        let out = self.layer.apply(values(storage, layout)?, &mut kept);
        Ok((CpuStorage::F32(out), (tokens, self.layer.0.dims.0).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let wanted = x.track_op();
        let dx = with_f32(x, |x| with_f32(dy, |dy| self.layer.pull_back(x, &kept, dy, wanted)))
            .and_then(|inner| inner)
            .map_err(wrap)?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape().clone(), x.device())).transpose()?;
        Ok((dx, None))
    }
}

/// 1 and -1 for the bits of a matrix, row-major.
fn unpacked(bits: &BitMatrix) -> Vec<f32> {
    let mut out = vec![0.0; bits.rows * bits.cols];
    for_rows(&mut out, bits.cols, |row, out| bits.unpack_rows(row..row + 1, out));
    out
}

/// Paths on a device, borrowed from their layer.
pub(super) struct Placed<'a>(RwLockReadGuard<'a, Option<Vec<PlacedPath>>>);

impl std::ops::Deref for Placed<'_> {
    type Target = [PlacedPath];

    fn deref(&self) -> &[PlacedPath] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// `value` with the sign of `latent` (zero is positive) multiplied in.
fn signed(value: f32, latent: f32) -> f32 {
    if latent >= 0.0 { value } else { -value }
}

/// Each row of `x` times `factors`.
fn scaled(x: &[f32], factors: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    scale(&mut out, factors);
    out
}

fn scale(x: &mut [f32], factors: &[f32]) {
    for_rows(x, factors.len(), |_, row| {
        row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    });
}

/// `out += x ∘ factors`, row by row.
fn add_scaled(out: &mut [f32], x: &[f32], factors: &[f32]) {
    let width = factors.len();
    for_rows(out, width, |row, out| {
        let x = &x[row * width..(row + 1) * width];
        out.iter_mut().zip(x.iter().zip(factors)).for_each(|(out, (x, factor))| *out += x * factor);
    });
}

/// `sums[j] += Σ_t a[t, j] b[t, j]`.
fn add_products(sums: &mut [f32], a: &[f32], b: &[f32]) {
    let width = sums.len();
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
}
