//! A directory with SentencePiece against the files made from it.

use llm_quantize::codec::StoredType;

use crate::needs;
use crate::round_trip::round_trip;

/// stories15M with the tokenizer of Llama 2, in the directory that `LLM_QUANTIZE_TEST_STORIES`
/// names (`scripts/fetch-stories15m.sh` makes one).
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_STORIES (stories15M)"]
fn a_real_model_with_sentence_piece_computes_the_same() {
    let directory = needs::stories();
    round_trip(&directory, StoredType::F32, true);
    round_trip(&directory, StoredType::F16, false);
}
