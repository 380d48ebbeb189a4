//! What is read from the file, against llama.cpp, the `gguf` package and the published tokenizer.

use llm_quantize::arch::families::LLAMA;
use llm_quantize::model::{ModelFormat, open_local};
use llm_quantize::tokenizer::Tokenizer;
use llm_quantize::tokenizer::chat::ChatMessage;
use llm_quantize::weight::Weight;
use sha2::{Digest, Sha256};

use crate::needs;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// SHA-256 of the dequantized values (little-endian f32, Hugging Face row order) of
/// SmolLM2-135M-Instruct.Q4_1.gguf, computed with `gguf.quants.dequantize` and, for q and k, the
/// inverse of the converter's permutation in `NumPy`.
const VALUES: [(&str, &str); 7] = [
    (
        "model.embed_tokens.weight",
        "3fd491c8066dd9dc1a2bf6796701526c82817d95c0ecabacdef3013c2b8bbbaa",
    ),
    (
        "model.layers.0.self_attn.q_proj.weight",
        "54b377bbfa2deab945dfdba7fb59e0ca3eb74329358bd1b53b635b3ff37c1a56",
    ),
    (
        "model.layers.17.self_attn.k_proj.weight",
        "c2c30f32fb4b4c6ff453b52951c4738167425f4a0e963fd3cbf6b322909e76d3",
    ),
    (
        "model.layers.17.self_attn.v_proj.weight",
        "80c1811748f6e49876bdcdba6ecf78c5d1a6dd38f91835fa5457c82cae6d9ddf",
    ),
    (
        "model.layers.29.mlp.down_proj.weight",
        "c19605745425a11e704e305ce3d27b632c406195d39eb3377e9cfb140ac643d1",
    ),
    (
        "model.layers.5.post_attention_layernorm.weight",
        "13500b1b6092ee591d017f422080691cd24a184e2451eaddc75430dfe806ad19",
    ),
    ("model.norm.weight", "3b87f8e27335e67fc08f159cabfd2d18f205d6c5b225a6f978153552bf01d559"),
];

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2)"]
fn smollm2_has_the_shape_and_values_that_others_read() {
    let path = needs::smollm2();
    let model = open_local(&path).unwrap();
    assert_eq!(model.format, ModelFormat::Gguf);
    assert_eq!(model.warnings, [""; 0]);
    let config = &model.config;
    assert_eq!(config.family, &LLAMA);
    assert_eq!((config.hidden_size, config.intermediate_size), (576, 1536));
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.num_layers, config.vocab_size, config.max_positions), (30, 49152, 8192));
    assert!(config.tie_word_embeddings);
    assert!((config.rope.theta - 100_000.0).abs() < 1e-9);
    assert!((config.rms_norm_eps - 1e-5).abs() < 1e-18);
    // <|im_end|>, then <|endoftext|>.
    assert_eq!(
        (config.bos_token_id, config.eos_token_ids.as_slice()),
        (Some(1), [2, 0].as_slice())
    );
    assert_eq!(model.parameter_count(), 134_515_008);
    for (name, expected) in VALUES {
        let Weight::Stored(tensor) = &model.weights[name] else { panic!("{name}") };
        let bytes: Vec<u8> = tensor.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(hex(&Sha256::digest(&bytes)), expected, "{name}");
        assert_eq!(tensor.first_non_finite(), None, "{name}");
    }
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2)"]
fn smollm2_speaks_its_chat_format() {
    let path = needs::smollm2();
    let tokenizer = open_local(&path).unwrap().tokenizer().unwrap();
    let ids = tokenizer.encode_chat(&[ChatMessage::user("Hi")]).unwrap();
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids, true).unwrap().matches("<|im_").count(), 0);
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2), LLM_QUANTIZE_TEST_TEXT (a long text), LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn token_ids_of_a_long_text_are_those_of_llama_cpp() {
    let (path, text, library) = (needs::smollm2(), needs::text(), needs::llama_cpp());
    let text = std::fs::read_to_string(text).unwrap();
    let model = open_local(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode(&text, true).unwrap();
    let expected = &library.token_ids(&path, &[&text]).unwrap()[0];
    let first = ids.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "first differing token");
    assert_eq!(ids.len(), expected.len());
    eprintln!("{} token ids are the same", ids.len());
    assert!(tokenizer.decode(&ids, true).unwrap() == text, "decodes to another text");
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_MODEL (SmolLM2), LLM_QUANTIZE_TEST_TEXT (a long text), LLM_QUANTIZE_TEST_TOKENIZER (tokenizer.json of SmolLM2)"]
fn the_rebuilt_tokenizer_is_the_published_one() {
    let (path, text, published) = (needs::smollm2(), needs::text(), needs::tokenizer());
    let text = std::fs::read_to_string(text).unwrap();
    let rebuilt = open_local(&path).unwrap().tokenizer().unwrap();
    let json = std::fs::read_to_string(&published).unwrap();
    let original = Tokenizer::from_json(&json, None, &published).unwrap();
    let ids = rebuilt.encode(&text, true).unwrap();
    let expected = original.encode(&text, true).unwrap();
    let first = ids.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "first differing token");
    assert_eq!(ids.len(), expected.len());
    let decoded = [&rebuilt, &original].map(|tokenizer| tokenizer.decode(&ids, false).unwrap());
    assert!(decoded[0] == decoded[1], "decodes to another text");

    // The same in one piece, with the library alone.
    let whole = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let encoding = whole.encode_fast(text.as_str(), true).unwrap();
    assert!(encoding.get_ids() == ids, "other ids when cut into pieces");
    eprintln!("{} token ids are those of the published tokenizer", ids.len());
}
