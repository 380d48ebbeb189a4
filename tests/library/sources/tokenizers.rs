//! Tokenizers rebuilt from GGUF metadata, and the wrapper around them.

use std::collections::HashMap;
use std::path::Path;

use llm_quantize::model::LocalModel;
use llm_quantize::tokenizer::Tokenizer;
use llm_quantize::tokenizer::chat::ChatMessage;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{gguf_model, tiny};
use crate::gguf_bytes::GgufBytes;

/// The character that stands for each byte in byte-level vocabularies: printable Latin-1 for
/// itself, the others from U+0100 on (GPT-2's table).
fn byte_characters() -> Vec<char> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect()
}

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: [&str; 12] =
    ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "l l", "o w", "Ġ w", "Ġw o", "Ġwo r", "ll o", "1 2"];

/// A tiny llama model with a byte-level vocabulary.
fn byte_level(pre: Option<&str>) -> GgufBytes {
    let mut tokens: Vec<String> = SPECIAL.iter().map(ToString::to_string).collect();
    tokens.extend(byte_characters().iter().map(char::to_string));
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    let mut kinds = vec![1; tokens.len()];
    kinds[..3].fill(3);
    let mut file = model(&tokens);
    file.text("tokenizer.ggml.model", "gpt2");
    if let Some(pre) = pre {
        file.text("tokenizer.ggml.pre", pre);
    }
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &MERGES);
    file
}

/// A tiny llama model with as many embedding rows as tokens; BOS 1, EOS 2.
fn model(tokens: &[String]) -> GgufBytes {
    let mut config = tiny::config("llama");
    config["vocab_size"] = json!(tokens.len());
    let tensors = tiny::tensors(&config);
    let mut file = gguf_model::metadata(&config);
    gguf_model::add_tensors(&mut file, &config, &tensors, 1);
    file
}

fn open(file: &GgufBytes) -> (LocalModel, Tokenizer) {
    let model = gguf_model::open(file).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    (model, tokenizer)
}

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, true).unwrap();
    ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect()
}

/// Expected by applying the merges by hand.
#[test]
fn byte_level_words_are_cut_and_merged() {
    let (model, tokenizer) = open(&byte_level(Some("smollm")));
    assert_eq!(model.warnings, [""; 0]);
    assert_eq!(tokenizer.vocab_size(), 3 + 256 + 12);
    assert_eq!(
        texts(&tokenizer, "the hello world"),
        ["t", "he", "Ġ", "he", "llo", "Ġwor", "l", "d"]
    );
    // smollm takes digits one by one, gpt-2 does not.
    assert_eq!(texts(&tokenizer, "112"), ["1", "1", "2"]);
    let (_, gpt2) = open(&byte_level(Some("gpt-2")));
    assert_eq!(texts(&gpt2, "112"), ["1", "12"]);
    assert_eq!(texts(&tokenizer, "é\n"), ["Ã", "©", "Ċ"]);
    assert_eq!(texts(&tokenizer, "a<|im_end|>in"), ["a", "<|im_end|>", "in"]);
    let ids = tokenizer.encode("a<|im_end|> the é", true).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<|im_end|> the é");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a the é");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), false));
    assert_eq!(tokenizer.end_tokens(), [2, 0]);
}

#[test]
fn words_that_are_tokens_need_no_merges_where_the_model_says_so() {
    // "Ġwor" with its merges gone: llama-bpe takes it as a word, gpt-2 spells it.
    let without = |pre: &str| {
        let mut file = byte_level(Some(pre));
        file.values.retain(|(key, _, _)| key != "tokenizer.ggml.merges");
        file.texts("tokenizer.ggml.merges", &MERGES[..8]);
        file.flag("tokenizer.ggml.add_bos_token", false);
        open(&file).1
    };
    assert_eq!(texts(&without("llama-bpe"), "a wor"), ["a", "Ġwor"]);
    assert_eq!(texts(&without("gpt-2"), "a wor"), ["a", "Ġw", "o", "r"]);
}

