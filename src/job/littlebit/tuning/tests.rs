//! Gradients against their definitions in double precision, and the optimiser against the paper.

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, Estimator, Rates};
use super::layer::{Learning, LearningLayer, PathValues};
use super::loss::{Head, Opinions, squared_error, squared_error_by_operations};
use crate::graph::LinearLayer;

const DIMS: (usize, usize) = (9, 14);
const RANK: usize = 5;
const TOKENS: usize = 6;

/// Numbers that bfloat16 holds exactly, so that every product is exact.
fn whole(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| f32::from(rng.random_range(-4i8..=4))).collect()
}

fn powers(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| [0.25, 0.5, 1.0, 2.0][rng.random_range(0..4)]).collect()
}

fn paths(rng: &mut ChaCha8Rng, count: usize, latent: bool) -> Vec<PathValues> {
    (0..count)
        .map(|_| PathValues {
            left: (0..DIMS.0 * RANK).map(|_| rng.random_range(-1.5..1.5)).collect(),
            right: (0..RANK * DIMS.1).map(|_| rng.random_range(-1.5..1.5)).collect(),
            bits: None,
            row: powers(rng, DIMS.0),
            latent: latent.then(|| powers(rng, RANK)),
            column: powers(rng, DIMS.1),
        })
        .collect()
}

fn sign(v: f32) -> f64 {
    if v >= 0.0 { 1.0 } else { -1.0 }
}

/// `Ŵ` of one path, and the derivative of `Σ dw ∘ Ŵ` by each real factor at the signs.
struct Reference {
    weight: Vec<f64>,
    left: Vec<f64>,
    right: Vec<f64>,
    row: Vec<f64>,
    latent: Vec<f64>,
    column: Vec<f64>,
}

fn reference(path: &PathValues, dw: &[f64]) -> Reference {
    let (m, n) = DIMS;
    let mut out = Reference {
        weight: vec![0.0; m * n],
        left: vec![0.0; m * RANK],
        right: vec![0.0; RANK * n],
        row: vec![0.0; m],
        latent: vec![0.0; RANK],
        column: vec![0.0; n],
    };
    for i in 0..m {
        for j in 0..n {
            for k in 0..RANK {
                let (u, v) = (sign(path.left[i * RANK + k]), sign(path.right[k * n + j]));
                let l = path.latent.as_ref().map_or(1.0, |l| f64::from(l[k]));
                let outer = f64::from(path.row[i]) * f64::from(path.column[j]);
                let term = outer * u * l * v;
                let d = dw[i * n + j];
                out.weight[i * n + j] += term;
                out.left[i * RANK + k] += d * outer * l * v;
                out.right[k * n + j] += d * outer * l * u;
                // By logarithms: the term itself.
                out.row[i] += d * term;
                out.latent[k] += d * term;
                out.column[j] += d * term;
            }
        }
    }
    out
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 1e-4 * expected.abs().max(1.0), "{what} {at}: {found} {expected}");
    }
}

/// Those of layers on the host lie in the layers.
fn no_gradients() -> candle_core::backprop::GradStore {
    Tensor::new(0f32, &Device::Cpu).unwrap().backward().unwrap()
}

