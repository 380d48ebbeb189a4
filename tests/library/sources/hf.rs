//! Hugging Face directories.

use std::path::Path;

use llm_quantize::Error;
use llm_quantize::codec::StoredType;
use llm_quantize::model::{LocalModel, ModelFormat, open_local};
use llm_quantize::weight::Weight;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::tiny;

fn stored(model: &LocalModel, name: &str) -> Vec<f32> {
    match &model.weights[name] {
        Weight::Stored(tensor) => tensor.to_f32(),
        _ => panic!("{name} is not stored"),
    }
}

fn tiny_model(model_type: &str) -> (tempfile::TempDir, Value, tiny::Tensors) {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny::config(model_type);
    let tensors = tiny::tensors(&config);
    (folder, config, tensors)
}

fn failure(path: &Path) -> Error {
    open_local(path).expect_err("must be refused")
}

#[test]
fn every_architecture_in_every_type_gives_its_values_back() {
    for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
        for (dtype, expected) in [
            (Dtype::F32, StoredType::F32),
            (Dtype::F16, StoredType::F16),
            (Dtype::BF16, StoredType::BF16),
        ] {
            let (folder, config, tensors) = tiny_model(model_type);
            tiny::write_model(folder.path(), &config, &tensors, dtype);
            let model = open_local(folder.path()).unwrap();
            assert_eq!(model.format, ModelFormat::HuggingFace);
            assert_eq!(model.weights.len(), tensors.len(), "{model_type}");
            for (name, (shape, values)) in &tensors {
                let Weight::Stored(tensor) = &model.weights[name] else { panic!("{name}") };
                assert_eq!(tensor.dtype, expected);
                assert_eq!(&tensor.shape, shape, "{name}");
                assert_eq!(&tensor.to_f32(), values, "{name}");
            }
            let count: usize = tensors.values().map(|(_, values)| values.len()).sum();
            assert_eq!(model.parameter_count(), count as u64);
            let width = if dtype == Dtype::F32 { 4 } else { 2 };
            assert_eq!(model.weight_bytes(), (count * width) as u64);
            // The one warning: nothing to tokenize with.
            assert_eq!(model.warnings.len(), 1, "{:?}", model.warnings);
        }
    }
}

#[test]
fn biases_belong_to_the_model_when_its_configuration_says_so() {
    let (folder, mut config, _) = tiny_model("llama");
    config["attention_bias"] = json!(true);
    let tensors = tiny::tensors(&config);
    assert!(tensors.contains_key("model.layers.1.self_attn.o_proj.bias"));
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
    let model = open_local(folder.path()).unwrap();
    assert_eq!(model.weights.len(), tensors.len());

    // A run without them would be one of another model.
    config["attention_bias"] = json!(false);
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
    let error = failure(folder.path());
    assert_eq!((error.exit_code(), error.type_name()), (1, "UnsupportedModelError"));
    let text = error.to_string();
    assert!(text.contains("8 tensors") && text.contains("self_attn.q_proj.bias"), "{text}");

    let (folder, mut config, _) = tiny_model("llama");
    config["mlp_bias"] = json!(true);
    let tensors = tiny::tensors(&config);
    assert!(tensors.contains_key("model.layers.1.mlp.down_proj.bias"));
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
    assert_eq!(open_local(folder.path()).unwrap().weights.len(), tensors.len());

    let (folder, config, mut tensors) = tiny_model("qwen2");
    tensors.shift_remove("model.layers.0.self_attn.k_proj.bias");
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
    let error = failure(folder.path());
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("model.layers.0.self_attn.k_proj.bias"), "{error}");
}

