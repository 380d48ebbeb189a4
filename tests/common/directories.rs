//! Hugging Face directories of tiny models of every class.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Rows of the embedding: 256 bytes, three special tokens, some merges, some rows without a token.
pub(crate) const ROWS: usize = 288;

/// Values that differ everywhere, roughly uniform in -1..1, exact in f16.
pub(crate) fn values(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 56) as f32 - 127.5) / 128.0
        })
        .collect()
}

/// Writes `config.json`, weights of the given names and shapes, and a byte-level tokenizer.
pub(crate) fn write(folder: &Path, config: &Value, tensors: &[(String, Vec<usize>)]) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let data: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let values = values(name, shape.iter().product());
            let bytes = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
            (name.as_str(), shape.as_slice(), bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let tokenizer = byte_level();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// The character that stands for each byte in byte-level vocabularies: printable Latin-1 for
/// itself, the others from U+0100 on (GPT-2's table).
pub(crate) fn byte_characters() -> Vec<char> {
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

pub(crate) const MERGES: [(&str, &str); 8] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġt", "he"),
    ("i", "n"),
    ("Ġ", "a"),
    ("l", "l"),
    ("o", "w"),
    ("1", "2"),
];

/// `tokenizer.json` with the words of GPT-2: three special tokens, 256 bytes, eight merges, one
/// added token that is not special.
pub(crate) fn byte_level() -> Value {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut vocabulary = serde_json::Map::new();
    let bytes = byte_characters();
    let merged = MERGES.iter().map(|(a, b)| format!("{a}{b}"));
    let all = special.iter().map(ToString::to_string);
    for (id, token) in all.chain(bytes.iter().map(char::to_string)).chain(merged).enumerate() {
        vocabulary.insert(token, json!(id));
    }
    let added = |id: usize, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special
        })
    };
    let mut tokens: Vec<Value> =
        special.iter().enumerate().map(|(id, text)| added(id, text, true)).collect();
    tokens.push(added(267, "<tool>", false));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary,
            "merges": MERGES.map(|(a, b)| json!([a, b])),
        },
    })
}

/// What all classes have: two blocks, width 64, four heads of 16 that share two key heads.
pub(crate) fn config(class: &str, model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": ROWS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "bos_token_id": 0,
        "eos_token_id": 0,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// Names and shapes of a dense model with separate projections; `extra` per block.
pub(crate) fn dense(head: bool, extra: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    model(head, &[&DENSE[..], extra].concat())
}

/// Modules of a block of a dense model, and their shapes.
pub(crate) const DENSE: [(&str, &[usize]); 9] = [
    ("input_layernorm.weight", &[64]),
    ("self_attn.q_proj.weight", &[64, 64]),
    ("self_attn.k_proj.weight", &[32, 64]),
    ("self_attn.v_proj.weight", &[32, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("post_attention_layernorm.weight", &[64]),
    ("mlp.gate_proj.weight", &[96, 64]),
    ("mlp.up_proj.weight", &[96, 64]),
    ("mlp.down_proj.weight", &[64, 96]),
];

/// Names and shapes of a model with these modules in each of two blocks.
pub(crate) fn model(head: bool, modules: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    model_of(2, head, modules)
}

/// Names and shapes of a model with these modules in each block.
pub(crate) fn model_of(
    blocks: usize,
    head: bool,
    modules: &[(&str, &[usize])],
) -> Vec<(String, Vec<usize>)> {
    let mut list = vec![
        ("model.embed_tokens.weight".to_owned(), vec![ROWS, 64]),
        ("model.norm.weight".to_owned(), vec![64]),
    ];
    for block in 0..blocks {
        list.extend(
            modules
                .iter()
                .map(|(name, shape)| (format!("model.layers.{block}.{name}"), shape.to_vec())),
        );
    }
    if head {
        list.push(("lm_head.weight".to_owned(), vec![ROWS, 64]));
    }
    list
}
