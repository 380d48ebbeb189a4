//! What is written comes back, in a file whose size was known and whose bytes do not vary.

use std::io::{Cursor, Write};

use llm_quantize::Error;
use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::codec::StoredType;
use llm_quantize::files::atomic::AtomicFile;
use llm_quantize::files::littlebit::{
    Description, Layout, LittleBitFile, PathPlan, TensorKind, TensorPlan, TextFile, Writer,
};
use llm_quantize::model::ModelFormat;
use llm_quantize::model::littlebit::{open_model, verify};
use llm_quantize::weight::{RowOrder, ScaleType, StoredTensor, Weight};
use proptest::prelude::*;

use super::samples::{self, Plain, sample};

#[test]
fn everything_comes_back() {
    let sample = sample(3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.littlebit");
    std::fs::File::create(&path).unwrap().write_all(&sample.write()).unwrap();

    let file = verify(&path, &NullProgress).unwrap();
    assert_eq!(file.index().about, sample.description.about);
    let model = open_model(&path).unwrap();
    assert_eq!(model.format, ModelFormat::LittleBit);
    assert_eq!(model.name, "org/sample");
    assert_eq!(model.config_json, samples::CONFIG);
    assert_eq!(model.tokenizer_json.as_deref(), Some(samples::TOKENIZER));
    assert_eq!(model.tokenizer_config_json, None);
    assert_eq!(model.config.num_layers, 2);
    assert!(model.weights.keys().eq(sample.tensors.keys()));
    for (name, expected) in &sample.tensors {
        match (&model.weights[name], expected) {
            (Weight::Stored(tensor), Plain::Stored(dtype, shape, bytes)) => {
                assert_eq!((tensor.dtype, &tensor.shape), (*dtype, shape));
                assert_eq!(&tensor.bytes[..], &bytes[..]);
            }
            (Weight::Factorized(weight), Plain::Factorized(linear)) => {
                let expected = linear.packed();
                assert_eq!(weight.out_features, expected.out_features);
                assert_eq!(weight.in_features, expected.in_features);
                assert_eq!(weight.paths.len(), expected.paths.len());
                for (path, expected) in weight.paths.iter().zip(&expected.paths) {
                    assert_eq!((path.left.rows, path.left.cols), (linear.out, expected.left.cols));
                    assert_eq!(&path.left.bytes[..], &expected.left.bytes[..]);
                    assert_eq!(&path.right.bytes[..], &expected.right.bytes[..]);
                    assert_eq!(path.scale_type, expected.scale_type);
                    assert_eq!(path.row_scale, expected.row_scale);
                    assert_eq!(path.latent_scale, expected.latent_scale);
                    assert_eq!(path.column_scale, expected.column_scale);
                }
                let mut dense = vec![0.0; linear.out * linear.input];
                weight.reconstruct_rows(0..linear.out, &mut dense);
                for (value, expected) in dense.iter().zip(linear.dense()) {
                    let difference = (f64::from(*value) - expected).abs();
                    assert!(difference <= 1e-4 * (1.0 + expected.abs()), "{name}");
                }
            }
            _ => panic!("{name} changed its kind"),
        }
    }
}

#[test]
fn sections_start_at_cache_lines_of_the_map() {
    let bytes = sample(0).write();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.littlebit");
    std::fs::write(&path, bytes).unwrap();
    let (mut stored, mut factorized) = (0, 0);
    for (name, weight) in open_model(&path).unwrap().weights {
        match weight {
            Weight::Packed(_) => panic!("{name} is packed"),
            Weight::Stored(tensor) => {
                assert_eq!(tensor.bytes.as_ptr() as usize % 64, 0, "{name}");
                stored += 1;
            }
            Weight::Factorized(weight) => {
                factorized += 1;
                for path in weight.paths {
                    assert_eq!(path.left.bytes.as_ptr() as usize % 64, 0, "{name}");
                    assert_eq!(path.right.bytes.as_ptr() as usize % 64, 0, "{name}");
                }
            }
        }
    }
    assert!(stored > 0 && factorized > 0, "{stored} {factorized}");
}

#[test]
fn equal_inputs_give_equal_bytes() {
    assert_eq!(sample(5).write(), sample(5).write());
    assert_ne!(sample(5).write(), sample(6).write());
}

#[test]
fn the_size_is_known_before_writing() {
    for seed in 0..20 {
        let sample = sample(seed);
        let layout = Layout::new(&sample.description).unwrap();
        assert_eq!(layout.file_size(), sample.write().len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is measured, the size stays what it was.
    #[test]
    fn errors_do_not_change_the_size(first in any::<f64>(), second in any::<f64>()) {
        let mut sample = sample(1);
        for tensor in sample.tensors.values_mut() {
            if let Plain::Factorized(linear) = tensor {
                linear.errors = (Some(first), Some(second));
            }
        }
        let layout = Layout::new(&sample.description).unwrap();
        let bytes = sample.write();
        prop_assert_eq!(layout.file_size(), bytes.len() as u64);
        let file = LittleBitFile::from_bytes("x", SharedBytes::from_vec(bytes)).unwrap();
        prop_assert!(file.contents().factorized().next().is_some());
        for (name, entry) in file.contents().factorized() {
            prop_assert_eq!(entry.relative_error.is_some(), first.is_finite() && first >= 0.0, "{}", name);
            if let Some(error) = entry.relative_error {
                prop_assert!((error - first).abs() <= 5e-6 * first);
            }
        }
    }
}

/// Llama-2-7B's body at rank 64: the size by the definition of the format, without weights.
#[test]
fn a_large_model_is_laid_out_without_weights() {
    let mut tensors = Vec::new();
    let mut sections = 0u64;
    let mut section = |bytes: u64| sections += bytes.next_multiple_of(64);
    section(2);
    for block in 0..32 {
        for (linear, out, input) in [
            ("self_attn.q_proj", 4096usize, 4096usize),
            ("mlp.up_proj", 11008, 4096),
            ("mlp.down_proj", 4096, 11008),
        ] {
            tensors.push(TensorPlan {
                name: format!("model.layers.{block}.{linear}.weight"),
                kind: TensorKind::Factorized {
                    out_features: out,
                    in_features: input,
                    paths: vec![PathPlan {
                        rank: 64,
                        latent_scale: false,
                        scale_type: ScaleType::F16,
                    }],
                },
            });
            section(64 / 8 * out as u64);
            section(64 / 8 * input as u64);
            section(2 * out as u64);
            section(2 * input as u64);
        }
    }
    let files = vec![TextFile { name: "config.json".into(), text: "{}".into() }];
    let layout = Layout::new(&Description { files, tensors, ..Description::default() }).unwrap();
    let index = layout.file_size() - 64 - sections;
    assert!((50_000..150_000).contains(&index), "{index}");
    assert_eq!(
        layout.tensor_bytes("model.layers.3.mlp.up_proj.weight"),
        Some(8 * (11008 + 4096) + 2 * (11008 + 4096))
    );
    let bits = (64.0 + 16.0) * (8192.0 + 2.0 * 15104.0);
    let weights = 4096.0 * 4096.0 + 2.0 * 4096.0 * 11008.0;
    assert!((layout.achieved_bits_per_weight() - bits / weights).abs() < 1e-12);
}

#[test]
fn provenance_can_be_left_out() {
    let mut sample = sample(1);
    sample.description.about = sample.description.about.without_provenance();
    let bytes = sample.write();
    for secret in ["org/sample", "--x=", "some text"] {
        assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
    }
    let file = LittleBitFile::from_bytes("a/b.littlebit", SharedBytes::from_vec(bytes)).unwrap();
    assert_eq!(file.model().unwrap().name, "b");
}

#[test]
fn rows_of_a_gguf_are_put_back_into_order() {
    // Two heads of four rows: pairs (0, 2) and (1, 3) lie interleaved in the file.
    let values = |rows: &[u8]| rows.iter().flat_map(|&r| [r; 4]).collect::<Vec<u8>>();
    let stored = StoredTensor {
        shape: vec![8, 1],
        dtype: StoredType::F32,
        bytes: SharedBytes::from_vec(values(&[0, 2, 1, 3, 4, 6, 5, 7])),
        row_order: RowOrder::RopePairs { heads: 2 },
    };
    let description = Description {
        files: vec![TextFile { name: "config.json".into(), text: "{}".into() }],
        tensors: vec![TensorPlan {
            name: "q".into(),
            kind: TensorKind::Stored { dtype: StoredType::F32, shape: vec![8, 1] },
        }],
        ..Description::default()
    };
    let mut writer = Writer::new(Cursor::new(Vec::new()), "x", &description).unwrap();
    writer.stored_tensor("q", &stored).unwrap();
    let bytes = writer.finish().unwrap().into_inner();
    let file = LittleBitFile::from_bytes("x", SharedBytes::from_vec(bytes)).unwrap();
    let Some(Weight::Stored(back)) = file.tensor("q").unwrap() else { panic!("not stored") };
    assert_eq!(&back.bytes[..], values(&[0, 1, 2, 3, 4, 5, 6, 7]));
}

/// As the tool writes: under another name until all is there.
#[test]
fn a_file_appears_when_it_is_whole() {
    let sample = sample(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.littlebit");
    let names = || std::fs::read_dir(folder.path()).unwrap().count();

    let out = AtomicFile::create(&path).unwrap();
    let mut abandoned = Writer::new(out, &path, &sample.description).unwrap();
    let Plain::Stored(_, _, embedding) = &sample.tensors[0] else { panic!("not stored") };
    abandoned.stored("model.embed_tokens.weight", |s| s.write(embedding)).unwrap();
    assert!(!path.exists());
    drop(abandoned);
    assert_eq!(names(), 0);

    let out = AtomicFile::create(&path).unwrap();
    sample.write_to(out, &path).commit().unwrap();
    assert_eq!(names(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), sample.write());
    verify(&path, &NullProgress).unwrap();
}

/// Uses of the writer that contradict the plan.
#[test]
fn the_writer_keeps_to_the_plan() {
    let sample = sample(1);
    let new = || Writer::new(Cursor::new(Vec::new()), "x", &sample.description).unwrap();
    let message = |error: Error| error.to_string();
    let (first, second) = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight");

    let mut writer = new();
    let error = message(writer.stored(second, |_| Ok(())).unwrap_err());
    assert!(error.contains("has to be written next"), "{error}");

    let mut writer = new();
    let error = message(writer.stored(first, |section| section.write(&[0; 9])).unwrap_err());
    assert!(error.contains("missing"), "{error}");

    let mut writer = new();
    let error = message(writer.stored(first, |section| section.write(&[0; 9999])).unwrap_err());
    assert!(error.contains("more bytes than were planned"), "{error}");

    let error = message(new().finish().map(|_| ()).unwrap_err());
    assert!(error.contains("has not been written"), "{error}");

    let mut writer = new();
    for (name, tensor) in &sample.tensors {
        match tensor {
            Plain::Stored(_, _, bytes) => writer.stored(name, |s| s.write(bytes)).unwrap(),
            Plain::Factorized(linear) => {
                let mut weight = linear.packed();
                weight.paths[0].column_scale[5] = half::f16::NAN;
                let error = message(writer.factorized(name, &weight, None, None).unwrap_err());
                assert!(error.contains("column scale 5") && error.contains(name), "{error}");
                break;
            }
        }
    }
}

#[test]
fn impossible_descriptions_are_refused() {
    let config = TextFile { name: "config.json".into(), text: "{}".into() };
    let stored = |name: &str, dtype, shape: &[usize]| TensorPlan {
        name: name.into(),
        kind: TensorKind::Stored { dtype, shape: shape.to_vec() },
    };
    let factorized = |rank| TensorPlan {
        name: "x".into(),
        kind: TensorKind::Factorized {
            out_features: 16,
            in_features: 8,
            paths: vec![PathPlan { rank, latent_scale: false, scale_type: ScaleType::F16 }],
        },
    };
    let refused = |files: &[&TextFile], tensors: Vec<TensorPlan>| {
        let files = files.iter().map(|&f| f.clone()).collect();
        Layout::new(&Description { files, tensors, ..Description::default() }).is_err()
    };
    assert!(!refused(&[&config], vec![factorized(8)]));
    assert!(refused(&[], vec![]), "no config.json");
    assert!(refused(&[&config, &config], vec![]), "two files of one name");
    assert!(refused(&[&config], vec![factorized(9)]), "rank above the smaller side");
    assert!(refused(&[&config], vec![factorized(0)]), "no rank");
    assert!(refused(&[&config], vec![stored("x", StoredType::Q8_0, &[4, 33])]), "half a block");
    assert!(refused(&[&config], vec![stored("x", StoredType::F32, &[0, 4])]), "empty");
    assert!(refused(&[&config], vec![stored("x", StoredType::F32, &[])]), "no shape");
    assert!(refused(&[&config], vec![stored("x", StoredType::F32, &[usize::MAX, 8])]), "overflow");
    let twice = stored("x", StoredType::F32, &[4]);
    assert!(refused(&[&config], vec![twice.clone(), twice]), "two tensors of one name");
}