#[test]
fn every_parameter_of_a_layer_receives_the_gradient_of_its_definition() {
    let (m, n) = DIMS;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (count, latent, learning) in [
        (1, false, Learning::All),
        (2, true, Learning::All),
        (1, true, Learning::All),
        (1, false, Learning::Scales),
        (2, true, Learning::Scales),
    ] {
        let values = paths(&mut rng, count, latent);
        let layer = LearningLayer::new(DIMS, RANK, values.clone()).unwrap();
        layer.set_learning(learning);
        let (x, dy) = (whole(&mut rng, TOKENS * n), whole(&mut rng, TOKENS * m));
        let input = Var::from_slice(&x, (TOKENS, n), &Device::Cpu).unwrap();
        let weight = Tensor::from_slice(&dy, (TOKENS, m), &Device::Cpu).unwrap();
        let y = layer.forward(input.as_tensor()).unwrap();
        let gradients = (&y * &weight).unwrap().sum_all().unwrap().backward().unwrap();
        layer.complete_gradients();

        let mut dw = vec![0.0; m * n];
        for t in 0..TOKENS {
            for i in 0..m {
                for j in 0..n {
                    dw[i * n + j] += f64::from(dy[t * m + i]) * f64::from(x[t * n + j]);
                }
            }
        }
        let references: Vec<_> = values.iter().map(|path| reference(path, &dw)).collect();
        let total = |at: usize| references.iter().map(|r| r.weight[at]).sum::<f64>();
        let (mut expected_y, mut expected_dx) = (vec![0.0; TOKENS * m], vec![0.0; TOKENS * n]);
        for t in 0..TOKENS {
            for i in 0..m {
                for j in 0..n {
                    expected_y[t * m + i] += total(i * n + j) * f64::from(x[t * n + j]);
                    expected_dx[t * n + j] += total(i * n + j) * f64::from(dy[t * m + i]);
                }
            }
        }
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        close(&flat(&y), &expected_y, "output");
        close(&flat(gradients.get(input.as_tensor()).unwrap()), &expected_dx, "input");
        for (found, expected) in layer.gradients().iter().zip(&references) {
            if learning == Learning::All {
                close(&found.left, &expected.left, "left");
                close(&found.right, &expected.right, "right");
            } else {
                assert!(found.left.iter().chain(&found.right).all(|v| *v == 0.0));
            }
            close(&found.row, &expected.row, "row");
            close(&found.column, &expected.column, "column");
            if let Some(found) = &found.latent {
                close(found, &expected.latent, "latent");
            }
        }
    }
}

#[test]
fn bits_are_the_signs_of_the_latents_wherever_they_lie() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for count in [1, 2] {
        let values = paths(&mut rng, count, true);
        let made = || LearningLayer::new(DIMS, RANK, values.clone()).unwrap();
        let (latents, host, device) = (made(), made(), made());
        [&host, &device].into_iter().for_each(LearningLayer::freeze);
        assert!(host.paths().iter().all(|path| path.left.is_empty() && path.right.is_empty()));
        let layers = [&latents, &host, &device];
        layers.iter().for_each(|layer| layer.set_learning(Learning::Scales));
        let mut optimisers = layers.map(|l| Adam::new(vec![l.clone()], Estimator::Identity));
        optimisers[2].place(&Device::Cpu).unwrap();
        let (x, dy) = (whole(&mut rng, TOKENS * DIMS.1), whole(&mut rng, TOKENS * DIMS.0));
        let input = Var::from_slice(&x, (TOKENS, DIMS.1), &Device::Cpu).unwrap();
        let weight = Tensor::from_slice(&dy, (TOKENS, DIMS.0), &Device::Cpu).unwrap();
        let mut expected: Option<(Vec<f64>, Vec<Vec<f64>>)> = None;
        for (layer, adam) in layers.into_iter().zip(&mut optimisers) {
            let y = layer.forward(input.as_tensor()).unwrap();
            let loss = (&y * &weight).unwrap().sum_all().unwrap();
            adam.descend(&loss, Rates { signs: 0.1, scales: 0.1 }).unwrap();
            adam.fetch().unwrap();
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let paths = layer.paths();
            let scales = || paths.iter().flat_map(PathValues::scales);
            if let Some((expected_y, expected)) = &expected {
                close(&y, expected_y, "output");
                scales().zip(expected).for_each(|(a, b)| close(a, b, "scales"));
            }
            expected = Some((wide(&y), scales().map(|v| wide(v)).collect()));
        }
    }
}

