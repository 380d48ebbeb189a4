//! Directories against the files made from them.

use std::path::Path;

use llm_quantize::codec::StoredType;
use serde_json::json;

use crate::round_trip::round_trip;

/// The model of the repository: f16, byte-level.
#[test]
fn the_tiny_model_computes_the_same() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    round_trip(&directory, StoredType::F16, true);
    round_trip(&directory, StoredType::F32, true);
}

/// Rotary scaling that the file holds as factors of frequencies, with a scale of its own.
#[test]
fn rotary_factors_and_their_scale_compute_the_same() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let text = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    let half = serde_json::from_str::<serde_json::Value>(&text).unwrap()["head_dim"]
        .as_u64()
        .map_or(16, |dim| dim as usize / 2);
    let factors = |most: f64| -> Vec<f64> {
        (0..half).map(|i| 1.0 + (most - 1.0) * i as f64 / half as f64).collect()
    };
    for scaling in [
        json!({ "rope_type": "yarn", "factor": 4.0, "truncate": false,
            "original_max_position_embeddings": 64 }),
        json!({ "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "attention_factor": 1.5,
            "original_max_position_embeddings": 64 }),
        json!({ "rope_type": "longrope", "short_factor": factors(1.5), "long_factor": factors(8.0),
            "attention_factor": 1.25, "original_max_position_embeddings": 8 }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&tiny).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["rope_scaling"] = scaling;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        round_trip(folder.path(), StoredType::F32, true);
    }
}
