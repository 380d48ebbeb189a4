//! The plan: type and size of every tensor, and the exact bytes of the files, before any work.

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::budget;
use super::level::Level;
use super::mix::{self, Decision, ModelFacts, TensorFacts};
use super::model::GgufModel;
use super::protect::Protection;
use super::request::{Goal, QuantizeRequest};
use super::tensor::GgufTensor;
use crate::arch::role;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::codec::ggml::{self, ImportanceUse};
use crate::files::checkpoint::hexadecimal;
use crate::files::gguf::{FileLayout, PlannedTensor, Value};
use crate::files::imatrix::ImportanceMatrix;
use crate::weight::PackedTensor;
use crate::{Error, Result};

/// The version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// A tensor of the plan.
#[derive(Debug, Clone)]
pub struct PlannedWork {
    /// Type in the file.
    pub kind: StoredType,
    /// Why it gets that type.
    pub decision: Decision,
    /// Whether the importance matrix has it.
    pub important: bool,
}

/// Everything that is known before the work.
#[derive(Debug)]
pub struct QuantizePlan {
    /// One for each tensor of the model, in its order.
    pub tensors: Vec<PlannedWork>,
    /// Where every byte will lie.
    pub layout: FileLayout,
    /// The level, or the one whose base type most weights have.
    pub level: Level,
    /// The level as the user reads it.
    pub level_name: String,
    /// Bits of all files per weight.
    pub bits_per_weight: f64,
    /// Bits of the tensors' data per weight, as llama-quantize counts them.
    pub tensor_bits_per_weight: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Options that decide about no tensor, and why.
    pub idle_options: Vec<String>,
    /// Names of tensors that are worthless without an importance matrix and have none.
    pub lacking_importance: Vec<String>,
    /// Whether the level as a whole needs an importance matrix and there is none.
    pub level_lacks_importance: bool,
    /// The super weights, if they are protected.
    pub protection: Option<Protection>,
    /// Of a budget: the sum of what each tensor's error is expected to cost the model, nats per
    /// token.
    pub expected_loss: Option<f64>,
}

/// The facts of a model that the rules ask for.
#[must_use]
pub(crate) fn facts(model: &GgufModel) -> ModelFacts {
    ModelFacts {
        architecture: model.architecture.clone(),
        layers: model.shape.layers,
        heads: model.shape.heads,
        kv_heads: model.shape.kv_heads,
        experts: model.shape.experts,
    }
}

/// How many matrices a tensor stacks: one for each expert.
#[must_use]
pub(crate) fn matrices(tensor: &GgufTensor) -> usize {
    tensor.shape.iter().rev().skip(2).product()
}

/// The importance of a tensor's columns, if the matrix has it. Embeddings of another size are passed
/// over, as in llama.cpp; other tensors of another size are an error.
pub(crate) fn importance_of<'a>(
    matrix: Option<&'a ImportanceMatrix>,
    tensor: &GgufTensor,
) -> Result<Option<&'a [f32]>> {
    let Some(matrix) = matrix else { return Ok(None) };
    let found = matrix.columns(&tensor.name, matrices(tensor), tensor.cols());
    match found {
        Err(_) if role::role(&tensor.name) == role::Role::Embedding => Ok(None),
        found => found,
    }
}