#[test]
fn texts_begin_and_end_as_the_file_says() {
    let framed = |pre: &str, bos: Option<bool>, eos: Option<bool>| {
        let mut file = byte_level(Some(pre));
        if let Some(bos) = bos {
            file.flag("tokenizer.ggml.add_bos_token", bos);
        }
        if let Some(eos) = eos {
            file.flag("tokenizer.ggml.add_eos_token", eos);
        }
        let tokenizer = open(&file).1;
        assert_eq!(tokenizer.encode("a", false).unwrap().len(), 1);
        (texts(&tokenizer, "a"), tokenizer.adds_bos())
    };
    let [bos, eos] = [SPECIAL[1], SPECIAL[2]];
    assert_eq!(framed("gpt-2", None, None), (vec!["a".into()], false));
    assert_eq!(framed("llama-bpe", None, None), (vec![bos.into(), "a".into()], true));
    assert_eq!(framed("llama-bpe", Some(false), Some(true)), (vec!["a".into(), eos.into()], false));
    assert_eq!(
        framed("gpt-2", Some(true), Some(true)),
        (vec![bos.into(), "a".into(), eos.into()], true)
    );
}

#[test]
fn unknown_pre_tokenizers_and_broken_merges_are_warned_about() {
    for (pre, word) in [(Some("from-the-future"), "from-the-future"), (None, "tokenizer.ggml.pre")]
    {
        let (model, tokenizer) = open(&byte_level(pre));
        assert_eq!(model.warnings.len(), 1);
        assert!(model.warnings[0].contains(word), "{:?}", model.warnings);
        assert!(!tokenizer.encode("still works", true).unwrap().is_empty());
    }
    let mut file = byte_level(Some("gpt-2"));
    file.values.retain(|(key, _, _)| key != "tokenizer.ggml.merges");
    file.texts("tokenizer.ggml.merges", &["Ġ t", "q q", "nothing", "", "é é"]);
    let (model, tokenizer) = open(&file);
    assert!(model.warnings[0].contains("4 of 5 merges"), "{:?}", model.warnings);
    assert_eq!(texts(&tokenizer, "a the"), ["a", "Ġt", "h", "e"]);
}

#[test]
fn damaged_vocabularies_are_errors_and_missing_ones_warnings() {
    let mut file = byte_level(Some("gpt-2"));
    file.values.retain(|(key, _, _)| !key.starts_with("tokenizer.ggml.tok"));
    let model = gguf_model::open(&file).unwrap();
    assert!(model.tokenizer_json.is_none());
    assert!(model.warnings[0].contains("no tokenizer"), "{:?}", model.warnings);
    assert_eq!(model.tokenizer().unwrap_err().exit_code(), 3);

    let mut file = byte_level(Some("gpt-2"));
    file.values.retain(|(key, _, _)| key != "tokenizer.ggml.tokens");
    file.texts("tokenizer.ggml.tokens", &["a", "b", "a"]);
    assert_eq!(gguf_model::open(&file).unwrap_err().exit_code(), 6, "a token twice");

    let mut file = byte_level(Some("gpt-2"));
    file.values.retain(|(key, _, _)| key != "tokenizer.ggml.token_type");
    file.i32s("tokenizer.ggml.token_type", &[1, 1]);
    assert_eq!(gguf_model::open(&file).unwrap_err().exit_code(), 6, "too few types");

    let error = Tokenizer::from_json("{}", None, Path::new("x")).unwrap_err();
    assert_eq!(error.exit_code(), 6);
}

/// Pieces and scores of a `SentencePiece` vocabulary, after the three control tokens and 256 bytes.
const PIECES: [(&str, f32); 24] = [
    ("▁", -20.0),
    ("a", -21.0),
    ("b", -22.0),
    ("c", -23.0),
    ("d", -24.0),
    ("▁a", -1.0),
    ("ab", -2.0),
    ("bc", -0.5),
    ("cd", -4.0),
    ("abc", -5.0),
    ("▁ab", -6.0),
    ("bcd", -7.0),
    ("▁abcd", -8.0),
    ("dd", -9.0),
    ("▁▁", -1000.0),
    ("aa", -3.0),
    ("aaaa", -3.5),
    ("▁b", -10.0),
    ("▁bc", -11.0),
    ("ca", -12.0),
    ("cab", -13.0),
    ("da", -14.0),
    ("ä", -25.0),
    ("äa", -15.0),
];

