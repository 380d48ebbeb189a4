//! Activation statistics against sums written out.

use candle_core::{Device, Tensor};
use llm_quantize::measure::InputStatistics;
use llm_quantize::measure::statistics::shrink;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Batches of `[tokens, channels]` with an enormous token now and then.
fn batches(channels: usize) -> Vec<(usize, Vec<f32>)> {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    [1500, 700, 1, 2000]
        .into_iter()
        .map(|tokens| {
            let mut values = vec![0f32; tokens * channels];
            for (token, row) in values.chunks_exact_mut(channels).enumerate() {
                let scale = if token % 997 == 3 { 300.0 } else { 1.0 };
                for x in row.iter_mut() {
                    *x = scale * random.random_range(-2.0f32..3.0);
                }
            }
            (tokens, values)
        })
        .collect()
}

fn tensor((tokens, values): &(usize, Vec<f32>)) -> Tensor {
    let channels = values.len() / tokens;
    Tensor::from_vec(values.clone(), (*tokens, channels), &Device::Cpu).unwrap()
}

#[test]
fn without_clipping_it_is_the_mean_square() {
    let mut statistics = InputStatistics::without_clipping();
    let batches = batches(37);
    let mut expected = vec![0f64; 37];
    for batch in &batches {
        statistics.add(&["q", "k"], &tensor(batch)).unwrap();
        for row in batch.1.chunks_exact(37) {
            expected.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
    }
    assert_eq!(statistics.layers.keys().collect::<Vec<_>>(), ["q", "k"]);
    for layer in statistics.layers.values() {
        assert_eq!((layer.tokens, layer.clipped_tokens), (4201, 0));
        for (mean, sum) in layer.mean_squares().iter().zip(&expected) {
            assert!((mean - sum / 4201.0).abs() < 1e-12 * mean);
        }
    }
}

#[test]
fn tokens_beyond_the_running_quantile_are_scaled_down_to_it() {
    let mut statistics = InputStatistics::new();
    let batches = batches(16);
    let (mut expected, mut limit, mut clipped) = (vec![0f64; 16], 0f64, 0);
    for batch in &batches {
        statistics.add(&["o"], &tensor(batch)).unwrap();
        let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let mut norms: Vec<f64> = batch.1.chunks_exact(16).map(norm).collect();
        norms.sort_by(f64::total_cmp);
        limit = limit.max(norms[(0.999 * (norms.len() - 1) as f64) as usize]);
        for row in batch.1.chunks_exact(16) {
            let scale = (limit / norm(row)).min(1.0);
            clipped += u64::from(scale < 1.0);
            for (sum, &x) in expected.iter_mut().zip(row) {
                *sum += (scale * f64::from(x)).powi(2);
            }
        }
    }
    let layer = &statistics.layers["o"];
    // Two enormous tokens in the first and three in the last batch; the quantile of the first lies
    // below both of its own, that of the last includes one.
    assert!(clipped >= 3, "{clipped}");
    assert_eq!(layer.clipped_tokens, clipped);
    assert!((layer.clip_norm - limit).abs() < 1e-12 * limit);
    for (sum, expected) in layer.sum_squares.iter().zip(&expected) {
        assert!((sum - expected).abs() < 1e-9 * expected, "{sum} {expected}");
    }
}

#[test]
fn weights_are_drawn_a_fifth_of_the_way_to_their_mean() {
    for (value, expected) in shrink(&[0.0, 1.0, 5.0], 0.2).iter().zip([0.4, 1.2, 4.4]) {
        assert!((value - expected).abs() < 1e-12);
    }
    let mut statistics = InputStatistics::without_clipping();
    let input = Tensor::new(&[[0f32, 1.0], [0.0, 3.0]], &Device::Cpu).unwrap();
    statistics.add(&["down"], &input).unwrap();
    // Mean squares 0 and 5, mean 2.5.
    for (weight, expected) in statistics.layers["down"].weights().iter().zip([0.5, 4.5]) {
        assert!((weight - expected).abs() < 1e-12);
    }
}

#[test]
fn they_are_the_same_on_one_thread_and_saved_exactly() {
    let run = || {
        let mut statistics = InputStatistics::new();
        for batch in batches(600) {
            statistics.add(&["gate", "up"], &tensor(&batch)).unwrap();
        }
        statistics.to_bytes()
    };
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
    let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap().install(run);
    assert!(single == many);

    let loaded = InputStatistics::from_bytes(&single).unwrap();
    assert!(loaded.to_bytes() == single);
    // A run that is continued ends where an uninterrupted one does.
    let (mut whole, mut first) = (InputStatistics::new(), InputStatistics::new());
    let batches = batches(9);
    for batch in &batches {
        whole.add(&["x"], &tensor(batch)).unwrap();
    }
    first.add(&["x"], &tensor(&batches[0])).unwrap();
    let mut second = InputStatistics::from_bytes(&first.to_bytes()).unwrap();
    for batch in &batches[1..] {
        second.add(&["x"], &tensor(batch)).unwrap();
    }
    assert_eq!(second.layers, whole.layers);
}

#[test]
fn damaged_bytes_and_values_are_errors() {
    let mut statistics = InputStatistics::new();
    statistics.add(&["a", "b"], &tensor(&batches(5)[2])).unwrap();
    let bytes = statistics.to_bytes();
    for length in 0..bytes.len() {
        let error = InputStatistics::from_bytes(&bytes[..length]).unwrap_err();
        assert_eq!(error.exit_code(), 7);
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        // An error or other numbers, but never a panic or a giant allocation.
        let _ = InputStatistics::from_bytes(&damaged);
    }
    assert!(InputStatistics::from_bytes(&[bytes.clone(), vec![0]].concat()).is_err());

    let nan = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap();
    let error = statistics.add(&["model.layers.0.mlp.up_proj"], &nan).unwrap_err();
    assert!(error.to_string().contains("model.layers.0.mlp.up_proj"), "{error}");
    let other = Tensor::zeros((3, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(statistics.add(&["a"], &other).is_err());
}
