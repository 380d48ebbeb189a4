//! Types under a budget: the smallest expected loss that fits so many bytes.
//!
//! For every matrix that no option fixes, a few rows are written in each type that fits them and
//! read back. The error of a type is `Σ w·(x − y)² / Σ w·x²` over those rows, where `w` is the
//! importance of the column (1 without an importance matrix): the share of the matrix's output that
//! becomes noise. What the model as a whole loses by it is measured, where the request says so
//! ([`crate::profile::sensitivity`]), or estimated by the matrix's role and place
//! ([`crate::profile::weight`]). `hull` picks from the losses and bytes. A profile's rules narrow the
//! types down before that.

mod candidates;
mod hull;

use indexmap::IndexMap;
use rayon::prelude::*;

use self::candidates::CANDIDATES;
use self::hull::{Choice, convex, fill, frontier, room_for};
use super::ggml_type::GgmlType;
use super::level::Level;
use super::mix::{self, Decision, ModelFacts, Reason, TensorFacts};
use super::model::GgufModel;
use super::plan::{assemble, importance_of, matrices};
use super::protect::{Protected, Protection};
use super::request::{Goal, Measured, QuantizeRequest};
use super::tensor::GgufTensor;
use crate::formats::space::describe_bytes;
use crate::profile::sensitivity::{self, Sensitivity};
use crate::profile::{Rules, weight, widths};
use crate::progress::Progress;
use crate::tensor::StoredType;
use crate::{Error, Result};

/// What was chosen.
pub(super) struct Chosen {
    /// One for each tensor.
    pub(super) decisions: Vec<Decision>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
    /// Sum of the expected losses of all matrices, nats per token.
    pub(super) expected_loss: f64,
}

/// Losses beyond this many nats per token are all the same: the model writes nonsense.
const MOST_LOSS: f64 = 50.0;

/// The types of all tensors under the goal of `request`.
///
/// # Errors
/// [`Error::InvalidArgument`] when even the smallest types are too large, [`Error::Profile`] when no
/// rule of a profile names a tensor; what measuring can fail with.
pub(super) fn choose(
    model: &GgufModel,
    facts: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    request: &QuantizeRequest,
    protection: Option<&Protection>,
    progress: &dyn Progress,
) -> Result<Chosen> {
    let named = request.dynamic.as_ref().filter(|dynamic| dynamic.named);
    let rules = named.map(|dynamic| Rules::new(&dynamic.profile)).transpose()?;
    let mut warnings = rules.as_ref().map_or(Ok(Vec::new()), |rules| idle(rules, model))?;
    // A level without a mix leaves only what options decide.
    let with_importance = request.importance.is_some();
    let fixed = mix::plan_types(facts, tensors, Level::F16, with_importance, &request.overrides);
    let measured = measure(model, &fixed, request, rules.as_ref(), protection, progress)?;
    let frontiers = priced(model, facts, tensors, &measured, request, progress)?;
    let decide = |chosen: &[usize]| -> Vec<Decision> {
        fixed
            .iter()
            .zip(frontiers.iter().zip(&measured))
            .zip(chosen)
            .map(|((fixed, (choices, (_, reason))), &at)| match choices.get(at) {
                Some(choice) => {
                    Decision { kind: Some(choice.kind), reason: reason.clone(), instead_of: None }
                }
                None => fixed.clone(),
            })
            .collect()
    };
    let total = |chosen: &[usize]| -> Result<Sizes> {
        let layout = assemble(model, request, decide(chosen), None)?.layout;
        Ok(Sizes { files: layout.total_bytes(), data: layout.tensor_bytes().iter().sum() })
    };
    let least = total(&vec![0; frontiers.len()])?;
    let budget = match request.goal {
        Goal::Loss(loss) => least.files + room_for(&frontiers, loss),
        _ => limit(model, request, rules.as_ref(), &least, &mut warnings)?,
    };
    // Split files have headers of their own, so the room for data is found by trying.
    let mut room = budget - least.files;
    loop {
        let chosen = fill(&frontiers, room);
        let over = total(&chosen)?.files.saturating_sub(budget);
        if over == 0 {
            let losses = frontiers.iter().zip(&chosen);
            let losses = losses.filter_map(|(choices, &at)| choices.get(at));
            return Ok(Chosen {
                decisions: decide(&chosen),
                warnings,
                expected_loss: losses.map(|choice| choice.loss).sum(),
            });
        }
        room = room.saturating_sub(over);
    }
}

