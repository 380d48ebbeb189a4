//! A whole factorized layer on the processor: `y = Σ_paths h ∘ (U (l ∘ (Vᵀ (g ∘ x))))`.

use std::cell::Cell;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::factorized::{Factor, FactorizedLinear};
use crate::codec::signs::{BitMatrix, Kernel};

/// Scales converted at a time.
const SCALE_STEP: usize = 64;

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Scratch {
    /// `g ∘ x`, `[T, in]`, padded to whole column groups.
    input: Vec<f32>,
    /// `l ∘ (Vᵀ …)`, `[T, rank]`, padded likewise.
    latent: Vec<f32>,
    /// The result of a second path, `[T, out]`.
    output: Vec<f32>,
}

thread_local! {
    // Taken out while in use: a thread that waits for its tasks may start another layer.
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch { input: Vec::new(), latent: Vec::new(), output: Vec::new() })
    };
}

impl Kernel {
    /// Multiplies `x`, `[tokens, in]` row-major, with a layer, giving `out`, `[tokens, out]`.
    ///
    /// Uses the threads of the current rayon pool when the work is worth it; the result does not
    /// depend on their number, on the instruction set or on the other tokens.
    ///
    /// # Panics
    /// When `x` and `out` are not whole tokens of the layer's sizes, or the layer's shapes
    /// disagree (see [`FactorizedLinear::new`]).
    pub fn apply(self, layer: &FactorizedLinear, x: &[f32], out: &mut [f32]) {
        let (inputs, outputs) = (layer.in_features, layer.out_features);
        assert_eq!(x.len() % inputs, 0, "x is not [tokens, in]");
        let tokens = x.len() / inputs;
        assert_eq!(out.len(), tokens * outputs, "out is not [tokens, out]");

        let parallel = Parallel::here();
        let ranks: usize = layer.paths.iter().map(Factor::rank).sum();
        let tasks = parallel.tasks(ranks * (inputs + outputs) * tokens);
        if tasks == 1 {
            self.apply_tokens(layer, x, out, Parallel::NONE);
        } else if tokens < 2 * tasks {
            self.apply_tokens(layer, x, out, parallel);
        } else {
            // Whole pairs of tokens, in a few more tasks than threads so that nobody waits long.
            let pairs = tokens.div_ceil(2 * 4 * tasks);
            out.par_chunks_mut(2 * pairs * outputs)
                .zip(x.par_chunks(2 * pairs * inputs))
                .for_each(|(out, x)| self.apply_tokens(layer, x, out, Parallel::NONE));
        }
    }

    /// All tokens of `x`, two at a time.
    fn apply_tokens(
        self,
        layer: &FactorizedLinear,
        x: &[f32],
        out: &mut [f32],
        parallel: Parallel,
    ) {
        let mut scratch = SCRATCH.take();
        let (inputs, outputs) = (layer.in_features, layer.out_features);
        for (x, out) in x.chunks(2 * inputs).zip(out.chunks_mut(2 * outputs)) {
            if x.len() == inputs {
                self.apply_tile(layer, [x], [out], parallel, &mut scratch);
            } else {
                let (x, out) = (x.split_at(inputs), out.split_at_mut(outputs));
                self.apply_tile(layer, [x.0, x.1], [out.0, out.1], parallel, &mut scratch);
            }
        }
        SCRATCH.set(scratch);
    }

    /// `T` tokens through all paths.
    fn apply_tile<const T: usize>(
        self,
        layer: &FactorizedLinear,
        x: [&[f32]; T],
        mut out: [&mut [f32]; T],
        parallel: Parallel,
        scratch: &mut Scratch,
    ) {
        for (index, path) in layer.paths.iter().enumerate() {
            let width = 8 * path.right.groups();
            let input = buffer::<T>(&mut scratch.input, width);
            for (padded, x) in input.chunks_exact_mut(width).zip(x) {
                let (used, padding) = padded.split_at_mut(x.len());
                multiply_scale(used, x, &path.column_scale);
                padding.fill(0.0);
            }
            let width = 8 * path.left.groups();
            let latent = buffer::<T>(&mut scratch.latent, width);
            for padded in latent.chunks_exact_mut(width) {
                padded[path.rank()..].fill(0.0);
            }
            let first = pieces::<T>(input);
            let ranks = pieces_mut::<T>(latent).map(|padded| &mut padded[..path.rank()]);
            let latent_scale = path.latent_scale.as_deref();
            let stage = Stage { kernel: self, matrix: &path.right, scale: latent_scale };
            stage.all_rows(parallel, first, ranks);

            let second = pieces::<T>(latent);
            let row_scale = Some(path.row_scale.as_slice());
            let stage = Stage { kernel: self, matrix: &path.left, scale: row_scale };
            if index == 0 {
                stage.all_rows(parallel, second, out.each_mut().map(|rows| &mut **rows));
            } else {
                let sum = buffer::<T>(&mut scratch.output, layer.out_features);
                stage.all_rows(parallel, second, pieces_mut::<T>(sum));
                for (out, sum) in out.iter_mut().zip(pieces::<T>(sum)) {
                    for (out, sum) in out.iter_mut().zip(sum) {
                        *out += sum;
                    }
                }
            }
        }
    }
}