#[test]
fn gradients_add_up_until_they_are_used() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let layer = LearningLayer::new(DIMS, RANK, paths(&mut rng, 1, false)).unwrap();
    layer.set_learning(Learning::All);
    let x = Tensor::from_vec(whole(&mut rng, TOKENS * DIMS.1), (TOKENS, DIMS.1), &Device::Cpu);
    let x = x.unwrap();
    let once = || layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
    once();
    let first = layer.gradients()[0].left.clone();
    once();
    let twice: Vec<f64> = first.iter().map(|v| 2.0 * f64::from(*v)).collect();
    close(&layer.gradients()[0].left, &twice, "left");
    let mut adam = Adam::new(vec![layer.clone()], Estimator::Identity);
    let rates = Rates { signs: 0.1, scales: 0.1 };
    adam.update(0..1, rates, &no_gradients()).unwrap();
    assert!(layer.gradients()[0].arrays().flatten().all(|v| *v == 0.0));
}

#[test]
fn a_step_is_that_of_the_paper() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for estimator in [Estimator::Identity, Estimator::SmoothSign] {
        let values = paths(&mut rng, 1, false);
        let layer = LearningLayer::new(DIMS, RANK, values.clone()).unwrap();
        layer.set_learning(Learning::All);
        let mut adam = Adam::new(vec![layer.clone()], estimator);
        let rates = Rates { signs: 0.03, scales: 0.01 };
        let mut left: Vec<f64> = values[0].left.iter().map(|v| f64::from(*v)).collect();
        let mut row: Vec<f64> = values[0].row.iter().map(|v| f64::from(*v)).collect();
        let mut moments = [vec![(0.0, 0.0); left.len()], vec![(0.0, 0.0); row.len()]];
        for step in 1..=5 {
            // The left factor's gradient is drawn; that of the rows follows from it.
            let drawn: Vec<f32> = (0..left.len()).map(|_| rng.random_range(-1.0..1.0)).collect();
            layer.gradients()[0].left.clone_from(&drawn);
            let rows: Vec<f64> = (0..DIMS.0)
                .map(|i| {
                    (i * RANK..(i + 1) * RANK)
                        .map(|at| f64::from(drawn[at]) * sign(left[at] as f32))
                        .sum()
                })
                .collect();
            adam.count_step();
            adam.update(0..1, rates, &no_gradients()).unwrap();
            let mut advance = |which: usize, at: usize, g: f64| {
                let (m, v): &mut (f64, f64) = &mut moments[which][at];
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.99 * *v + 0.01 * g * g;
                let unbiased = *v / (1.0 - 0.99f64.powi(step));
                *m / (1.0 - 0.9f64.powi(step)) / unbiased.sqrt()
            };
            for at in 0..left.len() {
                let slope = match estimator {
                    Estimator::Identity => 1.0,
                    Estimator::SmoothSign => 1.0 - left[at].tanh().powi(2),
                };
                left[at] -= 0.03 * advance(0, at, slope * f64::from(drawn[at]));
            }
            for at in 0..row.len() {
                row[at] *= (-0.01 * advance(1, at, rows[at])).exp();
            }
        }
        close(&layer.paths()[0].left, &left, "left");
        close(&layer.paths()[0].row, &row, "row");
        // What has no gradient stays.
        assert_eq!(layer.paths()[0].right, values[0].right);
    }
}

/// `Σ p ln(p / q)` over the listed tokens and over the rest as one, in double precision.
fn divergence(logits: &[f64], tokens: &[u32], p: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
    let q = |token: usize| (logits[token] - largest).exp() / sum;
    let listed: f64 = p.iter().map(|p| f64::from(*p)).sum();
    let rest: f64 = (0..logits.len()).filter(|t| !tokens.contains(&(*t as u32))).map(q).sum();
    let mut total = (1.0 - listed) * ((1.0 - listed) / rest).ln();
    for (token, p) in tokens.iter().zip(p) {
        total += f64::from(*p) * (f64::from(*p) / q(*token as usize)).ln();
    }
    total
}

