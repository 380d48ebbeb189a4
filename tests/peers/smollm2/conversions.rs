//! Perplexity before and after every conversion of `convert`.

use crate::conversions::{Measure, all_pairs};
use crate::needs;

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_TEXT (a long text)"]
fn conversions_of_a_real_model_keep_its_perplexity() {
    let (model, text) = (needs::smollm2(), needs::text());
    let text: String = std::fs::read_to_string(text).unwrap().chars().take(20_000).collect();
    // Three bits without calibration are a lot for a small model.
    all_pairs(&model, &Measure { text, length: 512, windows: 4 }, 0.5);
}
