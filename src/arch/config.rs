//! The shape of a model: architecture and hyper-parameters, whatever file they came from.

/// Decoder families that this tool runs. All are pre-norm transformers with `RMSNorm`, rotary
/// positions and `SwiGLU`; they differ in biases, q/k norms and windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1–3 and everything that copies it.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: `RMSNorm` on each head of q and k.
    Qwen3,
}

/// Rotary position embedding (half-split pairs, as in Hugging Face).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How wavelengths are stretched beyond the trained context.
    pub scaling: RopeScaling,
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

impl LinearBiases {
    /// Whether one of [`BLOCK_LINEARS`] has one.
    #[must_use]
    pub fn has(self, linear: &str) -> bool {
        match linear {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => self.qkv,
            "self_attn.o_proj" => self.output,
            _ => self.mlp,
        }
    }
}

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
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
    /// Epsilon of every `RMSNorm`.
    pub rms_norm_eps: f64,
    /// Positions.
    pub rope: RopeConfig,
    /// Local attention, if any.
    pub sliding_window: Option<SlidingWindow>,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Element type that the config states (`bfloat16`, `float16`, `float32`).
    pub torch_dtype: String,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

/// The seven linear layers of a block, in execution order.
pub const BLOCK_LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl ModelConfig {
    /// `[out, in]` of a block's linear layer (one of [`BLOCK_LINEARS`]).
    ///
    /// # Panics
    /// If `linear` is not one of them.
    #[must_use]
    pub fn linear_shape(&self, linear: &str) -> (usize, usize) {
        let (queries, keys) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        match linear {
            "self_attn.q_proj" => (queries, self.hidden_size),
            "self_attn.k_proj" | "self_attn.v_proj" => (keys, self.hidden_size),
            "self_attn.o_proj" => (self.hidden_size, queries),
            "mlp.gate_proj" | "mlp.up_proj" => (self.intermediate_size, self.hidden_size),
            "mlp.down_proj" => (self.hidden_size, self.intermediate_size),
            other => panic!("{other} is not a linear layer of a block"),
        }
    }

    /// Name of a linear layer without `.weight`: `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn linear_name(block: usize, linear: &str) -> String {
        format!("model.layers.{block}.{linear}")
    }
}
