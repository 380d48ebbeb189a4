//! Vector kernels of the decoder on the CPU: dot products against stored weights, and the
//! elementwise loops that dominate once the matrix products are fast.
//!
//! [`kernels`] picks the widest instruction set of the running machine once. Every variant has a
//! fixed order of summation that depends on nothing but the length, so results do not change with
//! the number of threads. Variants differ from one another by rounding only; the tests hold each
//! against [`scalar`].

pub(crate) mod scalar;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use super::StoredType;

/// A kernel over rows of stored values: the bytes, the distance of two rows in bytes, the vector
/// that goes with the rows, and what comes out.
///
/// # Panics
/// If the last row reaches beyond the bytes.
pub(crate) type RowsKernel = fn(&[u8], usize, &[f32], &mut [f32]);

/// One implementation of every kernel. Weights are little-endian bytes as they lie in the file, at
/// any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Instruction set, for reports ("avx512", "avx2", "neon", "scalar").
    pub name: &'static str,
    /// `Σ a·b` of two f32 vectors of equal length.
    pub dot_f32: fn(&[f32], &[f32]) -> f32,
    /// `out[i] = Σ w·x` for rows of f32 weights: row `i` starts at byte `i · stride`.
    pub rows_f32: RowsKernel,
    /// The same for IEEE half weights.
    pub rows_f16: RowsKernel,
    /// The same for bfloat16 weights.
    pub rows_bf16: RowsKernel,
    /// The same for blocks of `Q8_0`.
    pub rows_q8_0: RowsKernel,
    /// The same for blocks of `Q4_0`, in sets that have a kernel for them.
    pub rows_q4_0: Option<RowsKernel>,
    /// The same for `Q4_1`.
    pub rows_q4_1: Option<RowsKernel>,
    /// The same for `Q4_K`.
    pub rows_q4_k: Option<RowsKernel>,
    /// The same for `Q6_K`.
    pub rows_q6_k: Option<RowsKernel>,
    /// `out += Σ weights[i] · row i` for rows of f32: row `i` starts at byte `i · stride`.
    pub sum_f32: RowsKernel,
    /// The same for rows of IEEE halves.
    pub sum_f16: RowsKernel,
    /// The largest value, negative infinity if there is none. NaN is ignored.
    pub max: fn(&[f32]) -> f32,
    /// Replaces each `x` by `exp(x - shift)` and returns the sum.
    pub exp_sum: fn(&mut [f32], f32) -> f32,
    /// `out = silu(gate) · up` where `silu(z) = z / (1 + exp(-z))`.
    pub silu_mul: fn(&[f32], &[f32], &mut [f32]),
}

impl Kernels {
    /// The kernel for rows of that type, if there is one.
    #[must_use]
    pub(crate) fn rows(&self, dtype: StoredType) -> Option<RowsKernel> {
        (dtype.row().rows)(self)
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.name)
    }
}

/// The fastest kernels of this machine.
pub(crate) fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| *available().last().unwrap_or(&scalar::KERNELS))
}

/// Every set of kernels that runs on this machine, slowest first.
pub(crate) fn available() -> Vec<Kernels> {
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(unused_mut, reason = "other processors have the scalar set only")
    )]
    let mut sets = vec![scalar::KERNELS];
    #[cfg(target_arch = "x86_64")]
    sets.extend(x86::available());
    #[cfg(target_arch = "aarch64")]
    sets.push(neon::KERNELS);
    sets
}

