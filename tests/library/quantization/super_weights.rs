//! A super weight, planted: one scalar of a down projection without which the model is nothing.
//!
//! The tiny model gets room (twice the width, more neurons; all of it zero), and norms that divide by
//! the same as before. Then: a constant in an unused channel of the embeddings feeds one new neuron
//! of the last block, whose only way out is one large weight into another unused channel. What it
//! writes there makes the final norm divide by several times more, and the final norm's weights make
//! up for that. If the one scalar is lost, all logits are several times too large.

use std::path::{Path, PathBuf};

use llm_quantize::arch::names;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::device::Backend;
use llm_quantize::files::imatrix::ImportanceMatrix;
use llm_quantize::graph::Decoder;
use llm_quantize::job::Checkpoints;
use llm_quantize::job::gguf::mix::Overrides;
use llm_quantize::job::gguf::{
    Dynamic, Goal, QuantizePlan, QuantizeRequest, SourceOptions, execute, open,
};
use llm_quantize::job::profile::Profile;
use llm_quantize::measure::{InputStatistics, Perplexity};
use llm_quantize::model::{LocalModel, open_local};
use llm_quantize::text::{CalibrationWindows, EvaluationWindows, Protocol};
use llm_quantize::weight::Weight;

const WIDTH: usize = 256;
const INNER: usize = 512;
/// Channels and neuron that the tiny model does not use.
const CONSTANT: usize = 128;
const MASSIVE: usize = 129;
const NEURON: usize = 400;
/// How much more the final norm divides by.
const FACTOR: f32 = 6.0;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

fn held_out(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/corpus").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// `[rows, cols]` in the corner of a larger matrix of zeros.
fn widened(values: &[f32], cols: usize, new_rows: usize, new_cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; new_rows * new_cols];
    for (row, values) in values.chunks_exact(cols).enumerate() {
        out[row * new_cols..row * new_cols + cols].copy_from_slice(values);
    }
    out
}

