//! The solvers against explicit reconstructions, planted solutions, and each other.

use candle_core::Device;
use faer::Mat;
use half::f16;
use llm_quantize::job::littlebit::budget::FactorShape;
use llm_quantize::job::littlebit::engine::HostEngine;
use llm_quantize::job::littlebit::engine_candle::CandleEngine;
use llm_quantize::job::littlebit::normalise::Importance;
use llm_quantize::job::littlebit::solve::{Init, Solution, SolverConfig, solve};
use llm_quantize::weight::ScaleType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Singular values `(1 + j)^-0.2` between random orthogonal-ish bases, log-normal rows and columns:
/// the shape of trained weights (methods of comparison as in the literature).
fn heavy_tailed(m: usize, n: usize, seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
    let size = m.min(n);
    let left = Mat::from_fn(m, size, |_, _| normal());
    let right = Mat::from_fn(n, size, |_, _| normal());
    let rows: Vec<f64> = (0..m).map(|_| (0.3 * normal()).exp()).collect();
    let columns: Vec<f64> = (0..n).map(|_| (0.3 * normal()).exp()).collect();
    let scaled = Mat::from_fn(m, size, |i, k| left[(i, k)] * (1.0 + k as f64).powf(-0.2));
    let product = scaled * right.transpose();
    (0..m * n)
        .map(|at| (product[(at / n, at % n)] * rows[at / n] * columns[at % n] * 0.02) as f32)
        .collect()
}

fn shape(rows: usize, cols: usize, bits: f64, paths: usize, middle_scale: bool) -> FactorShape {
    let shape = FactorShape { rows, cols, rank: 0, paths, middle_scale, scales: ScaleType::F16 };
    shape.with_rank(shape.rank_for(bits))
}

fn config(init: Init) -> SolverConfig {
    SolverConfig { init, iterations: 60, ..SolverConfig::default() }
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
fn run(w: &[f32], shape: &FactorShape, config: &SolverConfig) -> Solution {
    solve("layer", w, shape, config, Importance::default(), &HostEngine).unwrap()
}

/// `Ŵ` entry by entry, in double precision, from signs and scales alone.
fn reconstruct(solution: &Solution, m: usize, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for path in &solution.paths {
        let rank = path.left.len() / m;
        let sign = |v: f32| if v >= 0.0 { 1.0 } else { -1.0 };
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let product: f64 = (0..rank)
                .map(|k| {
                    let latent = path.latent_scale.as_ref().map_or(1.0, |l| f64::from(l[k]));
                    latent * sign(path.left[i * rank + k]) * sign(path.right[k * n + j])
                })
                .sum();
            out[i * n + j] +=
                f64::from(path.row_scale[i]) * product * f64::from(path.column_scale[j]);
        }
    }
    out
}

fn relative_error(w: &[f32], fitted: &[f64], weight: impl Fn(usize) -> f64) -> f64 {
    let (mut errors, mut squares) = (0.0, 0.0);
    for (at, (&w, fitted)) in w.iter().zip(fitted).enumerate() {
        errors += weight(at) * (f64::from(w) - fitted).powi(2);
        squares += weight(at) * f64::from(w).powi(2);
    }
    errors / squares
}

fn scales(solution: &Solution) -> impl Iterator<Item = f32> {
    solution.paths.iter().flat_map(|p| {
        p.row_scale.iter().chain(&p.column_scale).chain(p.latent_scale.iter().flatten()).copied()
    })
}