/// Bytes of a plan.
struct Sizes {
    /// Of the files.
    files: u64,
    /// Of the tensors in them.
    data: u64,
}

/// The choices for each tensor that no option fixes, and why these.
fn measure(
    model: &GgufModel,
    fixed: &[Decision],
    request: &QuantizeRequest,
    rules: Option<&Rules>,
    protection: Option<&Protection>,
    progress: &dyn Progress,
) -> Result<Vec<(Vec<Choice>, Reason)>> {
    let alignment = match model.metadata.get("general.alignment") {
        Some(value) => value.as_u64().unwrap_or(32).max(1),
        None => 32,
    };
    let free = request.goal == Goal::Rules;
    let choices = |tensor: &GgufTensor| {
        let (kinds, reason) = kinds_of(tensor, rules, free, request);
        let Some(protected) = protection.and_then(|p| p.of(&tensor.name)) else {
            return Ok((candidates::measure(tensor, &kinds, request, alignment, None)?, reason));
        };
        let kept = keeping(tensor, &kinds, request, alignment, protected)?;
        Ok((kept, Reason::Protected))
    };
    progress.start("Measuring", model.tensors.len() as u64, "tensors");
    let measured = model
        .tensors
        .par_iter()
        .zip(fixed)
        .map(|(tensor, decision)| {
            let measured = match decision.reason {
                Reason::Level => choices(tensor),
                _ => Ok((Vec::new(), decision.reason.clone())),
            };
            tensor.release();
            progress.advance(1);
            measured
        })
        .collect();
    progress.finish();
    measured
}

