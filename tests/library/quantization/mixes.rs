//! Levels against the answers of llama.cpp itself (`tests/fixtures/mixes`).

use std::collections::HashMap;

use llm_quantize::codec::StoredType;
use llm_quantize::job::gguf::Level;
use llm_quantize::job::gguf::mix::{ModelFacts, Overrides, TensorFacts, plan_types};

/// A model's description and the expected types: per level the usual type and the exceptions.
struct Schema {
    sizes: HashMap<String, usize>,
    levels: Vec<(Level, StoredType, HashMap<String, StoredType>)>,
}

fn parse(text: &str) -> Schema {
    let mut schema = Schema { sizes: HashMap::new(), levels: vec![] };
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            for (key, value) in comment.split(',').filter_map(|pair| pair.split_once('=')) {
                schema.sizes.insert(key.trim().into(), value.trim().parse().unwrap());
            }
        } else if let Some(rest) = line.strip_prefix('[') {
            let (name, kind) = rest.split_once("] ").unwrap();
            let kind = StoredType::from_name(kind).unwrap();
            schema.levels.push((Level::parse(name).unwrap(), kind, HashMap::new()));
        } else {
            let exceptions = &mut schema.levels.last_mut().unwrap().2;
            let words: Vec<&str> = line.split(' ').collect();
            let kind = StoredType::from_name(words[0]).unwrap();
            let Some(layers) = words.get(2) else {
                exceptions.insert(words[1].into(), kind);
                continue;
            };
            for range in layers.split(',') {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                for layer in first.parse::<usize>().unwrap()..=last.parse().unwrap() {
                    exceptions.insert(format!("blk.{layer}.{}", words[1]), kind);
                }
            }
        }
    }
    schema
}

/// The matrices of a dense model in the order of a file.
fn matrices(sizes: &HashMap<String, usize>, tied: bool) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| sizes[key];
    let (width, inner) = (size("n_embd"), size("n_ff"));
    let head = width / size("n_head");
    let (queries, keys) = (head * size("n_head"), head * size("n_head_kv"));
    let mut out = vec![];
    if !tied {
        out.push(("output.weight".to_owned(), vec![size("n_vocab"), width]));
    }
    out.push(("token_embd.weight".into(), vec![size("n_vocab"), width]));
    for layer in 0..size("n_layer") {
        for (name, rows, columns) in [
            ("attn_k", keys, width),
            ("attn_output", width, queries),
            ("attn_q", queries, width),
            ("attn_v", keys, width),
            ("ffn_down", width, inner),
            ("ffn_gate", inner, width),
            ("ffn_up", inner, width),
        ] {
            out.push((format!("blk.{layer}.{name}.weight"), vec![rows, columns]));
        }
    }
    out
}

fn compare(text: &str, architecture: &str, tied: bool) {
    let schema = parse(text);
    let model = ModelFacts {
        architecture: architecture.into(),
        layers: schema.sizes["n_layer"],
        heads: schema.sizes["n_head"],
        kv_heads: schema.sizes["n_head_kv"],
        experts: 0,
    };
    let matrices = matrices(&schema.sizes, tied);
    let facts: Vec<_> = matrices.iter().map(|(name, shape)| TensorFacts { name, shape }).collect();
    assert!(schema.levels.len() >= 30, "{} levels", schema.levels.len());
    for (level, usual, exceptions) in &schema.levels {
        for name in exceptions.keys() {
            assert!(matrices.iter().any(|(known, _)| known == name), "{name} is not compared");
        }
        let decisions = plan_types(&model, &facts, *level, false, &Overrides::default());
        for ((name, _), decision) in matrices.iter().zip(decisions) {
            let expected = exceptions.get(name).unwrap_or(usual);
            assert_eq!(decision.kind, Some(*expected), "{level:?} {name}");
        }
    }
}

#[test]
fn llama_70b() {
    let text = include_str!("../../fixtures/mixes/meta-llama-3.1-70b-instruct.schema");
    compare(text, "llama", false);
}

#[test]
fn qwen3() {
    compare(include_str!("../../fixtures/mixes/qwen3-0.6b.schema"), "qwen3", false);
}

#[test]
fn gemma3_with_shared_embeddings() {
    compare(include_str!("../../fixtures/mixes/gemma-3-4b-it.schema"), "gemma3", true);
}