/// Whether and how finely to divide work.
#[derive(Clone, Copy)]
struct Parallel {
    /// Most tasks.
    threads: usize,
    /// Signs (times vectors) that a task should have at least.
    minimum: usize,
}

impl Parallel {
    /// Everything on this thread.
    const NONE: Self = Self { threads: 1, minimum: 1 };

    /// For the threads of the current pool. A thread outside the pool must wake it and sleeps
    /// until the work is done, which costs about as much as 1 500 000 signs; handing work to
    /// another thread of the pool costs far less.
    fn here() -> Self {
        let inside = rayon::current_thread_index().is_some();
        let minimum = if inside { 500_000 } else { 2_000_000 };
        Self { threads: rayon::current_num_threads(), minimum }
    }

    /// Tasks for this many signs.
    fn tasks(self, work: usize) -> usize {
        (work / self.minimum).clamp(1, self.threads)
    }
}

/// One sign matrix with the scale of its rows.
#[derive(Clone, Copy)]
struct Stage<'a> {
    kernel: Kernel,
    matrix: &'a BitMatrix,
    scale: Option<&'a [f16]>,
}

impl Stage<'_> {
    /// Computes all rows. Tasks get as many neighbouring rows as possible: the longer the run of
    /// bytes that a task reads from each column group, the faster the memory.
    fn all_rows<const T: usize>(self, parallel: Parallel, x: [&[f32]; T], out: [&mut [f32]; T]) {
        let tasks = parallel.tasks(self.matrix.rows * self.matrix.cols * T);
        self.rows(tasks, 0, x, out);
    }

    /// Computes rows `first ..` in so many tasks.
    fn rows<const T: usize>(
        self,
        tasks: usize,
        first: usize,
        x: [&[f32]; T],
        out: [&mut [f32]; T],
    ) {
        let count = out[0].len();
        let share = count * (tasks / 2) / tasks;
        // Whole steps of the kernels, unless that would make the tasks too different.
        let middle = share.next_multiple_of(if share < 256 { 16 } else { 64 });
        if tasks == 1 || middle >= count {
            self.rows_here(first, x, out);
            return;
        }
        let mut lower: [&mut [f32]; T] = std::array::from_fn(|_| Default::default());
        let mut upper: [&mut [f32]; T] = std::array::from_fn(|_| Default::default());
        for (k, rows) in out.into_iter().enumerate() {
            (lower[k], upper[k]) = rows.split_at_mut(middle);
        }
        rayon::join(
            || self.rows(tasks / 2, first, x, lower),
            || self.rows(tasks - tasks / 2, first + middle, x, upper),
        );
    }

    fn rows_here<const T: usize>(self, first: usize, x: [&[f32]; T], mut out: [&mut [f32]; T]) {
        self.kernel.multiply(self.matrix, first, x, out.each_mut().map(|rows| &mut **rows));
        if let Some(scale) = self.scale {
            for rows in out {
                let scale = &scale[first..first + rows.len()];
                for (rows, scale) in rows.chunks_mut(SCALE_STEP).zip(scale.chunks(SCALE_STEP)) {
                    let mut factors = [0.0; SCALE_STEP];
                    let factors = &mut factors[..rows.len()];
                    scale.convert_to_f32_slice(factors);
                    for (value, factor) in rows.iter_mut().zip(factors) {
                        *value *= *factor;
                    }
                }
            }
        }
    }
}

/// `out = x ∘ scale`.
fn multiply_scale(out: &mut [f32], x: &[f32], scale: &[f16]) {
    assert!(out.len() == x.len() && x.len() == scale.len(), "lengths of a scaled vector");
    scale.convert_to_f32_slice(out);
    for (value, x) in out.iter_mut().zip(x) {
        *value *= x;
    }
}

/// The first `T * width` entries of a buffer that only grows.
fn buffer<const T: usize>(storage: &mut Vec<f32>, width: usize) -> &mut [f32] {
    if storage.len() < T * width {
        storage.resize(T * width, 0.0);
    }
    &mut storage[..T * width]
}

/// `T` equal pieces of a buffer.
fn pieces<const T: usize>(buffer: &[f32]) -> [&[f32]; T] {
    let width = buffer.len() / T;
    std::array::from_fn(|k| &buffer[k * width..(k + 1) * width])
}

/// `T` equal pieces of a buffer.
fn pieces_mut<const T: usize>(buffer: &mut [f32]) -> [&mut [f32]; T] {
    let width = buffer.len() / T;
    let mut chunks = buffer.chunks_exact_mut(width);
    std::array::from_fn(|_| chunks.next().unwrap_or_default())
}
