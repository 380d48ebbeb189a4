//! Packed signs and their kernels: against the documented layout, against sums in f64 that are
//! formed without any packing, and against each other bit for bit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::float_cmp,
    reason = "tests stop where something is wrong, say what they ran, and compare signs"
)]

use candle_core::{DType, Device, Tensor};
use half::f16;
use llm_quantize::base::SharedBytes;
use llm_quantize::codec::signs::{BitMatrix, InstructionSet, Kernel};
use llm_quantize::graph::linear::factorized::on_device;
use llm_quantize::weight::{Factor, FactorizedLinear, ScaleType};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest error of an output, relative to the largest output of its token. f32 sums of some
/// thousand terms lose about 1e-6; one wrong sign among 4096 columns costs 3e-2.
const TOLERANCE: f64 = 1e-5;

fn kernels() -> Vec<Kernel> {
    let kernels: Vec<_> = InstructionSet::ALL.into_iter().filter_map(Kernel::new).collect();
    eprintln!("kernels: {kernels:?}");
    kernels
}

/// Values around zero of different sizes, as activations are.
fn random_values(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0_f32..1.0).powi(3) * 4.0).collect()
}

fn random_scales(rng: &mut ChaCha8Rng, count: usize) -> Vec<f16> {
    (0..count).map(|_| f16::from_f32(rng.random_range(0.01..0.1))).collect()
}

/// Signs before packing, as f64.
struct Signs {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Signs {
    fn random(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Self {
        let values = (0..rows * cols).map(|_| if rng.random() { 1.0 } else { -1.0 }).collect();
        Self { rows, cols, values }
    }

    fn packed(&self) -> BitMatrix {
        BitMatrix::from_signs(self.rows, self.cols, &self.values)
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.values
            .chunks_exact(self.cols)
            .map(|row| row.iter().zip(x).map(|(sign, x)| f64::from(*sign) * x).sum())
            .collect()
    }
}

/// A layer with its unpacked parts.
struct Model {
    layer: FactorizedLinear,
    paths: Vec<(Signs, Signs)>,
}

impl Model {
    fn random(
        seed: u64,
        outputs: usize,
        inputs: usize,
        ranks: &[usize],
        latent_scale: bool,
    ) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut paths = Vec::new();
        let mut factors = Vec::new();
        for &rank in ranks {
            let left = Signs::random(rng, outputs, rank);
            let right = Signs::random(rng, rank, inputs);
            factors.push(Factor {
                left: left.packed(),
                right: right.packed(),
                row_scale: random_scales(rng, outputs),
                latent_scale: latent_scale.then(|| random_scales(rng, rank)),
                column_scale: random_scales(rng, inputs),
                scale_type: ScaleType::F16,
            });
            paths.push((left, right));
        }
        let layer = FactorizedLinear::new(outputs, inputs, factors).unwrap();
        Self { layer, paths }
    }

    /// `Σ h ∘ (U (l ∘ (Vᵀ (g ∘ x))))` in f64.
    fn expected(&self, x: &[f32]) -> Vec<f64> {
        let mut sum = vec![0.0; self.layer.out_features];
        for (factor, (left, right)) in self.layer.paths.iter().zip(&self.paths) {
            let scaled = |values: &[f64], scale: &[f16]| -> Vec<f64> {
                values.iter().zip(scale).map(|(v, s)| v * s.to_f64()).collect()
            };
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let mut latent = right.times(&scaled(&x, &factor.column_scale));
            if let Some(scale) = &factor.latent_scale {
                latent = scaled(&latent, scale);
            }
            let y = scaled(&left.times(&latent), &factor.row_scale);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
        }
        sum
    }
}

fn assert_close(actual: &[f32], expected: &[f64], what: &str) {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*actual) - expected).abs();
        assert!(
            error <= TOLERANCE * largest,
            "{what}, output {index}: {actual} instead of {expected} (largest {largest})"
        );
    }
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn bytes_are_laid_out_as_documented() {
    // Two rows of ten columns: two groups, of which the second has two columns.
    let first = [1., 1., -1., -1., -1., -1., -1., 1., -1., 1.];
    let second = [-1., 0., -0., 2., -3., f32::NAN, 1e-40, -1e-40, 1., -1.];
    let matrix = BitMatrix::from_signs(2, 10, &[first, second].concat());
    assert_eq!(&*matrix.bytes, [0b1000_0011, 0b0100_1110, 0b10, 0b01]);
    assert!(matrix.get(0, 7) && !matrix.get(0, 6) && matrix.get(1, 8) && !matrix.get(1, 9));
}

