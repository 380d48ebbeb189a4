//! Portable kernels, the reference of the others. Sixteen running sums per dot product: the
//! compiler turns them into whatever vectors the target has, and rounding errors stay those of a
//! sixteenth of the length.

#![expect(
    clippy::inline_always,
    reason = "the vector sets inline these bodies to compile them for their own instructions"
)]

use half::{bf16, f16};

use super::{Kernels, check_rows};

/// The portable set.
pub(crate) const KERNELS: Kernels = Kernels {
    name: "scalar",
    dot_f32,
    rows_f32,
    rows_f16,
    rows_bf16,
    rows_q8_0,
    rows_q4_0: None,
    rows_q4_1: None,
    rows_q4_k: None,
    rows_q6_k: None,
    sum_f32,
    sum_f16,
    max,
    exp_sum: exp_sum::<false>,
    silu_mul: silu_mul::<false>,
};

const LANES: usize = 16;

/// Adds sixteen lanes pairwise, so that the order is the same whatever the vector width.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    fold(lanes)
}

/// Dot products of rows of `N`-byte values that `read` decodes.
#[inline(always)]
fn rows<const N: usize>(
    w: &[u8],
    stride: usize,
    x: &[f32],
    out: &mut [f32],
    read: impl Fn([u8; N]) -> f32,
) {
    check_rows(w, stride, N * x.len(), out.len());
    for (row, out) in out.iter_mut().enumerate() {
        let w = &w[row * stride..][..N * x.len()];
        let mut lanes = [0.0f32; LANES];
        for (w, x) in w.chunks(LANES * N).zip(x.chunks(LANES)) {
            for ((lane, w), x) in lanes.iter_mut().zip(w.as_chunks::<N>().0).zip(x) {
                *lane += read(*w) * x;
            }
        }
        *out = fold(lanes);
    }
}

fn rows_f32(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
    rows(w, stride, x, out, f32::from_le_bytes);
}

fn rows_f16(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
    rows(w, stride, x, out, |b| f16::from_le_bytes(b).to_f32());
}

fn rows_bf16(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
    rows(w, stride, x, out, |b| bf16::from_le_bytes(b).to_f32());
}

fn rows_q8_0(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
    let width = x.len() / 32 * 34;
    check_rows(w, stride, width, out.len());
    for (row, out) in out.iter_mut().enumerate() {
        let w = &w[row * stride..][..width];
        let mut lanes = [0.0f32; LANES];
        for (block, x) in w.chunks_exact(34).zip(x.chunks_exact(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            let (low, high) = block[2..].split_at(LANES);
            for l in 0..LANES {
                let sum = f32::from(low[l] as i8) * x[l] + f32::from(high[l] as i8) * x[l + LANES];
                lanes[l] += scale * sum;
            }
        }
        *out = fold(lanes);
    }
}

/// Adds rows of `N`-byte values that `read` decodes, each times its weight.
#[inline(always)]
fn sum<const N: usize>(
    w: &[u8],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    read: impl Fn([u8; N]) -> f32,
) {
    check_rows(w, stride, N * out.len(), weights.len());
    for (row, weight) in weights.iter().enumerate() {
        for (out, w) in out.iter_mut().zip(w[row * stride..].as_chunks::<N>().0) {
            *out += weight * read(*w);
        }
    }
}

fn sum_f32(w: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
    sum(w, stride, weights, out, f32::from_le_bytes);
}

fn sum_f16(w: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
    sum(w, stride, weights, out, |b| f16::from_le_bytes(b).to_f32());
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = if *v > *lane { *v } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp` to two units in the last place: `x = n ln 2 + r` with `ln 2` in two parts (Cody and
/// Waite), a polynomial for `exp(r)`, `|r| ≤ ln 2 / 2`, and `2^n` put into the exponent. Arguments
/// below -87 give about 1e-38 at most, above 88 about 1e38. `FMA` asks for fused multiply-add,
/// which must be a hardware instruction of the surrounding function.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "digits of ln 2 and of the fit as published")]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    // Comparisons instead of clamp: NaN becomes the bound, and the loop stays vectorizable.
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = fused::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fused::<FMA>(n, -0.693_145_751_953_125, x);
    let r = fused::<FMA>(n, -1.428_606_765_330_187_045e-6, r);
    // Minimax fit of exp on ±ln 2 / 2 (Cephes).
    let mut p = fused::<FMA>(1.987_569_15e-4, r, 1.398_199_950_7e-3);
    p = fused::<FMA>(p, r, 8.333_451_907_3e-3);
    p = fused::<FMA>(p, r, 4.166_579_589_4e-2);
    p = fused::<FMA>(p, r, 1.666_666_545_9e-1);
    p = fused::<FMA>(p, r, 5.000_000_120_1e-1);
    let e = fused::<FMA>(p, r * r, r) + 1.0;
    // The low bits of `shifted` are n in two's complement; n + 127 is in 1..=254.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    e * scale
}

#[inline(always)]
pub(super) fn exp_sum<const FMA: bool>(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk.iter_mut()) {
            *v = exp::<FMA>(*v - shift);
            *lane += *v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *v = exp::<FMA>(*v - shift);
        *lane += *v;
    }
    fold(lanes)
}

#[inline(always)]
pub(super) fn silu_mul<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<FMA>(-gate)) * up;
    }
}
