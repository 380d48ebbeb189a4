//! Every option of the graph against the reference in f64.

use llm_quantize::arch::ModelConfig;
use llm_quantize::arch::config::{RopeConfig, RopeScaling};
use llm_quantize::arch::families::{LLAMA, MISTRAL, QWEN2, QWEN3};
use llm_quantize::graph::Execution;
use llm_quantize::graph::rope::Rope;

use super::reference;
use super::tiny::{BLOCK_LINEARS, Tiny, config, largest_difference, logits, tokens, window};

/// Rounding of activations in f32, for logits of magnitude up to about ten.
const TOLERANCE: f64 = 1e-4;

fn check(model: &Tiny, length: usize) {
    let tokens = tokens(&model.config, length, 5);
    let want = reference::logits(model, &tokens);
    let mut decoder = model.decoder();
    for execution in [Execution::Fused, Execution::Operations] {
        decoder.set_execution(execution).unwrap();
        let difference = largest_difference(&logits(&decoder, &tokens), &want);
        assert!(difference < TOLERANCE, "{execution:?}: {difference}");
    }
}

fn scaled(scaling: RopeScaling) -> ModelConfig {
    let mut config = config(&LLAMA);
    config.head_dim = 16;
    config.rope = RopeConfig { theta: 10_000.0, scaling, width: None };
    config
}

#[test]
fn plain_llama() {
    check(&Tiny::new(config(&LLAMA), &[], 1), 40);
}

#[test]
fn long_sequences_take_several_query_blocks() {
    check(&Tiny::new(config(&LLAMA), &[], 2), 300);
}

#[test]
fn one_and_few_tokens() {
    let model = Tiny::new(config(&LLAMA), &[], 3);
    for length in 1..=6 {
        check(&model, length);
    }
}

#[test]
fn tied_head() {
    let mut config = config(&LLAMA);
    config.tie_word_embeddings = true;
    check(&Tiny::new(config, &[], 4), 20);
}

#[test]
fn biases_everywhere() {
    check(&Tiny::new(config(&LLAMA), &BLOCK_LINEARS, 5), 20);
}

#[test]
fn qwen2_biases() {
    let biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    check(&Tiny::new(config(&QWEN2), &biased, 6), 20);
}

#[test]
fn qwen3_head_norms_and_explicit_head_width() {
    let mut config = config(&QWEN3);
    config.head_dim = 20;
    check(&Tiny::new(config, &[], 7), 20);
}

#[test]
fn one_key_head_and_one_per_query() {
    for kv_heads in [1, 6] {
        let mut config = config(&LLAMA);
        config.num_kv_heads = kv_heads;
        check(&Tiny::new(config, &[], 8), 20);
    }
}

#[test]
fn sliding_windows() {
    for (size, first_layer, length) in
        [(7, 0, 40), (1, 0, 10), (7, 1, 40), (200, 0, 330), (64, 1, 3)]
    {
        let mut config = config(&MISTRAL);
        config.sliding_window = Some(window(size, first_layer));
        check(&Tiny::new(config, &[], 9), length);
    }
}

#[test]
fn linear_positions() {
    check(&Tiny::new(scaled(RopeScaling::Linear { factor: 4.0 }), &[], 10), 60);
}

#[test]
fn llama3_positions() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    check(&Tiny::new(scaled(scaling), &[], 11), 60);
}

#[test]
fn yarn_positions() {
    for (attention_factor, truncate) in [(None, true), (Some(1.3), true), (None, false)] {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 128,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor,
            truncate,
        };
        check(&Tiny::new(scaled(scaling), &[], 12), 60);
    }
}

#[test]
fn per_dimension_factors() {
    let factors = (0..8).map(|i| 1.0 + i as f32).collect();
    check(&Tiny::new(scaled(RopeScaling::Factors(factors)), &[], 13), 60);
}

/// The bounds of `YaRN`'s ramp as `ggml_rope_yarn_corr_dims` of llama.cpp gives them: dimensions up
/// to the first turn as before, dimensions from the second on `factor` times slower.
#[test]
fn yarn_ramp_starts_and_ends_where_llama_cpp_says() {
    let cases = [
        (128, 4096, 1e4, 32.0, 1.0, (20, 46)),
        (128, 32768, 1e6, 32.0, 1.0, (23, 40)),
        (64, 2048, 1e4, 32.0, 1.0, (8, 21)),
        (64, 2048, 1e4, 16.0, 2.0, (10, 18)),
    ];
    for (head_dim, original_context, theta, beta_fast, beta_slow, (first, last)) in cases {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor: Some(1.0),
            truncate: true,
        };
        let rope = Rope::new(&RopeConfig { theta, scaling, width: None }, head_dim).unwrap();
        for (i, frequency) in rope.frequencies().iter().enumerate() {
            let plain = theta.powf(-2.0 * i as f64 / head_dim as f64);
            let slower = plain / frequency;
            if i <= first {
                assert!((slower - 1.0).abs() < 1e-12, "dimension {i} of {head_dim}: {slower}");
            } else if i >= last {
                assert!((slower - 4.0).abs() < 1e-12, "dimension {i} of {head_dim}: {slower}");
            } else {
                assert!(slower > 1.0 && slower < 4.0, "dimension {i} of {head_dim}: {slower}");
            }
        }
    }
}

#[test]
fn unusable_positions_are_refused() {
    let refused = |theta: f64, scaling: RopeScaling, head_dim: usize| {
        Rope::new(&RopeConfig { theta, scaling, width: None }, head_dim).is_err()
    };
    assert!(refused(1e4, RopeScaling::None, 7));
    assert!(refused(f64::NAN, RopeScaling::None, 8));
    assert!(refused(1e4, RopeScaling::Linear { factor: 0.0 }, 8));
    assert!(refused(1e4, RopeScaling::Factors(vec![1.0; 3]), 8));
    assert!(refused(1e4, RopeScaling::Factors(vec![1.0, 1.0, 0.0, 1.0]), 8));
    assert!(!refused(1e4, RopeScaling::Factors(vec![1.0; 4]), 8));
}
