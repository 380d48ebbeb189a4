//! Tiny models with random weights.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use indexmap::IndexMap;
use llm_quantize::arch::config::SlidingWindow;
use llm_quantize::arch::families::QWEN3;
use llm_quantize::arch::{Family, ModelConfig};
use llm_quantize::base::SharedBytes;
use llm_quantize::codec::StoredType;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::model::{LocalModel, ModelFormat};
use llm_quantize::weight::{StoredTensor, Weight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) use crate::logits::{largest_difference, logits};

/// A model as named f32 tensors.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    pub(crate) tensors: IndexMap<String, (Vec<usize>, Vec<f32>)>,
}

/// The linear layers of a block.
pub(crate) const BLOCK_LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// `[out, in]` of one of them.
pub(crate) fn linear_shape(config: &ModelConfig, linear: &str) -> (usize, usize) {
    let slots = config.slots(0);
    let slot = slots.iter().find(|slot| slot.name == linear).unwrap();
    (slot.out, slot.inputs)
}

/// Two blocks, six heads that share two key heads of width 8, untied.
pub(crate) fn config(family: &'static Family) -> ModelConfig {
    ModelConfig {
        hidden_size: 48,
        intermediate_size: 80,
        num_layers: 2,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 8,
        vocab_size: 61,
        max_positions: 512,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: false,
        torch_dtype: "float32".into(),
        bos_token_id: None,
        eos_token_ids: vec![],
        ..ModelConfig::base(family)
    }
}

pub(crate) fn window(size: usize, first_layer: usize) -> SlidingWindow {
    SlidingWindow::from_layer(size, first_layer, 2)
}

impl Tiny {
    /// Random weights of the scale of trained ones. `biased` are the linear layers with a bias.
    pub(crate) fn new(config: ModelConfig, biased: &[&str], seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tensors = IndexMap::new();
        let hidden = config.hidden_size;
        let mut add = |name: String, shape: Vec<usize>, center: f32, spread: f32| {
            let count = shape.iter().product();
            let values = (0..count).map(|_| center + rng.random_range(-spread..spread)).collect();
            tensors.insert(name, (shape, values));
        };
        add("model.embed_tokens.weight".into(), vec![config.vocab_size, hidden], 0.0, 1.0);
        for block in 0..config.num_layers {
            let name = |part: &str| format!("model.layers.{block}.{part}");
            add(name("input_layernorm.weight"), vec![hidden], 1.0, 0.3);
            add(name("post_attention_layernorm.weight"), vec![hidden], 1.0, 0.3);
            if config.family == &QWEN3 {
                add(name("self_attn.q_norm.weight"), vec![config.head_dim], 1.0, 0.5);
                add(name("self_attn.k_norm.weight"), vec![config.head_dim], 1.0, 0.5);
            }
            for linear in BLOCK_LINEARS {
                let (rows, cols) = linear_shape(&config, linear);
                add(name(&format!("{linear}.weight")), vec![rows, cols], 0.0, 0.35);
                if biased.contains(&linear) {
                    add(name(&format!("{linear}.bias")), vec![rows], 0.0, 0.5);
                }
            }
        }
        add("model.norm.weight".into(), vec![hidden], 1.0, 0.3);
        if !config.tie_word_embeddings {
            add("lm_head.weight".into(), vec![config.vocab_size, hidden], 0.0, 0.3);
        }
        Self { config, tensors }
    }

    pub(crate) fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    pub(crate) fn find(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(|(_, values)| values.as_slice())
    }

    pub(crate) fn local_model(&self) -> LocalModel {
        let weight = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let tensor =
                StoredTensor::new(shape.clone(), StoredType::F32, SharedBytes::from_vec(bytes));
            (name.clone(), Weight::Stored(tensor.unwrap()))
        };
        LocalModel {
            name: "tiny".into(),
            path: PathBuf::from("tiny"),
            format: ModelFormat::HuggingFace,
            config: self.config.clone(),
            config_json: String::new(),
            tokenizer_json: None,
            tokenizer_config_json: None,
            left_out: Vec::new(),
            warnings: Vec::new(),
            weights: self.tensors.iter().map(weight).collect(),
        }
    }

    pub(crate) fn decoder(&self) -> Decoder {
        Decoder::new(&self.local_model(), &Backend::cpu()).unwrap()
    }

    pub(crate) fn var_builder(&self) -> VarBuilder<'static> {
        let tensors: HashMap<String, Tensor> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap();
                (name.clone(), tensor)
            })
            .collect();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }
}

/// Token ids of a fixed pseudo-random text.
pub(crate) fn tokens(config: &ModelConfig, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..config.vocab_size as u32)).collect()
}
