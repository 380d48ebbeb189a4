//! The shape of a model: family and hyper-parameters, whatever file they came from.

use crate::arch::family::Biases;
use crate::arch::{BlockSpec, Family, Slot};

/// Rotary position embedding (half-split pairs, as in Hugging Face).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How wavelengths are stretched beyond the trained context.
    pub scaling: RopeScaling,
    /// Values of a head that rotate, the first ones, if not all.
    pub width: Option<usize>,
}

/// Ways to stretch rotary positions, named as in `rope_scaling.rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high` are short.
        high_freq_factor: f64,
        /// Context of pre-training, tokens.
        original_context: usize,
    },
    /// Plain up to the trained context; beyond it the base grows with the length of the text.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// Trained context, tokens.
        original_context: usize,
    },
    /// One divisor per pair of dimensions, other ones for texts beyond the trained context
    /// (`LongRoPE`).
    LongRope {
        /// Divisors within the trained context, `[head_dim / 2]`.
        short: Vec<f32>,
        /// Divisors beyond it.
        long: Vec<f32>,
        /// Trained context, tokens.
        original_context: usize,
        /// Scale of cos and sin.
        attention_factor: f64,
    },
    /// `YaRN` (arXiv 2309.00071).
    Yarn {
        /// Context extension.
        factor: f64,
        /// Context of pre-training, tokens.
        original_context: usize,
        /// Rotations above which a dimension is not interpolated (32).
        beta_fast: f64,
        /// Rotations below which a dimension is fully interpolated (1).
        beta_slow: f64,
        /// Scale of cos and sin; `None`: `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
    },
    /// One divisor per pair of dimensions, `[head_dim / 2]` (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// Attention limited to the last `size` tokens, in some of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that a position sees, itself included.
    pub size: usize,
    /// Of each layer whether it has the window.
    pub layers: Vec<bool>,
}

impl SlidingWindow {
    /// A window in the layers from `first` on, of `layers`.
    #[must_use]
    pub fn from_layer(size: usize, first: usize, layers: usize) -> Self {
        Self { size, layers: (0..layers).map(|layer| layer >= first).collect() }
    }

    /// The window of a layer.
    #[must_use]
    pub fn of(&self, layer: usize) -> Option<usize> {
        (self.layers.get(layer) == Some(&true)).then_some(self.size)
    }

    /// The first layer with the window if all after it have it as well.
    #[must_use]
    pub fn first_of_rest(&self) -> Option<usize> {
        let first = self.layers.iter().position(|limited| *limited).unwrap_or(self.layers.len());
        self.layers[first..].iter().all(|limited| *limited).then_some(first)
    }
}

