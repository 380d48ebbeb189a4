//! What will be written, and what would fail or disappoint, before any work.

use std::sync::Arc;

use safetensors::Dtype;

use super::layout::{DOWN, Layout};
use super::request::{GROUP, GroupSize, Method, PackedRequest};
use crate::arch::ModelConfig;
use crate::base::lists::some_of;
use crate::codec::affine::PlainType;
use crate::files::model_directory::TensorSlot;
use crate::files::packed::{awq, gptq, w8a8};
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// A planned directory.
#[derive(Debug, Clone)]
pub(crate) struct PackedPlan {
    /// All tensors, in the order in which they are written.
    pub slots: Vec<TensorSlot>,
    /// The layers of a block.
    pub layout: Arc<Layout>,
    /// Columns that share a scale in each of them; the whole row for SmoothQuant.
    pub groups: Vec<usize>,
    /// Group size as the configuration states it; `None` for whole rows.
    pub group: Option<usize>,
    /// Type of what is not packed.
    pub plain: PlainType,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Bytes of the packed layers' tensors.
    pub packed_bytes: u64,
    /// Weights of the packed layers.
    pub packed_weights: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl PackedPlan {
    /// Bits per weight of the packed layers, scales and zero points included.
    #[must_use]
    pub(crate) fn bits_per_weight(&self) -> f64 {
        self.packed_bytes as f64 * 8.0 / self.packed_weights.max(1) as f64
    }

    /// Place of a layer among those of its block; `None` for tensors outside of blocks.
    #[must_use]
    pub(crate) fn linear(&self, layer: &str) -> Option<usize> {
        let rest = layer.strip_prefix("model.layers.")?;
        let (_, name) = rest.split_once('.')?;
        self.layout.slots.iter().position(|slot| slot.name == name)
    }

    /// Safetensors type of what is not packed.
    #[must_use]
    pub(crate) fn plain_dtype(&self) -> Dtype {
        match self.plain {
            PlainType::F16 => Dtype::F16,
            PlainType::BF16 => Dtype::BF16,
        }
    }
}

/// Plans a directory.
///
/// # Errors
/// [`Error::UnsupportedConversion`] for models that are in factors, or whose shapes the layout cannot
/// hold; [`Error::InvalidArgument`] for groups that do not divide a layer's inputs.
pub(crate) fn plan(model: &LocalModel, request: &PackedRequest) -> Result<PackedPlan> {
    let config = &model.config;
    if model.weights.values().any(|weight| !matches!(weight, Weight::Stored(_))) {
        return Err(Error::UnsupportedConversion(format!(
            "{} is compressed already; quantize the original model",
            model.name
        )));
    }
    let layout = Arc::new(Layout::of(config)?);
    let mut warnings = Vec::new();
    let group = group(request, &layout, &mut warnings)?;
    refuse_shapes(request.method, &layout)?;
    let groups: Vec<usize> = layout.shapes().map(|(_, inputs)| group.unwrap_or(inputs)).collect();
    warnings.extend(kernel_warnings(request.method, group, &layout));
    warnings.extend(source_warning(model, &layout));
    let plain = match request.method {
        Method::SmoothQuant(_) if config.torch_dtype == "bfloat16" => PlainType::BF16,
        // The kernels of AWQ and GPTQ that everybody has compute in f16.
        _ => PlainType::F16,
    };
    let mut plan = PackedPlan {
        slots: Vec::new(),
        layout,
        groups,
        group,
        plain,
        tensor_bytes: 0,
        packed_bytes: 0,
        packed_weights: 0,
        warnings,
    };
    for (name, weight) in &model.weights {
        let layer =
            name.strip_suffix(".weight").and_then(|layer| Some((layer, plan.linear(layer)?)));
        let Some((layer, linear)) = layer else {
            let shape = weight.shape();
            plan.slots.push(TensorSlot { name: name.clone(), dtype: plan.plain_dtype(), shape });
            continue;
        };
        let (out, inputs) = plan.layout.shape(linear);
        let group = plan.groups[linear];
        let slots = match request.method {
            Method::Gptq(settings) => gptq::slots(layer, out, inputs, settings.bits, group),
            Method::Awq => awq::slots(layer, out, inputs, group),
            Method::SmoothQuant(_) => w8a8::slots(layer, out, inputs, plan.plain_dtype()),
        };
        for slot in &slots {
            plan.packed_bytes += slot.bytes()?;
        }
        plan.packed_weights += (out * inputs) as u64;
        plan.slots.extend(slots);
    }
    in_writing_order(&mut plan.slots, config.num_layers);
    plan.tensor_bytes = plan.slots.iter().map(TensorSlot::bytes).sum::<Result<u64>>()?;
    Ok(plan)
}

/// Embeddings, the blocks one after the other, the final norm, the head.
fn in_writing_order(slots: &mut [TensorSlot], blocks: usize) {
    slots.sort_by_key(|slot| match slot.name.strip_prefix("model.layers.") {
        Some(rest) => {
            rest.split('.').next().and_then(|n| n.parse().ok()).map_or(blocks, |n: usize| n + 1)
        }
        None if slot.name.starts_with("model.embed_tokens") => 0,
        None => blocks + 1,
    });
}

fn group(
    request: &PackedRequest,
    layout: &Layout,
    warnings: &mut Vec<String>,
) -> Result<Option<usize>> {
    if matches!(request.method, Method::SmoothQuant(_)) {
        return Ok(None);
    }
    let fits = |group: usize| layout.shapes().all(|(_, inputs)| inputs.is_multiple_of(group));
    let misfits = |group: usize| {
        let list: Vec<String> = layout
            .shapes()
            .enumerate()
            .filter(|(_, (_, inputs))| !inputs.is_multiple_of(group))
            .map(|(linear, (_, inputs))| format!("{} ({inputs})", layout.short_name(linear)))
            .collect();
        some_of(&list.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let smaller =
        |group: usize| [128, 64, 32, 16].into_iter().find(|&size| size < group && fits(size));
    match request.group {
        GroupSize::Row => Ok(None),
        GroupSize::Columns(group) if fits(group) => Ok(Some(group)),
        GroupSize::Columns(group) => {
            let instead = smaller(group).map_or("-1".to_owned(), |size| format!("{size} or -1"));
            Err(Error::InvalidArgument(format!(
                "groups of {group} do not divide the inputs of {}; vLLM and the other kernels refuse \
                 such a checkpoint; use --group-size {instead}",
                misfits(group)
            )))
        }
        GroupSize::Default if fits(GROUP) => Ok(Some(GROUP)),
        GroupSize::Default => {
            let instead = smaller(GROUP);
            let size = instead.map_or("whole rows".to_owned(), |size| format!("groups of {size}"));
            warnings.push(format!(
                "groups of {GROUP} do not divide the inputs of {}: {size} are used instead",
                misfits(GROUP)
            ));
            Ok(instead)
        }
    }
}

fn refuse_shapes(method: Method, layout: &Layout) -> Result<()> {
    for slot in &layout.slots {
        let (linear, out, inputs) = (&slot.name, slot.out, slot.inputs);
        let (fits, needs) = match method {
            Method::Gptq(settings) => (
                crate::codec::affine::gptq::fits(out, inputs, settings.bits),
                format!(
                    "rows and columns of {}-bit integers must fill 32-bit words",
                    settings.bits
                ),
            ),
            Method::Awq => (out.is_multiple_of(8), "outputs must be a multiple of 8".to_owned()),
            Method::SmoothQuant(_) => (true, String::new()),
        };
        if !fits {
            return Err(Error::UnsupportedConversion(format!(
                "{linear} of [{out}, {inputs}] does not fit the layout: {needs}"
            )));
        }
    }
    Ok(())
}

/// Which runtimes will be slow with it, or refuse it.
fn kernel_warnings(method: Method, group: Option<usize>, layout: &Layout) -> Option<String> {
    // vLLM joins the layers of a stage that share an input.
    let odd = |out_step: usize, in_step: usize| {
        let list: Vec<String> = layout
            .stages
            .iter()
            .filter_map(|stage| {
                let out: usize = stage.iter().map(|&linear| layout.shape(linear).0).sum();
                let inputs = layout.shape(stage[0]).1;
                let names: Vec<&str> =
                    stage.iter().map(|&linear| layout.short_name(linear)).collect();
                let fits = out.is_multiple_of(out_step) && inputs.is_multiple_of(in_step);
                (!fits).then(|| format!("{} [{out}, {inputs}]", names.join("+")))
            })
            .collect();
        (!list.is_empty()).then(|| list.join(", "))
    };
    match method {
        Method::Gptq(settings) => {
            let size = group.map_or("-1".to_owned(), |group| group.to_string());
            let mut reasons = Vec::new();
            if !matches!(settings.bits, 4 | 8) {
                reasons.push(format!("{} bits", settings.bits));
            }
            if !settings.symmetric {
                reasons.push("zero points".into());
            }
            if !matches!(group, None | Some(32 | 64 | 128)) {
                reasons.push(format!("groups of {size}"));
            }
            if reasons.is_empty() {
                odd(64, 128).map(|list| {
                    format!(
                        "vLLM's fast kernels (Marlin) want outputs in multiples of 64 and inputs in \
                         multiples of 128; not so: {list}. It runs in vLLM's slower f16 kernels, and \
                         in transformers with GPTQModel"
                    )
                })
            } else {
                Some(format!(
                    "{} miss vLLM's fast kernels (Marlin: 4 or 8 bits, symmetric, groups of 32, 64, \
                     128 or -1): vLLM runs it in its slower f16 kernels; transformers with GPTQModel \
                     and this program read it too",
                    reasons.join(", ")
                ))
            }
        }
        Method::Awq => {
            let group_reason = (!matches!(group, None | Some(32 | 64 | 128)))
                .then(|| format!("groups of {}", group.unwrap_or_default()));
            group_reason.or_else(|| odd(64, 128)).map(|list| {
                format!(
                    "vLLM's fast kernels (Marlin) want groups of 32, 64, 128 or -1, outputs in \
                     multiples of 64 and inputs in multiples of 128; not so: {list}. Its plain AWQ \
                     kernels and AutoAWQ take it"
                )
            })
        }
        Method::SmoothQuant(_) => odd(16, 16).map(|list| {
            format!("vLLM's int8 kernels (CUTLASS) want sizes in multiples of 16; not so: {list}")
        }),
    }
}

/// A source that is quantized already has lost something that no calibration brings back.
fn source_warning(model: &LocalModel, layout: &Layout) -> Option<String> {
    let down = &layout.slots[layout.stages[DOWN][0]];
    let linear = ModelConfig::module_name(0, &down.name);
    match model.weights.get(&format!("{linear}.weight")) {
        Some(Weight::Stored(tensor)) if tensor.dtype.block().0 > 1 => Some(format!(
            "the source is quantized already ({}); what it lost stays lost, and the original model \
             gives a better result",
            tensor.dtype.name()
        )),
        _ => None,
    }
}