#[test]
fn reported_errors_are_those_of_the_stored_values() {
    let (m, n) = (40, 72);
    let w = heavy_tailed(m, n, 1);
    let mut rng = rng(2);
    let rows: Vec<f32> = (0..m).map(|_| rng.random_range(0.1..4.0)).collect();
    let columns: Vec<f32> = (0..n).map(|_| rng.random_range(0.0..9.0f32).powi(2)).collect();
    let importance = Importance { rows: Some(&rows), columns: Some(&columns) };
    for init in [Init::DualSvid, Init::Itq, Init::Admm] {
        for (paths, middle) in [(1, false), (1, true), (2, false), (2, true)] {
            let shape = shape(m, n, 1.5, paths, middle);
            let solution =
                solve("layer", &w, &shape, &config(init), importance, &HostEngine).unwrap();
            assert_eq!(solution.paths.len(), paths);
            for path in &solution.paths {
                assert_eq!(path.left.len(), m * shape.rank);
                assert_eq!(path.right.len(), shape.rank * n);
                assert_eq!(path.latent_scale.as_ref().map(Vec::len), middle.then_some(shape.rank));
            }
            let fitted = reconstruct(&solution, m, n);
            let plain = relative_error(&w, &fitted, |_| 1.0);
            let weighted = relative_error(&w, &fitted, |at| {
                f64::from(rows[at / n]) * f64::from(columns[at % n])
            });
            // Products are summed in single precision.
            assert!((solution.error - plain).abs() < 1e-5, "{} {plain}", solution.error);
            assert!((solution.weighted_error - weighted).abs() < 1e-5);
            let exact = |s: f32| f16::from_f32(s).to_f32().to_bits() == s.to_bits();
            assert!(scales(&solution).all(|s| s >= 0.0 && exact(s)));
            // The weighting is what is minimised.
            let unweighted = run(&w, &shape, &config(init));
            let other = reconstruct(&unweighted, m, n);
            let other = relative_error(&w, &other, |at| {
                f64::from(rows[at / n]) * f64::from(columns[at % n])
            });
            assert!(weighted < other, "{init:?} {paths} {middle}: {weighted} {other}");
        }
    }
}

/// Scales of a byte: exact on a logarithmic grid, reported errors those of the stored values, and
/// close to those of f16 with the same signs.
#[test]
fn logarithmic_scales_are_stored_exactly() {
    let (m, n) = (96, 160);
    let w = heavy_tailed(m, n, 14);
    for (paths, middle) in [(1, false), (2, true)] {
        let f16 = shape(m, n, 1.5, paths, middle);
        let log8 = FactorShape { scales: ScaleType::Log8, ..f16 };
        let config = SolverConfig { polish_rounds: 0, ..config(Init::Admm) };
        let (half, solution) = (run(&w, &f16, &config), run(&w, &log8, &config));
        let plain = relative_error(&w, &reconstruct(&solution, m, n), |_| 1.0);
        assert!((solution.error - plain).abs() < 1e-5, "{} {plain}", solution.error);
        assert!(solution.error < half.error + 2e-4, "{} {}", solution.error, half.error);
        for path in &solution.paths {
            let vectors =
                [Some(&path.row_scale), path.latent_scale.as_ref(), Some(&path.column_scale)];
            for values in vectors.into_iter().flatten() {
                let values: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                let bytes = ScaleType::Log8.encode(&values).unwrap();
                assert_eq!(bytes.len() as u64, ScaleType::Log8.bytes(values.len()));
                assert_eq!(ScaleType::Log8.decode(&bytes).unwrap(), values);
            }
        }
    }
}

/// Error budgets per solver at one bit per weight, everything counted, in the order of the
/// published comparisons: the margins are wider than the differences between seeds.
#[test]
fn admm_beats_rotation_beats_singular_vectors() {
    let (m, n) = (192, 256);
    for seed in [3, 4] {
        let w = heavy_tailed(m, n, seed);
        let plain = SolverConfig::for_init;
        let svid = run(&w, &shape(m, n, 1.0, 1, true), &plain(Init::DualSvid)).error;
        let itq = run(&w, &shape(m, n, 1.0, 1, true), &plain(Init::Itq)).error;
        let admm = run(&w, &shape(m, n, 1.0, 1, false), &config(Init::Admm)).error;
        assert!((0.6..0.8).contains(&svid), "{svid}");
        assert!(itq < svid - 0.12, "{itq} {svid}");
        assert!(admm < itq - 0.12, "{admm} {itq}");
        assert!((0.2..0.4).contains(&admm), "{admm}");
        // One path beats two at equal bits.
        let two = run(&w, &shape(m, n, 1.0, 2, false), &config(Init::Admm)).error;
        assert!(admm < two, "{admm} {two}");
        // More bits, less error.
        let more = run(&w, &shape(m, n, 1.4, 1, false), &config(Init::Admm)).error;
        assert!(more < admm - 0.08, "{more} {admm}");
    }
}