#[test]
fn the_divergence_and_its_gradient_are_those_of_the_definition() {
    let (vocabulary, hidden, tokens) = (40, 8, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    // Multiples of 1/8 below 2: exact in bfloat16, so that logits are exact.
    let eighths = |rng: &mut ChaCha8Rng, count: usize| -> Vec<f32> {
        (0..count).map(|_| f32::from(rng.random_range(-8i8..=8)) / 8.0).collect()
    };
    let weight = eighths(&mut rng, vocabulary * hidden);
    let original = eighths(&mut rng, tokens * vocabulary);
    let opinions = std::sync::Arc::new(Opinions::of(&original, vocabulary, 6));
    for (row, logits) in original.chunks_exact(vocabulary).enumerate() {
        let listed = &opinions.tokens[row * 6..(row + 1) * 6];
        let least = listed.iter().map(|t| logits[*t as usize]).fold(f32::MAX, f32::min);
        let above = logits.iter().filter(|l| **l > least).count();
        assert!(above < 6, "the most likely tokens are listed");
    }
    let x = eighths(&mut rng, tokens * hidden);
    let value = |x: &[f32]| -> f64 {
        let rows = x.chunks_exact(hidden).enumerate().map(|(row, x)| {
            let logits: Vec<f64> = weight
                .chunks_exact(hidden)
                .map(|w| w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                .collect();
            let listed = row * 6..(row + 1) * 6;
            divergence(&logits, &opinions.tokens[listed.clone()], &opinions.probabilities[listed])
        });
        rows.sum::<f64>() / tokens as f64
    };
    let host = Head::new(weight.clone(), vocabulary);
    let device = Head::on_device(&weight, vocabulary, &Device::Cpu).unwrap();
    for head in [&host, &device] {
        let input = Var::from_slice(&x, (tokens, hidden), &Device::Cpu).unwrap();
        let loss = head.divergence(input.as_tensor(), &opinions).unwrap();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - value(&x)).abs() < 1e-5);
        // Twice the loss, so that the factor on the gradient is seen to count.
        let gradients = (loss * 2.0).unwrap().backward().unwrap();
        let found = gradients.get(input.as_tensor()).unwrap().flatten_all().unwrap();
        for (at, found) in found.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let moved = |step: f32| {
                let mut x = x.clone();
                x[at] += step;
                value(&x)
            };
            let expected = 2.0 * (moved(1e-3) - moved(-1e-3)) / 2e-3;
            // The gradient of the logits is rounded to bfloat16 on its way.
            assert!((f64::from(found) - expected).abs() < 0.01 * expected.abs() + 0.003, "{at}");
        }
    }
    let opinions = [&host, &device].map(|head| {
        let x = Tensor::from_slice(&x, (tokens, hidden), &Device::Cpu).unwrap();
        head.opinions(&x, 6).unwrap()
    });
    assert_eq!(opinions[0].tokens, opinions[1].tokens);
}

#[test]
fn the_squared_error_and_its_gradient_are_those_of_the_definition() {
    let (tokens, width) = (5, 7);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let random = |rng: &mut ChaCha8Rng| -> Vec<f32> {
        (0..tokens * width).map(|_| rng.random_range(-2.0..2.0)).collect()
    };
    let (y, target) = (random(&mut rng), random(&mut rng));
    for relative in [false, true] {
        let value = |y: &[f32]| -> f64 {
            let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let errors = y.chunks_exact(width).zip(target.chunks_exact(width)).map(|(y, t)| {
                let difference: Vec<f32> = y.iter().zip(t).map(|(y, t)| y - t).collect();
                (square(&difference), square(t))
            });
            if relative {
                errors.map(|(error, norm)| error / norm).sum::<f64>() / tokens as f64
            } else {
                let (error, norm) = errors.fold((0.0, 0.0), |(e, n), (a, b)| (e + a, n + b));
                error / norm
            }
        };
        let input = Var::from_slice(&y, (tokens, width), &Device::Cpu).unwrap();
        let loss = squared_error(input.as_tensor(), &target, relative).unwrap();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - value(&y)).abs() < 1e-5);
        let gradients = loss.backward().unwrap();
        let found = gradients.get(input.as_tensor()).unwrap().flatten_all().unwrap();
        for (at, found) in found.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let moved = |step: f32| {
                let mut y = y.clone();
                y[at] += step;
                value(&y)
            };
            let expected = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(found) - expected).abs() < 1e-3, "{at}: {found} {expected}");
        }
    }
}

