//! Tensor names of Hugging Face checkpoints and of GGUF files, both ways.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::ModelConfig;
use super::config::ExpertSizes;
use super::families::ALL;
use super::spec::HEAD_NORMS;
use super::tensors::{EMBEDDING, FINAL_NORM, HEAD};

/// Names outside the blocks: Hugging Face, GGUF.
const OUTER: [(&str, &str); 3] =
    [(EMBEDDING, "token_embd.weight"), (FINAL_NORM, "output_norm.weight"), (HEAD, "output.weight")];

/// Modules of a block by both names, as the families have them. Where two share a name, that of the
/// first family counts; what a file of one family means by it, [`super::tensors`] says.
struct Modules {
    to_gguf: HashMap<String, &'static str>,
    to_hugging_face: HashMap<&'static str, String>,
}

static MODULES: LazyLock<Modules> = LazyLock::new(|| {
    let mut modules = Modules { to_gguf: HashMap::new(), to_hugging_face: HashMap::new() };
    for family in ALL {
        let mut config = ModelConfig::base(family);
        // Experts one by one have no names of their own in GGUF files.
        let none = ExpertSizes { count: 0, used: 0, inner: 0, shared: Some(0), normalized: false };
        config.experts = family.experts.map(|_| none);
        (config.num_heads, config.num_kv_heads) = (1, 1);
        let block = config.block(0);
        let norms = block.norms.all().chain(HEAD_NORMS).map(|norm| (norm.name.into(), norm.gguf));
        let linears = block.slots(0).into_iter().map(|slot| (slot.name.into_owned(), slot.gguf));
        for (name, gguf) in norms.chain(linears) {
            modules.to_hugging_face.entry(gguf).or_insert_with(|| name.clone());
            modules.to_gguf.entry(name).or_insert(gguf);
        }
    }
    modules
});

/// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.
#[must_use]
pub fn to_hugging_face(gguf: &str) -> Option<String> {
    if let Some((outer, _)) = OUTER.iter().find(|(_, name)| *name == gguf) {
        return Some((*outer).to_owned());
    }
    let (block, module, suffix) = parts(gguf.strip_prefix("blk.")?)?;
    let module = MODULES.to_hugging_face.get(module)?;
    Some(format!("model.layers.{block}.{module}.{suffix}"))
}

/// `model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`.
#[must_use]
pub fn to_gguf(hugging_face: &str) -> Option<String> {
    if let Some((_, outer)) = OUTER.iter().find(|(name, _)| *name == hugging_face) {
        return Some((*outer).to_owned());
    }
    let (block, module, suffix) = parts(hugging_face.strip_prefix("model.layers.")?)?;
    let module = MODULES.to_gguf.get(module)?;
    Some(format!("blk.{block}.{module}.{suffix}"))
}

/// `3.attn_q.weight` → block number, module, `weight` or `bias`.
fn parts(rest: &str) -> Option<(usize, &str, &str)> {
    let (block, rest) = rest.split_once('.')?;
    let (module, suffix) = rest.rsplit_once('.')?;
    let canonical = block == "0" || !block.starts_with(['0', '+']);
    (canonical && matches!(suffix, "weight" | "bias")).then_some((
        block.parse().ok()?,
        module,
        suffix,
    ))
}

/// `135M`, `1.2B`, `8x7B`: parameters in a mixture count once per expert. `shared` are those outside
/// of the experts, `expert` those of one expert.
pub(crate) fn size_label(shared: u64, expert: u64, experts: usize) -> String {
    let parameters = (shared + expert) as f64;
    let (scaled, unit) = match parameters {
        n if n > 1e12 => (n * 1e-12, 'T'),
        n if n > 1e9 => (n * 1e-9, 'B'),
        n if n > 1e6 => (n * 1e-6, 'M'),
        n => (n * 1e-3, 'K'),
    };
    // At least two digits.
    let rounded = scaled.round_ties_even();
    let digits = if rounded >= 1.0 { format!("{rounded:.0}").len() } else { 0 };
    let decimals = 2usize.saturating_sub(digits);
    let label = format!("{scaled:.decimals$}{unit}");
    if experts > 0 { format!("{experts}x{label}") } else { label }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_two_worlds() {
        for (hugging_face, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("model.layers.17.self_attn.o_proj.weight", "blk.17.attn_output.weight"),
            ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
            ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
            ("model.layers.120.mlp.down_proj.weight", "blk.120.ffn_down.weight"),
        ] {
            assert_eq!(to_gguf(hugging_face).as_deref(), Some(gguf));
            assert_eq!(to_hugging_face(gguf).as_deref(), Some(hugging_face));
        }
        for other in [
            "rope_freqs.weight",
            "blk.0.attn_q.scale",
            "blk.x.attn_q.weight",
            "blk.00.attn_q.weight",
        ] {
            assert_eq!(to_hugging_face(other), None, "{other}");
        }
        for other in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1", "norm"] {
            assert_eq!(to_gguf(other), None, "{other}");
        }
    }
}
