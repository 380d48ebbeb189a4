//! Against rounding by hand, where every factor that was moved is known.

use std::path::Path;

use crate::base::SharedBytes;
use crate::base::progress::NullProgress;
use crate::codec::StoredType;
use crate::job::quality::layers::{LayerError, layer_errors};
use crate::model::{self, LocalModel};
use crate::weight::{StoredTensor, Weight};

const HIDDEN: usize = 128;

fn tiny() -> LocalModel {
    model::open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
}

fn values(model: &LocalModel, name: &str) -> Vec<f32> {
    let Weight::Stored(tensor) = &model.weights[name] else { panic!("{name}") };
    tensor.to_f32()
}

fn set(model: &mut LocalModel, name: &str, values: &[f32]) {
    let shape = model.weights[name].shape();
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = StoredTensor::new(shape, StoredType::F32, SharedBytes::from_vec(bytes)).unwrap();
    model.weights.insert(name.to_owned(), Weight::Stored(tensor));
}

/// A factor between 1/8 and 8 that looks like chance.
fn factor(index: usize, salt: usize) -> f32 {
    let mixed = (index * 2_654_435_761 + salt * 40_503).wrapping_mul(2_246_822_519) % 1_000;
    8f32.powf(mixed as f32 / 500.0 - 1.0)
}

/// A matrix by name, and the factors of its rows and columns.
type Scaled<'f> = (&'f str, &'f dyn Fn(usize) -> f32, &'f dyn Fn(usize) -> f32);

/// A matrix of the quantized model: what was rounded, and the factors that were moved into its rows
/// and columns.
struct Moved<'f> {
    name: &'f str,
    divided: &'f dyn Fn(usize) -> f32,
    multiplied: &'f dyn Fn(usize) -> f32,
}

/// `round` of the moved matrix replaces it; gives squared error and squared size of the weight that
/// the model then applies, with the factors as they were.
fn quantize(model: &mut LocalModel, moved: &Moved<'_>, round: &dyn Fn(&mut [f32])) -> (f64, f64) {
    let before = values(model, moved.name);
    let columns = model.weights[moved.name].cols();
    let mut error = 0.0;
    let mut after = Vec::with_capacity(before.len());
    for (row, line) in before.chunks_exact(columns).enumerate() {
        let divided = (moved.divided)(row);
        let mut stored: Vec<f32> = (0..columns)
            .map(|column| line[column] / divided * (moved.multiplied)(column))
            .collect();
        round(&mut stored);
        for (column, (&stored, &exact)) in stored.iter().zip(line).enumerate() {
            let applied =
                f64::from(stored) * f64::from(divided) / f64::from((moved.multiplied)(column));
            error += (applied - f64::from(exact)).powi(2);
        }
        after.extend(stored);
    }
    set(model, moved.name, &after);
    (error, before.iter().map(|&value| f64::from(value).powi(2)).sum())
}

/// Signed 8 bits with a scale for the row.
fn int8(row: &mut [f32]) {
    let scale = row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
    row.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
}

/// `levels` between the least and the largest of each 32.
fn groups<const LEVELS: usize>(row: &mut [f32]) {
    for group in row.chunks_mut(32) {
        let low = group.iter().copied().fold(f32::INFINITY, f32::min);
        let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (high - low) / (LEVELS - 1) as f32;
        group.iter_mut().for_each(|value| *value = ((*value - low) / scale).round() * scale + low);
    }
}

/// Signs with one size for the row.
fn signs(row: &mut [f32]) {
    let size = row.iter().map(|value| value.abs()).sum::<f32>() / row.len() as f32;
    row.iter_mut().for_each(|value| *value = size.copysign(*value));
}

fn one(_: usize) -> f32 {
    1.0
}

/// Blocks with scales moved through norms, from o into v and from down into up; all rounded.
/// Gives the errors that are known, of attention and of the MLP of each block.
fn moved(model: &mut LocalModel, round: &dyn Fn(&mut [f32])) -> Vec<f64> {
    let config = model.config.clone();
    let (dim, share) = (config.head_dim, config.num_heads / config.num_kv_heads);
    let mut errors = Vec::new();
    for block in 0..config.num_layers {
        let at = |part: &str| format!("model.layers.{block}.{part}.weight");
        let attention = move |column: usize| factor(column, 4 * block);
        let head = move |row: usize| factor(row, 4 * block + 1);
        let mlp = move |column: usize| factor(column, 4 * block + 2);
        let inner = move |row: usize| factor(row, 4 * block + 3);
        // Which row of v a column of o multiplies.
        let fed = move |column: usize| {
            let (query_head, place) = (column / dim, column % dim);
            head((query_head / share) * dim + place)
        };
        for (norm, factor) in [
            ("input_layernorm", &attention as &dyn Fn(usize) -> f32),
            ("post_attention_layernorm", &mlp),
        ] {
            let weights = values(model, &at(norm));
            let divided: Vec<f32> =
                weights.iter().enumerate().map(|(i, &weight)| weight / factor(i)).collect();
            set(model, &at(norm), &divided);
        }
        let parts: [&[Scaled]; 2] = [
            &[
                ("self_attn.q_proj", &one, &attention),
                ("self_attn.k_proj", &one, &attention),
                ("self_attn.v_proj", &head, &attention),
                ("self_attn.o_proj", &one, &fed),
            ],
            &[
                ("mlp.gate_proj", &one, &mlp),
                ("mlp.up_proj", &inner, &mlp),
                ("mlp.down_proj", &one, &inner),
            ],
        ];
        for part in parts {
            let (mut error, mut size) = (0.0, 0.0);
            for (name, divided, multiplied) in part {
                let moved = Moved { name: &at(name), divided: *divided, multiplied: *multiplied };
                let sums = quantize(model, &moved, round);
                error += sums.0;
                size += sums.1;
            }
            errors.push(error / size);
        }
    }
    errors
}

