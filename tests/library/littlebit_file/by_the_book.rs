//! A reader written from `docs/littlebit-format.md` alone: it parses the preamble by hand, walks
//! the index as plain JSON, and rebuilds each weight densely by the documented formulas.

use std::collections::BTreeMap;

use half::f16;
use llm_quantize::weight::ScaleType;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::samples::{Plain, sample, sample_with};

enum Tensor {
    Stored { dtype: String, shape: Vec<usize>, bytes: Vec<u8> },
    Dense { shape: Vec<usize>, values: Vec<f64> },
}

struct Model {
    index: Value,
    texts: BTreeMap<String, String>,
    tensors: Vec<(String, Tensor)>,
}

fn read(file: &[u8]) -> Model {
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    assert_eq!(&file[..8], b"\x89LBT\r\n\x1a\n");
    let flags = u32_at(12);
    assert_eq!(u32_at(8), 1);
    let (offset, length) = (u64_at(16), u64_at(24));
    assert_eq!(offset + length, file.len());
    let text = &file[offset..];
    assert_eq!(Sha256::digest(text)[..], file[32..64]);
    let index: Value = serde_json::from_slice(text).unwrap();

    let sections = index["sections"].as_array().unwrap();
    let section = |reference: &Value| -> &[u8] {
        let entry = &sections[reference.as_u64().unwrap() as usize];
        let at = entry["offset"].as_u64().unwrap() as usize;
        assert_eq!(at % 64, 0);
        let bytes = &file[at..at + entry["length"].as_u64().unwrap() as usize];
        let digest: String = format!("{:x}", Sha256::digest(bytes));
        assert_eq!(digest, entry["sha256"].as_str().unwrap());
        bytes
    };

    let texts = index["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let text = String::from_utf8(section(&file["section"]).to_vec()).unwrap();
            (file["name"].as_str().unwrap().to_string(), text)
        })
        .collect();

    let tensors = index["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| {
            let shape: Vec<usize> = tensor["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d.as_u64().unwrap() as usize)
                .collect();
            let contents = match tensor["kind"].as_str().unwrap() {
                "stored" => Tensor::Stored {
                    dtype: tensor["dtype"].as_str().unwrap().into(),
                    bytes: section(&tensor["section"]).to_vec(),
                    shape,
                },
                "factorized" => {
                    let mut values = vec![0.0; shape[0] * shape[1]];
                    for path in tensor["paths"].as_array().unwrap() {
                        add_path(&mut values, shape[0], shape[1], path, &section);
                    }
                    Tensor::Dense { shape, values }
                }
                other => panic!("kind {other}"),
            };
            (tensor["name"].as_str().unwrap().to_string(), contents)
        })
        .collect();
    let log8 = index["tensors"].as_array().unwrap().iter().any(|tensor| {
        let paths = tensor["paths"].as_array();
        paths.is_some_and(|paths| paths.iter().any(|path| path["scale_type"] == "log8"))
    });
    assert_eq!(flags, u32::from(log8));
    Model { index, texts, tensors }
}

fn add_path<'a>(
    weight: &mut [f64],
    out: usize,
    input: usize,
    path: &Value,
    section: &dyn Fn(&Value) -> &'a [u8],
) {
    let rank = path["rank"].as_u64().unwrap() as usize;
    let scale = |key: &str| -> Option<Vec<f64>> {
        let bytes = section(path.get(key)?);
        let half = |pair: &[u8]| f16::from_le_bytes([pair[0], pair[1]]).to_f64();
        if path.get("scale_type").is_none() {
            return Some(bytes.chunks_exact(2).map(half).collect());
        }
        assert_eq!(path["scale_type"], "log8");
        let (low, high) = (half(&bytes[..2]), half(&bytes[2..4]));
        let value = |code: &u8| match code {
            0 => 0.0,
            code => {
                let power = (f64::from(*code) - 1.0) / 254.0;
                f16::from_f64(low * (high / low).powf(power)).to_f64()
            }
        };
        Some(bytes[4..].iter().map(value).collect())
    };
    let (left, right) = (section(&path["left"]), section(&path["right"]));
    let (rows, columns) = (scale("row_scale").unwrap(), scale("column_scale").unwrap());
    let latent = scale("latent_scale").unwrap_or_else(|| vec![1.0; rank]);
    assert_eq!((rows.len(), columns.len(), latent.len()), (out, input, rank));
    // Sign at [i, j] of a matrix of `height` rows.
    let sign = |bytes: &[u8], height: usize, i: usize, j: usize| {
        f64::from(2 * i32::from(bytes[(j / 8) * height + i] >> (j % 8) & 1) - 1)
    };
    for i in 0..out {
        for j in 0..input {
            let mut sum = 0.0;
            for (k, latent) in latent.iter().enumerate() {
                sum += sign(left, out, i, k) * latent * sign(right, rank, k, j);
            }
            weight[i * input + j] += rows[i] * sum * columns[j];
        }
    }
}

#[test]
fn a_reader_of_the_document_finds_the_same_weights() {
    for (seed, log8) in [(0, ScaleType::Log8), (1, ScaleType::Log8), (2, ScaleType::F16)] {
        let sample = sample_with(seed, log8);
        let model = read(&sample.write());
        assert_eq!(model.tensors.len(), sample.tensors.len());
        for ((name, tensor), (expected_name, expected)) in model.tensors.iter().zip(&sample.tensors)
        {
            assert_eq!(name, expected_name);
            match (tensor, expected) {
                (
                    Tensor::Stored { dtype, shape, bytes },
                    Plain::Stored(expected_type, expected_shape, expected),
                ) => {
                    assert_eq!(*dtype, expected_type.name().to_lowercase());
                    assert_eq!((shape, bytes), (expected_shape, expected));
                }
                (Tensor::Dense { shape, values }, Plain::Factorized(linear)) => {
                    assert_eq!(*shape, [linear.out, linear.input]);
                    for (value, expected) in values.iter().zip(linear.dense()) {
                        assert!((value - expected).abs() <= 1e-12 * expected.abs().max(1.0));
                    }
                }
                _ => panic!("{name} changed its kind"),
            }
        }
    }
}

#[test]
fn the_index_says_where_the_model_comes_from() {
    let sample = sample(1);
    let model = read(&sample.write());
    assert_eq!(model.texts["config.json"], super::samples::CONFIG);
    assert_eq!(model.texts["tokenizer.json"], super::samples::TOKENIZER);
    let about = &model.index["about"];
    assert_eq!(about["source"]["name"], "org/sample");
    assert_eq!(about["command"][2], "--x=\"é\"");
    assert_eq!(about["settings"]["seed"], 7);
    assert_eq!(about["calibration"]["sha256"], "ab".repeat(32));
    // Bits by the definition: whole bytes of signs, and 16 for each scale.
    let (mut bits, mut weights) = (0, 0);
    for tensor in sample.tensors.values() {
        if let Plain::Factorized(linear) = tensor {
            weights += linear.out * linear.input;
            for path in &linear.paths {
                bits += 8 * (path.rank.div_ceil(8) * linear.out);
                bits += 8 * (linear.input.div_ceil(8) * path.rank);
                let (each, vector) = match path.scale_type {
                    ScaleType::F16 => (16, 0),
                    ScaleType::Log8 => (8, 32),
                };
                bits += each * (path.row_scale.len() + path.column_scale.len()) + 2 * vector;
                bits += path.latent_scale.as_ref().map_or(0, |l| each * l.len() + vector);
            }
        }
    }
    let achieved = model.index["achieved_bpw"].as_f64().unwrap();
    assert!((achieved - bits as f64 / weights as f64).abs() < 1e-12);
}