#[test]
fn damaged_matrices_are_refused() {
    let make =
        |rows, cols, bytes: Vec<u8>| BitMatrix::new(rows, cols, SharedBytes::from_vec(bytes));
    assert!(make(2, 10, vec![0xff, 0xff, 3, 3]).is_ok());
    for (rows, cols, bytes) in [
        (2, 10, vec![0; 3]),
        (2, 10, vec![0; 5]),
        (2, 10, vec![0, 0, 0, 4]),
        (0, 8, vec![]),
        (8, 0, vec![]),
        (usize::MAX, usize::MAX, vec![0; 8]),
    ] {
        let length = bytes.len();
        let error = make(rows, cols, bytes).expect_err("accepted");
        assert_eq!(error.exit_code(), 24, "{rows} × {cols}, {length} bytes: {error}");
    }
}

#[test]
fn layers_that_do_not_fit_together_are_refused() {
    let good = Model::random(1, 24, 40, &[16], true).layer;
    let path = &good.paths[0];
    let refused = |change: &dyn Fn(&mut Factor), part: &str| {
        let mut path = path.clone();
        change(&mut path);
        let error = FactorizedLinear::new(24, 40, vec![good.paths[0].clone(), path]).unwrap_err();
        assert!(
            error.to_string().contains("path 1") && error.to_string().contains(part),
            "{error}"
        );
    };
    refused(&|path| path.left = path.right.clone(), "left factor is 16 × 40 instead of 24 × 16");
    refused(&|path| path.right.rows = 8, "left factor is 24 × 16 instead of 24 × 8");
    refused(&|path| path.right.bytes = SharedBytes::from_vec(vec![0; 79]), "79 bytes");
    refused(&|path| path.row_scale.truncate(23), "23 row scales instead of 24");
    refused(&|path| path.column_scale.push(f16::ONE), "41 column scales instead of 40");
    refused(&|path| path.latent_scale = Some(vec![]), "0 latent scales instead of 16");
    refused(&|path| path.row_scale[3] = f16::NAN, "row scale 3 is NaN");
    refused(&|path| path.column_scale[0] = f16::INFINITY, "column scale 0 is inf");
    assert!(FactorizedLinear::new(24, 40, vec![]).is_err());
    assert!(FactorizedLinear::new(24, 41, good.paths.clone()).is_err());
}

