//! NEON kernels. Every aarch64 processor has NEON, so nothing is detected.

#![allow(unsafe_code, reason = "vector loads through pointers; every block says why it is sound")]
#![allow(clippy::wildcard_imports, reason = "the intrinsics")]

use std::arch::aarch64::*;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Kernels, check_rows, scalar};

/// The NEON set.
pub(super) const KERNELS: Kernels = Kernels {
    name: "neon",
    dot_f32,
    rows_f32: |w, stride, x, out| rows(w, stride, 4 * x.len(), out, |w| row_f32(w, x)),
    rows_f16: |w, stride, x, out| rows(w, stride, 2 * x.len(), out, |w| row_f16(w, x)),
    rows_bf16: |w, stride, x, out| rows(w, stride, 2 * x.len(), out, |w| row_bf16(w, x)),
    rows_q8_0: |w, stride, x, out| {
        rows(w, stride, x.len() / 32 * 34, out, |w| row_q8_0(w, x));
    },
    rows_q4_0: None,
    rows_q4_1: None,
    rows_q4_k: None,
    rows_q6_k: None,
    sum_f32: scalar::KERNELS.sum_f32,
    sum_f16,
    max: scalar::KERNELS.max,
    exp_sum: scalar::exp_sum::<true>,
    silu_mul: scalar::silu_mul::<true>,
};

/// Values that a step of a dot product takes: four vectors of four.
const STEP: usize = 16;

#[inline]
fn sum(v: [float32x4_t; 4]) -> f32 {
    // SAFETY: NEON is part of the aarch64 baseline; registers only.
    unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]))) }
}

/// `Σ w·x`: `read` gives the sixteen weights that start at value `i`.
#[inline]
fn dot(x: &[f32], read: impl Fn(usize) -> [float32x4_t; 4], rest: impl Fn(usize) -> f32) -> f32 {
    // SAFETY: registers only.
    let mut sums = unsafe { [vdupq_n_f32(0.0); 4] };
    let whole = x.len() / STEP * STEP;
    for i in (0..whole).step_by(STEP) {
        let weights = read(i);
        for lane in 0..4 {
            // SAFETY: i + 16 <= x.len().
            sums[lane] = unsafe {
                vfmaq_f32(sums[lane], weights[lane], vld1q_f32(x.as_ptr().add(i + 4 * lane)))
            };
        }
    }
    (whole..x.len()).fold(sum(sums), |sum, i| rest(i).mul_add(x[i], sum))
}

/// `out[i]` is `row` of the bytes of row `i`, `width` of them.
#[inline]
fn rows(w: &[u8], stride: usize, width: usize, out: &mut [f32], row: impl Fn(&[u8]) -> f32) {
    check_rows(w, stride, width, out.len());
    for (i, out) in out.iter_mut().enumerate() {
        *out = row(&w[i * stride..][..width]);
    }
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    row_f32(bytemuck::cast_slice(a), b)
}

#[inline]
fn row_f32(w: &[u8], x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len() * 4, "weights and inputs of different lengths");
    let read = |i: usize| {
        std::array::from_fn(|lane| {
            // SAFETY: `dot` asks for i + 16 <= x.len(), and w has four bytes per value; the byte
            // load has no alignment requirement.
            unsafe { vreinterpretq_f32_u8(vld1q_u8(w.as_ptr().add(4 * i + 16 * lane))) }
        })
    };
    dot(x, read, |i| f32::from_le_bytes([w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]]))
}

/// Sixteen halves as f32. The conversion instruction is reached through `half`, which has it on
/// stable compilers.
#[inline]
fn halves(bytes: &[u8; 32]) -> [f32; STEP] {
    let mut values = [f16::ZERO; STEP];
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*bytes);
    }
    let mut out = [0.0; STEP];
    values.convert_to_f32_slice(&mut out);
    out
}

#[inline]
fn row_f16(w: &[u8], x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len() * 2, "weights and inputs of different lengths");
    let (chunks, _) = w.as_chunks::<32>();
    let read = |i: usize| {
        let values = halves(&chunks[i / STEP]);
        // SAFETY: the array has sixteen values.
        std::array::from_fn(|lane| unsafe { vld1q_f32(values.as_ptr().add(4 * lane)) })
    };
    dot(x, read, |i| f16::from_le_bytes([w[2 * i], w[2 * i + 1]]).to_f32())
}

#[inline]
fn row_bf16(w: &[u8], x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len() * 2, "weights and inputs of different lengths");
    let read = |i: usize| {
        // SAFETY: `dot` asks for i + 16 <= x.len(), and w has two bytes per value.
        unsafe {
            let low = vreinterpretq_u16_u8(vld1q_u8(w.as_ptr().add(2 * i)));
            let high = vreinterpretq_u16_u8(vld1q_u8(w.as_ptr().add(2 * i + 16)));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(high))),
            ]
        }
    };
    dot(x, read, |i| half::bf16::from_le_bytes([w[2 * i], w[2 * i + 1]]).to_f32())
}

/// Sixteen signed bytes as f32.
///
/// # Safety
/// `from` has 16 readable bytes.
#[inline]
unsafe fn load_i8(from: *const u8) -> [float32x4_t; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let v = vreinterpretq_s8_u8(vld1q_u8(from));
        let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v)));
        [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
        ]
    }
}

#[inline]
fn row_q8_0(w: &[u8], x: &[f32]) -> f32 {
    assert_eq!(w.len() / 34 * 32, x.len(), "weights and inputs of different lengths");
    // SAFETY: registers only.
    let mut sums = unsafe { [vdupq_n_f32(0.0); 4] };
    for (block, x) in w.chunks_exact(34).zip(x.chunks_exact(32)) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        // SAFETY: the block has 32 bytes after its scale and x has 32 values.
        unsafe {
            let low = load_i8(block.as_ptr().add(2));
            let high = load_i8(block.as_ptr().add(18));
            for lane in 0..4 {
                let inner = vmulq_f32(low[lane], vld1q_f32(x.as_ptr().add(4 * lane)));
                let inner = vfmaq_f32(inner, high[lane], vld1q_f32(x.as_ptr().add(16 + 4 * lane)));
                sums[lane] = vfmaq_n_f32(sums[lane], inner, scale);
            }
        }
    }
    sum(sums)
}

fn sum_f16(w: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
    check_rows(w, stride, 2 * out.len(), weights.len());
    for (row, weight) in weights.iter().enumerate() {
        let row = &w[row * stride..][..2 * out.len()];
        for (out, w) in out.chunks_mut(STEP).zip(row.chunks(2 * STEP)) {
            let mut bytes = [0u8; 2 * STEP];
            bytes[..w.len()].copy_from_slice(w);
            for (out, w) in out.iter_mut().zip(halves(&bytes)) {
                *out = weight.mul_add(w, *out);
            }
        }
    }
}
