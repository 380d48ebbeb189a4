//! Dense matrices on the host: products, truncated singular value decompositions and Cholesky
//! solves over [`faer`].
//!
//! Everything here runs on the calling thread. Callers work on several matrices at once instead,
//! which keeps every result independent of the number of threads: no reduction is ever split.
//! Matrices come and go as faer views; a row-major `[rows, cols]` slice is
//! `MatRef::from_row_major_slice(slice, rows, cols)`.

pub(crate) mod cholesky;
pub(crate) mod products;
pub(crate) mod qr;
pub(crate) mod svd;

use faer::linalg::matmul;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

/// Arithmetic of singular value decompositions (`LLM_QUANTIZE_SVD_PRECISION`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single precision: half the memory, about half the time.
    Float32,
    /// Double precision.
    #[default]
    Float64,
}

impl Precision {
    /// `float32` or `float64`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "float32" => Some(Self::Float32),
            "float64" => Some(Self::Float64),
            _ => None,
        }
    }

    /// `float32` or `float64`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float64 => "float64",
        }
    }
}

/// Element types of the decompositions.
pub(crate) trait Real: RealField + Copy {
    /// The nearest value of the type.
    fn from_f64(value: f64) -> Self;
    /// The value, widened.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs` when `accumulate`.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply<T: Real>(
    out: MatMut<'_, T>,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    accumulate: bool,
) {
    let beta = if accumulate { Accum::Add } else { Accum::Replace };
    matmul::matmul(out, beta, lhs, rhs, T::from_f64(1.0), Par::Seq);
}

/// Lower triangle (diagonal included) of `out = x · xᵀ`; the rest of `out` is left as it is.
///
/// # Panics
/// If `out` is not square with as many rows as `x`.
pub(crate) fn gram_lower<T: Real>(out: MatMut<'_, T>, x: MatRef<'_, T>) {
    use matmul::triangular::BlockStructure::{Rectangular, TriangularLower};
    matmul::triangular::matmul(
        out,
        TriangularLower,
        Accum::Replace,
        x,
        Rectangular,
        x.transpose(),
        Rectangular,
        T::from_f64(1.0),
        Par::Seq,
    );
}