#[test]
fn stored_bits_count_every_scale() {
    // The paper's budget: r (m + n) signs and 16-bit scales for m rows and n columns (and r).
    let one = Model::random(1, 24, 40, &[16], false).layer;
    assert_eq!(one.bits(), 16 * (24 + 40) + 16 * (24 + 40));
    let two = Model::random(1, 24, 40, &[16, 8], true).layer;
    assert_eq!(two.bits(), (16 + 8) * (24 + 40) + 2 * 16 * (24 + 40) + 16 * (16 + 8));
    // A byte each, and four in front of each of the six vectors.
    let mut log8 = two;
    log8.paths.iter_mut().for_each(|path| path.scale_type = ScaleType::Log8);
    let scales = 2 * (24 + 40) + 16 + 8;
    assert_eq!(log8.bits(), (16 + 8) * (24 + 40) + 8 * scales + 6 * 32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packing_keeps_every_sign(
        (rows, cols, values) in (1_usize..200, 1_usize..70).prop_flat_map(|(rows, cols)| {
            let values = prop::collection::vec(-1.0_f32..1.0, rows * cols);
            (Just(rows), Just(cols), values)
        }),
        cut in 0.0_f64..1.0,
    ) {
        let matrix = BitMatrix::from_signs(rows, cols, &values);
        prop_assert!(BitMatrix::new(rows, cols, matrix.bytes.clone()).is_ok());
        let sign = |row: usize, col: usize| if values[row * cols + col] < 0.0 { -1.0 } else { 1.0 };

        let first = (cut * rows as f64) as usize;
        let mut unpacked = vec![0.0; (rows - first) * cols];
        matrix.unpack_rows(first..rows, &mut unpacked);
        for row in first..rows {
            for col in 0..cols {
                prop_assert_eq!(unpacked[(row - first) * cols + col], sign(row, col));
                prop_assert_eq!(matrix.get(row, col), sign(row, col) > 0.0);
            }
        }

        let first = (cut * cols.div_ceil(8) as f64) as usize;
        let width = cols - 8 * first;
        let mut unpacked = vec![0.0; rows * width];
        matrix.unpack_groups(first..cols.div_ceil(8), &mut unpacked);
        for row in 0..rows {
            for col in 0..width {
                prop_assert_eq!(unpacked[row * width + col], sign(row, 8 * first + col));
            }
        }
    }
}

/// Sizes around every step of the kernels: 8, 16, 32, 64 rows; 1, 2, 4, 8 column groups.
const ODD_SIZES: [(usize, usize); 16] = [
    (1, 1),
    (1, 8),
    (8, 1),
    (3, 13),
    (8, 64),
    (15, 17),
    (16, 63),
    (17, 65),
    (31, 129),
    (33, 40),
    (63, 72),
    (64, 8),
    (65, 200),
    (130, 121),
    (200, 96),
    (9001, 23),
];

#[test]
fn every_kernel_gives_the_bits_of_the_reference() {
    let rng = &mut ChaCha8Rng::seed_from_u64(2);
    let scalar = Kernel::new(InstructionSet::Scalar).unwrap();
    for (rows, cols) in ODD_SIZES {
        let signs = Signs::random(rng, rows, cols);
        let matrix = signs.packed();
        let x: [Vec<f32>; 2] = std::array::from_fn(|_| {
            let mut x = random_values(rng, cols);
            x.resize(8 * matrix.groups(), 0.0);
            x
        });
        let mut reference = [vec![f32::NAN; rows], vec![f32::NAN; rows]];
        for (x, reference) in x.iter().zip(&mut reference) {
            scalar.multiply(&matrix, 0, [x.as_slice()], [reference.as_mut_slice()]);
            let exact: Vec<f64> = x[..cols].iter().map(|v| f64::from(*v)).collect();
            assert_close(reference, &signs.times(&exact), &format!("{rows} × {cols}"));
        }
        let reference = reference.map(|sums| bits_of(&sums));
        for kernel in kernels() {
            for (first, last) in [(0, rows), (rows / 3, rows), (rows / 2, rows - rows / 4)] {
                let what = format!("{kernel:?}, rows {first}..{last} of {rows} × {cols}");
                let [mut a, mut b] = [vec![f32::NAN; last - first], vec![f32::NAN; last - first]];
                kernel.multiply(&matrix, first, [x[0].as_slice()], [a.as_mut_slice()]);
                assert_eq!(bits_of(&a), reference[0][first..last], "{what}, one vector");
                let pair = [x[0].as_slice(), x[1].as_slice()];
                kernel.multiply(&matrix, first, pair, [a.as_mut_slice(), b.as_mut_slice()]);
                assert_eq!(bits_of(&a), reference[0][first..last], "{what}, first of two");
                assert_eq!(bits_of(&b), reference[1][first..last], "{what}, second of two");
            }
        }
    }
}

#[test]
fn layers_match_the_formula() {
    for (seed, (outputs, inputs, ranks, latent_scale)) in [
        (1, 1, &[8][..], true),
        (1, 40, &[1], false),
        (100, 1, &[8], true),
        (37, 53, &[8], true),
        (96, 200, &[24], false),
        (211, 130, &[64, 8], true),
        (64, 301, &[72, 40], false),
        (577, 1031, &[104], true),
    ]
    .into_iter()
    .enumerate()
    {
        let model = Model::random(seed as u64, outputs, inputs, ranks, latent_scale);
        let rng = &mut ChaCha8Rng::seed_from_u64(100 + seed as u64);
        for tokens in [1, 2, 3, 7, 70] {
            let x = random_values(rng, tokens * inputs);
            let expected: Vec<_> = x.chunks_exact(inputs).map(|x| model.expected(x)).collect();
            for kernel in kernels() {
                let mut out = vec![f32::NAN; tokens * outputs];
                kernel.apply(&model.layer, &x, &mut out);
                for (token, (out, expected)) in out.chunks_exact(outputs).zip(&expected).enumerate()
                {
                    let what = format!("{kernel:?}, {outputs} × {inputs}, token {token}/{tokens}");
                    assert_close(out, expected, &what);
                }
            }
        }
    }
}

#[test]
fn rebuilt_rows_match_the_formula() {
    // 1100 columns: three blocks of the reconstruction, the last one ragged.
    for (ranks, latent_scale) in [(&[16][..], true), (&[24, 8], false)] {
        let model = Model::random(5, 19, 1101, ranks, latent_scale);
        let mut rows = vec![f32::NAN; 12 * 1101];
        model.layer.reconstruct_rows(5..17, &mut rows);
        for column in [0, 1, 7, 8, 511, 512, 1023, 1024, 1095, 1096, 1100] {
            let mut unit = vec![0.0; 1101];
            unit[column] = 1.0;
            let actual: Vec<f32> = rows.chunks_exact(1101).map(|row| row[column]).collect();
            let expected = &model.expected(&unit)[5..17];
            assert_close(&actual, expected, &format!("column {column}"));
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_batches() {
    // Large enough to be divided between threads at batch 1, with odd sizes everywhere.
    let model = Model::random(3, 2501, 3001, &[1000, 720], true);
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    let tokens = 9;
    let x = random_values(rng, tokens * 3001);
    let kernel = Kernel::best();
    let mut alone = vec![0.0; tokens * 2501];
    for (x, out) in x.chunks_exact(3001).zip(alone.chunks_exact_mut(2501)) {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap()
            .install(|| kernel.apply(&model.layer, x, out));
    }
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for batch in [1, 2, 3, 4, 9] {
            let mut out = vec![0.0; tokens * 2501];
            for (x, out) in x.chunks(batch * 3001).zip(out.chunks_mut(batch * 2501)) {
                pool.install(|| kernel.apply(&model.layer, x, out));
            }
            assert!(bits_of(&out) == bits_of(&alone), "{threads} threads, batch {batch}");
        }
    }
}

#[test]
fn a_layer_takes_any_view_of_a_tensor() {
    let model = Model::random(6, 30, 44, &[16], true);
    let layer = on_device(&model.layer, &Device::Cpu).unwrap();
    assert_eq!(layer.dims(), (30, 44));
    let rng = &mut ChaCha8Rng::seed_from_u64(7);
    let values = random_values(rng, 5 * 44);
    let x = Tensor::from_slice(&values, (5, 44), &Device::Cpu).unwrap();
    let transposed = x.t().unwrap().contiguous().unwrap().t().unwrap();
    let part = x.narrow(0, 2, 3).unwrap();
    for (view, first) in [(x, 0), (transposed, 0), (part, 2)] {
        let out = layer.forward(&view).unwrap();
        assert_eq!((out.dims(), out.dtype()), (&[5 - first, 30][..], DType::F32));
        for (token, row) in out.to_vec2::<f32>().unwrap().iter().enumerate() {
            let x = &values[(first + token) * 44..(first + token + 1) * 44];
            assert_close(row, &model.expected(x), &format!("token {token}"));
        }
    }
    let wrong_size = Tensor::zeros((2, 43), DType::F32, &Device::Cpu).unwrap();
    assert!(layer.forward(&wrong_size).is_err());
    let wrong_type = Tensor::zeros((2, 44), DType::F16, &Device::Cpu).unwrap();
    assert!(layer.forward(&wrong_type).is_err());
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_gpu_gives_the_results_of_the_processor() {
    let device = llm_quantize::device::cuda::probe(0).unwrap().expect("no NVIDIA GPU here");
    for (seed, (outputs, inputs, ranks, latent_scale)) in
        [(1, 1, &[1][..], false), (130, 301, &[24, 8], true), (1031, 1577, &[104, 40], false)]
            .into_iter()
            .enumerate()
    {
        let model = Model::random(seed as u64, outputs, inputs, ranks, latent_scale);
        let layer = on_device(&model.layer, &device).unwrap();
        assert_eq!(layer.dims(), (outputs, inputs));
        let rng = &mut ChaCha8Rng::seed_from_u64(100 + seed as u64);
        // Every token tile of the table kernels, and the path of unpacked factors.
        for tokens in [1, 2, 3, 4, 7, 9, 32, 33, 70] {
            let x = random_values(rng, tokens * inputs);
            let on_gpu = Tensor::from_slice(&x, (tokens, inputs), &device).unwrap();
            let out = layer.forward(&on_gpu).unwrap().to_vec2::<f32>().unwrap();
            for (token, (out, x)) in out.iter().zip(x.chunks_exact(inputs)).enumerate() {
                assert_close(out, &model.expected(x), &format!("token {token}/{tokens}"));
            }
        }
    }
}