fn sentence_piece(prefix: Option<bool>) -> GgufBytes {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    for byte in 0..256 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
        scores.push(0.0);
    }
    for (piece, score) in PIECES {
        tokens.push(piece.to_owned());
        kinds.push(1);
        scores.push(score);
    }
    let mut file = model(&tokens);
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.f32s("tokenizer.ggml.scores", &scores);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    if let Some(prefix) = prefix {
        file.flag("tokenizer.ggml.add_space_prefix", prefix);
    }
    file
}

/// `SentencePiece`'s own algorithm: join the two neighbours whose union scores highest, the leftmost
/// of equals, until nothing can be joined; spell the rest in bytes.
fn reference(text: &str, prefix: bool) -> Vec<String> {
    let scores: HashMap<&str, f32> = PIECES.into_iter().collect();
    let text = format!("{}{text}", if prefix { " " } else { "" }).replace(' ', "▁");
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let best = (1..symbols.len())
            .filter_map(|i| {
                let joined = format!("{}{}", symbols[i - 1], symbols[i]);
                scores.get(joined.as_str()).map(|score| (i, *score, joined))
            })
            .reduce(|a, b| if b.1 > a.1 { b } else { a });
        let Some((i, _, joined)) = best else { break };
        symbols[i - 1] = joined;
        symbols.remove(i);
    }
    symbols
        .into_iter()
        .flat_map(|symbol| {
            if scores.contains_key(symbol.as_str()) {
                vec![symbol]
            } else {
                symbol.bytes().map(|byte| format!("<0x{byte:02X}>")).collect()
            }
        })
        .collect()
}

#[test]
fn sentence_piece_merges_follow_from_the_scores() {
    let (model, tokenizer) = open(&sentence_piece(None));
    assert_eq!(model.warnings, [""; 0]);
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1, "BOS by default");
    let (_, bare) = open(&sentence_piece(Some(false)));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&"[abcdä \n€]{1,24}", |text| {
            for (tokenizer, prefix) in [(&tokenizer, true), (&bare, false)] {
                let ids = tokenizer.encode(&text, false).unwrap();
                let tokens: Vec<String> =
                    ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
                prop_assert_eq!(tokens, reference(&text, prefix), "{:?}", text);
                prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.clone());
            }
            Ok(())
        })
        .unwrap();
}

/// A long text with all that could go wrong at a cut.
fn long_text() -> String {
    let line = "the hello  world 112 äé, \"in all\"\nwow\n\n  a the\tlow 12\r\n'll in é";
    (0..1500).fold(String::new(), |text, i| text + line + &format!(" {i} "))
}

#[test]
fn long_texts_give_the_ids_of_the_whole() {
    let text = long_text();
    assert!(text.len() > 100_000);
    for file in [
        byte_level(Some("smollm")),
        byte_level(Some("llama-bpe")),
        byte_level(Some("deepseek-v3")),
        byte_level(Some("deepseek-coder")),
        sentence_piece(None),
        sentence_piece(Some(false)),
    ] {
        let (model, tokenizer) = open(&file);
        let whole = tokenizers::Tokenizer::from_bytes(model.tokenizer_json.unwrap()).unwrap();
        for text in [text.clone(), text.replace("low", "<s>"), text.replace("wow", "<|im_end|>")] {
            let expected = whole.encode_fast(text.as_str(), true).unwrap();
            let ids = tokenizer.encode(&text, true).unwrap();
            assert!(ids == expected.get_ids(), "other ids");
        }
    }
}

#[test]
fn a_stream_gives_the_text_piece_by_piece() {
    for file in [byte_level(Some("smollm")), sentence_piece(None)] {
        let (_, tokenizer) = open(&file);
        for text in ["a b äöü 日本 😀 the end", " leading", "", "a\n\nb  c"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut stream = tokenizer.stream(true);
            let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            let rest = stream.finish().unwrap();
            assert_eq!(pieces.concat() + &rest, tokenizer.decode(&ids, true).unwrap());
            assert_eq!(pieces.concat(), text, "nothing is held back at the end");
            assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        }
        // An end in the middle of a character.
        let ids = tokenizer.encode("a😀", false).unwrap();
        let mut stream = tokenizer.stream(true);
        for &id in &ids[..ids.len() - 1] {
            stream.push(id).unwrap();
        }
        assert!(stream.finish().unwrap().contains('\u{fffd}'));
    }
}

