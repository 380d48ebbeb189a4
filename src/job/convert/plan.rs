//! What becomes of every tensor, found out before anything is written.

use indexmap::IndexMap;

use super::compare::Difference;
use super::gguf::GgufPlan;
use super::grids::{self, TargetGrid};
use crate::arch::tensors::linear_of_block;
use crate::base::progress::Progress;
use crate::base::suggest::did_you_mean;
use crate::codec::StoredType;
use crate::codec::affine::gptq::{self, Version};
use crate::codec::affine::{Grouped, awq};
use crate::job::gguf::{Level, SourceOptions};
use crate::model::{LocalModel, ModelFormat};
use crate::weight::{PackedKind, PackedTensor, Weight};
use crate::{Error, Result};

/// What a model is converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One GGUF file.
    Gguf,
    /// A directory with 4-bit integers in AutoAWQ's GEMM layout.
    Awq,
    /// A directory with 2-, 3-, 4- or 8-bit integers in GPTQ's layout.
    Gptq,
    /// A directory of plain numbers.
    Hf,
}

impl Format {
    /// `gguf`, `awq`, `gptq` or `hf`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::Hf => "hf",
        }
    }
}

/// A conversion that is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The format to write.
    pub format: Format,
    /// Level of a GGUF file, bits of GPTQ (`4bit`), type of plain numbers (`F16`); the one that loses
    /// least if `None`.
    pub level: Option<String>,
    /// Inputs that share a scale (AWQ, GPTQ); -1 is a whole row.
    pub group: Option<i64>,
    /// Largest file of a directory, bytes of tensors.
    pub max_shard_bytes: u64,
    /// Whether a GGUF file says where the model comes from.
    pub provenance: bool,
    /// The file or directory to write.
    pub output: std::path::PathBuf,
}

impl Request {
    /// Refuses levels and groups that the format cannot have, whatever the model is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::InvalidArgument(what.to_owned()));
        match (self.format, self.group) {
            (Format::Gguf, Some(_)) => {
                return wrong(
                    "--group-size does nothing for gguf: its types have blocks of their own",
                );
            }
            (Format::Hf, Some(_)) => return wrong("--group-size does nothing for hf"),
            (_, Some(group)) if group != -1 && group <= 0 => {
                return wrong(&format!("--group-size {group}: -1 or a positive number"));
            }
            _ => {}
        }
        let Some(level) = &self.level else { return Ok(()) };
        match self.format {
            Format::Gguf => Level::parse(level).map(drop),
            Format::Hf => plain_type(level).map(drop).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{level} is no level of hf{}; there is F16, BF16 and F32",
                    did_you_mean(level, ["F16", "BF16", "F32"])
                ))
            }),
            Format::Awq | Format::Gptq => bits(self, std::iter::empty()).map(drop),
        }
    }
}

/// Refuses, without a look at a weight, what [`plan`] would refuse for the shapes of a model.
///
/// # Errors
/// Those of [`plan`].
pub(crate) fn refuse_early(model: &LocalModel, request: &Request) -> Result<()> {
    refuse(model, request)?;
    if request.format == Format::Gguf {
        let options = SourceOptions { provenance: request.provenance, ..SourceOptions::default() };
        return crate::job::gguf::open(&model.path, &options).map(drop);
    }
    target(model, request).map(drop)
}

/// A format with everything that was left open decided.
#[derive(Debug)]
pub(crate) enum Target {
    /// A GGUF file.
    Gguf(Box<GgufPlan>),
    /// GPTQ on that grid; `None` is one group for each row.
    Gptq(u8, Option<usize>),
    /// AWQ with that group; `None` is one group for each row.
    Awq(Option<usize>),
    /// Plain numbers.
    Hf(StoredType),
}

/// A conversion that is decided.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is written.
    pub target: Target,
    /// What the source is: `gguf`, `gptq`, `awq`, `smoothquant`.
    pub from: &'static str,
    /// The linear layers of the blocks, by the name of their weight: whether each keeps its values.
    pub layers: IndexMap<String, bool>,
    /// Whether all zero points are in the middle (GPTQ).
    pub symmetric: bool,
    /// How zero points are stored (GPTQ).
    pub version: Version,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The format of a model as this command names it; `None` for what it does not convert.