#[test]
fn a_tied_head_is_a_weight_only_if_it_is_not_the_embedding() {
    let (folder, mut config, mut tensors) = tiny_model("llama");
    config["tie_word_embeddings"] = json!(true);
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone();
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F16);
    let model = open_local(folder.path()).unwrap();
    assert!(!model.weights.contains_key("lm_head.weight"));
    assert!(model.config.tie_word_embeddings && model.left_out.is_empty());
    assert_eq!(model.warnings.len(), 1, "{:?}", model.warnings);

    // One value of another sign, in the last row.
    let last = tensors["lm_head.weight"].1.last_mut().unwrap();
    *last = -*last;
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F16);
    let model = open_local(folder.path()).unwrap();
    assert_eq!(stored(&model, "lm_head.weight"), tensors["lm_head.weight"].1);
    assert!(!model.config.tie_word_embeddings);
    let written: Value = serde_json::from_str(&model.config_json).unwrap();
    assert_eq!(written["tie_word_embeddings"], json!(false));
    assert!(model.warnings.iter().any(|warning| warning.contains("lm_head.weight")));
}

/// The text part of multimodal models, and what training puts before names.
#[test]
fn names_with_prefixes_are_those_of_the_plain_model() {
    for (prefix, head, warned) in [
        ("language_model.model.", "language_model.lm_head.", None),
        ("model.language_model.", "lm_head.", None),
        ("", "lm_head.", None),
        ("_orig_mod.model.", "_orig_mod.lm_head.", Some("_orig_mod.")),
        ("module.model.", "module.lm_head.", Some("module.")),
        ("base_model.model.model.", "base_model.model.lm_head.", Some("base_model.model.")),
    ] {
        let (folder, config, tensors) = tiny_model("llama");
        let mut renamed: tiny::Tensors = tensors
            .iter()
            .map(|(name, tensor)| {
                let name = match name.strip_prefix("model.") {
                    Some(rest) => format!("{prefix}{rest}"),
                    None => name.replace("lm_head.", head),
                };
                (name, tensor.clone())
            })
            .collect();
        renamed.insert("vision_tower.patch.weight".into(), (vec![4], vec![1.0; 4]));
        tiny::write_model(folder.path(), &config, &renamed, Dtype::F32);
        let model = open_local(folder.path()).unwrap();
        assert_eq!(model.weights.len(), tensors.len(), "{prefix}");
        for (name, (_, values)) in &tensors {
            assert_eq!(&stored(&model, name), values, "{prefix}: {name}");
        }
        assert_eq!(model.left_out, ["vision_tower.patch.weight"]);
        let named = |word: &str| model.warnings.iter().any(|warning| warning.contains(word));
        assert!(named("vision_tower.patch.weight"), "{:?}", model.warnings);
        assert!(warned.is_none_or(named), "{:?}", model.warnings);
    }
}

/// A model whose configuration lies inside that of a multimodal one is written as the plain class.
#[test]
fn the_text_part_has_a_configuration_of_its_own() {
    let (folder, config, tensors) = tiny_model("mistral");
    let whole = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        "text_config": config, "vision_config": { "hidden_size": 8 }, "spatial_merge_size": 2,
        "tie_word_embeddings": false,
    });
    tiny::write_model(folder.path(), &whole, &tensors, Dtype::F32);
    let model = open_local(folder.path()).unwrap();
    let plain: Value = serde_json::from_str(&model.config_json).unwrap();
    assert_eq!(plain["architectures"], json!(["MistralForCausalLM"]));
    assert_eq!(plain["hidden_size"], config["hidden_size"]);
    assert!(plain.get("text_config").is_none());
}

#[test]
fn what_is_there_instead_of_a_model_is_named() {
    let said = |files: &[(&str, &str)]| {
        let (folder, config, _) = tiny_model("llama");
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let error = failure(folder.path());
        assert_eq!(error.exit_code(), 3, "{error}");
        format!("{error} {}", error.suggestion())
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n";
    let adapter = r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#;
    for (files, words) in [
        (&[("model.safetensors", pointer)][..], &["LFS", "git lfs pull"][..]),
        (&[("model.safetensors", "<!DOCTYPE html><html>")], &["HTML page"]),
        (&[("config.json", pointer)], &["LFS"]),
        (
            &[("adapter_config.json", adapter), ("adapter_model.safetensors", "")],
            &["LORA adapter of org/base", "Merge"],
        ),
    ] {
        let text = said(files);
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("the model again"), "{text}");
    }

    let (folder, config, tensors) = tiny_model("llama");
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F32);
    std::fs::write(folder.path().join("adapter_config.json"), adapter).unwrap();
    let model = open_local(folder.path()).unwrap();
    assert!(model.warnings.iter().any(|warning| warning.contains("not merged")));

    // Tensors that the model does not know are shown where those that it needs are missing.
    let renamed: tiny::Tensors = tensors
        .iter()
        .map(|(name, t)| (format!("gpt.{}", name.replace('.', "_")), t.clone()))
        .collect();
    tiny::write_model(folder.path(), &config, &renamed, Dtype::F32);
    let error = failure(folder.path());
    assert!(error.to_string().contains("gpt.model_embed_tokens_weight"), "{error}");
    assert!(!error.suggestion().contains("Download"), "{}", error.suggestion());

    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    std::fs::create_dir(directory.path().join("model.safetensors")).unwrap();
    assert!(failure(directory.path()).to_string().contains("is a directory"));
}