/// Chooses types and lays out the files.
///
/// # Errors
/// [`Error::UnsupportedConversion`] for types that cannot be written and for quantizing what is
/// quantized already without being asked to; [`Error::Imatrix`] for an importance matrix of another
/// model; [`Error::InvalidArgument`] for a budget or a split that cannot be met.
pub(crate) fn plan(
    model: &GgufModel,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<QuantizePlan> {
    let facts = facts(model);
    let tensors: Vec<TensorFacts<'_>> = model
        .tensors
        .iter()
        .map(|tensor| TensorFacts { name: &tensor.name, shape: &tensor.shape })
        .collect();
    let protection = match (request.protection_coverage, &request.importance) {
        (Some(coverage), Some(importance)) => {
            Some(Protection::find(model, importance, coverage, progress)?)
        }
        (Some(_), None) => {
            return Err(Error::InvalidArgument(
                "super weights are found with an importance matrix (--imatrix)".into(),
            ));
        }
        (None, _) => None,
    };
    let with_importance = request.importance.is_some();
    let mut plan = if let Goal::Level(level) = request.goal {
        let overrides = &request.overrides;
        let mut decisions = mix::plan_types(&facts, &tensors, level, with_importance, overrides);
        if let Some(protection) = &protection {
            lift_protected(model, request, protection, &mut decisions)?;
        }
        assemble(model, request, decisions, Some(level))?
    } else {
        let chosen =
            budget::choose(model, &facts, &tensors, request, protection.as_ref(), progress)?;
        let mut plan = assemble(model, request, chosen.decisions, None)?;
        plan.warnings.extend(chosen.warnings);
        plan.expected_loss = Some(chosen.expected_loss);
        plan
    };
    plan.protection = protection;
    Ok(plan)
}

/// Gives the tensors of a level's mix that hold super weights a type that keeps them.
fn lift_protected(
    model: &GgufModel,
    request: &QuantizeRequest,
    protection: &Protection,
    decisions: &mut [Decision],
) -> Result<()> {
    for (tensor, decision) in model.tensors.iter().zip(decisions) {
        let chosen_by_level =
            matches!(decision.reason, mix::Reason::Level | mix::Reason::Mix | mix::Reason::Output);
        let (Some(kind), true) = (decision.kind, chosen_by_level) else { continue };
        let importance = importance_of(request.importance.as_ref(), tensor)?;
        let lifted = protection.lift(tensor, kind, importance)?;
        if lifted != kind {
            *decision =
                Decision { kind: Some(lifted), reason: mix::Reason::Protected, instead_of: None };
        }
    }
    Ok(())
}

/// Turns decisions into a plan.
pub(super) fn assemble(
    model: &GgufModel,
    request: &QuantizeRequest,
    decisions: Vec<Decision>,
    level: Option<Level>,
) -> Result<QuantizePlan> {
    let mut lacking_importance = Vec::new();
    let mut tensors = Vec::with_capacity(decisions.len());
    for (tensor, decision) in model.tensors.iter().zip(decisions) {
        let decision = if tensor.stored_type().is_copied() {
            Decision { kind: None, reason: mix::Reason::Kept, instead_of: None }
        } else {
            decision
        };
        let kind = kind_to_write(tensor, &decision, request.allow_requantize)?;
        let important = kind != tensor.source_type
            && importance_of(request.importance.as_ref(), tensor)?.is_some();
        let target = decision.kind.filter(|_| kind != tensor.source_type);
        if !important && target.is_some_and(|kind| mix::needs_importance(&tensor.name, kind, level))
        {
            lacking_importance.push(tensor.name.clone());
        }
        tensors.push(PlannedWork { kind, decision, important });
    }
    let level_of_file = level.unwrap_or_else(|| prevailing(model, &tensors));
    let metadata = metadata(model, request, level_of_file);
    let planned: Vec<PlannedTensor> = model
        .tensors
        .iter()
        .zip(&tensors)
        .map(|(tensor, work)| PlannedTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            kind: work.kind,
        })
        .collect();
    let layout = FileLayout::new(&metadata, &planned, request.split_max)?;
    let weights = model.parameters().max(1) as f64;
    let data: u64 = layout.tensor_bytes().iter().sum();
    let mut plan = QuantizePlan {
        bits_per_weight: layout.total_bytes() as f64 * 8.0 / weights,
        tensor_bits_per_weight: data as f64 * 8.0 / weights,
        level: level_of_file,
        level_name: match request.goal {
            Goal::Level(level) => level.name().to_owned(),
            Goal::Bytes(bytes) => format!("{bytes} bytes"),
            Goal::BitsPerWeight(bits) => format!("{bits} bpw"),
            Goal::TensorBits(_) | Goal::Loss(_) | Goal::Rules => "dynamic".to_owned(),
        },
        protection: None,
        expected_loss: None,
        tensors,
        layout,
        warnings: Vec::new(),
        idle_options: Vec::new(),
        lacking_importance,
        level_lacks_importance: request.importance.is_none()
            && level.is_some_and(Level::needs_importance),
    };
    plan.warnings = warnings(model, request, &plan);
    plan.idle_options = idle_options(model, request, &plan);
    Ok(plan)
}

