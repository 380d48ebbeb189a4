//! A model of two blocks with random factors, of widths that fill no whole byte.

use std::io::{Cursor, Seek, Write};
use std::path::Path;

use half::f16;
use indexmap::IndexMap;
use llm_quantize::base::SharedBytes;
use llm_quantize::codec::StoredType;
use llm_quantize::codec::signs::BitMatrix;
use llm_quantize::files::littlebit::{
    About, Calibration, Description, PathPlan, Settings, Source, TensorKind, TensorPlan, TextFile,
    Writer,
};
use llm_quantize::weight::{Factor, FactorizedLinear, ScaleType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "hidden_size": 64, "intermediate_size": 77, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
  "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "float16", "hidden_act": "silu",
  "bos_token_id": 1, "eos_token_id": 2
}
"#;
pub(crate) const TOKENIZER: &str = "{\"version\": \"1.0\", \"comment\": \"päckchen ☃\"}";

/// A path as plain numbers: signs are +1 and -1.
pub(crate) struct PlainPath {
    pub rank: usize,
    pub scale_type: ScaleType,
    pub left: Vec<i8>,
    pub right: Vec<i8>,
    pub row_scale: Vec<f16>,
    pub latent_scale: Option<Vec<f16>>,
    pub column_scale: Vec<f16>,
}

/// A factorized weight as plain numbers.
pub(crate) struct PlainLinear {
    pub out: usize,
    pub input: usize,
    pub paths: Vec<PlainPath>,
    pub errors: (Option<f64>, Option<f64>),
}

impl PlainLinear {
    pub(crate) fn random(
        rng: &mut ChaCha8Rng,
        out: usize,
        input: usize,
        ranks: &[(usize, bool, ScaleType)],
    ) -> Self {
        let paths = ranks
            .iter()
            .map(|&(rank, latent, scale_type)| {
                let mut signs =
                    |n: usize| (0..n).map(|_| if rng.random() { 1 } else { -1 }).collect();
                let (left, right) = (signs(out * rank), signs(rank * input));
                let mut scale = |n: usize| match scale_type {
                    ScaleType::F16 => {
                        (0..n).map(|_| f16::from_f32(rng.random_range(-0.5..2.0))).collect()
                    }
                    ScaleType::Log8 => logarithmic_scales(rng, n),
                };
                PlainPath {
                    rank,
                    scale_type,
                    left,
                    right,
                    row_scale: scale(out),
                    latent_scale: latent.then(|| scale(rank)),
                    column_scale: scale(input),
                }
            })
            .collect();
        let errors = (Some(rng.random_range(0.0..1.0)), rng.random::<bool>().then(|| rng.random()));
        Self { out, input, paths, errors }
    }

    /// `W`, row-major, straight from the definition.
    pub(crate) fn dense(&self) -> Vec<f64> {
        let mut weight = vec![0.0; self.out * self.input];
        for path in &self.paths {
            for i in 0..self.out {
                for j in 0..self.input {
                    let sum: f64 = (0..path.rank)
                        .map(|k| {
                            let latent = path.latent_scale.as_ref().map_or(1.0, |l| l[k].to_f64());
                            f64::from(path.left[i * path.rank + k])
                                * latent
                                * f64::from(path.right[k * self.input + j])
                        })
                        .sum();
                    weight[i * self.input + j] +=
                        path.row_scale[i].to_f64() * sum * path.column_scale[j].to_f64();
                }
            }
        }
        weight
    }

    pub(crate) fn packed(&self) -> FactorizedLinear {
        let paths = self
            .paths
            .iter()
            .map(|path| Factor {
                left: pack(&path.left, self.out, path.rank),
                right: pack(&path.right, path.rank, self.input),
                row_scale: path.row_scale.clone(),
                latent_scale: path.latent_scale.clone(),
                column_scale: path.column_scale.clone(),
                scale_type: path.scale_type,
            })
            .collect();
        FactorizedLinear { out_features: self.out, in_features: self.input, paths }
    }
}

/// Values of random codes by the formula of the document; both ends and zero are among them.
fn logarithmic_scales(rng: &mut ChaCha8Rng, count: usize) -> Vec<f16> {
    let low = f16::from_f32(rng.random_range(0.01..0.5));
    let high = f16::from_f32(rng.random_range(0.5..4.0));
    let ratio = high.to_f64() / low.to_f64();
    let mut codes: Vec<u8> = (0..count).map(|_| rng.random()).collect();
    codes[..3].copy_from_slice(&[255, 0, 1]);
    codes
        .into_iter()
        .map(|code| match code {
            0 => f16::ZERO,
            code => f16::from_f64(low.to_f64() * ratio.powf((f64::from(code) - 1.0) / 254.0)),
        })
        .collect()
}

/// Signs, row-major, as the byte columns of [`BitMatrix`].
fn pack(signs: &[i8], rows: usize, cols: usize) -> BitMatrix {
    let mut bytes = vec![0u8; cols.div_ceil(8) * rows];
    for i in 0..rows {
        for j in 0..cols {
            if signs[i * cols + j] > 0 {
                bytes[j / 8 * rows + i] |= 1 << (j % 8);
            }
        }
    }
    BitMatrix { rows, cols, bytes: SharedBytes::from_vec(bytes) }
}

