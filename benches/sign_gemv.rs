//! Factorized layers beside dense f16 and f32 ones, at the layer sizes of Llama-2-7B.
//!
//! Each measurement is a whole layer for one token: for the factors both products and all scales,
//! for the dense weights one matrix-vector product. Weights are rotated over more copies than fit
//! into the last cache level, as the layers of a model take turns.
//!
//! `cargo bench --bench sign_gemv` measures one after the other with criterion.
//! `cargo bench --bench sign_gemv -- table` takes turns between all of them, so that whatever else
//! the machine does meets all alike, and prints the table of docs/performance.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops where something is wrong"
)]

// The dense kernels use x86 intrinsics; elsewhere there would be no honest baseline.
#[cfg(target_arch = "x86_64")]
#[path = "sign_gemv/dense.rs"]
mod dense;

#[cfg(target_arch = "x86_64")]
mod layers {
    use std::time::{Duration, Instant};

    use criterion::{Criterion, Throughput};
    use half::f16;
    use llm_quantize::base::SharedBytes;
    use llm_quantize::codec::signs::{BitMatrix, InstructionSet, Kernel};
    use llm_quantize::weight::{Factor, FactorizedLinear, ScaleType};
    use rand::{Rng, RngCore, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rayon::ThreadPool;

    use crate::dense;

    /// Weights are rotated over at least this many bytes; three times the last cache level of the
    /// machine in docs/performance.md.
    const ROTATION: usize = 100 << 20;

    /// `[out, in]` of Llama-2-7B: attention, gate and up, down.
    const SHAPES: [(usize, usize); 3] = [(4096, 4096), (11008, 4096), (4096, 11008)];

    /// Bits per weight.
    const RATES: [f64; 3] = [0.1, 0.55, 1.0];

    /// Turns of the table.
    const TURNS: usize = 300;

    /// Largest multiple of eight with `r (m + n) + 16 (m + n) <= rate * m * n`.
    fn rank(rate: f64, out: usize, inputs: usize) -> usize {
        let (m, n) = (out as f64, inputs as f64);
        let rank = ((rate * m * n - 16.0 * (m + n)) / (m + n)) as usize;
        rank / 8 * 8
    }

    fn random_bits(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> BitMatrix {
        let mut bytes = vec![0; rows * cols.div_ceil(8)];
        rng.fill_bytes(&mut bytes);
        BitMatrix::new(rows, cols, SharedBytes::from_vec(bytes)).expect("columns in whole bytes")
    }

    fn scales(count: usize) -> Vec<f16> {
        (0..count).map(|i| f16::from_f32(0.02 + 1e-4 * (i % 7) as f32)).collect()
    }

    fn factorized(rng: &mut ChaCha8Rng, rate: f64, out: usize, inputs: usize) -> FactorizedLinear {
        let rank = rank(rate, out, inputs);
        let factor = Factor {
            left: random_bits(rng, out, rank),
            right: random_bits(rng, rank, inputs),
            row_scale: scales(out),
            latent_scale: None,
            column_scale: scales(inputs),
            scale_type: ScaleType::F16,
        };
        FactorizedLinear::new(out, inputs, vec![factor]).expect("shapes agree")
    }

    /// Enough copies of a weight of some bytes.
    fn rotation<W>(bytes: usize, mut make: impl FnMut() -> W) -> Vec<W> {
        (0..ROTATION.div_ceil(bytes).max(2)).map(|_| make()).collect()
    }

    /// Writes the product of the next copy of a weight with the first argument to the second.
    type Multiply = Box<dyn FnMut(&[f32], &mut [f32]) + Send>;

    /// One thing to measure: a layer in some representation.
    struct Candidate {
        name: String,
        /// Of the weights.
        bytes: usize,
        multiply: Multiply,
    }

    fn candidate<W: Send + 'static>(
        name: &str,
        bytes: usize,
        weights: Vec<W>,
        mut multiply: impl FnMut(&W, &[f32], &mut [f32]) + Send + 'static,
    ) -> Candidate {
        let mut turn = 0;
        let multiply = Box::new(move |x: &[f32], y: &mut [f32]| {
            turn = (turn + 1) % weights.len();
            multiply(&weights[turn], x, y);
        });
        Candidate { name: name.into(), bytes, multiply }
    }

    fn candidates(out: usize, inputs: usize) -> Vec<Candidate> {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let values: Vec<f32> = (0..out * inputs).map(|i| (i % 251) as f32 * 1e-3).collect();
        let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
        let (wide, narrow) = (4 * values.len(), 2 * values.len());
        let mut all = vec![
            candidate("f32", wide, rotation(wide, || values.clone()), |weight, x, y| {
                dense::multiply_f32(weight, x, y);
            }),
            candidate("f16", narrow, rotation(narrow, || halves.clone()), |weight, x, y| {
                dense::multiply_f16(weight, x, y);
            }),
        ];
        let kernel = Kernel::best();
        for rate in RATES {
            let bytes = factorized(rng, rate, out, inputs).bits() as usize / 8;
            let weights = rotation(bytes, || factorized(rng, rate, out, inputs));
            all.push(candidate(&rate.to_string(), bytes, weights, move |layer, x, y| {
                kernel.apply(layer, x, y);
            }));
        }
        all
    }

    fn input(inputs: usize) -> Vec<f32> {
        let rng = &mut ChaCha8Rng::seed_from_u64(2);
        (0..inputs).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn pools() -> [ThreadPool; 2] {
        [1, 2].map(|threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
        })
    }

    pub(crate) fn single_token(criterion: &mut Criterion) {
        for (out, inputs) in SHAPES {
            let (x, mut y) = (input(inputs), vec![0.0; out]);
            let mut group = criterion.benchmark_group(format!("{out}x{inputs}"));
            for mut candidate in candidates(out, inputs) {
                group.throughput(Throughput::Bytes(candidate.bytes as u64));
                for pool in pools() {
                    let name = format!("{}/{}", candidate.name, pool.current_num_threads());
                    group.bench_function(name, |bencher| {
                        pool.install(|| bencher.iter(|| (candidate.multiply)(&x, &mut y)));
                    });
                }
            }
            group.finish();
        }
    }

    /// Many tokens at once, beside a dense f32 matrix product of the same size.
    pub(crate) fn many_tokens(criterion: &mut Criterion) {
        use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let (out, inputs, tokens) = (4096, 4096, 128);
        let (x, mut y) = (input(tokens * inputs), vec![0.0_f32; tokens * out]);
        let mut group = criterion.benchmark_group(format!("{out}x{inputs}, {tokens} tokens"));
        group.throughput(Throughput::Elements(tokens as u64));
        let layer = factorized(rng, 1.0, out, inputs);
        let dense = input(out * inputs);
        for pool in pools() {
            let threads = pool.current_num_threads();
            for kernel in InstructionSet::ALL.into_iter().filter_map(Kernel::new) {
                let name = format!("1.0 {:?}/{threads}", kernel.instructions());
                group.bench_function(name, |bencher| {
                    pool.install(|| bencher.iter(|| kernel.apply(&layer, &x, &mut y)));
                });
            }
            group.bench_function(format!("f32 matrix product/{threads}"), |bencher| {
                pool.install(|| {
                    bencher.iter(|| {
                        let x = MatRef::from_row_major_slice(&x, tokens, inputs);
                        let weight = MatRef::from_row_major_slice(&dense, out, inputs);
                        let y = MatMut::from_row_major_slice_mut(&mut y, tokens, out);
                        let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
                        matmul(y, Accum::Replace, x, weight.transpose(), 1.0, par);
                    });
                });
            });
        }
        group.finish();
    }

    /// Median and fastest of [`TURNS`] turns, in microseconds.
    pub(crate) fn table() {
        println!("{:?}, {TURNS} turns", Kernel::best().instructions());
        println!(
            "| layer | threads | weight | median µs | fastest µs | GB/s | times f16 (fastest) |"
        );
        println!("|---|---|---|---|---|---|---|");
        for (out, inputs) in SHAPES {
            let (x, mut y) = (input(inputs), vec![0.0; out]);
            let mut candidates = candidates(out, inputs);
            for pool in pools() {
                let mut times = vec![Vec::new(); candidates.len()];
                pool.install(|| {
                    for _ in 0..TURNS {
                        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
                            let start = Instant::now();
                            (candidate.multiply)(&x, &mut y);
                            times.push(start.elapsed());
                        }
                    }
                });
                let summary: Vec<(Duration, Duration)> = times
                    .iter_mut()
                    .map(|times| {
                        times.sort_unstable();
                        (times[times.len() / 2], times[0])
                    })
                    .collect();
                let half = summary[1];
                for (candidate, (median, fastest)) in candidates.iter().zip(&summary) {
                    let micros = |time: &Duration| 1e6 * time.as_secs_f64();
                    println!(
                        "| {out} × {inputs} | {} | {} | {:.0} | {:.0} | {:.1} | {:.1} ({:.1}) |",
                        pool.current_num_threads(),
                        candidate.name,
                        micros(median),
                        micros(fastest),
                        candidate.bytes as f64 / 1e9 / median.as_secs_f64(),
                        half.0.as_secs_f64() / median.as_secs_f64(),
                        half.1.as_secs_f64() / fastest.as_secs_f64(),
                    );
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn main() {
    if std::env::args().any(|argument| argument == "table") {
        layers::table();
        return;
    }
    let mut criterion = criterion::Criterion::default()
        .sample_size(30)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .configure_from_args();
    layers::single_token(&mut criterion);
    layers::many_tokens(&mut criterion);
    criterion.final_summary();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("the dense baseline exists for x86-64 only");
}