#[must_use]
pub(crate) fn format_of(model: &LocalModel) -> Option<&'static str> {
    match (model.format, model.packed().map(PackedTensor::kind)) {
        (ModelFormat::Gguf, _) => Some("gguf"),
        (_, Some(PackedKind::Gptq(_))) => Some("gptq"),
        (_, Some(PackedKind::Awq)) => Some("awq"),
        (_, Some(PackedKind::W8A8)) => Some("smoothquant"),
        _ => None,
    }
}

/// Decides everything, and finds out which layers keep their values, by comparing all of them.
///
/// # Errors
/// [`Error::UnsupportedConversion`] for pairs of formats that cannot be; [`Error::InvalidArgument`] for
/// a level or group that the target cannot have; [`Error::Interrupted`].
pub(crate) fn plan(model: &LocalModel, request: &Request, progress: &dyn Progress) -> Result<Plan> {
    let from = refuse(model, request)?;
    if request.format == Format::Gguf {
        return super::gguf::plan(model, request, from, progress);
    }
    if request.group.is_some() && request.format == Format::Hf {
        return Err(Error::InvalidArgument("--group-size does nothing for hf".into()));
    }
    let mut plan = Plan {
        target: target(model, request)?,
        from,
        layers: IndexMap::new(),
        symmetric: true,
        version: Version::V1,
        warnings: Vec::new(),
    };
    let linear: Vec<(&String, &Weight)> =
        model.weights.iter().filter(|(name, _)| is_linear(name)).collect();
    progress.start("Looking for grids", linear.len() as u64, "layers");
    for (name, weight) in linear {
        let exact = if let Target::Hf(dtype) = plan.target {
            holds(dtype, weight)
        } else {
            let layer = plan.carried(weight);
            if let Some(layer) = &layer {
                let middle = Grouped::middle(layer.bits);
                plan.symmetric &= layer.zeros.iter().all(|&zero| zero == middle);
                if layer.zeros.contains(&0) {
                    plan.version = Version::V2;
                }
            }
            layer.is_some()
        };
        plan.layers.insert(name.clone(), exact);
        weight.release();
        progress.advance(1);
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    plan.warn();
    Ok(plan)
}

/// Whether a tensor is the weight of a linear layer of a block, the ones that are packed.
#[must_use]
pub(crate) fn is_linear(name: &str) -> bool {
    linear_of_block(name).is_some()
}

/// Pairs of formats that cannot be. Returns the format of the source.
fn refuse(model: &LocalModel, request: &Request) -> Result<&'static str> {
    let refused = |what: String| Err(Error::UnsupportedConversion(what));
    let path = model.path.display();
    let Some(from) = format_of(model) else {
        return refused(match model.format {
            ModelFormat::LittleBit => {
                format!("{path} holds binary factors: `littlebit convert` is for those")
            }
            _ => format!("{path} is not quantized: `quantize` makes GGUF, AWQ and GPTQ of it"),
        });
    };
    if model.weights.values().any(|weight| matches!(weight, Weight::Factorized(_))) {
        return refused(format!("{path} holds binary factors: `littlebit convert` is for those"));
    }
    if from == request.format.name() {
        return refused(match from {
            "gguf" => format!("{path} is GGUF already: `quantize` changes its level"),
            _ => format!("{path} is {from} already"),
        });
    }
    Ok(from)
}

/// Bits and groups: those asked for, else those that keep most of the source.
fn target(model: &LocalModel, request: &Request) -> Result<Target> {
    let linear = || model.weights.iter().filter(|(name, _)| is_linear(name)).map(|(_, w)| w);
    if request.format == Format::Hf {
        return dense_type(model, request.level.as_deref()).map(Target::Hf);
    }
    let bits = bits(request, linear())?;
    let group = match request.group {
        Some(-1) => None,
        Some(group) => {
            Some(usize::try_from(group).ok().filter(|&group| group > 0).ok_or_else(|| {
                Error::InvalidArgument(format!("--group-size {group}: -1 or a positive number"))
            })?)
        }
        None => default_group(model, bits, linear()),
    };
    for weight in linear() {
        let (out, inputs) = (weight.rows(), weight.cols());
        let size = group.unwrap_or(inputs);
        if !inputs.is_multiple_of(size) {
            return Err(Error::InvalidArgument(format!(
                "--group-size {size} does not divide the {inputs} inputs of a layer"
            )));
        }
        let fits = match request.format {
            Format::Awq => awq::fits(out, inputs, size),
            _ => gptq::fits(out, inputs, bits),
        };
        if !fits {
            return Err(Error::UnsupportedConversion(format!(
                "a layer of {out} x {inputs} does not fill the words of {}",
                request.format.name()
            )));
        }
    }
    Ok(match request.format {
        Format::Awq => Target::Awq(group),
        _ => Target::Gptq(bits, group),
    })
}

