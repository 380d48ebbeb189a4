//! Kernels over f32, f16 and bf16, written once for both instruction sets.

/// The kernels over plain types of one instruction set, from its own `load_*`, `zero`, `splat`,
/// `fma`, `add`, `reduce` and `WIDTH`.
///
/// Four accumulators hide the latency of fused multiply-add; a last partial vector is copied into
/// a zeroed buffer, so that no load reaches beyond the slice.
macro_rules! plain_kernels {
    ($features:literal) => {
        /// Defines the dot product of a row of `SIZE`-byte values with a vector, and the loop of it
        /// over rows.
        macro_rules! rows {
            ($row:ident, $rows:ident, $size:literal, $load:ident) => {
                /// # Safety
                /// `w` has as many readable values as `x`.
                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn $row(w: *const u8, x: &[f32]) -> f32 {
                    let (mut a, mut b, mut c, mut d) = (zero(), zero(), zero(), zero());
                    let at = x.as_ptr();
                    let mut i = 0;
                    // SAFETY: every index is below x.len(), and w has $size bytes per value.
                    unsafe {
                        while i + 4 * WIDTH <= x.len() {
                            a = fma($load(w.add(i * $size)), load(at.add(i)), a);
                            let j = i + WIDTH;
                            b = fma($load(w.add(j * $size)), load(at.add(j)), b);
                            let j = i + 2 * WIDTH;
                            c = fma($load(w.add(j * $size)), load(at.add(j)), c);
                            let j = i + 3 * WIDTH;
                            d = fma($load(w.add(j * $size)), load(at.add(j)), d);
                            i += 4 * WIDTH;
                        }
                        while i + WIDTH <= x.len() {
                            a = fma($load(w.add(i * $size)), load(at.add(i)), a);
                            i += WIDTH;
                        }
                    }
                    if i < x.len() {
                        let rest = x.len() - i;
                        let (mut w_rest, mut x_rest) = ([0u8; WIDTH * $size], [0f32; WIDTH]);
                        x_rest[..rest].copy_from_slice(&x[i..]);
                        // SAFETY: the rest of the row is readable, and both buffers hold a vector.
                        unsafe {
                            let from = std::slice::from_raw_parts(w.add(i * $size), rest * $size);
                            w_rest[..rest * $size].copy_from_slice(from);
                            b = fma($load(w_rest.as_ptr()), load(x_rest.as_ptr()), b);
                        }
                    }
                    reduce(add(add(a, c), add(b, d)))
                }

                #[target_feature(enable = $features)]
                pub(super) fn $rows(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
                    check_rows(w, stride, $size * x.len(), out.len());
                    for (row, out) in out.iter_mut().enumerate() {
                        // SAFETY: the check covers every row.
                        *out = unsafe { $row(w.as_ptr().add(row * stride), x) };
                    }
                }
            };
        }

        rows!(row_f32, rows_f32, 4, load_f32);
        rows!(row_f16, rows_f16, 2, load_f16);
        rows!(row_bf16, rows_bf16, 2, load_bf16);

        #[target_feature(enable = $features)]
        pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
            assert_eq!(a.len(), b.len(), "vectors of different lengths");
            // SAFETY: both have the same length.
            unsafe { row_f32(a.as_ptr().cast(), b) }
        }

        /// Defines the weighted sum of rows of `SIZE`-byte values. Sums stay in registers over all
        /// rows, four vectors at a time.
        macro_rules! sum {
            ($sum:ident, $size:literal, $load:ident, $read:expr) => {
                #[target_feature(enable = $features)]
                pub(super) fn $sum(w: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
                    check_rows(w, stride, $size * out.len(), weights.len());
                    let mut i = 0;
                    // SAFETY: every index is below out.len(), and the check covers every row.
                    unsafe {
                        while i + 4 * WIDTH <= out.len() {
                            let to = out.as_mut_ptr().add(i);
                            let (mut a, mut b) = (load(to), load(to.add(WIDTH)));
                            let (mut c, mut d) = (load(to.add(2 * WIDTH)), load(to.add(3 * WIDTH)));
                            let mut from = w.as_ptr().wrapping_add(i * $size);
                            for weight in weights {
                                let weight = splat(*weight);
                                a = fma(weight, $load(from), a);
                                b = fma(weight, $load(from.add(WIDTH * $size)), b);
                                c = fma(weight, $load(from.add(2 * WIDTH * $size)), c);
                                d = fma(weight, $load(from.add(3 * WIDTH * $size)), d);
                                from = from.wrapping_add(stride);
                            }
                            store(to, a);
                            store(to.add(WIDTH), b);
                            store(to.add(2 * WIDTH), c);
                            store(to.add(3 * WIDTH), d);
                            i += 4 * WIDTH;
                        }
                        while i + WIDTH <= out.len() {
                            let mut a = load(out.as_ptr().add(i));
                            let mut from = w.as_ptr().wrapping_add(i * $size);
                            for weight in weights {
                                a = fma(splat(*weight), $load(from), a);
                                from = from.wrapping_add(stride);
                            }
                            store(out.as_mut_ptr().add(i), a);
                            i += WIDTH;
                        }
                    }
                    let rest = &mut out[i..];
                    for (row, weight) in weights.iter().enumerate() {
                        let w = w[row * stride + i * $size..].as_chunks::<$size>().0;
                        for (out, w) in rest.iter_mut().zip(w) {
                            *out = weight.mul_add($read(*w), *out);
                        }
                    }
                }
            };
        }

        sum!(sum_f32, 4, load_f32, f32::from_le_bytes);
        sum!(sum_f16, 2, load_f16, |bytes| f16::from_le_bytes(bytes).to_f32());

        #[target_feature(enable = $features)]
        pub(super) fn max(x: &[f32]) -> f32 {
            scalar::max(x)
        }

        #[target_feature(enable = $features)]
        pub(super) fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
            scalar::exp_sum::<true>(x, shift)
        }

        #[target_feature(enable = $features)]
        pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            scalar::silu_mul::<true>(gate, up, out);
        }
    };
}