/// What each choice loses; those that another one beats left out.
fn priced(
    model: &GgufModel,
    facts: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    measured: &[(Vec<Choice>, Reason)],
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Choice>>> {
    let sensitivities = match request.dynamic.as_ref().and_then(|d| d.measured.as_ref()) {
        Some(how) => measure_sensitivities(model, measured, how, request, progress)?,
        None => IndexMap::new(),
    };
    let tied = !tensors.iter().any(|tensor| mix::role(tensor.name) == mix::Role::Output);
    let price_all = |(tensor, (choices, _)): (&GgufTensor, &(Vec<Choice>, Reason))| {
        let known = sensitivities.get(&tensor.name).filter(|s| !s.points().is_empty());
        let estimate = weight::estimated(&tensor.name, facts.layers, tied)
            * importance_of(request.importance.as_ref(), tensor)?
                .map_or(1.0, |columns| weight::concentration(columns, matrices(tensor)));
        let lose = |choice: &Choice| match (known, choice.kind.layout().stored) {
            (Some(known), Some(stored)) => known.divergence(stored, choice.error),
            _ => weight::loss(&tensor.name, estimate, choice.error),
        };
        let price = |choice: &Choice| Choice { loss: lose(choice).min(MOST_LOSS), ..*choice };
        Ok(frontier(choices.iter().map(price).collect()))
    };
    model.tensors.iter().zip(measured).map(price_all).collect()
}

/// The bytes that the files may have.
///
/// # Errors
/// [`Error::InvalidArgument`] if they are fewer than the least.
fn limit(
    model: &GgufModel,
    request: &QuantizeRequest,
    rules: Option<&Rules>,
    least: &Sizes,
    warnings: &mut Vec<String>,
) -> Result<u64> {
    let weights = model.parameters() as f64;
    let budget = match request.goal {
        Goal::Bytes(bytes) => bytes,
        Goal::BitsPerWeight(bits) => (bits * weights / 8.0).floor() as u64,
        Goal::TensorBits(bits) => {
            let data = (bits * weights / 8.0).floor() as u64;
            if data < least.data {
                warnings.push(format!(
                    "the profile's target of {bits} bits per weight is out of reach: the smallest \
                     types of this model take {:.2}",
                    least.data as f64 * 8.0 / weights.max(1.0)
                ));
            }
            least.files - least.data + data.max(least.data)
        }
        Goal::Rules | Goal::Level(_) | Goal::Loss(_) => u64::MAX,
    };
    if least.files <= budget {
        return Ok(budget);
    }
    let why = match (rules, &request.importance) {
        (Some(rules), _) if !rules.is_empty() => "; the rules of the profile do not allow less",
        (_, None) => "; with --imatrix it could be smaller",
        _ => "",
    };
    Err(Error::InvalidArgument(format!(
        "the smallest file of this model takes {} bytes ({}), more than the {budget} asked for{why}",
        least.files,
        describe_bytes(least.files)
    )))
}

/// Warnings about rules that name nothing.
///
/// # Errors
/// [`Error::Profile`] if none names anything.
fn idle(rules: &Rules, model: &GgufModel) -> Result<Vec<String>> {
    let mut used = vec![false; rules.iter().len()];
    for tensor in &model.tensors {
        if mix::may_be_quantized(&tensor.name, &tensor.shape)
            && let Some(number) = rules.naming(&tensor.name).next()
        {
            used[number] = true;
        }
    }
    if !used.is_empty() && !used.contains(&true) {
        return Err(Error::Profile(format!(
            "no assignment of the profile matches a tensor of {}: it was made for another model",
            model.name
        )));
    }
    Ok(rules
        .iter()
        .zip(used)
        .filter(|(_, used)| !used)
        .map(|(rule, _)| {
            format!("the profile's assignment {} holds for no tensor", rule.layer_name)
        })
        .collect())
}

/// The choices for a tensor with super weights: where no type of its rule keeps them, the smallest
/// one that does.
fn keeping(
    tensor: &GgufTensor,
    kinds: &[GgmlType],
    request: &QuantizeRequest,
    alignment: u64,
    protected: &Protected,
) -> Result<Vec<Choice>> {
    let choices = candidates::measure(tensor, kinds, request, alignment, Some(protected))?;
    if choices.iter().any(|choice| kinds.contains(&choice.kind)) {
        return Ok(choices);
    }
    let all = candidates::measure(tensor, &CANDIDATES, request, alignment, Some(protected))?;
    Ok(all.into_iter().min_by_key(|choice| choice.bytes).into_iter().collect())
}

/// The types that may be chosen for a tensor, and why these.
fn kinds_of(
    tensor: &GgufTensor,
    rules: Option<&Rules>,
    free: bool,
    request: &QuantizeRequest,
) -> (Vec<GgmlType>, Reason) {
    let all = || {
        let source = GgmlType::of_stored(tensor.source_type);
        CANDIDATES.into_iter().chain(source.filter(|kind| !CANDIDATES.contains(kind))).collect()
    };
    let Some(rules) = rules else { return (all(), Reason::Budget) };
    let cols = tensor.cols();
    let Some(rule) = rules.holding(&tensor.name) else {
        // Without a target nothing else says how small these should be.
        let kinds = if free { widths::fitting(8.0, cols) } else { all() };
        return (kinds, Reason::Budget);
    };
    let reason = if rule.is_protected {
        Reason::Protected
    } else {
        Reason::Profile(rule.layer_name.clone())
    };
    let kinds = match rule.exact() {
        Ok(Some(kind)) => vec![kind.fallback(cols)],
        _ => widths::fitting(rule.bit_width, cols),
    };
    // Where the types of the rule are all worthless without importance, the first one shows it.
    let with =
        importance_of(request.importance.as_ref(), tensor).is_ok_and(|found| found.is_some());
    let usable: Vec<GgmlType> = kinds
        .iter()
        .copied()
        .filter(|&kind| with || !mix::needs_importance(&tensor.name, kind, None))
        .collect();
    if usable.is_empty() {
        return (widths::fitting(2.0, cols), reason);
    }
    (usable, reason)
}

/// Measures what each tensor's error does, in its smallest choice and in one about halfway up.
fn measure_sensitivities(
    model: &GgufModel,
    measured: &[(Vec<Choice>, Reason)],
    how: &Measured,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<IndexMap<String, Sensitivity>> {
    let kinds: IndexMap<&str, Vec<StoredType>> = model
        .tensors
        .iter()
        .zip(measured)
        .map(|(tensor, (choices, _))| {
            let by_error = |choice: &Choice| Choice { loss: choice.error, ..*choice };
            let choices = frontier(choices.iter().map(by_error).collect());
            let hull: Vec<Choice> = convex(&choices).into_iter().map(|at| choices[at]).collect();
            let lossy: Vec<&Choice> = hull.iter().filter(|choice| choice.error > 0.0).collect();
            let mut kinds: Vec<StoredType> = Vec::new();
            if hull.len() > 1 {
                for at in [0, lossy.len() / 2] {
                    let stored = lossy.get(at).and_then(|choice| choice.kind.layout().stored);
                    kinds.extend(stored.filter(|stored| !kinds.contains(stored)));
                }
            }
            (tensor.name.as_str(), kinds)
        })
        .collect();
    sensitivity::measure(
        &how.model,
        request.importance.as_ref(),
        &how.windows,
        &|name, _| kinds.get(name).cloned().unwrap_or_default(),
        progress,
    )
}
