use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Element `[i, j]` of the matrix that an operand stands for.
fn at(operand: &Operand<'_>, i: usize, j: usize) -> f64 {
    let (row, col) = operand.strides;
    let value = operand.values[i * row + j * col];
    match (operand.signs, value >= 0.0) {
        (false, _) => f64::from(value),
        (true, true) => 1.0,
        (true, false) => -1.0,
    }
}

/// Compares with sums in f64 of the given operands; `step` is the rounding of one product.
fn check(arithmetic: Arithmetic, a: Operand<'_>, b: Operand<'_>, accumulate: bool, step: f64) {
    let mut out: Vec<f32> = (0..a.rows * b.cols).map(|i| (i % 7) as f32).collect();
    let before = out.clone();
    with(arithmetic, &mut out, a, b, accumulate, true);
    for i in 0..a.rows {
        for j in 0..b.cols {
            let products = (0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j));
            let (sum, size) = products.fold((0.0, 0.0), |(s, z), p| (s + p, z + p.abs()));
            let before = if accumulate { f64::from(before[i * b.cols + j]) } else { 0.0 };
            let found = f64::from(out[i * b.cols + j]);
            assert!((found - before - sum).abs() <= step * (size + before) + 1e-6, "{i} {j}");
        }
    }
}

#[test]
fn products_of_every_layout_are_those_of_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut kinds = vec![(Arithmetic::F32, 2e-6)];
    if Arithmetic::best() == Arithmetic::Bf16 {
        // Two factors, each rounded to 8 bits.
        kinds.push((Arithmetic::Bf16, 2.0 / 256.0));
    }
    for (m, n, k) in
        [(1, 1, 1), (12, 32, 2), (13, 33, 3), (64, 17, 31), (5, 100, 514), (150, 96, 1037)]
    {
        let (a, b) = (random(&mut rng, m * k), random(&mut rng, k * n));
        for &(arithmetic, step) in &kinds {
            for accumulate in [false, true] {
                for signs in [false, true] {
                    for a in [Operand::new(&a, m, k), Operand::new(&a, k, m).t()] {
                        for b in [Operand::new(&b, k, n), Operand::new(&b, n, k).t()] {
                            let b = if signs { b.signs() } else { b };
                            check(arithmetic, a, b, accumulate, step);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn signs_and_integers_are_exact() {
    // Sums of products of small integers with signs need no rounding in either arithmetic.
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (m, n, k) = (30, 50, 600);
    let a: Vec<f32> = (0..m * k).map(|_| f32::from(rng.random_range(-100i8..=100))).collect();
    let mut b = random(&mut rng, n * k);
    (b[0], b[1]) = (0.0, -0.0);
    check(
        Arithmetic::best(),
        Operand::new(&a, m, k),
        Operand::new(&b, n, k).signs().t(),
        false,
        0.0,
    );
}

#[test]
fn parts_of_wider_rows_are_read_with_their_stride() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let wide = random(&mut rng, 20 * 90);
    let b = random(&mut rng, 30 * 40);
    let part = Operand::part(&wide[30..], 90, 20, 30);
    check(Arithmetic::F32, part, Operand::new(&b, 30, 40), false, 2e-6);
    check(Arithmetic::best(), part, Operand::new(&b, 30, 40), false, 2.0 / 256.0);
}

#[test]
fn results_do_not_depend_on_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (m, n, k) = (200, 300, 700);
    let (a, b) = (random(&mut rng, m * k), random(&mut rng, k * n));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![0.0; m * n];
        pool.install(|| multiply(&mut out, Operand::new(&a, m, k), Operand::new(&b, k, n), false));
        out
    };
    assert_eq!(run(1), run(3));
}