#[test]
fn settings_of_the_last_training_run_do_not_matter() {
    let (model, _) = open(&byte_level(Some("smollm")));
    let mut json: Value = serde_json::from_str(&model.tokenizer_json.unwrap()).unwrap();
    json["truncation"] = json!({ "direction": "Right", "max_length": 4,
        "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = json!({ "strategy": { "Fixed": 64 }, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>" });
    let tokenizer = Tokenizer::from_json(&json.to_string(), None, Path::new("x")).unwrap();
    assert_eq!(tokenizer.encode("abcdefghi", true).unwrap().len(), 9);
}

#[test]
fn templates_and_merges_that_refer_to_nothing_are_errors() {
    let mut file = byte_level(Some("llama-bpe"));
    file.flag("tokenizer.ggml.add_eos_token", true);
    let (model, _) = open(&file);
    let json: Value = serde_json::from_str(&model.tokenizer_json.unwrap()).unwrap();
    let refused = |json: &Value| {
        let error = Tokenizer::from_json(&json.to_string(), None, Path::new("x")).unwrap_err();
        assert_eq!(error.exit_code(), 6, "{error}");
    };
    let mut undefined = json.clone();
    undefined["post_processor"]["special_tokens"].as_object_mut().unwrap().clear();
    refused(&undefined);
    let nested = json!({ "type": "Sequence", "processors": [undefined["post_processor"]] });
    undefined["post_processor"] = nested;
    refused(&undefined);
    let mut prefixed = json.clone();
    prefixed["model"]["continuing_subword_prefix"] = json!("###");
    refused(&prefixed);
}

/// Whatever is changed in a tokenizer.json: an error or a tokenizer, never a panic.
#[test]
fn changed_tokenizers_never_panic() {
    let mut file = byte_level(Some("llama-bpe"));
    file.flag("tokenizer.ggml.add_eos_token", true);
    for file in [file, sentence_piece(None)] {
        let json = gguf_model::open(&file).unwrap().tokenizer_json.unwrap().into_bytes();
        let changes = prop::collection::vec((0..json.len(), any::<u8>()), 1..4);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
        runner
            .run(&(changes, any::<bool>()), |(changes, printable)| {
                let mut json = json.clone();
                for (at, byte) in changes {
                    // Bytes that keep the text valid reach deeper.
                    json[at] = if printable { b' ' + byte % 95 } else { byte };
                }
                if let Ok(text) = String::from_utf8(json)
                    && let Ok(tokenizer) = Tokenizer::from_json(&text, None, Path::new("x"))
                    && let Ok(ids) = tokenizer.encode("the hello 112 <|im_end|> äöü", true)
                {
                    let _ = tokenizer.decode(&ids, false);
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn chats_use_the_template_of_the_file() {
    let mut file = byte_level(Some("smollm"));
    file.text(
        "tokenizer.chat_template",
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim }}\n\
         {% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    );
    let (_, tokenizer) = open(&file);
    let ids = tokenizer.encode_chat(&[ChatMessage::user(" in the world ")]).unwrap();
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        "<|im_start|>user: in the world\nassistant:"
    );

    file.texts("tokenizer.chat_templates", &["tool_use"]);
    file.text("tokenizer.chat_template.tool_use", "another");
    let (model, tokenizer) = open(&file);
    assert!(model.tokenizer_config_json.unwrap().contains("tool_use"));
    assert_eq!(tokenizer.encode_chat(&[ChatMessage::user(" in the world ")]).unwrap(), ids);

    let (_, plain) = open(&byte_level(Some("smollm")));
    assert_eq!(plain.encode_chat(&[ChatMessage::user("x")]).unwrap_err().exit_code(), 1);
}
