//! The mixes as a table: for each role the levels, the condition and the type; the first line that
//! applies wins, and where none does the tensor gets the level's base type.
//!
//! Facts: `llama_tensor_get_type_impl` in `src/llama-quant.cpp` of llama.cpp.

use crate::arch::role::Role;
use crate::codec::StoredType;
use crate::codec::StoredType::{
    F32, IQ2_S, IQ2_XXS, IQ3_S, IQ3_XXS, Q2_K, Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, Q8_0,
};
use crate::job::gguf::level::{Level, Level as L};

/// When a line of the table applies. `n` is the number of layers, `L` the tensor's layer, all
/// divisions are of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// At least four query heads share a key/value head.
    Grouped,
    /// That, or at least four experts.
    GroupedOrExperts,
    /// Exactly eight experts.
    EightExperts,
    /// L is below the number.
    Before(usize),
    /// L < n / the number.
    FirstOf(usize),
    /// n/8 ≤ L < 7n/8.
    Middle,
    /// L < n/8, L ≥ 7n/8, and every third layer between.
    MoreBits,
    /// There is an importance matrix.
    Importance,
    /// There is none.
    NoImportance,
    /// The architecture is falcon.
    Falcon,
    /// It is another one.
    NotFalcon,
}

/// A line of the table: all its conditions must hold.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) role: Role,
    pub(super) levels: &'static [Level],
    pub(super) when: &'static [When],
    pub(super) to: StoredType,
}

const fn rule(role: Role, levels: &'static [Level], when: &'static [When], to: StoredType) -> Rule {
    Rule { role, levels, when, to }
}

use crate::arch::role::Role::{
    AttentionKey, AttentionOutput, AttentionQuery, AttentionValue, Embedding, FeedForwardDown,
    FeedForwardGate, FeedForwardUp,
};
use When::{
    Before, EightExperts, Falcon, FirstOf, Grouped, GroupedOrExperts, Importance, Middle, MoreBits,
    NoImportance, NotFalcon,
};

/// Levels of one and two bits.
const TINY: &[L] = &[L::IQ1_S, L::IQ1_M, L::IQ2_XXS, L::IQ2_XS, L::IQ2_S, L::IQ2_M];
/// Those of them that put two bits where more are wanted.
const TINIEST: &[L] = &[L::IQ1_S, L::IQ1_M, L::IQ2_XXS, L::IQ2_XS];
/// Those that put three.
const TWO_AND_A_HALF: &[L] = &[L::IQ2_S, L::IQ2_M];
/// Levels whose attention output is lifted where eight experts share it.
const LIFTED_OUTPUT: &[L] = &[
    L::Q2_K,
    L::IQ3_XS,
    L::IQ3_XXS,
    L::Q3_K_S,
    L::Q3_K_M,
    L::IQ4_NL,
    L::Q4_K_S,
    L::Q4_K_M,
    L::IQ3_S,
    L::IQ3_M,
    L::IQ4_XS,
];
/// Levels other than the tiny ones.
const LARGER: &[L] = &[
    L::Q4_0,
    L::Q4_1,
    L::Q5_0,
    L::Q5_1,
    L::Q8_0,
    L::Q2_K,
    L::Q2_K_S,
    L::Q3_K_S,
    L::Q3_K_M,
    L::Q3_K_L,
    L::Q4_K_S,
    L::Q4_K_M,
    L::Q5_K_S,
    L::Q5_K_M,
    L::Q6_K,
    L::IQ3_XXS,
    L::IQ3_XS,
    L::IQ3_S,
    L::IQ3_M,
    L::IQ4_NL,
    L::IQ4_XS,
    L::TQ1_0,
    L::TQ2_0,
    L::Q1_0,
    L::Q2_0,
];

/// Types of the output matrix and of embeddings that are shared with it; elsewhere Q6_K, and Q8_0
/// at Q8_0, for falcon and where rows do not fill the blocks of the base type.
pub(super) const OUTPUT_Q5_K: &[L] =
    &[L::IQ1_S, L::IQ1_M, L::IQ2_XXS, L::IQ2_XS, L::IQ2_S, L::IQ2_M, L::IQ3_XXS];

