//! The `gguf` package of llama.cpp's converter reads what is written: every type's values, metadata,
//! the vocabulary.

use std::path::Path;
use std::process::Command;

use indexmap::IndexMap;
use llm_quantize::codec::{StoredType, ggml};
use llm_quantize::files::gguf::{FileLayout, GgufFile, GgufWriter, PlannedTensor, Value};
use llm_quantize::job::gguf::{SourceOptions, open};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{export, needs};

/// What the package decodes.
const TYPES: [StoredType; 24] = {
    use StoredType::{
        BF16, F16, F32, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_K,
        Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
    };
    [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, TQ1_0, TQ2_0,
        IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS,
    ]
};

/// What the package finds in a file; values go to files of the folder.
fn read(file: &Path, folder: &Path) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/python_gguf/read.py");
    let output = Command::new("python3")
        .env("PYTHONPATH", needs::python_gguf())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .args([file, folder])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_PYTHON_GGUF (the Python package gguf)"]
fn values_of_every_type_are_read() {
    const SHAPE: [usize; 2] = [3, 768];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("types.gguf");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut random =
        |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
    let importance: Vec<f32> = random(SHAPE[1]).iter().map(|value| value.abs() + 0.01).collect();
    let plan: Vec<PlannedTensor> = TYPES
        .iter()
        .map(|&kind| PlannedTensor { name: kind.name().to_owned(), shape: SHAPE.to_vec(), kind })
        .collect();
    let metadata = IndexMap::from([("general.architecture".to_owned(), Value::from("llama"))]);
    let layout = FileLayout::new(&metadata, &plan, None).unwrap();
    let mut writer = GgufWriter::create(&file, &layout).unwrap();
    let mut expected = Vec::new();
    for kind in TYPES {
        let mut bytes = vec![0; SHAPE[0] * kind.row_bytes(SHAPE[1]).unwrap()];
        let values = random(SHAPE[0] * SHAPE[1]);
        ggml::encode_rows(kind, &values, SHAPE[1], Some(&importance), &mut bytes);
        writer.write(&bytes).unwrap();
        let mut decoded = vec![0.0f32; values.len()];
        ggml::decode(kind, &bytes, &mut decoded);
        expected.push(decoded);
    }
    writer.finish().unwrap();

    let found = read(&file, folder.path());
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), TYPES.len());
    for (number, (tensor, kind)) in tensors.iter().zip(TYPES).enumerate() {
        assert_eq!(tensor["name"], kind.name());
        assert_eq!(tensor["type"].as_str().unwrap().to_uppercase(), kind.name().to_uppercase());
        assert_eq!(tensor["shape"], serde_json::json!(SHAPE));
        let bytes = std::fs::read(folder.path().join(number.to_string())).unwrap();
        assert_eq!(bytes.len(), 4 * SHAPE[0] * SHAPE[1], "{}", kind.name());
        let values = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap()));
        for (at, (value, expected)) in values.zip(&expected[number]).enumerate() {
            // NumPy multiplies in another order here and there.
            assert!(
                (value - expected).abs() <= 1e-6,
                "{} value {at}: {value} instead of {expected}",
                kind.name()
            );
        }
    }
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_PYTHON_GGUF (the Python package gguf)"]
fn metadata_and_vocabulary_of_the_tiny_model_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    export::write(&open(&tiny, &SourceOptions::default()).unwrap(), &file, StoredType::F16);
    let found = read(&file, folder.path());
    let fields = found["fields"].as_object().unwrap();
    let ours = GgufFile::open(&file).unwrap();
    assert!(fields.keys().eq(ours.metadata.keys()), "{:?}", fields.keys());
    for (key, value) in &ours.metadata {
        if let Some(number) = value.as_u64() {
            assert_eq!(fields[key].as_u64(), Some(number), "{key}");
        }
        if let Some(text) = value.as_str() {
            assert_eq!(fields[key].as_str(), Some(text), "{key}");
        }
    }
    let names = found["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap());
    assert!(names.eq(ours.tensors.keys()));

    let json = std::fs::read_to_string(tiny.join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let tokens = fields["tokenizer.ggml.tokens"].as_array().unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    assert!(vocabulary.len() > 1000 && tokens.len() >= vocabulary.len());
    for (token, id) in vocabulary {
        assert_eq!(tokens[id.as_u64().unwrap() as usize], token.as_str(), "{id}");
    }
}