fn kind_to_write(
    tensor: &GgufTensor,
    decision: &Decision,
    allow_requantize: bool,
) -> Result<StoredType> {
    let Some(kind) = decision.kind else { return Ok(tensor.source_type) };
    let stored = kind;
    if stored != tensor.source_type && !ggml::can_encode(stored) {
        return Err(Error::UnsupportedConversion(format!(
            "{} would be {}, a type that this version cannot write (choose another level, or another \
             type for this tensor with --tensor-type)",
            tensor.name,
            kind.name()
        )));
    }
    let source = tensor.source_type.for_weights();
    let packed = tensor.packed().filter(|_| kind.is_quantized());
    let quantized = source.is_none_or(StoredType::is_quantized) || packed.is_some();
    if stored != tensor.source_type && quantized && !allow_requantize {
        return Err(Error::UnsupportedConversion(format!(
            "{} is already quantized to {}: quantizing it to {} loses more than quantizing the \
             original would (start from a model in F16, BF16 or F32, or pass --allow-requantize)",
            tensor.name,
            packed.map_or_else(|| tensor.source_type.name().to_owned(), PackedTensor::type_name),
            kind.name()
        )));
    }
    Ok(stored)
}

/// The level whose base type most weights have: what the file calls itself when types were chosen
/// one by one.
fn prevailing(model: &GgufModel, tensors: &[PlannedWork]) -> Level {
    let mut weights: IndexMap<StoredType, usize> = IndexMap::new();
    for (tensor, work) in model.tensors.iter().zip(tensors) {
        *weights.entry(work.kind).or_default() += tensor.elements();
    }
    let most = weights.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind);
    let kind = most.and_then(StoredType::for_weights).unwrap_or(StoredType::F32);
    // Of several levels of one base type the medium one, which a person would name first.
    let mut levels: Vec<Level> = Level::all().filter(|level| level.base() == kind).collect();
    levels.sort_by_key(|level| !level.name().ends_with("_M"));
    levels.first().copied().unwrap_or(Level::F32)
}

/// The metadata of the file: the model's and what was done to it.
fn metadata(model: &GgufModel, request: &QuantizeRequest, level: Level) -> IndexMap<String, Value> {
    let mut metadata = model.metadata.clone();
    let mut set = |key: &str, value: Value| {
        // What the user set with --override-kv stays.
        metadata.entry(key.to_owned()).or_insert(value);
    };
    set("general.quantization_version", QUANTIZATION_VERSION.into());
    set("general.file_type", level.file_type().into());
    if let Some(matrix) = request.importance.as_ref().filter(|_| request.provenance) {
        let file = matrix.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        set("quantize.imatrix.file", file.into());
        if let Some(dataset) = matrix.datasets.first() {
            set("quantize.imatrix.dataset", dataset.as_str().into());
        }
        set("quantize.imatrix.entries_count", (matrix.entries.len() as u32).into());
        if matrix.chunks > 0 {
            set("quantize.imatrix.chunks_count", matrix.chunks.into());
        }
    }
    metadata
}

fn warnings(model: &GgufModel, request: &QuantizeRequest, plan: &QuantizePlan) -> Vec<String> {
    let mut out = model.warnings.clone();
    let fallbacks = plan.tensors.iter().filter(|work| work.decision.instead_of.is_some()).count();
    if fallbacks > 0 {
        out.push(format!(
            "{fallbacks} of {} tensors have rows that do not fill the level's blocks and get a \
             larger type: {:.2} bits per weight of the tensors' data",
            plan.tensors.len(),
            plan.tensor_bits_per_weight
        ));
    }
    let few_values = [Level::TQ1_0, Level::TQ2_0, Level::Q1_0, Level::Q2_0];
    if matches!(request.goal, Goal::Level(level) if few_values.contains(&level)) {
        out.push(format!(
            "{} is for models that were trained to two, three or four values: others write nonsense",
            plan.level_name
        ));
    }
    if request.goal == Goal::Level(Level::MXFP4_MOE)
        && !plan.tensors.iter().any(|work| work.kind == StoredType::MXFP4)
    {
        out.push(
            "MXFP4_MOE writes only the matrices of experts as MXFP4, and this model has none: all of \
             them become Q8_0 (--tensor-type weight=mxfp4 --pure writes MXFP4 all the same)"
                .to_owned(),
        );
    }
    if let Some(matrix) = &request.importance {
        let quantized = |(tensor, work): &(&GgufTensor, &PlannedWork)| {
            work.kind != tensor.source_type
                && work.decision.kind.is_some_and(StoredType::is_quantized)
        };
        let pairs = || model.tensors.iter().zip(&plan.tensors).filter(quantized);
        // llama-imatrix does not measure these by default.
        let unmeasured = pairs()
            .filter(|(tensor, work)| {
                let role = role::role(&tensor.name);
                !work.important && !matches!(role, role::Role::Embedding | role::Role::Output)
            })
            .count();
        if unmeasured > 0 {
            out.push(format!(
                "{} has no entry for {unmeasured} of {} quantized tensors",
                matrix.path.display(),
                pairs().count()
            ));
        }
    }
    out.extend(lacking(plan));
    let packed = model.tensors.iter().any(|tensor| tensor.packed().is_some());
    if packed || StoredType::from_name(&model.source_dtype).is_some_and(StoredType::is_quantized) {
        out.push(format!(
            "the source is already quantized ({}): the result is worse than one from the original",
            model.source_dtype
        ));
    }
    out
}