#[test]
fn the_squared_error_by_operations_is_that_of_its_formula() {
    let y = Var::from_slice(&[1f32, 2.0, 3.0, 4.0], (2, 2), &Device::Cpu).unwrap();
    // 0.5 (1 + 4) + 2 (0 + 9)
    let loss = squared_error_by_operations(y.as_tensor(), &[0.0, 0.0, 3.0, 1.0], &[0.5, 2.0]);
    let loss = loss.unwrap();
    assert!((loss.to_scalar::<f32>().unwrap() - 20.5).abs() < 1e-5);
    let gradients = loss.backward().unwrap();
    let found = gradients.get(y.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(found, [[1.0, 2.0], [0.0, 12.0]]);
}

#[test]
fn what_learns_on_a_device_learns_the_same() {
    let (m, n) = DIMS;
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let rates = Rates { signs: 0.2, scales: 0.05 };
    for (count, latent, learning, estimator) in [
        (1, false, Learning::All, Estimator::Identity),
        (2, true, Learning::All, Estimator::SmoothSign),
        (2, true, Learning::Scales, Estimator::Identity),
    ] {
        let values = paths(&mut rng, count, latent);
        let made = [false, true].map(|placed| {
            let layer = LearningLayer::new(DIMS, RANK, values.clone()).unwrap();
            layer.set_learning(learning);
            let adam = Adam::new(vec![layer.clone()], estimator);
            if placed {
                adam.place(&Device::Cpu).unwrap();
            }
            (layer, adam)
        });
        let [(host, mut by_host), (device, mut by_device)] = made;
        let mut moved = Vec::new();
        for _ in 0..4 {
            let (x, dy) = (whole(&mut rng, TOKENS * n), whole(&mut rng, TOKENS * m));
            let input = Var::from_slice(&x, (TOKENS, n), &Device::Cpu).unwrap();
            let weight = Tensor::from_slice(&dy, (TOKENS, m), &Device::Cpu).unwrap();
            let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let [expected, found] = [&host, &device].map(|layer| {
                let y = layer.forward(input.as_tensor()).unwrap();
                (flat(&y), (y * &weight).unwrap().sum_all().unwrap())
            });
            let wide: Vec<f64> = expected.0.iter().map(|v| f64::from(*v)).collect();
            close(&found.0, &wide, "output");
            by_host.descend(&expected.1, rates).unwrap();
            by_device.descend(&found.1, rates).unwrap();
            by_device.fetch().unwrap();
            for (host, device) in host.paths().iter().zip(&*device.paths()) {
                for (host, device) in host.arrays().zip(device.arrays()) {
                    let wide: Vec<f64> = host.iter().map(|v| f64::from(*v)).collect();
                    close(device, &wide, "values");
                }
            }
            for (host, device) in by_host.moments_mut().zip(by_device.moments_mut()) {
                for (host, device) in host.into_iter().zip(device) {
                    let wide: Vec<f64> = host.iter().map(|v| f64::from(*v)).collect();
                    close(device, &wide, "moments");
                    device.clone_from(host);
                }
            }
            moved =
                device.paths()[0].arrays().zip(values[0].arrays()).map(|(a, b)| a != b).collect();
            // The next step starts from equal values, and from scales that bfloat16 holds exactly.
            for (path, from) in host.paths_mut().iter_mut().zip(&values) {
                for (to, from) in path.arrays_mut().zip(from.arrays()).skip(2) {
                    to.clone_from(from);
                }
            }
            device.paths_mut().clone_from(&host.paths());
            by_device.place(&Device::Cpu).unwrap();
        }
        let signs = learning == Learning::All;
        assert_eq!(&moved[..4], [signs, signs, true, true]);
    }
}