/// Bytes that `count` rows of `width` bytes take at that stride.
///
/// # Panics
/// If `bytes` has fewer.
fn check_rows(bytes: &[u8], stride: usize, width: usize, count: usize) {
    let needed =
        count.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(width));
    assert!(needed.is_some_and(|needed| needed <= bytes.len()), "rows beyond the bytes");
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const LENGTHS: [usize; 12] = [0, 1, 7, 15, 16, 31, 64, 65, 127, 192, 576, 1536];

    fn random(rng: &mut ChaCha8Rng, length: usize) -> Vec<f32> {
        (0..length).map(|_| rng.random_range(-2.0f32..2.0)).collect()
    }

    /// Rounding of a sum of `length` products of that magnitude.
    fn tolerance(a: &[f64], b: &[f32]) -> f64 {
        1e-6 * (1.0 + a.iter().zip(b).map(|(a, b)| (a * f64::from(*b)).abs()).sum::<f64>())
    }

    fn exact(a: &[f64], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
    }

    fn check(set: &str, kernel: &str, got: f32, weights: &[f64], x: &[f32]) {
        let want = exact(weights, x);
        assert!(
            (f64::from(got) - want).abs() <= tolerance(weights, x),
            "{set} {kernel} of {}: {got} instead of {want}",
            x.len()
        );
    }

    /// Three rows of a type with two unused bytes between them and one in front, as they may lie in
    /// a file, and their exact values.
    fn rows(
        length: usize,
        rng: &mut ChaCha8Rng,
        encode: impl Fn(f32) -> (Vec<u8>, f64),
    ) -> (Vec<u8>, usize, Vec<Vec<f64>>) {
        let mut bytes = vec![0u8];
        let mut values = Vec::new();
        for _ in 0..3 {
            let (encoded, wide): (Vec<_>, Vec<_>) =
                random(rng, length).into_iter().map(&encode).unzip();
            bytes.extend(encoded.concat());
            bytes.extend([0xff, 0xff]);
            values.push(wide);
        }
        let stride = (bytes.len() - 1) / 3;
        (bytes, stride, values)
    }

    fn check_rows(
        set: &str,
        kernel: RowsKernel,
        x: &[f32],
        (bytes, stride, values): &(Vec<u8>, usize, Vec<Vec<f64>>),
    ) {
        let mut out = vec![f32::NAN; values.len()];
        // The last row ends where the bytes end.
        kernel(&bytes[1..bytes.len() - 2], *stride, x, &mut out);
        for (got, weights) in out.iter().zip(values) {
            check(set, "rows", *got, weights, x);
        }
        kernel(&bytes[1..1], *stride, x, &mut []);
    }

    fn check_sum(
        set: &str,
        kernel: RowsKernel,
        x: &[f32],
        (bytes, stride, values): &(Vec<u8>, usize, Vec<Vec<f64>>),
    ) {
        let weights = [0.75f32, -1.25, 0.5];
        let mut out = x.to_vec();
        kernel(&bytes[1..bytes.len() - 2], *stride, &weights, &mut out);
        for (i, got) in out.iter().enumerate() {
            let sum: f64 = values.iter().zip(weights).map(|(row, w)| row[i] * f64::from(w)).sum();
            let want = f64::from(x[i]) + sum;
            assert!((f64::from(*got) - want).abs() < 2e-6, "{set} sum: {got} instead of {want}");
        }
    }

    #[test]
    fn dots_of_every_instruction_set_equal_f64_sums() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for set in available() {
            for length in LENGTHS {
                let (w, x) = (random(&mut rng, length), random(&mut rng, length));
                let wide: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
                check(set.name, "f32", (set.dot_f32)(&w, &x), &wide, &x);

                let singles = rows(length, &mut rng, |v| (v.to_le_bytes().to_vec(), f64::from(v)));
                check_rows(set.name, set.rows_f32, &x, &singles);
                check_sum(set.name, set.sum_f32, &x, &singles);
                let halves = rows(length, &mut rng, |v| {
                    let v = f16::from_f32(v);
                    (v.to_le_bytes().to_vec(), v.to_f64())
                });
                check_rows(set.name, set.rows_f16, &x, &halves);
                check_sum(set.name, set.sum_f16, &x, &halves);
                let brains = rows(length, &mut rng, |v| {
                    let v = bf16::from_f32(v);
                    (v.to_le_bytes().to_vec(), v.to_f64())
                });
                check_rows(set.name, set.rows_bf16, &x, &brains);
            }
        }
    }

    #[test]
    fn half_dots_read_subnormals_and_extremes() {
        let values: Vec<f16> = [0x0001u16, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x0000, 0x8000]
            .into_iter()
            .cycle()
            .take(40)
            .map(f16::from_bits)
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for set in available() {
            for at in 0..values.len() {
                let mut x = vec![0.0; values.len()];
                x[at] = 1.0;
                let mut out = [0.0];
                (set.rows_f16)(&bytes, bytes.len(), &x, &mut out);
                // Zero may come out with either sign.
                assert_eq!(
                    out[0].to_bits() << 1,
                    values[at].to_f32().to_bits() << 1,
                    "{} value {at}",
                    set.name
                );
            }
        }
    }

    #[test]
    fn dots_of_blocks_equal_those_of_the_decoded_values() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for set in available() {
            for dtype in StoredType::writable() {
                let (values, size) = dtype.block();
                let Some(kernel) = set.rows(dtype) else { continue };
                for blocks in [0, 1, 2, 3, 18] {
                    let width = values * blocks;
                    let x = random(&mut rng, width);
                    // Without bit 6, no half among the bytes is infinite or large.
                    let bytes: Vec<u8> =
                        (0..3 * blocks * size).map(|_| rng.random::<u8>() & 0xbf).collect();
                    let mut out = [f32::NAN; 3];
                    kernel(&bytes, blocks * size, &x, &mut out);
                    for (row, got) in out.iter().enumerate() {
                        let bytes = &bytes[row * blocks * size..][..blocks * size];
                        let mut decoded = vec![0.0; width];
                        crate::codec::ggml::decode(dtype, bytes, &mut decoded);
                        let want: f64 = decoded
                            .iter()
                            .zip(&x)
                            .map(|(w, x)| f64::from(*w) * f64::from(*x))
                            .sum();
                        // Scale and minimum are multiplied apart and may cancel.
                        let largest = decoded.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                        let size = f64::from(largest) * 32.0 * width as f64;
                        assert!(
                            (f64::from(*got) - want).abs() <= 1e-7 * size,
                            "{} {}: {got} instead of {want}",
                            set.name,
                            dtype.name()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_types_of_everyday_files_have_kernels() {
        use crate::codec::StoredType::{BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0};
        for set in available() {
            let types: &[StoredType] = match set.name {
                "avx2" | "avx512" => &[F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K],
                _ => &[F32, F16, BF16, Q8_0],
            };
            assert!(types.iter().all(|dtype| set.rows(*dtype).is_some()), "{}", set.name);
        }
    }

    #[test]
    fn rows_beyond_the_bytes_panic() {
        for set in available() {
            for dtype in StoredType::writable() {
                let Some(kernel) = set.rows(dtype) else { continue };
                let bytes = dtype.row_bytes(512).unwrap();
                let rows = vec![0u8; 2 * bytes - 1];
                let run = || kernel(&rows, bytes, &[0.0; 512], &mut [0.0; 2]);
                assert!(std::panic::catch_unwind(run).is_err(), "{}", set.name);
            }
            for (kernel, bytes) in [(set.sum_f32, 4 * 64), (set.sum_f16, 2 * 64)] {
                let rows = vec![0u8; 2 * bytes - 1];
                let run = || kernel(&rows, bytes, &[0.0; 2], &mut [0.0; 64]);
                assert!(std::panic::catch_unwind(run).is_err(), "{}", set.name);
            }
            let run = || (set.dot_f32)(&[0.0; 16], &[0.0; 17]);
            assert!(std::panic::catch_unwind(run).is_err(), "{}", set.name);
        }
    }

    #[test]
    fn exponentials_and_silu_equal_f64() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for set in available() {
            for length in LENGTHS {
                let x: Vec<f32> = (0..length).map(|_| rng.random_range(-30.0f32..5.0)).collect();
                let shift = (set.max)(&x);
                let want_max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(shift.to_bits(), want_max.to_bits(), "{} max of {length}", set.name);
                let mut e = x.clone();
                let shift = if length == 0 { 0.0 } else { shift };
                let sum = (set.exp_sum)(&mut e, shift);
                let wide: Vec<f64> =
                    x.iter().map(|v| (f64::from(*v) - f64::from(shift)).exp()).collect();
                for ((e, want), x) in e.iter().zip(&wide).zip(&x) {
                    // The argument itself is rounded to f32, which costs up to 35 * 2^-24.
                    assert!((f64::from(*e) - want).abs() <= 4e-6 * want, "{} exp({x})", set.name);
                }
                let want: f64 = wide.iter().sum();
                assert!((f64::from(sum) - want).abs() <= 5e-6 * want.max(1.0), "{} sum", set.name);

                let up = random(&mut rng, length);
                let mut out = vec![0.0; length];
                (set.silu_mul)(&x, &up, &mut out);
                for ((out, x), up) in out.iter().zip(&x).zip(&up) {
                    let (x, up) = (f64::from(*x), f64::from(*up));
                    let want = x / (1.0 + (-x).exp()) * up;
                    assert!(
                        (f64::from(*out) - want).abs() <= 2e-6 * want.abs() + 1e-30,
                        "{} silu({x})·{up}: {out} instead of {want}",
                        set.name
                    );
                }
            }
        }
    }

    #[test]
    fn extreme_arguments_stay_finite() {
        for set in available() {
            let mut x = vec![-1e30f32, -200.0, -104.0, -87.0, 0.0, f32::NEG_INFINITY];
            let sum = (set.exp_sum)(&mut x, 0.0);
            assert!((sum - 1.0).abs() < 1e-6, "{}: {sum}", set.name);
            assert!(x.iter().all(|v| *v >= 0.0 && *v <= 1.0), "{}: {x:?}", set.name);
            let gate = [-1e30f32, -500.0, -88.0, 88.0, 500.0, 1e30];
            let mut out = [0.0; 6];
            (set.silu_mul)(&gate, &[1.0; 6], &mut out);
            for (gate, out) in gate.iter().zip(&out) {
                let want = if *gate > 0.0 { *gate } else { 0.0 };
                assert!(
                    (out - want).abs() <= 1e-6 * gate.abs().max(1.0),
                    "{} {gate} {out}",
                    set.name
                );
            }
            assert!(out[0].abs() < 1e-3 && out[1].abs() < 1e-30, "{}: {out:?}", set.name);
        }
    }
}
