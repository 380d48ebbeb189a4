//! What a tensor is for, by its name: the classes that the rules speak of.

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Token embeddings.
    Embedding,
    /// The output matrix (`lm_head`).
    Output,
    /// Queries.
    AttentionQuery,
    /// Keys.
    AttentionKey,
    /// Values, fused queries/keys/values, and the value half of compressed attention.
    AttentionValue,
    /// The attention's output projection.
    AttentionOutput,
    /// Up projection of the feed-forward block, experts included.
    FeedForwardUp,
    /// Gate of the feed-forward block, experts included.
    FeedForwardGate,
    /// Down projection of the feed-forward block, experts included.
    FeedForwardDown,
    /// Anything else.
    Other,
}

/// The role of the tensor of that GGUF name.
#[must_use]
pub(crate) fn role(name: &str) -> Role {
    const BY_PART: [(&str, Role); 9] = [
        ("attn_qkv.weight", Role::AttentionValue),
        ("attn_kv_b.weight", Role::AttentionValue),
        ("attn_v.weight", Role::AttentionValue),
        ("attn_k.weight", Role::AttentionKey),
        ("attn_q.weight", Role::AttentionQuery),
        ("attn_output.weight", Role::AttentionOutput),
        ("ffn_up", Role::FeedForwardUp),
        ("ffn_gate", Role::FeedForwardGate),
        ("ffn_down", Role::FeedForwardDown),
    ];
    match name {
        "output.weight" => Role::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embedding,
        _ => BY_PART
            .iter()
            .find(|(part, _)| name.contains(part))
            .map_or(Role::Other, |&(_, role)| role),
    }
}

/// Parts of names whose tensors stay as they are: norms, routers, and matrices that are small or
/// do not multiply activations.
const NEVER: [&str; 32] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "position_embd.weight",
    "token_types.weight",
];

/// Whether a tensor of that name and shape (outermost first) may be quantized at all.
#[must_use]
pub(crate) fn may_be_quantized(name: &str, shape: &[usize]) -> bool {
    // Outer dimensions of one do not count, as in ggml.
    let dimensions = shape.iter().skip_while(|&&size| size == 1).count();
    dimensions >= 2 && name.ends_with("weight") && !NEVER.iter().any(|part| name.contains(part))
}

/// The block that a tensor belongs to (`blk.7.…`).
#[must_use]
pub(crate) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
