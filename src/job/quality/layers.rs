//! How far the weights of each layer are from the original's, exactly: both models are decoded a
//! few hundred rows at a time.
//!
//! Quantizers may move scales from a linear layer into what comes before it (AWQ, `SmoothQuant`).
//! Then neither tensor can be compared alone: the scales are moved back first (`folds`), and the
//! error is that of the weight which the quantized model applies, in the original's terms.

use indexmap::IndexMap;
use rayon::prelude::*;
use serde::Serialize;

use super::folds::{Factors, Folds};
use crate::base::progress::Progress;
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// Values that are decoded at a time.
const CHUNK_VALUES: usize = 1 << 20;

/// Error of the weights of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LayerError {
    /// `model.layers.0.self_attn`, `model.layers.0.mlp`, `model.embed_tokens` or `lm_head`.
    pub layer_name: String,
    /// Mean of `(w − ŵ)²` over the layer's parameters.
    pub mse: f64,
    /// Largest `|w − ŵ|`.
    pub max_error: f64,
    /// `Σ (w − ŵ)² / Σ w²`: comparable between layers of different size and scale.
    pub relative_error: f64,
    /// Bits that a parameter takes in the quantized model, scales included.
    pub bit_width: f64,
    /// Parameters, biases included; norms are not counted.
    pub parameter_count: u64,
    /// Whether scales had been moved between this layer's tensors and were moved back to compare.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescaled: bool,
}

/// Sums over a tensor or a layer.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    squared_error: f64,
    squared_weight: f64,
    largest: f64,
    parameters: u64,
    bytes: u64,
    rescaled: bool,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.squared_error += other.squared_error;
        self.squared_weight += other.squared_weight;
        self.largest = self.largest.max(other.largest);
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        self.rescaled |= other.rescaled;
    }
}

/// Compares every matrix and bias of two models of the same shape.
///
/// # Errors
/// [`Error::ValidationFailed`] when a tensor is missing or has another shape;
/// [`Error::Interrupted`].
pub(crate) fn layer_errors(
    original: &LocalModel,
    quantized: &LocalModel,
    progress: &dyn Progress,
) -> Result<Vec<LayerError>> {
    let compared: Vec<(&String, &Weight)> =
        original.weights.iter().filter(|(name, _)| layer_of(name).is_some()).collect();
    let values: u64 = compared.iter().map(|(_, weight)| weight.elements() as u64).sum();
    progress.start("Comparing weights", values, "values");
    let mut layers: IndexMap<String, Sums> = IndexMap::new();
    let mut folds = Folds::new(original, quantized);
    for (name, weight) in compared {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        let Some(layer) = layer_of(name) else { continue };
        let other = counterpart(quantized, name, weight)?;
        let sums = compare(weight, other, &folds.of(name)?);
        weight.release();
        other.release();
        layers.entry(layer.to_owned()).or_default().add(&sums);
        progress.advance(weight.elements() as u64);
    }
    progress.finish();
    let mut layers: Vec<(String, Sums)> = layers.into_iter().collect();
    layers.sort_by_cached_key(|(name, _)| order(name));
    Ok(layers.into_iter().map(|(name, sums)| report(name, &sums)).collect())
}

fn report(layer_name: String, sums: &Sums) -> LayerError {
    let count = sums.parameters.max(1) as f64;
    LayerError {
        layer_name,
        mse: sums.squared_error / count,
        max_error: sums.largest,
        relative_error: if sums.squared_weight > 0.0 {
            sums.squared_error / sums.squared_weight
        } else {
            0.0
        },
        bit_width: sums.bytes as f64 * 8.0 / count,
        parameter_count: sums.parameters,
        rescaled: sums.rescaled,
    }
}

/// The layer that a tensor belongs to; none for norms.
fn layer_of(tensor: &str) -> Option<&str> {
    let module = tensor.rsplit_once('.')?.0;
    if module.ends_with("norm") {
        return None;
    }
    if module.starts_with("model.layers.") {
        Some(module.rsplit_once('.')?.0)
    } else {
        Some(module)
    }
}

/// Embeddings, blocks by number, head.
fn order(layer: &str) -> (usize, usize, String) {
    match layer.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((number, part)) => {
            let part = if part == "self_attn" { "" } else { part };
            (1, number.parse().unwrap_or(usize::MAX), part.to_owned())
        }
        None => (if layer == "lm_head" { 2 } else { 0 }, 0, layer.to_owned()),
    }
}

/// The quantized model's tensor. A head that the original ties to its embedding may be stored
/// apart there; it is the embedding that is compared then.
pub(super) fn counterpart<'m>(
    quantized: &'m LocalModel,
    name: &str,
    weight: &Weight,
) -> Result<&'m Weight> {
    let tied = quantized.config.tie_word_embeddings && name == "lm_head.weight";
    let name = if tied { "model.embed_tokens.weight" } else { name };
    match quantized.weights.get(name) {
        Some(other) if other.shape() == weight.shape() => Ok(other),
        Some(other) => Err(Error::damaged(
            &quantized.path,
            format!("{name} has the shape {:?}, not {:?}", other.shape(), weight.shape()),
        )),
        None => Err(Error::damaged(&quantized.path, format!("{name} is missing"))),
    }
}

