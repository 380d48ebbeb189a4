//! The tensors of a model: names in both worlds, shapes, and what happens to their values between
//! the two.

use super::spec::{HEAD_NORMS, NormSlot, Part, Role, Slot};
use crate::arch::ModelConfig;

/// Hugging Face name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Hugging Face name of the final norm.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Hugging Face name of an untied head.
pub const HEAD: &str = "lm_head.weight";

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face name: `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// GGUF name: `blk.0.ffn_up.weight`. Experts of a kind share one.
    pub gguf: String,
    /// Dimensions, outermost first; `[out, in]` for matrices.
    pub shape: Vec<usize>,
    /// What becomes of its values in a GGUF file.
    pub edit: Edit,
    /// The expert that it belongs to, if it does.
    pub expert: Option<usize>,
}

impl TensorSpec {
    /// Whether a GGUF file holds it stacked with those of the other experts.
    #[must_use]
    pub fn is_stacked(&self) -> bool {
        self.expert.is_some()
    }
}

/// What becomes of a tensor's values on the way into a GGUF file. A tensor that comes from one goes
/// the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    None,
    /// Rows go in rotary pairs, per head.
    Pairs {
        /// Number of heads.
        heads: usize,
    },
    /// The norm multiplies by one more than what is stored.
    PlusOne,
}

/// The values that a norm multiplies with, from those that are stored.
pub fn norm_values(config: &ModelConfig, stored: &mut [f32]) {
    if config.family.norm_plus_one {
        stored.iter_mut().for_each(|value| *value += 1.0);
    }
}

/// Block and module of a tensor that is the matrix of a linear layer, routers aside:
/// `model.layers.3.mlp.up_proj.weight` is block 3, `mlp.up_proj`.
#[must_use]
pub fn linear_of_block(name: &str) -> Option<(usize, &str)> {
    let layer = name.strip_suffix(".weight")?.strip_prefix("model.layers.")?;
    let (block, module) = layer.split_once('.')?;
    let last = module.rsplit('.').next()?;
    let fits = last.ends_with("_proj") || matches!(last, "w1" | "w2" | "w3");
    fits.then_some((block.parse().ok()?, module))
}

/// All tensors of a model, embedding first, head last.
#[must_use]
pub fn of_model(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let hidden = config.hidden_size;
    let outer = |name: &str, gguf: &str, shape: &[usize], edit| TensorSpec {
        name: name.to_owned(),
        gguf: gguf.to_owned(),
        shape: shape.to_vec(),
        edit,
        expert: None,
    };
    let matrix = [config.vocab_size, hidden];
    list.push(outer(EMBEDDING, "token_embd.weight", &matrix, Edit::None));
    for block in 0..config.num_layers {
        of_block(config, block, &mut list);
    }
    list.push(outer(FINAL_NORM, "output_norm.weight", &[hidden], norm_edit(config)));
    if !config.tie_word_embeddings {
        list.push(outer(HEAD, "output.weight", &matrix, Edit::None));
    }
    list
}

fn norm_edit(config: &ModelConfig) -> Edit {
    if config.family.norm_plus_one { Edit::PlusOne } else { Edit::None }
}

/// The tensors of block `index`: its first norm, its linear layers, norms of heads, its other norms.
pub fn of_block(config: &ModelConfig, index: usize, list: &mut Vec<TensorSpec>) {
    let spec = config.block(index);
    let norm = |norm: NormSlot, width: usize| TensorSpec {
        name: format!("model.layers.{index}.{}.weight", norm.name),
        gguf: format!("blk.{index}.{}.weight", norm.gguf),
        shape: vec![width],
        edit: norm_edit(config),
        expert: None,
    };
    let hidden = config.hidden_size;
    let mut norms = spec.norms.all();
    list.extend(norms.next().map(|first| norm(first, hidden)));
    for slot in spec.slots(hidden) {
        let edit = linear_edit(config, &slot);
        let expert = match slot.part {
            Part::Expert(expert) => Some(expert),
            _ => None,
        };
        let tensor = |end: &str, shape: Vec<usize>| TensorSpec {
            name: format!("model.layers.{index}.{}.{end}", slot.name),
            gguf: format!("blk.{index}.{}.{end}", slot.gguf),
            shape,
            edit,
            expert,
        };
        list.push(tensor("weight", vec![slot.out, slot.inputs]));
        if slot.bias {
            list.push(tensor("bias", vec![slot.out]));
        }
    }
    if spec.attention.head_norms {
        list.extend(HEAD_NORMS.map(|slot| norm(slot, spec.attention.head_dim)));
    }
    list.extend(norms.map(|other| norm(other, hidden)));
}

fn linear_edit(config: &ModelConfig, slot: &Slot) -> Edit {
    match slot.role {
        Role::Query if config.family.has_rope_pairs() => Edit::Pairs { heads: config.num_heads },
        Role::Key if config.family.has_rope_pairs() => Edit::Pairs { heads: config.num_kv_heads },
        _ => Edit::None,
    }
}