/// `W = diag(h) U Vᵀ diag(g)` is found again, but for the rounding of its scales.
#[test]
fn planted_factors_are_recovered() {
    let (m, n) = (48, 64);
    let mut rng = rng(5);
    for rank in [1usize, 2, 4] {
        let h: Vec<f64> = (0..m).map(|_| rng.random_range(0.2..2.0)).collect();
        let g: Vec<f64> = (0..n).map(|_| rng.random_range(0.2..2.0)).collect();
        let mut sign = || if rng.random::<bool>() { 1.0 } else { -1.0 };
        let u: Vec<f64> = (0..m * rank).map(|_| sign()).collect();
        let v: Vec<f64> = (0..n * rank).map(|_| sign()).collect();
        let w: Vec<f32> = (0..m * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let product: f64 = (0..rank).map(|k| u[i * rank + k] * v[j * rank + k]).sum();
                (h[i] * g[j] * product) as f32
            })
            .collect();
        let shape = shape(m, n, 1.0, 1, false).with_rank(rank);
        let best = (0..4)
            .map(|seed| run(&w, &shape, &SolverConfig { seed, ..config(Init::Admm) }).error)
            .fold(f64::INFINITY, f64::min);
        assert!(best < 1e-6, "rank {rank}: {best}");
        if rank == 1 {
            let svid = run(&w, &shape, &config(Init::DualSvid)).error;
            assert!(svid < 1e-6, "{svid}");
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let (m, n) = (64, 96);
    let w = heavy_tailed(m, n, 6);
    for init in [Init::DualSvid, Init::Itq, Init::Admm] {
        let solve_in = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let solution = pool.install(|| {
                use rayon::prelude::*;
                // Several at once, so that threads really share the work.
                let all: Vec<Solution> = (0..4)
                    .into_par_iter()
                    .map(|_| run(&w, &shape(m, n, 1.0, 1, false), &config(init)))
                    .collect();
                assert!(all.iter().all(|s| s.paths == all[0].paths));
                all.into_iter().next().unwrap()
            });
            (solution.paths, solution.error.to_bits())
        };
        assert_eq!(solve_in(1), solve_in(3), "{init:?}");
    }
    // Names and seeds matter.
    let form = shape(m, n, 1.0, 1, false);
    let with = |name: &str, seed| {
        let config = SolverConfig { seed, ..config(Init::Admm) };
        solve(name, &w, &form, &config, Importance::default(), &HostEngine).unwrap().paths
    };
    assert_ne!(with("a", 0), with("b", 0));
    assert_ne!(with("a", 0), with("a", 1));
}

#[test]
fn odd_matrices_are_factorized() {
    let (m, n) = (24, 40);
    let form = shape(m, n, 1.5, 1, false);
    let base = heavy_tailed(m, n, 7);
    let with = |edit: &dyn Fn(usize, usize, f32) -> f32| -> Vec<f32> {
        base.iter().enumerate().map(|(at, &v)| edit(at / n, at % n, v)).collect()
    };
    let cases: Vec<(&str, Vec<f32>, f64)> = vec![
        ("zero", vec![0.0; m * n], 0.0),
        ("constant", vec![0.37; m * n], 1e-6),
        ("negative constant", vec![-5.0; m * n], 1e-6),
        ("one entry", with(&|i, j, _| if (i, j) == (3, 5) { 2.0 } else { 0.0 }), 1e-6),
        ("zero rows", with(&|i, _, v| if i % 3 == 0 { 0.0 } else { v }), 0.5),
        ("zero columns", with(&|_, j, v| if j % 4 == 0 { 0.0 } else { v }), 0.5),
        ("rank one", with(&|i, j, _| (i as f32 - 11.3) * (j as f32 + 0.5)), 1e-6),
        ("small", with(&|_, _, v| v * 1e-4), 0.6),
        ("large", with(&|_, _, v| v * 1e5), 0.6),
        ("one huge row", with(&|i, _, v| if i == 2 { v * 1e4 } else { v }), 1e-1),
    ];
    for (what, w, at_most) in &cases {
        for init in [Init::DualSvid, Init::Itq, Init::Admm] {
            for (paths, middle) in [(1, false), (2, true)] {
                let form = FactorShape { paths, middle_scale: middle, ..form };
                let solution = run(w, &form, &config(init));
                assert!(solution.error.is_finite(), "{what} {init:?}");
                assert!(scales(&solution).all(f32::is_finite), "{what}");
                if init == Init::Admm {
                    assert!(solution.error <= *at_most, "{what} {paths}: {}", solution.error);
                    let fitted = reconstruct(&solution, m, n);
                    assert!(fitted.iter().all(|v| v.is_finite()));
                }
            }
        }
    }
    // A zero row stays zero.
    let zero_rows = &cases[4].1;
    let solution = run(zero_rows, &form, &config(Init::Admm));
    assert!(reconstruct(&solution, m, n)[..n].iter().all(|&v| v == 0.0));
}

