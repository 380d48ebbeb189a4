//! Vocabularies as they stand in the files, and what they do to texts.

use std::path::Path;

use llm_quantize::codec::StoredType;
use llm_quantize::files::gguf::{Array, Value};
use llm_quantize::job::gguf::{GgufModel, SourceOptions, open};
use llm_quantize::model::open_local;
use serde_json::{Value as Json, json};

use crate::directories::{self, MERGES, ROWS, byte_characters, config, dense};
use crate::export;

/// A directory with a tiny llama model, changed by `change` before it is opened.
fn directory(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = config("LlamaForCausalLM", "llama", &json!({}));
    directories::write(folder.path(), &config, &dense(true, &[]));
    change(folder.path());
    folder
}

fn opened(change: impl FnOnce(&Path)) -> GgufModel {
    open(directory(change).path(), &SourceOptions::default()).unwrap()
}

fn write_json(folder: &Path, name: &str, value: &Json) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

fn get<'a>(model: &'a GgufModel, key: &str) -> Option<&'a Value> {
    model.metadata.get(&format!("tokenizer.{key}"))
}

fn list<'a>(model: &'a GgufModel, key: &str) -> &'a Array {
    match get(model, key) {
        Some(Value::Array(list)) => list,
        other => panic!("{key} is {other:?}"),
    }
}

fn texts(model: &GgufModel, key: &str) -> Vec<String> {
    let strings = list(model, key).strings().unwrap();
    strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
}

#[test]
fn byte_level_vocabularies_are_filled_up() {
    let model = opened(|folder| {
        let config = json!({ "eos_token": "<|im_end|>", "bos_token": null, "pad_token":
            { "content": "<|endoftext|>" }, "chat_template": "{{ messages }}" });
        write_json(folder, "tokenizer_config.json", &config);
    });
    assert_eq!(get(&model, "ggml.model"), Some(&Value::from("gpt2")));
    assert_eq!(get(&model, "ggml.pre"), Some(&Value::from("gpt-2")));
    let tokens = texts(&model, "ggml.tokens");
    let kinds = list(&model, "ggml.token_type").integers().unwrap();
    assert_eq!((tokens.len(), kinds.len()), (ROWS, ROWS));
    assert_eq!(tokens[..3], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    assert_eq!(tokens[3 + 32], "Ġ");
    assert_eq!(tokens[259 + 2], "Ġthe");
    assert_eq!(tokens[267..270], ["<tool>", "[PAD268]", "[PAD269]"]);
    // 1 normal, 3 control, 4 user-defined, 5 unused.
    let expected: Vec<i64> = [vec![3; 3], vec![1; 264], vec![4], vec![5; 20]].concat();
    assert_eq!(kinds, expected);
    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    assert_eq!(texts(&model, "ggml.merges"), merges);
    assert!(get(&model, "ggml.scores").is_none());
    for (key, value) in [
        // config.json names 0 for both; the tokenizer's own choice counts more.
        ("ggml.bos_token_id", Value::from(0u32)),
        ("ggml.eos_token_id", Value::from(2u32)),
        ("ggml.eot_token_id", Value::from(2u32)),
        ("ggml.padding_token_id", Value::from(0u32)),
        ("ggml.add_bos_token", Value::from(false)),
        ("ggml.add_eos_token", Value::from(false)),
        ("chat_template", Value::from("{{ messages }}")),
    ] {
        assert_eq!(get(&model, key), Some(&value), "{key}");
    }
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
}

#[test]
fn merges_come_in_two_spellings_and_may_hold_blanks() {
    let model = opened(|folder| {
        let mut tokenizer = directories::byte_level();
        tokenizer["model"]["merges"] = json!(["h e", "l l"]);
        write_json(folder, "tokenizer.json", &tokenizer);
    });
    assert_eq!(texts(&model, "ggml.merges"), ["h e", "l l"]);
    // Only a vocabulary with such a token makes such a merge; the file is not loaded, so it can be
    // anything here but for the probe, which --pre makes unnecessary.
    let folder = directory(|folder| {
        let mut tokenizer = directories::byte_level();
        tokenizer["model"]["merges"] = json!([["a b", "c"]]);
        write_json(folder, "tokenizer.json", &tokenizer);
    });
    let options = SourceOptions { pre: Some("qwen2".into()), ..SourceOptions::default() };
    let model = open(folder.path(), &options).unwrap();
    assert_eq!(texts(&model, "ggml.merges"), ["aĠb c"]);
    assert_eq!(get(&model, "ggml.pre"), Some(&Value::from("qwen2")));
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    let options = SourceOptions { pre: Some("qwen-2".into()), ..SourceOptions::default() };
    let model = open(folder.path(), &options).unwrap();
    assert_eq!(get(&model, "ggml.pre"), Some(&Value::from("qwen-2")));
    assert!(model.warnings[0].contains("\"qwen-2\""), "{:?}", model.warnings);
}

#[test]
fn unknown_words_are_announced_loudly() {
    let model = opened(|folder| {
        let mut tokenizer = directories::byte_level();
        tokenizer["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "[a-z]+" }, "behavior": "Isolated",
              "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": false } ] });
        write_json(folder, "tokenizer.json", &tokenizer);
    });
    assert_eq!(get(&model, "ggml.pre"), Some(&Value::from("default")));
    assert!(model.warnings.iter().any(|w| w.contains("--pre")), "{:?}", model.warnings);
}

