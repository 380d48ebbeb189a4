//! What is refused before the work: too little room, and weights that the format cannot hold.

use std::path::Path;

use super::execute::sample_tokens;
use super::gram::Gram;
use super::held;
use super::plan::PackedPlan;
use super::request::{Gptq, Method, PackedRequest};
use crate::base::progress::Progress;
use crate::device::memory;
use crate::files::model_directory::check_target;
use crate::files::space;
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// Memory of the program itself, bytes.
const BASE_MEMORY: u64 = 64 << 20;

/// Refuses what would fail later: weights that are not numbers or do not fit 16 bits, too little
/// memory.
///
/// # Errors
/// [`Error::ValidationFailed`], [`Error::UnsupportedConversion`], [`Error::OutOfMemory`].
pub(super) fn refuse(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    progress: &dyn Progress,
) -> Result<()> {
    refuse_early(model, plan, request)?;
    check_weights(model, plan, request, progress)
}

/// Refuses, without a look at a weight, what would fail later: a target that holds something else or
/// cannot be written, a disk or a memory that is too small, a model without a tokenizer.
///
/// # Errors
/// [`Error::InvalidArgument`], [`Error::Io`], [`Error::OutOfMemory`], [`Error::ModelNotFound`].
pub(crate) fn refuse_early(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
) -> Result<()> {
    check_target(&request.output)?;
    space::check_writable(folder_of(request))?;
    space::check_free_space(folder_of(request), plan.tensor_bytes)?;
    if let Some((message, suggestion)) = memory_shortage(model, plan, request) {
        return Err(Error::OutOfMemory { message, suggestion });
    }
    if request.samples == 0 { Ok(()) } else { model.tokenizer().map(drop) }
}

/// What [`refuse_early`] would refuse for lack of disk or memory, as warnings.
#[must_use]
pub(crate) fn shortages(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
) -> Vec<String> {
    let memory = memory_shortage(model, plan, request)
        .map(|(message, suggestion)| format!("{message}; the run will be refused. {suggestion}"));
    space::shortage(folder_of(request), plan.tensor_bytes).into_iter().chain(memory).collect()
}

fn folder_of(request: &PackedRequest) -> &Path {
    let folder = request.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// What memory is missing, and what would fit, by the same count.
fn memory_shortage(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
) -> Option<(String, String)> {
    let needed = memory_needed(model, plan, request, None);
    let message = memory::shortage(needed, "a block with its calibration")?;
    let mut others = Vec::new();
    let mut other = |words: &str, changed: PackedRequest| {
        others.push((words.to_owned(), memory_needed(model, plan, &changed, None)));
    };
    match request.method {
        Method::Gptq(settings) if settings.bits == 4 => {
            other("`quantize awq`", PackedRequest { method: Method::Awq, ..request.clone() });
        }
        _ => {}
    }
    other(
        "--calibration-samples 0, which rounds to nearest",
        PackedRequest { samples: 0, ..request.clone() },
    );
    Some((message, memory::what_fits(&others, memory::available_bytes())))
}

fn check_weights(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    progress: &dyn Progress,
) -> Result<()> {
    use rayon::prelude::*;
    // Integers of W8A8 have the name of the weight that they are made of.
    let plain: std::collections::HashSet<&str> = plan
        .slots
        .iter()
        .filter(|slot| slot.dtype == plan.plain_dtype())
        .map(|slot| slot.name.as_str())
        .collect();
    progress.start("Checking", model.weights.len() as u64, "tensors");
    let weights: Vec<_> = model.weights.iter().collect();
    let found = weights.into_par_iter().find_map_first(|(name, weight)| {
        progress.advance(1);
        let Weight::Stored(tensor) = weight else { return None };
        if let Some((index, value)) = tensor.first_non_finite() {
            let (row, column) = (index / tensor.cols(), index % tensor.cols());
            let message = format!(
                "{name} has {value:?} at [{row}, {column}]: the weights are damaged, or were never \
                 finite"
            );
            return Some(Error::damaged(&model.path, message));
        }
        if plain.contains(name.as_str()) {
            let values = tensor.to_f32();
            if let Some(at) = values.iter().position(|v| !plan.plain.rounded(*v).is_finite()) {
                let (row, column, value) = (at / tensor.cols(), at % tensor.cols(), values[at]);
                return Some(Error::OutOfRange {
                    message: format!(
                        "{name} has {value:?} at [{row}, {column}], which {} cannot hold",
                        plan.plain.torch_name()
                    ),
                    suggestion:
                        "Weights this large are damage, mostly; `quantize gguf` at BF16 or \
                                 F32 keeps them"
                            .to_owned(),
                });
            }
            let vanish = |v: &f32| *v != 0.0 && plan.plain.rounded(*v) == 0.0;
            let rows = values.chunks_exact(tensor.cols().max(1));
            let zeroed = rows
                .filter(|row| row.iter().any(vanish) && row.iter().all(|v| *v == 0.0 || vanish(v)))
                .count();
            if zeroed > 0 {
                progress.warn(&format!(
                    "{name}: {zeroed} of {} rows become zero: all of their values are smaller than \
                     {} can hold",
                    tensor.rows(),
                    plan.plain.torch_name()
                ));
            }
        } else if let Some((group, linear)) = grid_of(name, plan, request)
            && let Some((row, column, value)) =
                held::first_beyond(tensor, group, linear.bits, linear.symmetric)
        {
            return Some(held::out_of_range(name, row, column, value));
        }
        tensor.bytes.release();
        None
    });
    progress.finish();
    found.map_or(Ok(()), Err)
}

/// The group size and the settings of a layer whose weights are rounded as they are. Other methods
/// move ranges first, which can bring a weight back into reach.
fn grid_of(name: &str, plan: &PackedPlan, request: &PackedRequest) -> Option<(usize, Gptq)> {
    let Method::Gptq(settings) = request.method else { return None };
    let layer = name.strip_suffix(".weight")?;
    let linear = plan.linear(layer)?;
    // In the order of activations, groups are not runs of columns.
    (!settings.desc_act).then_some((plan.groups[linear], settings))
}

/// Bytes of the activations between two blocks.
pub(super) fn activation_bytes(model: &LocalModel, request: &PackedRequest) -> u64 {
    let config = &model.config;
    let tokens = request.samples * sample_tokens(model);
    let attended = match request.method {
        Method::Gptq(_) => config.num_heads * config.head_dim,
        _ => 0,
    };
    (tokens * (config.hidden_size + attended) * 4) as u64
}

/// Memory at the largest step, without the mapped file: a block twice in f32 and once in bytes, the
/// second moments of its widest stage with their factorization, the activations.
pub(super) fn memory_needed(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    activations: Option<u64>,
) -> u64 {
    let block: u64 = plan.layout.shapes().map(|(out, inputs)| (out * inputs) as u64).sum();
    let widest = plan.layout.shapes().map(|(_, inputs)| inputs).max().unwrap_or(0);
    let square = (widest * widest) as u64;
    let moments = match request.method {
        _ if request.samples == 0 => 0,
        // The factorization in f64 with its copy, U and H in f32.
        Method::Gptq(_) => Gram::bytes(widest) + square * (2 * 8 + 2 * 4),
        Method::Awq => plan.layout.shapes().map(|(_, n)| Gram::bytes(n) + (n * n * 4) as u64).sum(),
        Method::SmoothQuant(_) => 0,
    };
    let activations =
        activations.unwrap_or_else(|| activation_bytes(model, request).min(256 << 20));
    BASE_MEMORY + block * 9 + moments + activations
}
