use super::*;
use crate::codec::StoredType::{
    F16, IQ1_S, IQ2_XXS, IQ4_NL, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0,
};

fn facts(layers: usize, heads: usize, kv_heads: usize, experts: usize) -> ModelFacts {
    ModelFacts { architecture: "llama".into(), layers, heads, kv_heads, experts }
}

/// A model's matrices in file order, all of `columns` columns.
fn tensors(
    layers: usize,
    columns: usize,
    untied: bool,
    experts: bool,
) -> Vec<(String, Vec<usize>)> {
    let mut out = vec![];
    if untied {
        out.push(("output.weight".to_owned(), vec![512, columns]));
    }
    out.push(("output_norm.weight".to_owned(), vec![columns]));
    out.push(("token_embd.weight".to_owned(), vec![512, columns]));
    for layer in 0..layers {
        let suffix = if experts { "_exps" } else { "" };
        let mut names = vec!["attn_k", "attn_norm", "attn_output", "attn_q", "attn_v"]
            .into_iter()
            .map(String::from)
            .collect::<Vec<_>>();
        names.extend(["ffn_down", "ffn_gate"].map(|name| format!("{name}{suffix}")));
        if experts {
            names.push("ffn_gate_inp".into());
        }
        names.push("ffn_norm".into());
        names.push(format!("ffn_up{suffix}"));
        for name in names {
            let shape = match name.as_str() {
                name if name.ends_with("norm") => vec![columns],
                name if name.ends_with("_exps") => vec![8, 64, columns],
                _ => vec![64, columns],
            };
            out.push((format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    out
}

fn decide_all(
    model: &ModelFacts,
    tensors: &[(String, Vec<usize>)],
    level: Level,
    importance: bool,
    overrides: &Overrides,
) -> Vec<(String, Decision)> {
    let facts: Vec<_> = tensors.iter().map(|(name, shape)| TensorFacts { name, shape }).collect();
    let decisions = plan_types(model, &facts, level, importance, overrides);
    tensors.iter().map(|(name, _)| name.clone()).zip(decisions).collect()
}

fn kind_of(decisions: &[(String, Decision)], name: &str) -> Option<StoredType> {
    decisions.iter().find(|(n, _)| n == name).unwrap().1.kind
}

/// Layers whose `part` gets `kind`.
fn layers_with(decisions: &[(String, Decision)], part: &str, kind: StoredType) -> Vec<usize> {
    decisions
        .iter()
        .filter(|(name, decision)| name.contains(part) && decision.kind == Some(kind))
        .filter_map(|(name, _)| layer(name))
        .collect()
}

/// The worked examples of `use_more_bits`: n = 32, 28 and 16.
#[test]
fn more_bits_go_to_the_ends_and_every_third_layer() {
    for (layers, expected) in [
        (32, vec![0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]),
        (28, vec![0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]),
        (16, vec![0, 1, 4, 7, 10, 13, 14, 15]),
    ] {
        let model = facts(layers, 8, 8, 0);
        let tensors = tensors(layers, 256, true, false);
        let plan = decide_all(&model, &tensors, Level::Q4_K_M, false, &Overrides::default());
        assert_eq!(layers_with(&plan, "attn_v", Q6_K), expected);
        assert_eq!(layers_with(&plan, "ffn_down", Q6_K), expected);
    }
}

#[test]
fn eight_experts_lift_attention() {
    let model = facts(32, 32, 8, 8);
    let tensors = tensors(32, 256, true, true);
    let none = Overrides::default();
    let plan = decide_all(&model, &tensors, Level::Q4_K_M, false, &none);
    assert_eq!(kind_of(&plan, "blk.5.attn_v.weight"), Some(Q8_0));
    assert_eq!(kind_of(&plan, "blk.5.attn_k.weight"), Some(Q8_0));
    assert_eq!(kind_of(&plan, "blk.5.attn_output.weight"), Some(Q5_K));
    assert_eq!(kind_of(&plan, "blk.5.attn_q.weight"), Some(Q4_K));
    assert_eq!(kind_of(&plan, "blk.6.ffn_down_exps.weight"), Some(Q6_K));
    assert_eq!(kind_of(&plan, "blk.6.ffn_gate_inp.weight"), None);
    let plan = decide_all(&model, &tensors, Level::IQ1_S, true, &none);
    assert_eq!(kind_of(&plan, "blk.5.attn_v.weight"), Some(Q4_K));
    assert_eq!(kind_of(&plan, "blk.5.attn_k.weight"), Some(Q4_K));
    assert_eq!(kind_of(&plan, "blk.5.attn_output.weight"), Some(Q5_K));
    let plan = decide_all(&model, &tensors, Level::Q5_K_M, false, &none);
    assert_eq!(kind_of(&plan, "blk.5.attn_output.weight"), Some(Q5_K));
    let plan = decide_all(&model, &tensors, Level::Q3_K_L, false, &none);
    assert_eq!(kind_of(&plan, "blk.5.attn_output.weight"), Some(Q3_K));
}

#[test]
fn narrow_rows_and_the_output() {
    // SmolLM2: tied, 576 wide. The output type is settled before the fallback: Q8_0, not Q6_K.
    let model = facts(30, 9, 3, 0);
    let tensors = tensors(30, 576, false, false);
    let none = Overrides::default();
    let plan = decide_all(&model, &tensors, Level::Q4_K_M, false, &none);
    assert_eq!(kind_of(&plan, "token_embd.weight"), Some(Q8_0));
    assert_eq!(kind_of(&plan, "blk.4.attn_q.weight"), Some(Q5_0));
    assert_eq!(kind_of(&plan, "blk.0.attn_v.weight"), Some(Q8_0));
    let (_, q) = plan.iter().find(|(name, _)| name == "blk.4.attn_q.weight").unwrap();
    assert_eq!(q.instead_of, Some(Q4_K));
    let plan = decide_all(&model, &tensors, Level::IQ1_S, true, &none);
    assert_eq!(kind_of(&plan, "blk.4.attn_q.weight"), Some(IQ4_NL));
    assert_eq!(kind_of(&plan, "blk.4.attn_v.weight"), Some(Q4_0));
}

#[test]
fn importance_changes_what_it_changes() {
    let model = facts(16, 8, 8, 0);
    let tensors = tensors(16, 256, true, false);
    let none = Overrides::default();
    let with = decide_all(&model, &tensors, Level::Q4_0, true, &none);
    let without = decide_all(&model, &tensors, Level::Q4_0, false, &none);
    assert_eq!(layers_with(&with, "ffn_down", Q4_1), [0, 1]);
    assert!(layers_with(&without, "ffn_down", Q4_1).is_empty());
    let with = decide_all(&model, &tensors, Level::Q5_0, true, &none);
    assert_eq!(layers_with(&with, "ffn_down", Q5_1), [0, 1]);
}

#[test]
fn seventy_billions_get_better_values() {
    let model = facts(80, 64, 8, 0);
    let tensors = tensors(80, 256, true, false);
    let plan = decide_all(&model, &tensors, Level::Q4_K_M, false, &Overrides::default());
    assert_eq!(kind_of(&plan, "blk.10.attn_v.weight"), Some(Q5_K));
    assert_eq!(kind_of(&plan, "blk.0.attn_v.weight"), Some(Q6_K));
    let plain = facts(80, 64, 64, 0);
    let plan = decide_all(&plain, &tensors, Level::Q4_K_M, false, &Overrides::default());
    assert_eq!(kind_of(&plan, "blk.10.attn_v.weight"), Some(Q4_K));
}

#[test]
fn overrides_come_in_their_order() {
    let model = facts(4, 8, 8, 0);
    let tied = tensors(4, 256, false, false);
    let untied = tensors(4, 256, true, false);
    let mut overrides = Overrides::default();
    overrides.add("attn_v=q8_0").unwrap();
    overrides.add(r"blk\.[01]\.attn=Q5_1").unwrap();
    overrides.add("ffn_(?!down)=f16").unwrap();
    let plan = decide_all(&model, &untied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "blk.0.attn_v.weight"), Some(Q8_0));
    assert_eq!(kind_of(&plan, "blk.1.attn_k.weight"), Some(Q5_1));
    assert_eq!(kind_of(&plan, "blk.2.attn_k.weight"), Some(Q4_K));
    assert_eq!(kind_of(&plan, "blk.2.ffn_up.weight"), Some(F16));
    // Norms stay, whatever the pattern says.
    assert_eq!(kind_of(&plan, "blk.1.attn_norm.weight"), None);

    overrides.pure = true;
    let plan = decide_all(&model, &untied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "blk.0.attn_v.weight"), Some(Q8_0));
    assert_eq!(kind_of(&plan, "blk.0.ffn_down.weight"), Some(Q4_K));
    assert_eq!(kind_of(&plan, "output.weight"), Some(Q4_K));

    let mut overrides = Overrides { output: Some(F16), ..Overrides::default() };
    let plan = decide_all(&model, &untied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "output.weight"), Some(F16));
    assert_eq!(kind_of(&plan, "token_embd.weight"), Some(Q4_K));
    let plan = decide_all(&model, &tied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "token_embd.weight"), Some(F16));
    overrides.embedding = Some(Q5_K);
    let plan = decide_all(&model, &tied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "token_embd.weight"), Some(Q5_K));

    let overrides = Overrides { leave_output: true, ..Overrides::default() };
    let plan = decide_all(&model, &untied, Level::Q4_K_M, false, &overrides);
    assert_eq!(kind_of(&plan, "output.weight"), None);
}