/// The tiny model with room, and with the super weight `weight` if there is one; `rms` is what the
/// final norm of the tiny model divides by on the mean.
fn write(folder: &Path, weight: Option<f32>) {
    let model = open_local(&tiny()).unwrap();
    let last = model.config.num_layers - 1;
    let mut tensors = Vec::new();
    for (name, tensor) in &model.weights {
        let Weight::Stored(tensor) = tensor else { panic!("{name}") };
        let values = tensor.to_f32();
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (shape, mut values) = if tensor.shape.len() == 1 {
            // Norms divide by √(Σx²/n): twice the channels, √½ of the divisor.
            let scale = if name == "model.norm.weight" && weight.is_some() { FACTOR } else { 1.0 };
            let scaled: Vec<f32> = values.iter().map(|v| v * scale * 0.5f32.sqrt()).collect();
            (vec![WIDTH], widened(&scaled, cols, 1, WIDTH))
        } else {
            let new_rows = if name.contains("gate") || name.contains("up_proj") {
                INNER
            } else if name.contains("down") || name.contains("o_proj") {
                WIDTH
            } else {
                rows
            };
            let new_cols = if name.contains("down") {
                INNER
            } else if name.contains("o_proj") {
                cols
            } else {
                WIDTH
            };
            (vec![new_rows, new_cols], widened(&values, cols, new_rows, new_cols))
        };
        if let Some(weight) = weight {
            let block = format!("model.layers.{last}.");
            match name.strip_prefix(&block).unwrap_or(name) {
                "model.embed_tokens.weight" => {
                    // Small beside what else is in the residual stream.
                    values.chunks_exact_mut(WIDTH).for_each(|row| row[CONSTANT] = 0.02);
                }
                "post_attention_layernorm.weight" => values[CONSTANT] = 100.0,
                "mlp.gate_proj.weight" | "mlp.up_proj.weight" => {
                    values[NEURON * WIDTH + CONSTANT] = 3.0;
                }
                "mlp.down_proj.weight" => values[MASSIVE * INNER + NEURON] = weight,
                _ => {}
            }
        }
        tensors.push((name.clone(), shape, values));
    }
    std::fs::create_dir_all(folder).unwrap();
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| {
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(tiny().join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(tiny().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["hidden_size"] = WIDTH.into();
    config["intermediate_size"] = INNER.into();
    config["torch_dtype"] = "float32".into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn perplexity(path: &Path) -> f64 {
    let model = open_local(path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let text = [held_out("heldout.txt")];
    let windows =
        EvaluationWindows::cut(&text, &tokenizer, Protocol::papers(128), Some(6)).unwrap();
    let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    Perplexity::measure(&decoder, &windows, "", &NullProgress).unwrap().perplexity
}

/// Mean squares of what every linear layer receives.
fn statistics(model: &LocalModel) -> InputStatistics {
    let tokenizer = model.tokenizer().unwrap();
    let text = [held_out("calibration.txt")];
    let windows = CalibrationWindows::sample(&text, &tokenizer, 4, 128, 1).unwrap();
    let mut statistics = InputStatistics::without_clipping();
    let decoder = Decoder::new(model, &Backend::cpu()).unwrap();
    decoder.hidden(&windows.tokens, windows.count(), None, Some(&mut statistics)).unwrap();
    statistics
}

fn importance(folder: &Path) -> ImportanceMatrix {
    let statistics = statistics(&open_local(folder).unwrap());
    let mut out = (statistics.layers.len() as i32).to_le_bytes().to_vec();
    for (name, layer) in &statistics.layers {
        let name = names::to_gguf(&format!("{name}.weight")).unwrap();
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1i32.to_le_bytes());
        out.extend((layer.sum_squares.len() as i32).to_le_bytes());
        layer.mean_squares().iter().for_each(|v| out.extend((*v as f32).to_le_bytes()));
    }
    let path = folder.join("m.imatrix");
    std::fs::write(&path, out).unwrap();
    ImportanceMatrix::open(&path).unwrap()
}

/// The last down projection at one bit, everything else at eight.
const PROFILE: &str = r#"{"profile_id":"p","profile_name":"p","strategy":"custom","layer_assignments":[
    {"layer_name":"blk\\.3\\.ffn_down","bit_width":1.5,"is_protected":false,"type":"Q1_0"},
    {"layer_name":".*","bit_width":8,"is_protected":false}]}"#;

fn quantize(folder: &Path, name: &str, coverage: Option<f64>) -> (PathBuf, QuantizePlan) {
    let model = open(folder, &SourceOptions::default()).unwrap();
    let output = folder.join(name);
    let request = QuantizeRequest {
        goal: Goal::Rules,
        dynamic: Some(Dynamic {
            named: true,
            profile: Profile::parse(PROFILE, "p").unwrap(),
            measured: None,
        }),
        protection_coverage: coverage,
        overrides: Overrides::default(),
        importance: Some(importance(folder)),
        allow_requantize: false,
        provenance: false,
        output: output.clone(),
        split_max: None,
        checkpoints: Checkpoints::Off,
        resume_command: None,
    };
    let (plan, _) =
        execute::quantize(&model, &[folder.to_path_buf()], &request, &NullProgress).unwrap();
    (output, plan)
}

#[test]
fn a_planted_super_weight_wrecks_the_model_when_lost_and_is_saved_by_protection() {
    let folder = tempfile::TempDir::new().unwrap();
    let (plain, planted) = (folder.path().join("plain"), folder.path().join("planted"));
    write(&plain, None);
    // Room alone changes nothing.
    let before = perplexity(&tiny());
    let with_room = perplexity(&plain);
    assert!((with_room / before - 1.0).abs() < 0.02, "{before} {with_room}");

    // What goes into the new neuron's way out, and what the final norm divides by: with a weight of
    // zero the logits are too large already, but the inputs are what they will be.
    write(&planted, Some(0.0));
    let model = open_local(&planted).unwrap();
    let inputs = statistics(&model);
    let activation = inputs.layers["model.layers.3.mlp.down_proj"].mean_squares()[NEURON].sqrt();
    let rms = residual_rms(&model);
    // √(r² + m²/n) = FACTOR · r.
    let massive = rms * f64::from(FACTOR * FACTOR - 1.0).sqrt() * (WIDTH as f64).sqrt();
    let weight = (massive / activation) as f32;
    write(&planted, Some(weight));

    let original = perplexity(&planted);
    write(&planted, Some(0.0));
    let lost = perplexity(&planted);
    write(&planted, Some(weight));
    eprintln!("tiny {before:.2}, planted {original:.2}, lost {lost:.2}; weight {weight}");
    assert!(original < 3.0 * before, "{original} beside {before}");
    assert!(lost > 10.0 * original, "{lost} beside {original}");

    let (control, _) = quantize(&plain, "control.gguf", None);
    let control = perplexity(&control);
    let (unprotected, _) = quantize(&planted, "unprotected.gguf", None);
    let unprotected = perplexity(&unprotected);
    let (protected, plan) = quantize(&planted, "protected.gguf", Some(1e-4));
    let protected = perplexity(&protected);
    eprintln!("control {control:.2}, unprotected {unprotected:.2}, protected {protected:.2}");
    // One bit for that matrix costs something, the lost scalar everything.
    assert!(control < 3.0 * before, "{control}");
    assert!(unprotected > 5.0 * original, "{unprotected}");
    assert!(protected < 1.5 * original, "{protected}");
    let protection = plan.protection.unwrap();
    let found = &protection.tensors["blk.3.ffn_down.weight"];
    assert!(found.positions.contains(&((MASSIVE * INNER + NEURON) as u64)));
    assert!(found.share > 0.5, "{}", found.share);
    assert!(protection.total() < 200, "{}", protection.total());
}

/// What the final norm divides by, on the mean over tokens.
fn residual_rms(model: &LocalModel) -> f64 {
    let tokenizer = model.tokenizer().unwrap();
    let text = [held_out("calibration.txt")];
    let windows = CalibrationWindows::sample(&text, &tokenizer, 4, 128, 1).unwrap();
    let decoder = Decoder::new(model, &Backend::cpu()).unwrap();
    let positions = decoder.positions(windows.count(), windows.length, 0);
    let mut x = decoder.embed(&windows.tokens).unwrap();
    for block in decoder.blocks() {
        x = block.forward(&x, &positions, None, None).unwrap();
    }
    let rows = x.to_vec2::<f32>().unwrap();
    let rms = |row: &Vec<f32>| {
        (row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64).sqrt()
    };
    rows.iter().map(rms).sum::<f64>() / rows.len() as f64
}