fn bits<'a>(request: &Request, linear: impl Iterator<Item = &'a Weight>) -> Result<u8> {
    if let Some(level) = &request.level {
        let lower = level.to_lowercase();
        let bits = lower.strip_suffix("bit").or(lower.strip_suffix("-bit")).unwrap_or(&lower);
        let possible: &[u8] = if request.format == Format::Awq { &[4] } else { &[2, 3, 4, 8] };
        return bits.parse().ok().filter(|bits| possible.contains(bits)).ok_or_else(|| {
            let list: Vec<String> = possible.iter().map(|bits| format!("{bits}bit")).collect();
            Error::InvalidArgument(format!(
                "{level} is no level of {}{}; there is {}",
                request.format.name(),
                did_you_mean(level, list.iter().map(String::as_str)),
                list.join(", ")
            ))
        });
    }
    if request.format == Format::Awq {
        return Ok(4);
    }
    // 8 bits where that keeps all values and 4 would not: simple blocks and W8A8.
    let mut needs = 4;
    for weight in linear {
        needs = needs.max(match weight {
            Weight::Packed(tensor) => tensor.bits(),
            Weight::Stored(tensor) => match tensor.dtype {
                StoredType::Q5_0 | StoredType::Q8_0 => 8,
                StoredType::Q4_0 | StoredType::Q4_1 => 4,
                // Nothing keeps all values then.
                _ => return Ok(4),
            },
            Weight::Factorized(_) => 4,
        });
    }
    Ok(needs)
}

/// The source's own groups; those of blocks, 32, for GGUF; the largest that fits up to 128 where 8-bit
/// integers with one scale per row become 4-bit ones.
fn default_group<'a>(
    model: &LocalModel,
    bits: u8,
    linear: impl Iterator<Item = &'a Weight>,
) -> Option<usize> {
    let inputs: Vec<usize> = linear.map(Weight::cols).collect();
    let fits = |group: &usize| inputs.iter().all(|inputs| inputs.is_multiple_of(*group));
    match model.packed() {
        Some(packed) if packed.kind() == PackedKind::W8A8 && bits < 8 => {
            [128, 64, 32].into_iter().find(fits)
        }
        Some(packed) if packed.group() == packed.cols() => None,
        Some(packed) => Some(packed.group()),
        None => [32, 16, 8].into_iter().find(fits),
    }
}

/// The type of plain numbers: the one asked for, else F16.
fn dense_type(model: &LocalModel, level: Option<&str>) -> Result<StoredType> {
    let level = level.unwrap_or("F16");
    plain_type(level).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "{level} is no level of hf{}; there is F16, BF16 and F32 ({} has {})",
            did_you_mean(level, ["F16", "BF16", "F32"]),
            model.name,
            model.config.torch_dtype
        ))
    })
}

/// A type of plain numbers.
fn plain_type(level: &str) -> Option<StoredType> {
    StoredType::from_name(level)
        .filter(|kind| matches!(kind, StoredType::F32 | StoredType::F16 | StoredType::BF16))
}

/// Whether a type of plain numbers holds all values of a weight.
fn holds(dtype: StoredType, weight: &Weight) -> bool {
    use rayon::prelude::*;
    (0..weight.rows()).into_par_iter().all(|row| {
        let mut values = vec![0.0f32; weight.cols()];
        weight.read_rows(row..row + 1, &mut values);
        values.iter().all(|&value| rounded(value, dtype) - value == 0.0)
    })
}