/// The table.
#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // Embeddings that are not shared with the output matrix.
    rule(Embedding, TINIEST, &[], Q2_K),
    rule(Embedding, TWO_AND_A_HALF, &[], IQ3_S),
    rule(Embedding, &[L::IQ3_XXS], &[], IQ3_S),
    rule(Embedding, &[L::TQ1_0, L::TQ2_0], &[], Q4_K),

    // Values, one and two bits.
    rule(AttentionValue, TINY, &[GroupedOrExperts], Q4_K),
    rule(AttentionValue, TINIEST, &[], Q2_K),
    rule(AttentionValue, TWO_AND_A_HALF, &[], IQ3_S),
    // Values, other levels.
    rule(AttentionValue, LARGER, &[EightExperts], Q8_0),
    rule(AttentionValue, &[L::Q2_K], &[Grouped], Q4_K),
    rule(AttentionValue, &[L::Q2_K], &[], Q3_K),
    rule(AttentionValue, &[L::Q2_K_S], &[Grouped], Q4_K),
    rule(AttentionValue, &[L::IQ3_XXS], &[Grouped], Q4_K),
    rule(AttentionValue, &[L::IQ3_XXS], &[NoImportance], IQ3_S),
    rule(AttentionValue, &[L::IQ3_XS, L::IQ3_S], &[Grouped], Q4_K),
    rule(AttentionValue, &[L::IQ3_M], &[], Q4_K),
    rule(AttentionValue, &[L::Q3_K_M], &[Before(2)], Q5_K),
    rule(AttentionValue, &[L::Q3_K_M], &[], Q4_K),
    rule(AttentionValue, &[L::Q3_K_L], &[], Q5_K),
    rule(AttentionValue, &[L::IQ4_NL, L::IQ4_XS], &[Grouped], Q5_K),
    rule(AttentionValue, &[L::Q4_K_M, L::Q5_K_M], &[MoreBits], Q6_K),
    rule(AttentionValue, &[L::Q4_K_S], &[Before(4)], Q5_K),

    // Keys and queries.
    rule(AttentionKey, TINY, &[EightExperts], Q4_K),
    rule(AttentionKey, LARGER, &[EightExperts], Q8_0),
    rule(AttentionKey, &[L::IQ3_XS], &[], IQ3_XXS),
    rule(AttentionKey, &[L::IQ3_XXS], &[], IQ2_S),
    rule(AttentionQuery, &[L::IQ3_XS], &[], IQ3_XXS),
    rule(AttentionQuery, &[L::IQ3_XXS], &[], IQ2_S),

    // Output of the attention.
    rule(AttentionOutput, TINY, &[EightExperts], Q5_K),
    rule(AttentionOutput, &[L::IQ1_S, L::IQ1_M], &[], IQ2_XXS),
    rule(AttentionOutput, TWO_AND_A_HALF, &[], IQ3_S),
    rule(AttentionOutput, &[L::Q3_K_L], &[Falcon], Q4_K),
    rule(AttentionOutput, LARGER, &[Falcon], BASE),
    rule(AttentionOutput, LIFTED_OUTPUT, &[EightExperts], Q5_K),
    rule(AttentionOutput, LARGER, &[EightExperts], BASE),
    rule(AttentionOutput, &[L::Q2_K], &[], Q3_K),
    rule(AttentionOutput, &[L::IQ3_XXS], &[], IQ3_S),
    rule(AttentionOutput, &[L::Q3_K_M], &[], Q4_K),
    rule(AttentionOutput, &[L::Q3_K_L], &[], Q5_K),
    rule(AttentionOutput, &[L::IQ3_M], &[], Q4_K),

    // Down projections.
    rule(FeedForwardDown, TINIEST, &[FirstOf(8)], Q2_K),
    rule(FeedForwardDown, TWO_AND_A_HALF, &[FirstOf(8)], IQ3_S),
    rule(FeedForwardDown, &[L::Q2_K], &[], Q3_K),
    rule(FeedForwardDown, &[L::Q2_K_S], &[FirstOf(8)], Q4_K),
    rule(FeedForwardDown, &[L::IQ3_XXS], &[NoImportance, FirstOf(8)], Q4_K),
    rule(FeedForwardDown, &[L::IQ3_XXS], &[NoImportance], Q3_K),
    rule(FeedForwardDown, &[L::Q3_K_M], &[FirstOf(16)], Q5_K),
    rule(FeedForwardDown, &[L::Q3_K_M], &[NotFalcon], Q4_K),
    rule(FeedForwardDown, &[L::Q3_K_M], &[MoreBits], Q4_K),
    rule(FeedForwardDown, &[L::IQ3_M], &[FirstOf(8)], Q4_K),
    rule(FeedForwardDown, &[L::IQ3_M], &[EightExperts, MoreBits], Q4_K),
    rule(FeedForwardDown, &[L::Q3_K_L], &[Falcon], Q4_K),
    rule(FeedForwardDown, &[L::Q3_K_L], &[], Q5_K),
    rule(FeedForwardDown, &[L::Q4_K_M], &[Falcon, FirstOf(16)], Q6_K),
    rule(FeedForwardDown, &[L::Q4_K_M], &[Falcon, MoreBits], Q5_K),
    rule(FeedForwardDown, &[L::Q4_K_M], &[NotFalcon, MoreBits], Q6_K),
    rule(FeedForwardDown, &[L::IQ4_NL, L::IQ4_XS], &[NoImportance, FirstOf(8)], Q5_K),
    rule(FeedForwardDown, &[L::Q5_K_M], &[MoreBits], Q6_K),
    rule(FeedForwardDown, &[L::Q4_K_S], &[NotFalcon, FirstOf(8)], Q5_K),
    rule(FeedForwardDown, &[L::Q4_0], &[Importance, FirstOf(8)], Q4_1),
    rule(FeedForwardDown, &[L::Q5_0], &[Importance, FirstOf(8)], Q5_1),

    // Gates and up projections.
    rule(FeedForwardGate, &[L::IQ3_XS], &[Middle], IQ3_XXS),
    rule(FeedForwardUp, &[L::IQ3_XS], &[Middle], IQ3_XXS),
];

/// Stands for the level's base type in [`RULES`]: no level has F32 as one of its exceptions.
pub(super) const BASE: StoredType = F32;
