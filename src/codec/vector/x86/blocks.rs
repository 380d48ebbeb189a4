//! Dot products with rows of GGUF blocks, written once for both instruction sets. Layouts as in
//! ggml's `ggml-common.h` and [`crate::codec::ggml`], against whose decoders they are tested.

/// The kernels over block types of one instruction set, from its own primitives.
macro_rules! block_kernels {
    ($features:literal) => {
        /// A half at `from`.
        ///
        /// # Safety
        /// `from` has two readable bytes.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn half_at(from: *const u8) -> f32 {
            // SAFETY: as the caller promises; the read has no alignment requirement.
            let bits = unsafe { from.cast::<u16>().read_unaligned() };
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
        }

        /// Sums of each 32 values: what the constant part of a block is multiplied by.
        #[inline]
        #[target_feature(enable = $features)]
        fn sums_of_32(x: &[f32]) -> Vec<f32> {
            let sum = |x: &[f32; 32]| {
                let mut sum = zero();
                for i in (0..32).step_by(WIDTH) {
                    // SAFETY: the chunk has 32 values.
                    sum = add(sum, unsafe { load(x.as_ptr().add(i)) });
                }
                reduce(sum)
            };
            x.as_chunks::<32>().0.iter().map(sum).collect()
        }

        /// Defines a dot product over rows of blocks of `SIZE` bytes and `VALUES` values. `block`
        /// gets the block, its part of `x`, the sum so far and the sum of constant parts so far.
        macro_rules! rows_of_blocks {
            ($rows:ident, $size:literal, $values:literal, $block:ident) => {
                #[target_feature(enable = $features)]
                pub(super) fn $rows(w: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
                    let blocks = x.len() / $values;
                    check_rows(w, stride, $size * blocks, out.len());
                    let sums = sums_of_32(x);
                    for (row, out) in out.iter_mut().enumerate() {
                        let (mut sum, mut constant) = (zero(), 0.0f32);
                        for i in 0..blocks {
                            // SAFETY: the check covers every block of every row, x has $values
                            // values for each and sums has one for each 32 of them.
                            unsafe {
                                (sum, constant) = $block(
                                    w.as_ptr().add(row * stride + $size * i),
                                    x.as_ptr().add($values * i),
                                    sums.as_ptr().add($values / 32 * i),
                                    sum,
                                    constant,
                                );
                            }
                        }
                        *out = reduce(sum) + constant;
                    }
                }
            };
        }

        rows_of_blocks!(rows_q8_0, 34, 32, block_q8_0);
        rows_of_blocks!(rows_q4_0, 18, 32, block_q4_0);
        rows_of_blocks!(rows_q4_1, 20, 32, block_q4_1);
        rows_of_blocks!(rows_q4_k, 144, 256, block_q4_k);
        rows_of_blocks!(rows_q6_k, 210, 256, block_q6_k);

        /// `Q8_0`: scale, 32 signed bytes.
        ///
        /// # Safety
        /// `w` is a readable block and `x` has its 32 values.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn block_q8_0(
            w: *const u8,
            x: *const f32,
            _: *const f32,
            sum: Vector,
            constant: f32,
        ) -> (Vector, f32) {
            let mut inner = zero();
            for i in (0..32).step_by(WIDTH) {
                // SAFETY: as the caller promises.
                inner = unsafe { fma(load_i8(w.add(2 + i)), load(x.add(i)), inner) };
            }
            // SAFETY: as the caller promises.
            (fma(splat(unsafe { half_at(w) }), inner, sum), constant)
        }

        /// `Σ q·x` of 16 bytes: their lower halves are values 0..16, their upper ones 16..32.
        ///
        /// # Safety
        /// `q` has 16 readable bytes and `x` 32 readable values.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn nibbles(q: *const u8, x: *const f32) -> Vector {
            let mut inner = zero();
            for i in (0..16).step_by(WIDTH) {
                // SAFETY: as the caller promises.
                unsafe {
                    let both = load_u8(q.add(i));
                    inner = fma(float(bits::<0>(both, 15)), load(x.add(i)), inner);
                    inner = fma(float(bits::<4>(both, 15)), load(x.add(16 + i)), inner);
                }
            }
            inner
        }

        /// `Q4_0`: scale, 16 bytes of nibbles that are 8 too large.
        ///
        /// # Safety
        /// `w` is a readable block, `x` has its 32 values and `sums` their sum.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn block_q4_0(
            w: *const u8,
            x: *const f32,
            sums: *const f32,
            sum: Vector,
            constant: f32,
        ) -> (Vector, f32) {
            // SAFETY: as the caller promises.
            unsafe {
                let scale = half_at(w);
                let sum = fma(splat(scale), nibbles(w.add(2), x), sum);
                (sum, (-8.0 * scale).mul_add(*sums, constant))
            }
        }

        /// `Q4_1`: scale, minimum, 16 bytes of nibbles.
        ///
        /// # Safety
        /// As for [`block_q4_0`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn block_q4_1(
            w: *const u8,
            x: *const f32,
            sums: *const f32,
            sum: Vector,
            constant: f32,
        ) -> (Vector, f32) {
            // SAFETY: as the caller promises.
            unsafe {
                let sum = fma(splat(half_at(w)), nibbles(w.add(4), x), sum);
                (sum, half_at(w.add(2)).mul_add(*sums, constant))
            }
        }

        /// `Q4_K`: scale of scales, scale of minima, eight 6-bit scales and minima, 128 bytes whose
        /// nibbles are, 32 bytes at a time, two groups of 32 values.
        ///
        /// # Safety
        /// `w` is a readable block, `x` has its 256 values and `sums` the sums of each 32.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn block_q4_k(
            w: *const u8,
            x: *const f32,
            sums: *const f32,
            mut sum: Vector,
            mut constant: f32,
        ) -> (Vector, f32) {
            // SAFETY: as the caller promises.
            unsafe {
                let (scale, minimum) = (half_at(w), -half_at(w.add(2)));
                let packed = w.add(4).cast::<[u8; 12]>().read();
                let (scales, minima) = six_bit_pairs(&packed);
                for group in 0..4 {
                    let (mut low, mut high) = (zero(), zero());
                    let (q, x) = (w.add(16 + 32 * group), x.add(64 * group));
                    for i in (0..32).step_by(WIDTH) {
                        let both = load_u8(q.add(i));
                        low = fma(float(bits::<0>(both, 15)), load(x.add(i)), low);
                        high = fma(float(bits::<4>(both, 15)), load(x.add(32 + i)), high);
                    }
                    for (inner, at) in [(low, 2 * group), (high, 2 * group + 1)] {
                        sum = fma(splat(scale * f32::from(scales[at])), inner, sum);
                        let minimum = minimum * f32::from(minima[at]);
                        constant = minimum.mul_add(*sums.add(at), constant);
                    }
                }
            }
            (sum, constant)
        }

        /// `Q6_K`: 128 bytes of lower nibbles, 64 bytes of upper bit pairs, 16 signed scales, scale
        /// of scales; values are 32 too large. Each half of a block has four runs of 32 values,
        /// whose nibbles are the lower and upper ones of 64 bytes and whose bit pairs are those of
        /// 32 bytes.
        ///
        /// # Safety
        /// `w` is a readable block and `x` has its 256 values.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn block_q6_k(
            w: *const u8,
            x: *const f32,
            _: *const f32,
            mut sum: Vector,
            constant: f32,
        ) -> (Vector, f32) {
            // SAFETY: as the caller promises.
            unsafe {
                let scale = half_at(w.add(208));
                for half in 0..2 {
                    let (low, high) = (w.add(64 * half), w.add(128 + 32 * half));
                    let (scales, x) = (w.add(192 + 8 * half), x.add(128 * half));
                    for sixteen in 0..2 {
                        let (mut a, mut b, mut c, mut d) = (zero(), zero(), zero(), zero());
                        for i in (16 * sixteen..16 * sixteen + 16).step_by(WIDTH) {
                            let (first, second) = (load_u8(low.add(i)), load_u8(low.add(32 + i)));
                            let high = load_u8(high.add(i));
                            let v = six_bits(bits::<0>(first, 15), bits::<0>(high, 3));
                            a = fma(v, load(x.add(i)), a);
                            let v = six_bits(bits::<0>(second, 15), bits::<2>(high, 3));
                            b = fma(v, load(x.add(32 + i)), b);
                            let v = six_bits(bits::<4>(first, 15), bits::<4>(high, 3));
                            c = fma(v, load(x.add(64 + i)), c);
                            let v = six_bits(bits::<4>(second, 15), bits::<6>(high, 3));
                            d = fma(v, load(x.add(96 + i)), d);
                        }
                        for (run, inner) in [a, b, c, d].into_iter().enumerate() {
                            let own = f32::from(scales.add(sixteen + 2 * run).cast::<i8>().read());
                            sum = fma(splat(scale * own), inner, sum);
                        }
                    }
                }
            }
            (sum, constant)
        }
    };
}

/// The eight scales and eight minima of a `Q4_K` block, six bits each: the first four of both lie
/// in the lower bits of bytes 0..4 and 4..8, whose upper two bits complete the nibbles of bytes
/// 8..12 for the last four.
#[inline]
pub(super) fn six_bit_pairs(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        minima[i] = packed[4 + i] & 63;
        scales[4 + i] = (packed[8 + i] & 15) | (packed[i] >> 6 << 4);
        minima[4 + i] = (packed[8 + i] >> 4) | (packed[4 + i] >> 6 << 4);
    }
    (scales, minima)
}