/// Two shards and an index; the first shard holds the even tensors.
fn write_shards(folder: &Path, config: &Value, tensors: &tiny::Tensors) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, parity) in [(1, 0), (2, 1)] {
        let file = format!("model-0000{shard}-of-00002.safetensors");
        let part = || tensors.iter().enumerate().filter(|(i, _)| i % 2 == parity).map(|(_, t)| t);
        tiny::write_safetensors(&folder.join(&file), part(), Dtype::BF16);
        map.extend(part().map(|(name, _)| (name.clone(), json!(file))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_are_found_through_the_index_or_their_names() {
    let (folder, config, tensors) = tiny_model("llama");
    write_shards(folder.path(), &config, &tensors);
    for index in [true, false] {
        if !index {
            std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
        }
        let model = open_local(folder.path()).unwrap();
        assert_eq!(model.weights.len(), tensors.len());
        for (name, (_, values)) in &tensors {
            assert_eq!(&stored(&model, name), values, "{name}");
        }
    }
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = failure(folder.path());
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn a_missing_shard_is_named() {
    let (folder, config, tensors) = tiny_model("llama");
    write_shards(folder.path(), &config, &tensors);
    std::fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
    let error = failure(folder.path());
    assert_eq!((error.exit_code(), error.type_name()), (3, "ModelNotFoundError"));
    assert!(error.to_string().contains("model-00001-of-00002.safetensors"), "{error}");
}

#[test]
fn an_index_cannot_point_outside_the_directory() {
    let (folder, config, tensors) = tiny_model("llama");
    for bad in ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        write_shards(folder.path(), &config, &tensors);
        let index = json!({ "weight_map": { "model.norm.weight": bad } });
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string())
            .unwrap();
        let error = failure(folder.path());
        assert_eq!(error.exit_code(), 6, "{bad}: {error}");
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let (folder, config, tensors) = tiny_model("llama");
    let mut fewer = tensors.clone();
    fewer.shift_remove("model.layers.1.mlp.down_proj.weight");
    tiny::write_model(folder.path(), &config, &fewer, Dtype::F32);
    let error = failure(folder.path());
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("model.layers.1.mlp.down_proj.weight"), "{error}");

    let mut other = tensors.clone();
    other["model.layers.0.mlp.up_proj.weight"].0 = vec![64, 96];
    tiny::write_model(folder.path(), &config, &other, Dtype::F32);
    let error = failure(folder.path());
    assert_eq!(error.exit_code(), 6);
    let text = error.to_string();
    assert!(text.contains("model.layers.0.mlp.up_proj.weight"), "{text}");
    assert!(text.contains("[64, 96]") && text.contains("[96, 64]"), "{text}");
}

#[test]
fn other_element_types_are_refused_by_name() {
    let (folder, config, tensors) = tiny_model("llama");
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let data: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let dtype = if name == "model.layers.0.mlp.up_proj.weight" {
                Dtype::F8_E4M3
            } else {
                Dtype::F16
            };
            let bytes = match dtype {
                Dtype::F8_E4M3 => vec![0; values.len()],
                dtype => tiny::bytes_of(values, dtype),
            };
            (name, dtype, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, (*shape).clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    let error = failure(folder.path());
    assert_eq!((error.exit_code(), error.type_name()), (1, "UnsupportedModelError"));
    let text = error.to_string();
    assert!(text.contains("F8_E4M3") && text.contains("layers.0.mlp.up_proj"), "{text}");
}

#[test]
fn what_is_not_a_model_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let error = failure(&path.join("nowhere"));
    assert_eq!(error.exit_code(), 3);

    let error = failure(path);
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("config.json"), "{error}");

    std::fs::write(path.join("model.Q4_K_M.gguf"), b"GGUF").unwrap();
    let error = failure(path);
    assert_eq!(error.exit_code(), 3);
    assert!(error.suggestion().contains("model.Q4_K_M.gguf"), "{}", error.suggestion());

    std::fs::write(path.join("config.json"), tiny::config("llama").to_string()).unwrap();
    let error = failure(path);
    assert_eq!(error.exit_code(), 3, "no weights: {error}");

    std::fs::write(path.join("pytorch_model.bin"), b"PK").unwrap();
    let error = failure(path);
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");

    // The architecture is refused first: weights do not matter then.
    let other = json!({ "architectures": ["MambaForCausalLM"], "model_type": "mamba" });
    std::fs::write(path.join("config.json"), other.to_string()).unwrap();
    let error = failure(path);
    assert!(error.to_string().contains("MambaForCausalLM"), "{error}");

    std::fs::write(path.join("notes.txt"), b"not a model").unwrap();
    assert_eq!(failure(&path.join("notes.txt")).exit_code(), 1);
}

#[test]
fn end_tokens_and_templates_come_from_the_other_files() {
    let (folder, config, tensors) = tiny_model("llama");
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F16);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("generation_config.json", r#"{"eos_token_id": [2, 9, 7]}"#);
    write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    write("chat_template.jinja", "{{ 'from the file' }}");
    let model = open_local(folder.path()).unwrap();
    assert_eq!(model.config.eos_token_ids, [2, 9, 7]);
    let text: Value = serde_json::from_str(&model.config_json).unwrap();
    assert_eq!(text["eos_token_id"], json!([2, 9, 7]));
    assert_eq!(text["hidden_size"], json!(64));
    let tokenizer: Value =
        serde_json::from_str(model.tokenizer_config_json.as_deref().unwrap()).unwrap();
    assert_eq!(tokenizer["chat_template"], json!("{{ 'from the file' }}"));
    assert_eq!(tokenizer["bos_token"], json!("<s>"));

    // A broken side file is a warning, not the end.
    write("generation_config.json", "{");
    let model = open_local(folder.path()).unwrap();
    assert_eq!(model.config.eos_token_ids, [2]);
    assert!(model.warnings.iter().any(|w| w.contains("generation_config.json")));
}

#[test]
fn a_snapshot_of_the_hub_cache_is_named_after_its_repository() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("models--org--tiny-model").join("snapshots").join("abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    let config = tiny::config("llama");
    tiny::write_model(&snapshot, &config, &tiny::tensors(&config), Dtype::F16);
    assert_eq!(open_local(&snapshot).unwrap().name, "org/tiny-model");
}

#[test]
fn truncated_and_hostile_headers_are_errors() {
    let (folder, config, tensors) = tiny_model("llama");
    tiny::write_model(folder.path(), &config, &tensors, Dtype::F16);
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let lengths = (0..40).chain((40..header).step_by(211)).chain([
        header - 1,
        header,
        header + 1,
        whole.len() - 1,
    ]);
    for length in lengths {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(failure(folder.path()).exit_code(), 6, "{length} bytes");
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&path, longer).unwrap();
    assert_eq!(failure(folder.path()).exit_code(), 6, "a byte too many");

    let max = u64::MAX;
    let most = usize::MAX as u64;
    for text in [
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,17]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#.to_owned(),
        r#"{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#.to_owned(),
        format!(r#"{{"a":{{"dtype":"U8","shape":[{most}],"data_offsets":[0,{most}]}}}}"#),
        format!(r#"{{"a":{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,16]}}}}"#),
        "{".repeat(100_000),
        "[".repeat(100_000),
    ] {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend([0; 16]);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(failure(folder.path()).exit_code(), 6, "{text:.80}");
    }
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 101 << 20] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(failure(folder.path()).exit_code(), 6, "{length}");
    }
}
