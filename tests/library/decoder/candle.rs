//! The same weights in candle-transformers' models.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::Activation;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use llm_quantize::arch::config::RopeScaling;
use llm_quantize::arch::families::{LLAMA, MISTRAL, QWEN2, QWEN3};

use super::tiny::{BLOCK_LINEARS, Tiny, config, largest_difference, logits, tokens, window};

const TOLERANCE: f64 = 1e-4;

/// Their models give logits of the last position, so every prefix is run.
fn check(model: &Tiny, length: usize, mut last: impl FnMut(&Tensor) -> Tensor) {
    let tokens = tokens(&model.config, length, 6);
    let want: Vec<Vec<f32>> = (1..=length)
        .map(|end| {
            let input = Tensor::new(&tokens[..end], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            last(&input).flatten_all().unwrap().to_vec1().unwrap()
        })
        .collect();
    let got = logits(&model.decoder(), &tokens);
    let difference = largest_difference(&got, &want);
    assert!(difference < TOLERANCE, "logits differ by {difference}");
    // A comparison of constants would prove nothing.
    assert!(got[0].iter().any(|logit| (logit - got[1][0]).abs() > 0.1));
}

fn llama_config(model: &Tiny) -> llama::Config {
    let c = &model.config;
    let rope_scaling = match c.rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            Some(llama::Llama3RopeConfig {
                factor: factor as f32,
                low_freq_factor: low_freq_factor as f32,
                high_freq_factor: high_freq_factor as f32,
                original_max_position_embeddings: original_context,
                rope_type: llama::Llama3RopeType::Llama3,
            })
        }
        _ => None,
    };
    llama::Config {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        vocab_size: c.vocab_size,
        num_hidden_layers: c.num_layers,
        num_attention_heads: c.num_heads,
        num_key_value_heads: c.num_kv_heads,
        use_flash_attn: false,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: c.max_positions,
        tie_word_embeddings: c.tie_word_embeddings,
    }
}

fn check_llama(model: &Tiny, length: usize) {
    let their_config = llama_config(model);
    let theirs = llama::Llama::load(model.var_builder(), &their_config).unwrap();
    check(model, length, |input| {
        let mut cache = llama::Cache::new(false, DType::F32, &their_config, &Device::Cpu).unwrap();
        theirs.forward(input, 0, &mut cache).unwrap()
    });
}

#[test]
fn llama() {
    check_llama(&Tiny::new(config(&LLAMA), &[], 21), 24);
}

#[test]
fn llama_tied() {
    let mut config = config(&LLAMA);
    config.tie_word_embeddings = true;
    check_llama(&Tiny::new(config, &[], 22), 24);
}

#[test]
fn llama3_positions() {
    let mut config = config(&LLAMA);
    config.rope.scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    check_llama(&Tiny::new(config, &[], 23), 48);
}

fn check_mistral(model: &Tiny, length: usize) {
    let c = &model.config;
    let their_config = mistral::Config {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_layers,
        num_attention_heads: c.num_heads,
        head_dim: Some(c.head_dim),
        num_key_value_heads: c.num_kv_heads,
        hidden_act: Activation::Silu,
        max_position_embeddings: c.max_positions,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope.theta,
        // Theirs counts the tokens before the current one; transformers' includes it.
        sliding_window: c.sliding_window.as_ref().map(|window| window.size - 1),
        use_flash_attn: false,
    };
    let mut theirs = mistral::Model::new(&their_config, model.var_builder()).unwrap();
    check(model, length, |input| {
        theirs.clear_kv_cache();
        theirs.forward(input, 0).unwrap()
    });
}

#[test]
fn mistral() {
    let mut config = config(&MISTRAL);
    config.head_dim = 12;
    check_mistral(&Tiny::new(config, &[], 24), 24);
}

#[test]
fn mistral_with_a_window() {
    let mut config = config(&MISTRAL);
    config.sliding_window = Some(window(9, 0));
    check_mistral(&Tiny::new(config, &[], 25), 32);
}

fn check_qwen2(model: &Tiny) {
    let c = &model.config;
    let their_config = qwen2::Config {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_layers,
        num_attention_heads: c.num_heads,
        num_key_value_heads: c.num_kv_heads,
        max_position_embeddings: c.max_positions,
        sliding_window: c.max_positions,
        max_window_layers: c.num_layers,
        tie_word_embeddings: c.tie_word_embeddings,
        rope_theta: c.rope.theta,
        rms_norm_eps: c.rms_norm_eps,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut theirs = qwen2::ModelForCausalLM::new(&their_config, model.var_builder()).unwrap();
    check(model, 24, |input| {
        theirs.clear_kv_cache();
        theirs.forward(input, 0).unwrap()
    });
}

#[test]
fn qwen2() {
    for tied in [false, true] {
        let mut config = config(&QWEN2);
        config.tie_word_embeddings = tied;
        config.rope.theta = 1e6;
        check_qwen2(&Tiny::new(config, &BLOCK_LINEARS[..3], 26));
    }
}

#[test]
fn qwen3() {
    for tied in [false, true] {
        let mut config = config(&QWEN3);
        config.tie_word_embeddings = tied;
        config.head_dim = 16;
        let model = Tiny::new(config, &[], 27);
        let c = &model.config;
        let their_config = qwen3::Config {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_layers,
            num_attention_heads: c.num_heads,
            head_dim: c.head_dim,
            attention_bias: false,
            num_key_value_heads: c.num_kv_heads,
            max_position_embeddings: c.max_positions,
            sliding_window: None,
            max_window_layers: c.num_layers,
            tie_word_embeddings: c.tie_word_embeddings,
            rope_theta: c.rope.theta,
            rms_norm_eps: c.rms_norm_eps,
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        };
        // Their hidden states cover all positions: one pass checks them, too.
        let mut hidden = qwen3::Model::new(&their_config, model.var_builder()).unwrap();
        let tokens = tokens(&model.config, 24, 6);
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let want = hidden.forward(&input, 0).unwrap().squeeze(0).unwrap();
        let got = model.decoder().hidden(&tokens, 1, None, None).unwrap();
        let difference = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1);
        assert!(difference.unwrap().to_scalar::<f32>().unwrap() < 1e-4);

        let mut theirs = qwen3::ModelForCausalLM::new(&their_config, model.var_builder()).unwrap();
        check(&model, 24, |input| {
            theirs.clear_kv_cache();
            theirs.forward(input, 0).unwrap()
        });
    }
}
