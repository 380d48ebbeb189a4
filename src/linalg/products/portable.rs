//! The products through faer, in f32.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::Operand;

/// Rows of a result that a thread computes at a time.
const ROWS: usize = 64;

fn sign(value: f32) -> f32 {
    if value >= 0.0 { 1.0 } else { -1.0 }
}

/// The values that the operand stands for.
fn resolved(operand: Operand<'_>) -> Cow<'_, [f32]> {
    if operand.signs {
        Cow::Owned(operand.values.iter().map(|&v| sign(v)).collect())
    } else {
        Cow::Borrowed(operand.values)
    }
}

fn view<'v>(values: &'v [f32], operand: &Operand<'_>) -> MatRef<'v, f32> {
    let (row, col) = operand.strides;
    if col == 1 {
        MatRef::from_row_major_slice_with_stride(values, operand.rows, operand.cols, row)
    } else {
        MatRef::from_row_major_slice_with_stride(values, operand.cols, operand.rows, col)
            .transpose()
    }
}

pub(super) fn multiply(
    out: &mut [f32],
    a: Operand<'_>,
    b: Operand<'_>,
    accumulate: bool,
    parallel: bool,
) {
    let (a_values, b_values) = (resolved(a), resolved(b));
    let (a_view, b_view) = (view(&a_values, &a), view(&b_values, &b));
    let accum = if accumulate { Accum::Add } else { Accum::Replace };
    let cols = b.cols;
    let job = |(chunk, out): (usize, &mut [f32])| {
        let rows = out.len() / cols;
        let out = MatMut::from_row_major_slice_mut(out, rows, cols);
        matmul(out, accum, a_view.subrows(chunk * ROWS, rows), b_view, 1.0, Par::Seq);
    };
    if parallel {
        out.par_chunks_mut(ROWS * cols).enumerate().for_each(job);
    } else {
        out.chunks_mut(ROWS * cols).enumerate().for_each(job);
    }
}
