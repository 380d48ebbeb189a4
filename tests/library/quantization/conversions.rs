//! Perplexity before and after every conversion of `convert`, on the tiny model and the built-in text.

use std::path::Path;

use llm_quantize::text::builtin;

use crate::conversions::{Measure, all_pairs};

#[test]
fn conversions_of_the_tiny_model_keep_its_perplexity() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let text = builtin::documents(builtin::HELD_OUT).collect::<Vec<_>>().join("\n");
    all_pairs(&model, &Measure { text, length: 256, windows: 12 }, 0.06);
}