fn found(model: &LocalModel) -> Vec<LayerError> {
    let all = layer_errors(&tiny(), model, &NullProgress).unwrap();
    all.into_iter().filter(|layer| layer.layer_name.starts_with("model.layers")).collect()
}

/// Relative difference of what is reported and what is known.
fn check(model: &LocalModel, known: &[f64], tolerance: f64) {
    let found = found(model);
    assert_eq!(found.len(), known.len());
    for (layer, known) in found.iter().zip(known) {
        assert!(layer.rescaled, "{layer:?}");
        assert!(
            (layer.relative_error - known).abs() < tolerance * known,
            "{}: {} instead of {known}",
            layer.layer_name,
            layer.relative_error
        );
    }
}

#[test]
fn scales_moved_before_8_bits_leave_the_error_of_rounding() {
    let mut model = tiny();
    let known = moved(&mut model, &int8);
    assert!(known.iter().all(|error| *error > 1e-6 && *error < 0.01), "{known:?}");
    check(&model, &known, 0.002);
}

#[test]
fn scales_moved_before_few_bits_leave_the_error_of_rounding() {
    for (round, tolerance) in [(&groups::<16> as &dyn Fn(&mut [f32]), 0.01), (&groups::<4>, 0.02)] {
        let mut model = tiny();
        let known = moved(&mut model, round);
        check(&model, &known, tolerance);
    }
}

#[test]
fn scales_moved_without_rounding_leave_nothing() {
    let mut model = tiny();
    moved(&mut model, &|_| {});
    for layer in found(&model) {
        assert!(layer.rescaled && layer.relative_error < 1e-10, "{layer:?}");
    }
}

#[test]
fn one_factor_for_all_rows_is_moved_back() {
    let mut model = tiny();
    for (name, by) in [("v_proj", 2.5), ("o_proj", 1.0 / 2.5)] {
        let name = format!("model.layers.1.self_attn.{name}.weight");
        let scaled: Vec<f32> = values(&model, &name).iter().map(|value| value * by).collect();
        set(&mut model, &name, &scaled);
    }
    let found = found(&model);
    assert!(found.iter().all(|layer| layer.relative_error < 1e-10), "{found:?}");
    assert_eq!(found.iter().filter(|layer| layer.rescaled).count(), 1);
}

/// What rounding alone does to the size of rows is an error, and is counted as one.
#[test]
fn rounding_is_not_taken_for_a_scale() {
    type Round = dyn Fn(&mut [f32]);
    for (round, name) in [
        (&int8 as &Round, "8 bits"),
        (&groups::<16>, "4 bits"),
        (&groups::<4>, "2 bits"),
        (&signs, "1 bit"),
    ] {
        let mut model = tiny();
        let mut known = Vec::new();
        for block in 0..model.config.num_layers {
            for part in [
                &["q_proj", "k_proj", "v_proj", "o_proj"][..],
                &["gate_proj", "up_proj", "down_proj"],
            ] {
                let module = if part.len() == 4 { "self_attn" } else { "mlp" };
                let (mut error, mut size) = (0.0, 0.0);
                for linear in part {
                    let name = format!("model.layers.{block}.{module}.{linear}.weight");
                    let moved = Moved { name: &name, divided: &one, multiplied: &one };
                    let sums = quantize(&mut model, &moved, round);
                    error += sums.0;
                    size += sums.1;
                }
                known.push(error / size);
            }
        }
        for (layer, known) in found(&model).iter().zip(known) {
            assert!(!layer.rescaled, "{name}: {layer:?}");
            assert!((layer.relative_error - known).abs() < 1e-6 * known, "{name}: {layer:?}");
        }
    }
}

/// Rows of one matrix that are too large are an error where nothing makes up for it.
#[test]
fn a_scale_that_nothing_takes_back_is_an_error() {
    let mut model = tiny();
    let name = "model.layers.0.mlp.up_proj.weight";
    let scaled: Vec<f32> = values(&model, name)
        .iter()
        .enumerate()
        .map(|(index, value)| value * factor(index / HIDDEN, 9))
        .collect();
    set(&mut model, name, &scaled);
    let found = found(&model);
    let layer = found.iter().find(|layer| layer.layer_name == "model.layers.0.mlp").unwrap();
    assert!(!layer.rescaled && layer.relative_error > 0.5, "{layer:?}");
}