#[test]
fn every_small_shape_is_factorized() {
    for (m, n) in [(1, 1), (1, 9), (7, 3), (8, 8), (13, 130), (130, 13)] {
        let w = heavy_tailed(m, n, 8);
        for rank in [1, m.min(n)] {
            let form = shape(m, n, 1.0, 1, false).with_rank(rank);
            for init in [Init::DualSvid, Init::Itq, Init::Admm] {
                let error = run(&w, &form, &config(init)).error;
                assert!((0.0..1.0).contains(&error), "{m} × {n} rank {rank} {init:?}: {error}");
            }
        }
    }
}

#[test]
fn magnitudes_beyond_f16_fail_cleanly() {
    let (m, n) = (24, 40);
    for scale in [1e-30f32, 1e30] {
        let w: Vec<f32> = heavy_tailed(m, n, 9).iter().map(|v| v * scale).collect();
        let error = solve(
            "model.layers.0.mlp.up_proj",
            &w,
            &shape(m, n, 1.0, 1, false),
            &config(Init::Admm),
            Importance::default(),
            &HostEngine,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 20);
        assert!(error.to_string().contains("model.layers.0.mlp.up_proj"), "{error}");
    }
}

#[test]
fn bad_weights_are_named() {
    let (m, n) = (8, 16);
    let form = shape(m, n, 1.5, 1, false);
    for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut w = heavy_tailed(m, n, 10);
        w[3 * n + 5] = bad;
        w[7 * n] = bad;
        let error =
            solve("up_proj", &w, &form, &config(Init::Admm), Importance::default(), &HostEngine)
                .unwrap_err();
        assert_eq!(error.exit_code(), 20);
        assert_eq!(
            error.to_string(),
            format!("Factorization failed for up_proj: {text} at [3, 5]")
        );
    }
    let w = heavy_tailed(m, n, 10);
    let too_much = form.with_rank(9);
    let error =
        solve("up_proj", &w, &too_much, &config(Init::Admm), Importance::default(), &HostEngine)
            .unwrap_err();
    assert_eq!(error.exit_code(), 23);
}

#[test]
fn a_candle_device_reaches_the_same_error() {
    let (m, n) = (128, 160);
    let w = heavy_tailed(m, n, 11);
    let form = shape(m, n, 1.0, 1, false);
    let host = run(&w, &form, &config(Init::Admm)).error;
    let engine = CandleEngine::new(Device::Cpu);
    let candle = solve("layer", &w, &form, &config(Init::Admm), Importance::default(), &engine)
        .unwrap()
        .error;
    assert!((host - candle).abs() < 0.02 * host, "{host} {candle}");
}

/// The descent after the alternation lowers the error, and so do the least squares scales.
#[test]
fn the_finish_pays() {
    let (m, n) = (96, 128);
    let w = heavy_tailed(m, n, 12);
    let form = shape(m, n, 1.0, 1, false);
    let with = |polish_rounds, refit_rounds| {
        run(&w, &form, &SolverConfig { polish_rounds, refit_rounds, ..config(Init::Admm) }).error
    };
    assert!(with(0, 8) < with(0, 0));
    assert!(with(2, 8) < with(0, 8));
}