/// Which linear layers add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearBiases {
    /// q, k and v.
    pub qkv: bool,
    /// The output projection of the attention.
    pub output: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertSizes {
    /// Number of experts.
    pub count: usize,
    /// Experts of a token.
    pub used: usize,
    /// Width of an expert.
    pub inner: usize,
    /// Width of the expert that every token uses, if there is one.
    pub shared: Option<usize>,
    /// Whether the shares of the chosen ones are scaled to a sum of 1.
    pub normalized: bool,
}

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub family: &'static Family,
    /// Hugging Face class (`LlamaForCausalLM`).
    pub class_name: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Context length, tokens.
    pub max_positions: usize,
    /// Trained context, where it is a member of the class (Phi-3).
    pub original_positions: Option<usize>,
    /// Epsilon of every `RMSNorm`.
    pub rms_norm_eps: f64,
    /// Positions.
    pub rope: RopeConfig,
    /// Positions in layers with a window, where they have their own.
    pub window_rope: Option<RopeConfig>,
    /// Local attention, if any.
    pub sliding_window: Option<SlidingWindow>,
    /// Which linear layers add a bias.
    pub biases: LinearBiases,
    /// Mixtures of experts in the place of MLPs.
    pub experts: Option<ExpertSizes>,
    /// Scores are divided by the root of this, if not by that of the width of a head.
    pub query_pre_attn_scalar: Option<f64>,
    /// `c`, where scores become `c tanh(score / c)`.
    pub attention_soft_cap: Option<f64>,
    /// The same for logits.
    pub logit_soft_cap: Option<f64>,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Element type that the config states (`bfloat16`, `float16`, `float32`).
    pub torch_dtype: String,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// What a family assumes, without sizes: to be completed by those.
    #[must_use]
    pub fn base(family: &'static Family) -> Self {
        let defaults = &family.defaults;
        let plain = |theta| RopeConfig { theta, scaling: RopeScaling::None, width: None };
        Self {
            family,
            class_name: family.classes.first().map_or("", |(class, _)| class).to_owned(),
            hidden_size: 0,
            intermediate_size: 0,
            num_layers: 0,
            num_heads: 0,
            num_kv_heads: 0,
            head_dim: 0,
            vocab_size: 0,
            max_positions: defaults.max_positions,
            original_positions: defaults.original_positions,
            rms_norm_eps: defaults.epsilon,
            rope: plain(defaults.theta),
            window_rope: family.window_rope.then(|| plain(10_000.0)),
            sliding_window: None,
            biases: LinearBiases { qkv: family.biases == Biases::Qkv, ..LinearBiases::default() },
            experts: None,
            query_pre_attn_scalar: None,
            attention_soft_cap: None,
            logit_soft_cap: None,
            tie_word_embeddings: defaults.tied,
            torch_dtype: String::new(),
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    /// How many experts all blocks have together, if that is more than a model could: their tensors
    /// are listed one by one, so two numbers of a small file must not ask for all memory.
    #[must_use]
    pub(crate) fn too_many_experts(&self) -> Option<usize> {
        const MOST: usize = 1 << 20;
        let count = self.experts.map_or(0, |experts| experts.count);
        Some(count.saturating_mul(self.num_layers)).filter(|all| *all > MOST)
    }

    /// Block `index`.
    #[must_use]
    pub fn block(&self, index: usize) -> BlockSpec {
        self.family.block(self, index)
    }

    /// The linear layers of block `index`, in the order in which they are computed.
    #[must_use]
    pub fn slots(&self, index: usize) -> Vec<Slot> {
        self.block(index).slots(self.hidden_size)
    }

    /// Names of the linear layers of block `index` whose weights are quantized, without `.weight`, in
    /// the order in which they are computed.
    #[must_use]
    pub fn linear_names(&self, index: usize) -> Vec<String> {
        let slots = self.slots(index).into_iter().filter(Slot::is_quantized);
        slots.map(|slot| Self::module_name(index, &slot.name)).collect()
    }

    /// Weights of the linear layers of block `index`.
    #[must_use]
    pub fn linear_weights(&self, index: usize) -> usize {
        self.slots(index).iter().map(|slot| slot.out * slot.inputs).sum()
    }

    /// Name of a module of a block: `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn module_name(block: usize, module: &str) -> String {
        format!("model.layers.{block}.{module}")
    }

    /// Whether a layer sees a window only.
    #[must_use]
    pub fn has_window(&self, layer: usize) -> bool {
        self.sliding_window.as_ref().is_some_and(|window| window.of(layer).is_some())
    }

    /// What scores are multiplied with.
    #[must_use]
    pub fn query_scale(&self) -> f64 {
        1.0 / self.query_pre_attn_scalar.unwrap_or(self.head_dim as f64).sqrt()
    }

    /// What embeddings are multiplied with, if they are.
    #[must_use]
    pub fn embedding_scale(&self) -> Option<f64> {
        self.family.scaled_embedding.then(|| (self.hidden_size as f64).sqrt())
    }

    /// The model type of its class.
    #[must_use]
    pub fn model_type(&self) -> &'static str {
        let classes = self.family.classes;
        let own = classes.iter().find(|(name, _)| *name == self.class_name);
        own.or(classes.first()).map_or(self.family.name, |(_, kind)| kind)
    }
}