/// Options that decide about no tensor.
fn idle_options(model: &GgufModel, request: &QuantizeRequest, plan: &QuantizePlan) -> Vec<String> {
    let mut out = Vec::new();
    let quantizable = |tensor: &&GgufTensor| tensor.may_be_quantized();
    let all: Vec<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let able: Vec<&str> =
        model.tensors.iter().filter(quantizable).map(|tensor| tensor.name.as_str()).collect();
    let unmatched = request.overrides.unused(&all);
    for pattern in request.overrides.unused(&able) {
        out.push(if unmatched.contains(&pattern) {
            format!("--tensor-type {pattern} matches no tensor")
        } else {
            format!("--tensor-type {pattern} matches only tensors that are never quantized")
        });
    }
    for pattern in request.overrides.patterns() {
        let decides = plan
            .tensors
            .iter()
            .any(|work| work.decision.reason == mix::Reason::Override(pattern.to_owned()));
        if !decides && able.iter().any(|name| request.overrides.finds(pattern, name)) {
            out.push(format!(
                "--tensor-type {pattern} decides about no tensor: options before it have them all"
            ));
        }
    }
    let tied = !all.contains(&"output.weight");
    if request.overrides.leave_output && tied {
        out.push(
            "--leave-output-tensor changes nothing: the embeddings serve as the output matrix, and \
             llama-quantize quantizes them too (--token-embedding-type F16 keeps them)"
                .to_owned(),
        );
    }
    let decides = |reason: &mix::Reason| plan.tensors.iter().any(|w| w.decision.reason == *reason);
    if request.overrides.output.is_some() && !decides(&mix::Reason::OutputOption) {
        out.push(
            "--output-tensor-type decides about no tensor: the embeddings serve as the output matrix, \
             and their type follows from the level or from --token-embedding-type"
                .to_owned(),
        );
    }
    if request.overrides.embedding.is_some() && !decides(&mix::Reason::EmbeddingOption) {
        out.push(
            "--token-embedding-type decides about no tensor: there are no embeddings".to_owned(),
        );
    }
    let weighs = |work: &PlannedWork| {
        work.important && ggml::importance_use(work.kind) != ImportanceUse::Ignored
    };
    if let (Goal::Level(level), Some(matrix)) = (request.goal, &request.importance)
        && request.protection_coverage.is_none()
        && !plan.tensors.iter().any(weighs)
    {
        out.push(format!(
            "--imatrix {} does nothing for {}: no type in the file weighs errors by importance",
            matrix.path.display(),
            level.name()
        ));
    }
    out
}

/// Why the plan cannot be carried out without an importance matrix, if it cannot.
#[must_use]
pub(crate) fn lacking(plan: &QuantizePlan) -> Option<String> {
    let names = &plan.lacking_importance;
    let Some(first) = names.first() else {
        return plan.level_lacks_importance.then(|| {
            format!(
                "{0} needs an importance matrix, even where no tensor becomes {1}: llama-quantize \
                 refuses the level without one, too",
                plan.level_name,
                plan.level.base().name()
            )
        });
    };
    let more = match names.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more tensors"),
    };
    Some(format!(
        "{} needs an importance matrix: without one {first}{more} would be worthless",
        plan.level_name
    ))
}

impl QuantizePlan {
    /// SHA-256 over the headers of all files: equal for equal metadata, names, shapes and types.
    #[must_use]
    pub fn header_hash(&self) -> String {
        let mut hash = Sha256::new();
        for file in self.layout.files() {
            hash.update((file.header().len() as u64).to_le_bytes());
            hash.update(file.header());
        }
        hexadecimal(&hash.finalize())
    }
}