#[test]
fn overrides_that_make_no_sense_are_refused() {
    let mut overrides = Overrides::default();
    for bad in ["attn_v", "=q4_K", "attn_v=", "attn_v=q4", "attn_(=q4_K"] {
        assert_eq!(overrides.add(bad).unwrap_err().exit_code(), 2, "{bad}");
    }
}

#[test]
fn importance_is_needed_where_llama_quantize_needs_it() {
    let need = |name, kind, level| needs_importance(name, kind, Some(level));
    assert!(need("blk.0.ffn_up.weight", IQ1_S, Level::IQ1_S));
    assert!(need("blk.0.ffn_up.weight", Q2_K, Level::Q2_K_S));
    assert!(!need("blk.0.ffn_up.weight", Q2_K, Level::Q2_K));
    assert!(!need("blk.0.ffn_up.weight", TQ1_0, Level::TQ1_0));
    assert!(!need("token_embd.weight", IQ2_XXS, Level::IQ2_XXS));
    assert!(!need("blk.0.ffn_up.weight", IQ4_NL, Level::IQ4_NL));
}

#[test]
fn a_text_fused_matrix_follows_the_values() {
    // phi3: attn_qkv follows the rule of attn_v.
    let model = ModelFacts { architecture: "phi3".into(), ..facts(32, 32, 32, 0) };
    let tensors: Vec<_> =
        (0..32).map(|layer| (format!("blk.{layer}.attn_qkv.weight"), vec![512, 256])).collect();
    let plan = decide_all(&model, &tensors, Level::Q4_K_M, false, &Overrides::default());
    assert_eq!(kind_of(&plan, "blk.0.attn_qkv.weight"), Some(Q6_K));
    assert_eq!(kind_of(&plan, "blk.4.attn_qkv.weight"), Some(Q4_K));
}
