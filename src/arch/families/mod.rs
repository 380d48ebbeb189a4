//! One file per family: what it has that Llama has not.

mod gemma;
mod llama;
mod mistral;
mod mixtral;
mod phi;
mod qwen;
mod seed;

use super::Family;

pub use llama::LLAMA;
pub(crate) use mistral::MINISTRAL;
pub use mistral::MISTRAL;
pub use qwen::{QWEN2, QWEN3};

/// All families that can be run.
pub static ALL: [&Family; 11] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &mixtral::MIXTRAL,
    &qwen::QWEN2_MOE,
    &qwen::QWEN3_MOE,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi::PHI3,
    &seed::SEED_OSS,
];

/// The family of a class of transformers, the class's own name and its `model_type`.
#[must_use]
pub fn of_class(class: &str) -> Option<(&'static Family, &'static str, &'static str)> {
    find(|name, _| name == class)
}

/// The same by `model_type`: the first class of that type.
#[must_use]
pub fn of_type(model_type: &str) -> Option<(&'static Family, &'static str, &'static str)> {
    find(|_, kind| kind == model_type)
}

fn find(is: impl Fn(&str, &str) -> bool) -> Option<(&'static Family, &'static str, &'static str)> {
    ALL.iter().find_map(|family| {
        let found = family.classes.iter().find(|(name, kind)| is(name, kind));
        found.map(|(name, kind)| (*family, *name, *kind))
    })
}