#[test]
fn frames_follow_the_post_processor() {
    let frame = |first: Option<&str>, last: Option<&str>, config: Json| {
        let model = opened(|folder| {
            let token = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
            let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
            if let Some(first) = first {
                single.insert(0, token(first));
            }
            single.extend(last.map(token));
            let mut tokenizer = directories::byte_level();
            let special =
                |id: usize, text: &str| json!({ "id": text, "ids": [id], "tokens": [text] });
            tokenizer["post_processor"] = json!({ "type": "Sequence", "processors": [
                { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                  "use_regex": true },
                { "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {
                    "<|im_start|>": special(1, "<|im_start|>"),
                    "<|im_end|>": special(2, "<|im_end|>") } }
            ] });
            write_json(folder, "tokenizer.json", &tokenizer);
            write_json(folder, "tokenizer_config.json", &config);
        });
        let flag = |name: &str| match get(&model, &format!("ggml.add_{name}_token")) {
            Some(Value::Bool(flag)) => *flag,
            other => panic!("{name}: {other:?}"),
        };
        (flag("bos"), flag("eos"), model.warnings.len())
    };
    let config = json!({ "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "add_bos_token": false });
    let (start, end) = (Some("<|im_start|>"), Some("<|im_end|>"));
    assert_eq!(frame(start, None, config.clone()), (true, false, 0));
    assert_eq!(frame(start, end, config.clone()), (true, true, 0));
    assert_eq!(frame(None, end, config), (false, true, 0));
    // Something else than BOS in front: said, and not written.
    let other = json!({ "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>" });
    assert_eq!(frame(start, None, other), (false, false, 1));
}

#[test]
fn chat_templates_come_from_three_places() {
    let default = |model: &GgufModel| match get(model, "chat_template") {
        Some(Value::String(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    let model = opened(|folder| {
        write_json(folder, "chat_template.json", &json!({ "chat_template": "json" }));
    });
    assert_eq!(default(&model), "json");
    let with_files = |folder: &Path| {
        write_json(folder, "chat_template.json", &json!({ "chat_template": "json" }));
        std::fs::write(folder.join("chat_template.jinja"), "jinja").unwrap();
        std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
        std::fs::write(folder.join("additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    };
    let model = opened(with_files);
    assert_eq!(default(&model), "jinja");
    assert_eq!(get(&model, "chat_template.tool_use"), Some(&Value::from("tools")));
    assert_eq!(texts(&model, "chat_templates"), ["tool_use"]);
    let field = json!({ "chat_template": [
        { "name": "default", "template": "field" }, { "name": "rag", "template": "r" }] });
    let model = opened(|folder| write_json(folder, "tokenizer_config.json", &field));
    assert_eq!(default(&model), "field");
    assert_eq!(texts(&model, "chat_templates"), ["rag"]);
    // The file counts more than the field, in transformers as well, which a warning says; the
    // directory itself is used with the same.
    let folder = directory(|folder| {
        with_files(folder);
        write_json(folder, "tokenizer_config.json", &field);
    });
    let model = open(folder.path(), &SourceOptions::default()).unwrap();
    assert_eq!(default(&model), "jinja");
    assert_eq!(texts(&model, "chat_templates"), ["tool_use"]);
    assert!(model.warnings.iter().any(|w| w.contains("chat template")), "{:?}", model.warnings);
    let of_directory = open_local(folder.path()).unwrap().tokenizer_config_json.unwrap();
    let of_directory: Json = serde_json::from_str(&of_directory).unwrap();
    assert_eq!(of_directory["chat_template"][0]["template"], "jinja");
    assert_eq!(of_directory["chat_template"][1]["name"], "tool_use");
}

/// Ends are named in up to four files; a file has three places.
#[test]
fn all_ends_of_text_are_written_or_said() {
    let ends = |config_ids: Json, generation: Json, tokenizer: Json| {
        let model = opened(|folder| {
            let mut settings = config("LlamaForCausalLM", "llama", &json!({}));
            settings["eos_token_id"] = config_ids;
            write_json(folder, "config.json", &settings);
            write_json(folder, "generation_config.json", &json!({ "eos_token_id": generation }));
            write_json(folder, "tokenizer_config.json", &tokenizer);
        });
        let id = |name: &str| match get(&model, &format!("ggml.{name}_token_id")) {
            Some(Value::U32(id)) => Some(*id),
            None => None,
            other => panic!("{other:?}"),
        };
        let warning = model.warnings.iter().find(|w| w.contains("ends its texts")).cloned();
        ([id("eos"), id("eot"), id("eom")], warning)
    };
    // 2 is <|im_end|>, which ends turns by its text; 0 is known by its text as well.
    let (ids, warning) = ends(json!([0, 2]), json!(null), json!({}));
    assert_eq!((ids, warning), ([Some(0), Some(2), None], None));
    let (ids, warning) = ends(json!(7), json!([0, 7]), json!({ "eos_token": "<|im_end|>" }));
    assert_eq!((ids, warning), ([Some(2), Some(2), Some(7)], None));
    let (ids, warning) = ends(json!([7, 8]), json!([9]), json!({ "eos_token": "<|im_end|>" }));
    assert_eq!(ids, [Some(2), Some(2), Some(7)]);
    let warning = warning.unwrap();
    assert!(warning.contains("8 \"") && warning.contains("9 \""), "{warning}");
    assert!(!warning.contains("7 \""), "{warning}");
}

/// Without the list llama.cpp refuses the file.
#[test]
fn a_vocabulary_without_merges_has_an_empty_list() {
    let folder = directory(|folder| {
        let mut tokenizer = directories::byte_level();
        tokenizer["model"]["merges"] = json!([]);
        write_json(folder, "tokenizer.json", &tokenizer);
    });
    let model = open(folder.path(), &SourceOptions::default()).unwrap();
    assert!(texts(&model, "ggml.merges").is_empty());
    assert!(get(&model, "ggml.scores").is_none());
    let file = folder.path().join("model.gguf");
    export::write(&model, &file, StoredType::F32);
    let ids = |path: &Path| {
        let tokenizer = open_local(path).unwrap().tokenizer().unwrap();
        tokenizer.encode("the hello", false).unwrap()
    };
    assert_eq!(ids(&file), ids(folder.path()));
}

/// llama.cpp wants certain tokens of a model that is called Phi-3.
#[test]
fn a_name_that_llama_cpp_takes_for_phi_3_is_spelled_otherwise() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("my-phi3-mini");
    std::fs::create_dir(&folder).unwrap();
    let config = config("LlamaForCausalLM", "llama", &json!({}));
    directories::write(&folder, &config, &dense(true, &[]));
    let model = open(&folder, &SourceOptions::default()).unwrap();
    let Some(Value::String(name)) = model.metadata.get("general.name") else { panic!() };
    assert_eq!(name, "My Phi 3 Mini");
    assert!(model.warnings.iter().any(|w| w.contains("Phi-3")), "{:?}", model.warnings);
}

/// Pieces of a small SentencePiece vocabulary: text, score, type.
fn pieces() -> Vec<(String, f32, u64)> {
    let mut pieces: Vec<(String, f32, u64)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    pieces.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (i, text) in ["▁t", "he", "▁the", "in", "▁a", "ll"].into_iter().enumerate() {
        pieces.push((text.into(), -(i as f32), 1));
    }
    for (i, c) in "▁thenila".chars().enumerate() {
        pieces.push((c.to_string(), -6.0 - i as f32, 1));
    }
    pieces.push(("▁▁".into(), 0.0, 4));
    pieces
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// `tokenizer.model` with the pieces; BPE.
fn sentence_piece_model() -> Vec<u8> {
    let mut out = Vec::new();
    for (text, score, kind) in pieces() {
        let content = [
            field(1, text.as_bytes()),
            vec![2 << 3 | 5],
            score.to_le_bytes().to_vec(),
            [varint(3 << 3), varint(kind)].concat(),
        ]
        .concat();
        out.extend(field(1, &content));
    }
    out.extend(field(2, &[varint(3 << 3), varint(2)].concat()));
    out
}

#[test]
fn tokenizer_model_is_read() {
    let folder = directory(|folder| {
        std::fs::write(folder.join("tokenizer.model"), sentence_piece_model()).unwrap();
        std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
        let config = json!({ "bos_token": "<s>", "add_bos_token": true, "add_eos_token": false,
            "added_tokens_decoder": {
                "0": { "content": "<unk>", "special": true },
                "274": { "content": "<|user|>", "special": false },
                "275": { "content": "▁new", "special": false },
                "999": { "content": "<far>", "special": true } } });
        write_json(folder, "tokenizer_config.json", &config);
    });
    let model = open(folder.path(), &SourceOptions::default()).unwrap();
    assert_eq!(get(&model, "ggml.model"), Some(&Value::from("llama")));
    assert_eq!(get(&model, "ggml.pre"), Some(&Value::from("default")));
    assert_eq!(get(&model, "ggml.add_space_prefix"), Some(&Value::from(true)));
    assert_eq!(get(&model, "ggml.add_bos_token"), Some(&Value::from(true)));
    assert_eq!(get(&model, "ggml.bos_token_id"), Some(&Value::from(1u32)));
    let tokens = texts(&model, "ggml.tokens");
    let kinds = list(&model, "ggml.token_type").integers().unwrap();
    let scores = list(&model, "ggml.scores").floats().unwrap();
    let all = pieces();
    assert_eq!((all.len(), tokens.len(), scores.len()), (274, ROWS, ROWS));
    for (id, (text, score, kind)) in all[..273].iter().enumerate() {
        assert_eq!((&tokens[id], kinds[id]), (text, i64::try_from(*kind).unwrap()), "{id}");
        if id > 0 {
            assert_eq!(scores[id].to_bits(), score.to_bits(), "{id}");
        }
    }
    // Blanks as blanks where the text is looked up as it is; what looks special is.
    assert_eq!((tokens[273].as_str(), kinds[273]), ("  ", 4));
    assert_eq!((tokens[274].as_str(), kinds[274], scores[274]), ("<|user|>", 3, -1000.0));
    assert_eq!((tokens[275].as_str(), kinds[275], scores[275]), (" new", 4, -1000.0));
    assert_eq!((tokens[276].as_str(), kinds[276], scores[276]), ("[PAD276]", 5, -10_000.0));
    assert!(model.warnings.iter().any(|w| w.contains("<far>")), "{:?}", model.warnings);
    assert!(get(&model, "ggml.merges").is_none());
}

/// A `tokenizer.json` of the SentencePiece kind is turned into scores; texts are cut the same.
#[test]
fn scores_from_merges_join_the_same_pairs() {
    let mut vocabulary = serde_json::Map::new();
    for (id, (text, ..)) in pieces().into_iter().enumerate() {
        vocabulary.insert(text, json!(id));
    }
    let special = |id: usize, text: &str| {
        json!({ "id": id, "content": text, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary,
            "merges": ["▁ t", "h e", "▁t he", "i n", "▁ a", "l l"] },
    });
    let folder = directory(|folder| {
        write_json(folder, "tokenizer.json", &tokenizer);
        let config = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        write_json(folder, "tokenizer_config.json", &config);
    });
    let model = open(folder.path(), &SourceOptions::default()).unwrap();
    assert_eq!(get(&model, "ggml.model"), Some(&Value::from("llama")));
    assert_eq!(get(&model, "ggml.add_bos_token"), Some(&Value::from(true)));
    let scores = list(&model, "ggml.scores").floats().unwrap();
    // The order of the merges, and characters below all of them.
    assert!(scores[259..265].is_sorted_by(|a, b| a > b), "{scores:?}");
    assert!(scores[265..273].iter().all(|score| *score < scores[264]));

    let file = folder.path().join("model.gguf");
    export::write(&model, &file, StoredType::F32);
    let ours = open_local(folder.path()).unwrap().tokenizer().unwrap();
    let theirs = open_local(&file).unwrap().tokenizer().unwrap();
    for text in ["the thin ale", " a  the", "hëll", "<s>the", ""] {
        assert_eq!(ours.encode(text, true).unwrap(), theirs.encode(text, true).unwrap(), "{text}");
    }
}

#[test]
fn other_files_called_tokenizer_model_are_passed_over() {
    let model = opened(|folder| {
        std::fs::write(folder.join("tokenizer.model"), "IQ== 0\nIg== 1\n").unwrap();
    });
    assert_eq!(get(&model, "ggml.model"), Some(&Value::from("gpt2")));
    assert!(model.warnings.iter().any(|w| w.contains("tokenizer.json is read instead")));
    // The alphabet of bytes is that of GPT-2.
    let tokens = texts(&model, "ggml.tokens");
    let bytes: Vec<String> = byte_characters().iter().map(char::to_string).collect();
    assert_eq!(tokens[3..259], bytes[..]);
}