/// A tensor of the sample.
pub(crate) enum Plain {
    Stored(StoredType, Vec<usize>, Vec<u8>),
    Factorized(PlainLinear),
}

pub(crate) struct Sample {
    pub description: Description,
    pub tensors: IndexMap<String, Plain>,
}

/// With both types of scales.
pub(crate) fn sample(seed: u64) -> Sample {
    sample_with(seed, ScaleType::Log8)
}

/// With f16 scales, and `log8` in the places where the sample has codes.
pub(crate) fn sample_with(seed: u64, log8: ScaleType) -> Sample {
    use ScaleType::F16;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = IndexMap::new();
    let bytes = |rng: &mut ChaCha8Rng, n: usize| (0..n).map(|_| rng.random()).collect::<Vec<u8>>();
    let embedding = bytes(rng, 48 * 64 / 32 * 34);
    tensors.insert(
        "model.embed_tokens.weight".into(),
        Plain::Stored(StoredType::Q8_0, vec![48, 64], embedding),
    );
    for block in 0..2 {
        let norm = |rng: &mut ChaCha8Rng| {
            let values = (0..64).flat_map(|_| rng.random::<f32>().to_le_bytes()).collect();
            Plain::Stored(StoredType::F32, vec![64], values)
        };
        let name = |part: &str| format!("model.layers.{block}.{part}.weight");
        tensors.insert(name("input_layernorm"), norm(rng));
        for (linear, out, input, ranks) in [
            ("self_attn.q_proj", 64, 64, &[(24, false, F16)][..]),
            ("self_attn.k_proj", 32, 64, &[(8, false, F16), (5, false, log8)]),
            ("self_attn.v_proj", 32, 64, &[(11, true, F16)]),
            ("self_attn.o_proj", 64, 64, &[(64, true, log8), (64, true, log8)]),
            ("mlp.gate_proj", 77, 64, &[(16, false, log8)]),
            ("mlp.up_proj", 77, 64, &[(9, true, log8)]),
            ("mlp.down_proj", 64, 77, &[(1, false, F16)]),
        ] {
            let linear_weight = PlainLinear::random(rng, out, input, ranks);
            tensors.insert(name(linear), Plain::Factorized(linear_weight));
        }
        tensors.insert(name("post_attention_layernorm"), norm(rng));
    }
    let norm = (0..64).flat_map(|_| rng.random::<f32>().to_le_bytes()).collect();
    tensors.insert("model.norm.weight".into(), Plain::Stored(StoredType::F32, vec![64], norm));
    let description = Description {
        about: About {
            tool: "llm-quantize 0.1.0".into(),
            source: Source {
                name: Some("org/sample".into()),
                format: "huggingface".into(),
                identity: Some("sha256:00ff".into()),
            },
            command: Some(vec!["llm-quantize".into(), "littlebit".into(), "--x=\"é\"".into()]),
            target_bpw: 0.55,
            original_size_bytes: 123_456,
            settings: Settings::from([
                ("solver".to_string(), "admm".into()),
                ("seed".to_string(), 7u64.into()),
                ("damping".to_string(), 0.05.into()),
            ]),
            calibration: Some(Calibration {
                name: Some("some text".into()),
                sha256: "ab".repeat(32),
            }),
        },
        files: vec![
            TextFile { name: "config.json".into(), text: CONFIG.into() },
            TextFile { name: "tokenizer.json".into(), text: TOKENIZER.into() },
        ],
        tensors: tensors
            .iter()
            .map(|(name, tensor)| TensorPlan { name: name.clone(), kind: plan(tensor) })
            .collect(),
    };
    Sample { description, tensors }
}

fn plan(tensor: &Plain) -> TensorKind {
    match tensor {
        Plain::Stored(dtype, shape, _) => {
            TensorKind::Stored { dtype: *dtype, shape: shape.clone() }
        }
        Plain::Factorized(linear) => TensorKind::Factorized {
            out_features: linear.out,
            in_features: linear.input,
            paths: linear
                .paths
                .iter()
                .map(|path| PathPlan {
                    rank: path.rank,
                    latent_scale: path.latent_scale.is_some(),
                    scale_type: path.scale_type,
                })
                .collect(),
        },
    }
}

impl Sample {
    /// The whole file.
    pub(crate) fn write(&self) -> Vec<u8> {
        self.write_to(Cursor::new(Vec::new()), Path::new("sample.littlebit")).into_inner()
    }

    /// The whole file, into `out`.
    pub(crate) fn write_to<W: Write + Seek>(&self, out: W, path: &Path) -> W {
        let mut writer = Writer::new(out, path, &self.description).unwrap();
        for (name, tensor) in &self.tensors {
            assert_eq!(writer.next_tensor(), Some(name.as_str()));
            match tensor {
                Plain::Stored(_, _, bytes) => writer
                    .stored(name, |section| {
                        bytes.chunks(100).try_for_each(|part| section.write(part))
                    })
                    .unwrap(),
                Plain::Factorized(linear) => writer
                    .factorized(name, &linear.packed(), linear.errors.0, linear.errors.1)
                    .unwrap(),
            }
        }
        writer.finish().unwrap()
    }
}
