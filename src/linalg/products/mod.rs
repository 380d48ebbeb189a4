//! Large matrix products where speed counts more than the last bits: f32 in, f32 out.
//!
//! Where the processor multiplies bfloat16 pairs (AVX-512 BF16), operands are rounded to bfloat16
//! on the way in and products are summed in f32: mixed precision as GPUs train in, at twice the
//! speed of f32. Signs are exact in it. Elsewhere faer multiplies in f32. Each element of a result
//! is summed in one order that depends on the shapes alone, not on the number of threads.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

/// A matrix as an operand: `[rows, cols]` after transposition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    /// Distance of two rows and of two columns; one of them is 1.
    strides: (usize, usize),
    signs: bool,
}

impl<'a> Operand<'a> {
    /// `values` as they lie: row-major `[rows, cols]`.
    ///
    /// # Panics
    /// If there are not `rows · cols` values.
    #[must_use]
    pub(crate) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a matrix of {rows} x {cols}");
        Self { values, rows, cols, strides: (cols, 1), signs: false }
    }

    /// Columns `from..from + cols` of a row-major matrix whose rows are `stride` apart.
    ///
    /// # Panics
    /// If the last row reaches beyond the values.
    #[must_use]
    pub(crate) fn part(values: &'a [f32], stride: usize, rows: usize, cols: usize) -> Self {
        assert!(cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= values.len()));
        Self { values, rows, cols, strides: (stride, 1), signs: false }
    }

    /// The transpose.
    #[must_use]
    pub(crate) fn t(self) -> Self {
        let (row, col) = self.strides;
        Self { rows: self.cols, cols: self.rows, strides: (col, row), ..self }
    }

    /// Each value replaced by 1 if it is zero or more, else by -1.
    #[must_use]
    pub(crate) fn signs(self) -> Self {
        Self { signs: true, ..self }
    }
}

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// bfloat16 operands, f32 sums, on AVX-512 BF16.
    Bf16,
    /// f32 throughout.
    F32,
}

impl Arithmetic {
    /// The fastest of this machine.
    #[must_use]
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Arithmetic> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            if avx512::available() {
                return Self::Bf16;
            }
            Self::F32
        })
    }

    /// `bf16` or `f32`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// `out = a · b`, or `out += a · b`, on all threads of the pool. `out` is row-major
/// `[a.rows, b.cols]`.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn multiply(out: &mut [f32], a: Operand<'_>, b: Operand<'_>, accumulate: bool) {
    with(Arithmetic::best(), out, a, b, accumulate, true);
}

/// The same with f32 operands on every machine: where the last bits of the operands count.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn multiply_f32(out: &mut [f32], a: Operand<'_>, b: Operand<'_>, accumulate: bool) {
    with(Arithmetic::F32, out, a, b, accumulate, true);
}

/// [`multiply_f32`] on the calling thread.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn multiply_f32_here(out: &mut [f32], a: Operand<'_>, b: Operand<'_>, accumulate: bool) {
    with(Arithmetic::F32, out, a, b, accumulate, false);
}

/// The same as [`multiply`] on the calling thread: for products inside of parallel loops.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn multiply_here(out: &mut [f32], a: Operand<'_>, b: Operand<'_>, accumulate: bool) {
    with(Arithmetic::best(), out, a, b, accumulate, false);
}

fn with(
    arithmetic: Arithmetic,
    out: &mut [f32],
    a: Operand<'_>,
    b: Operand<'_>,
    accumulate: bool,
    parallel: bool,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions");
    assert_eq!(out.len(), a.rows * b.cols, "size of the result");
    if a.cols == 0 || out.is_empty() {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    match arithmetic {
        #[cfg(target_arch = "x86_64")]
        Arithmetic::Bf16 => avx512::multiply(out, a, b, accumulate, parallel),
        #[cfg(not(target_arch = "x86_64"))]
        Arithmetic::Bf16 => portable::multiply(out, a, b, accumulate, parallel),
        Arithmetic::F32 => portable::multiply(out, a, b, accumulate, parallel),
    }
}