/// A number as a type of plain numbers holds it.
#[must_use]
pub(super) fn rounded(value: f32, dtype: StoredType) -> f32 {
    match dtype {
        StoredType::F16 => half::f16::from_f32(value).to_f32(),
        StoredType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

impl Plan {
    /// A layer on the target's grid with all values kept, if the grid holds it.
    pub(super) fn carried(&self, weight: &Weight) -> Option<Grouped> {
        let (bits, group) = match self.target {
            Target::Gptq(bits, group) => (bits, group),
            Target::Awq(group) => (4, group),
            _ => return None,
        };
        let group = group.unwrap_or_else(|| weight.cols());
        if let Weight::Packed(tensor) = weight
            && tensor.kind() != PackedKind::W8A8
            && tensor.bits() == bits
            && tensor.group() == group
            && !tensor.is_reordered()
        {
            // The integers as they are, groups of any size.
            // Scales of other types than f16 may have other values there.
            return tensor.to_grouped().ok().filter(|layer| {
                let groups = layer.groups();
                layer.scales.iter().enumerate().all(|(at, scale)| {
                    scale.to_f32().to_bits() == tensor.scale(at / groups, at % groups).to_bits()
                })
            });
        }
        grids::carry_over(weight, TargetGrid { bits, group })
    }

    /// Whether a layer loses what can be noticed: rounded to another grid, or to the 8 bits of BF16.
    /// Numbers that are rounded to F16 (by a two-thousandth at most) do not count.
    #[must_use]
    pub(crate) fn is_lossy(&self) -> bool {
        !matches!(self.target, Target::Hf(StoredType::F16))
            && self.layers.values().any(|exact| !exact)
    }

    /// Layers that keep their values, and all layers.
    #[must_use]
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.layers.values().filter(|exact| **exact).count(), self.layers.len())
    }

    /// The level as the user reads it: `4bit-g32`, `Q4_0`.
    #[must_use]
    pub(crate) fn level(&self) -> String {
        let grid = |bits: u8, group: Option<usize>| match group {
            Some(group) => format!("{bits}bit-g{group}"),
            None => format!("{bits}bit-channel"),
        };
        match &self.target {
            Target::Gguf(plan) => plan.level_name(),
            Target::Gptq(bits, group) => grid(*bits, *group),
            Target::Awq(group) => grid(4, *group),
            Target::Hf(dtype) => dtype.name().to_owned(),
        }
    }

    /// `gguf`, `awq`, `gptq` or `hf`.
    #[must_use]
    pub(crate) fn format(&self) -> &'static str {
        match &self.target {
            Target::Gguf(_) => "gguf",
            Target::Gptq(..) => "gptq",
            Target::Awq(_) => "awq",
            Target::Hf(_) => "hf",
        }
    }

    fn warn(&mut self) {
        if matches!(self.target, Target::Hf(StoredType::F16))
            && self.layers.values().any(|exact| !exact)
        {
            self.warnings.push(self.loss());
        }
        if let (Target::Gptq(..), Version::V2) = (&self.target, self.version) {
            self.warnings.push(
                "some zero points are 0, which version 1 of GPTQ checkpoints cannot store: this is \
                 version 2 (checkpoint_format gptq_v2), which GPTQModel and vLLM read and AutoGPTQ \
                 does not"
                    .to_owned(),
            );
        }
        if let (Target::Gptq(..), false) = (&self.target, self.symmetric) {
            self.warnings.push(
                "zero points are not all in the middle: vLLM's Marlin kernel does not take that, \
                 slower kernels do"
                    .to_owned(),
            );
        }
    }

    /// What the user is asked about: how much is rounded again, and how.
    #[must_use]
    pub(crate) fn loss(&self) -> String {
        let (kept, all) = self.kept();
        let how = match &self.target {
            Target::Gguf(plan) => plan.level_name(),
            Target::Hf(dtype) => {
                return format!(
                    "{} of {all} layers hold numbers that {} does not: they are rounded to it (F32 \
                     holds all)",
                    all - kept,
                    dtype.name()
                );
            }
            Target::Awq(_) | Target::Gptq(..) => self.level(),
        };
        format!(
            "{} of {all} layers do not fit the grid of {} and are rounded to the nearest again ({how}), \
             without calibration: quality is lost, and `quantize` from the original loses less",
            all - kept,
            self.format()
        )
    }

    /// Whether what was written is what was promised.
    pub(super) fn check(&self, found: &[Difference], path: &std::path::Path) -> Result<()> {
        let broken =
            found.iter().find(|found| !found.exact && self.layers.get(&found.name) == Some(&true));
        match broken {
            None => Ok(()),
            Some(found) => Err(Error::damaged(
                path,
                format!("{} should have kept its values and has others", found.name),
            )),
        }
    }
}