fn compare(original: &Weight, quantized: &Weight, factors: &Factors) -> Sums {
    let shape = original.shape();
    let (rows, columns) = match *shape.as_slice() {
        [length] => (1, length),
        [rows, columns] => (rows, columns),
        _ => (1, 0),
    };
    let mut sums = Sums {
        parameters: original.elements() as u64,
        bytes: quantized.stored_bytes() as u64,
        rescaled: factors.any(),
        ..Sums::default()
    };
    let step = row_step(columns);
    for first in (0..rows).step_by(step) {
        let range = first..rows.min(first + step);
        let mut before = vec![0.0; range.len() * columns];
        let mut after = before.clone();
        read_in_parallel(original, range.clone(), columns, &mut before);
        read_in_parallel(quantized, range.clone(), columns, &mut after);
        let parts: Vec<Sums> = before
            .par_chunks(columns.max(1))
            .zip(after.par_chunks(columns.max(1)))
            .enumerate()
            .map(|(row, (before, after))| compare_row(before, after, factors, range.start + row))
            .collect();
        parts.iter().for_each(|part| sums.add(part));
    }
    sums
}

/// Rows of `columns` values that are decoded at a time.
pub(super) fn row_step(columns: usize) -> usize {
    (CHUNK_VALUES / columns.max(1)).max(1)
}

/// Stored rows decode one by one, so they are shared out; factors multiply out a range at once, on
/// all cores by themselves.
pub(super) fn read_in_parallel(
    weight: &Weight,
    rows: std::ops::Range<usize>,
    columns: usize,
    out: &mut [f32],
) {
    if let Weight::Factorized(_) = weight {
        weight.read_rows(rows, out);
        return;
    }
    out.par_chunks_mut(columns.max(1)).enumerate().for_each(|(index, out)| {
        let row = rows.start + index;
        weight.read_rows(row..row + 1, out);
    });
}

fn compare_row(before: &[f32], after: &[f32], factors: &Factors, row: usize) -> Sums {
    let mut sums = Sums::default();
    for (column, (&before, &after)) in before.iter().zip(after).enumerate() {
        let error = f64::from(after) * factors.at(row, column) - f64::from(before);
        sums.squared_error += error * error;
        sums.squared_weight += f64::from(before) * f64::from(before);
        sums.largest = sums.largest.max(error.abs());
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::SharedBytes;
    use crate::base::progress::NullProgress;
    use crate::codec::StoredType;
    use crate::model;
    use crate::weight::StoredTensor;

    fn tiny() -> LocalModel {
        model::open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
    }

    fn change(model: &mut LocalModel, name: &str, change: impl Fn(usize, f32) -> f32) {
        let Weight::Stored(tensor) = &model.weights[name] else { panic!("{name}") };
        let values = tensor.to_f32();
        let bytes =
            values.iter().enumerate().flat_map(|(i, &v)| change(i, v).to_le_bytes()).collect();
        let tensor =
            StoredTensor::new(tensor.shape.clone(), StoredType::F32, SharedBytes::from_vec(bytes));
        model.weights.insert(name.to_owned(), Weight::Stored(tensor.unwrap()));
    }

    #[test]
    fn every_parameter_but_norms_is_in_a_layer() {
        let model = tiny();
        let errors = layer_errors(&model, &model, &NullProgress).unwrap();
        let names: Vec<&str> = errors.iter().map(|e| e.layer_name.as_str()).collect();
        assert_eq!(
            names[..3],
            ["model.embed_tokens", "model.layers.0.self_attn", "model.layers.0.mlp"]
        );
        assert_eq!(names.len(), 9);
        let counted: u64 = errors.iter().map(|e| e.parameter_count).sum();
        // Nine norms of width 128.
        assert_eq!(counted + 9 * 128, model.parameter_count());
        for error in &errors {
            assert!(error.mse.abs() < 1e-30 && error.max_error.abs() < 1e-30, "{error:?}");
            assert!((error.bit_width - 16.0).abs() < 1e-12 && !error.rescaled, "{error:?}");
        }
    }

    #[test]
    fn errors_are_those_that_were_made() {
        let original = tiny();
        let mut other = tiny();
        // Row 3, column 5 of a matrix of 128 columns.
        let at = 3 * 128 + 5;
        change(
            &mut other,
            "model.layers.1.mlp.up_proj.weight",
            |i, v| {
                if i == at { v + 0.5 } else { v }
            },
        );
        change(&mut other, "model.layers.1.mlp.gate_proj.weight", |i, v| {
            if i == 0 { v - 0.25 } else { v }
        });
        let errors = layer_errors(&original, &other, &NullProgress).unwrap();
        for error in &errors {
            let expected =
                if error.layer_name == "model.layers.1.mlp" { 0.25 + 0.0625 } else { 0.0 };
            let count = error.parameter_count as f64;
            assert!((error.mse * count - expected).abs() < 1e-6, "{error:?}");
            assert!((error.max_error - if expected > 0.0 { 0.5 } else { 0.0 }).abs() < 1e-6);
            // Two of three matrices became f32.
            let bits = if expected > 0.0 { (32.0 + 32.0 + 16.0) / 3.0 } else { 16.0 };
            assert!((error.bit_width - bits).abs() < 1e-9, "{error:?}");
        }
    }

    #[test]
    fn scales_that_moved_into_a_norm_are_no_error() {
        let original = tiny();
        let mut other = tiny();
        let scale = |column: usize| if column.is_multiple_of(3) { 4.0f32 } else { 0.5 };
        for linear in ["q_proj", "k_proj", "v_proj"] {
            let name = format!("model.layers.2.self_attn.{linear}.weight");
            change(&mut other, &name, |i, v| v * scale(i % 128));
        }
        change(&mut other, "model.layers.2.input_layernorm.weight", |i, v| v / scale(i));
        let errors = layer_errors(&original, &other, &NullProgress).unwrap();
        let error = errors.iter().find(|e| e.layer_name == "model.layers.2.self_attn").unwrap();
        assert!(error.rescaled && error.relative_error < 1e-12, "{error:?}");
        assert_eq!(errors.iter().filter(|e| e.rescaled).count(), 1);
    }
}
