//! `general.*` from names, model cards and sampling hints.

use llm_quantize::files::gguf::{Array, Value};
use llm_quantize::job::gguf::{GgufModel, SourceOptions, open};
use serde_json::json;

use crate::directories::{self, config, dense};

fn general(model: &GgufModel) -> Vec<(String, Value)> {
    model
        .metadata
        .iter()
        .filter(|(key, _)| key.starts_with("general."))
        .map(|(key, value)| (key["general.".len()..].to_owned(), value.clone()))
        .collect()
}

fn check(model: &GgufModel, expected: &[(&str, Value)]) {
    let mut got = general(model);
    got.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected: Vec<(String, Value)> =
        expected.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(got, expected);
}

#[test]
fn a_published_model_says_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    // As the hub's cache lays it out.
    let snapshot = folder.path().join("models--acme--Rocket-2-80K-Chat/snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    let config = config("LlamaForCausalLM", "llama", &json!({}));
    directories::write(&snapshot, &config, &dense(true, &[]));
    std::fs::write(
        snapshot.join("README.md"),
        "---\nlicense: other\nlicense_name: rocket\nlanguage: [en, de]\ntags:\n- chat\n\
         base_model: acme/Rocket-2-80K\npipeline_tag: text-generation\n---\n# Rocket\n",
    )
    .unwrap();
    std::fs::write(
        snapshot.join("generation_config.json"),
        json!({ "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
            "repetition_penalty": 1.05, "eos_token_id": [0, 2] })
        .to_string(),
    )
    .unwrap();
    let own: Vec<(&str, Value)> = vec![
        ("architecture", "llama".into()),
        ("type", "model".into()),
        ("name", "Rocket 2 80K Chat".into()),
        ("basename", "Rocket".into()),
        ("version", "2".into()),
        ("size_label", "80K".into()),
        ("finetune", "Chat".into()),
        ("license", "other".into()),
        ("license.name", "rocket".into()),
        ("base_model.count", 1u32.into()),
        ("base_model.0.name", "Rocket 2 80K".into()),
        ("base_model.0.version", "2".into()),
        ("base_model.0.organization", "Acme".into()),
        ("base_model.0.repo_url", "https://huggingface.co/acme/Rocket-2-80K".into()),
        ("tags", Array::of_strings(["chat", "text-generation"]).into()),
        ("languages", Array::of_strings(["en", "de"]).into()),
        ("sampling.temp", 0.7f32.into()),
        ("sampling.top_k", 20i32.into()),
        ("sampling.top_p", 0.8f32.into()),
        ("sampling.penalty_repeat", 1.05f32.into()),
    ];
    let provenance: Vec<(&str, Value)> = vec![
        ("organization", "Acme".into()),
        ("source.repo_url", "https://huggingface.co/acme/Rocket-2-80K-Chat".into()),
        ("quantized_by", format!("llm-quantize {}", env!("CARGO_PKG_VERSION")).into()),
    ];
    let model = open(&snapshot, &SourceOptions::default()).unwrap();
    assert_eq!(model.name, "acme/Rocket-2-80K-Chat");
    check(&model, &[own.clone(), provenance].concat());
    let options = SourceOptions { provenance: false, ..SourceOptions::default() };
    check(&open(&snapshot, &options).unwrap(), &own);
}

#[test]
fn a_directory_has_its_name_and_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("my-model");
    std::fs::create_dir(&directory).unwrap();
    let config = config("LlamaForCausalLM", "llama", &json!({}));
    directories::write(&directory, &config, &dense(true, &[]));
    let options = SourceOptions { provenance: false, ..SourceOptions::default() };
    let model = open(&directory, &options).unwrap();
    // 2 * 288 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96) parameters.
    assert_eq!(model.parameters(), 98_624);
    check(
        &model,
        &[
            ("architecture", "llama".into()),
            ("type", "model".into()),
            ("name", "My Model".into()),
            ("size_label", "99K".into()),
        ],
    );
}
