//! The real decoder, measured: a tiny Llama with random weights.

use indexmap::IndexMap;
use llm_quantize::arch::ModelConfig;
use llm_quantize::arch::families::LLAMA;
use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::{Decoding, InputStatistics, LanguageModel, Perplexity, TextGenerator};
use llm_quantize::model::{LocalModel, ModelFormat};
use llm_quantize::text::{EvaluationWindows, Protocol};
use llm_quantize::weight::{StoredTensor, Weight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::models::softmax;

const VOCAB: usize = 61;

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 32,
        intermediate_size: 48,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        vocab_size: VOCAB,
        max_positions: 128,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        torch_dtype: "float32".into(),
        bos_token_id: None,
        eos_token_ids: vec![3],
        ..ModelConfig::base(&LLAMA)
    }
}

/// The linear layers of a block.
const BLOCK_LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// `[out, in]` of one of them.
fn linear_shape(config: &ModelConfig, linear: &str) -> (usize, usize) {
    let slots = config.slots(0);
    let slot = slots.iter().find(|slot| slot.name == linear).unwrap();
    (slot.out, slot.inputs)
}

/// A Llama of two blocks with weights drawn evenly between ±`size`.
pub(crate) fn random_llama(size: f32) -> Decoder {
    let config = config();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut tensor = |shape: Vec<usize>, center: f32| {
        let bytes = (0..shape.iter().product())
            .flat_map(|_| (center + random.random_range(-size..size)).to_le_bytes())
            .collect();
        Weight::Stored(
            StoredTensor::new(shape, StoredType::F32, SharedBytes::from_vec(bytes)).unwrap(),
        )
    };
    let hidden = config.hidden_size;
    let mut weights = IndexMap::new();
    weights.insert("model.embed_tokens.weight".to_owned(), tensor(vec![VOCAB, hidden], 0.0));
    weights.insert("model.norm.weight".to_owned(), tensor(vec![hidden], 1.0));
    for block in 0..config.num_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            let name = format!("model.layers.{block}.{norm}.weight");
            weights.insert(name, tensor(vec![hidden], 1.0));
        }
        for linear in BLOCK_LINEARS {
            let (rows, columns) = linear_shape(&config, linear);
            let name = format!("{}.weight", ModelConfig::module_name(block, linear));
            weights.insert(name, tensor(vec![rows, columns], 0.0));
        }
    }
    let model = LocalModel {
        name: "random".into(),
        path: "random".into(),
        format: ModelFormat::HuggingFace,
        config,
        config_json: "{}".into(),
        tokenizer_json: None,
        tokenizer_config_json: None,
        weights,
        left_out: Vec::new(),
        warnings: Vec::new(),
    };
    Decoder::new(&model, &Backend::cpu()).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    (0..count).map(|_| random.random_range(0..VOCAB as u32)).collect()
}

/// Logits behind every token of one sequence, computed alone.
fn all_logits(decoder: &Decoder, sequence: &[u32]) -> Vec<Vec<f32>> {
    let hidden = decoder.hidden(sequence, 1, None, None).unwrap();
    decoder.logits(&hidden).unwrap().to_vec2().unwrap()
}

#[test]
fn its_perplexity_is_that_of_its_softmax() {
    let decoder = random_llama(0.4);
    for protocol in [Protocol::Papers { length: 40 }, Protocol::LlamaCpp { length: 40 }] {
        let windows =
            EvaluationWindows::from_stream(tokens(40 * 60 + 7), Some(1), protocol, None).unwrap();
        let result = Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap();
        let mut losses = Vec::new();
        for window in windows.iter() {
            let logits = all_logits(&decoder, window);
            for at in windows.first_target..window.len() {
                losses.push(-softmax(&logits[at - 1])[window[at] as usize].ln());
            }
        }
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert_eq!(result.tokens as usize, losses.len());
        assert!((result.mean_loss - mean).abs() < 1e-5, "{} {mean}", result.mean_loss);
        // Far from uniform, or the comparison would not say much.
        assert!((result.perplexity - VOCAB as f64).abs() > 1.0, "{}", result.perplexity);
    }
}

#[test]
fn it_writes_exactly_as_much_as_asked_for_and_the_most_likely_token() {
    let decoder = random_llama(0.4);
    let prompt = tokens(5);
    let greedy = decoder.generate(&prompt, 60, Decoding::Greedy).unwrap();
    assert_eq!(greedy.len(), 60);
    let mut text = prompt.clone();
    for &token in &greedy {
        let logits = all_logits(&decoder, &text).pop().unwrap();
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        // Cached and whole passes may round a tie differently.
        assert!(logits[best] - logits[token as usize] < 1e-4, "behind {} tokens", text.len());
        text.push(token);
    }
    let sampled = |seed| {
        let decoding = Decoding::Sampled { temperature: 1.0, top_p: 0.95, seed };
        decoder.generate(&prompt, 100, decoding).unwrap()
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    // Among so many samples of so few tokens is the end of text, and nothing ended there.
    let samples: Vec<u32> = (0..10).flat_map(sampled).collect();
    assert_eq!(samples.len(), 1000);
    assert!(samples.contains(&3));
}

#[test]
fn its_linear_layers_are_observed() {
    let decoder = random_llama(0.4);
    let mut statistics = InputStatistics::new();
    for window in tokens(300).chunks_exact(100) {
        decoder.hidden(window, 2, None, Some(&mut statistics)).unwrap();
    }
    assert_eq!(statistics.layers.len(), 2 * BLOCK_LINEARS.len());
    let layer = |name: &str| &statistics.layers[&ModelConfig::module_name(1, name)];
    for linear in BLOCK_LINEARS {
        assert_eq!(layer(linear).sum_squares.len(), linear_shape(decoder.config(), linear).1);
        assert_eq!(layer(linear).tokens, 300);
        assert!(layer(linear).weights().iter().all(|&weight| weight > 0.0));
    }
    assert_eq!(layer("self_attn.q_proj"), layer("self_attn.v_proj"));
    assert_eq!(layer("mlp.gate_proj"), layer("mlp.up_proj"));
    // The input of attention is normed: its mean square is near that of the norm's weights, 1.
    let input = layer("self_attn.q_proj").mean_squares();
    let mean = input.iter().sum::<f64>() / input.len() as f64;
    assert!((0.5..2.0).contains(&mean), "{mean}");
    assert_eq!(decoder.vocab_size(), VOCAB);
}
