//! Types under a budget: the smallest expected loss that fits so many bytes.
//!
//! For every matrix that no option fixes, a few rows are written in each type that fits them and
//! read back. The error of a type is `Σ w·(x − y)² / Σ w·x²` over those rows, where `w` is the
//! importance of the column (1 without an importance matrix): the share of the matrix's output that
//! becomes noise. What the model as a whole loses by it is measured, where the request says so
//! ([`crate::job::profile::sensitivity`]), or estimated by the matrix's role and place
//! ([`crate::job::profile::weight`]). `hull` picks from the losses and bytes. A profile's rules narrow the
//! types down before that. Where the model can be run, `rivals` has the last word.

mod candidates;
mod hull;
mod logits;
mod rivals;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::level::Level;
use super::mix::{self, Decision, ModelFacts, Reason, TensorFacts};
use super::model::GgufModel;
use super::plan::{assemble, importance_of, matrices};
use super::protect::{Protected, Protection};
use super::request::{Goal, QuantizeRequest};
use super::tensor::GgufTensor;
use crate::arch::role;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::codec::StoredType;
use crate::job::profile::sensitivity::{Probe, Sensitivity};
use crate::job::profile::{Rules, weight, widths};
use crate::{Error, Result};
use candidates::CANDIDATES;
use hull::{Choice, convex, fill, frontier, room_for};
use rivals::Rival;

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
    let how = request.dynamic.as_ref().and_then(|dynamic| dynamic.measured.as_ref());
    let importance = request.importance.as_ref();
    let mut probe =
        how.map(|how| Probe::new(&how.model, importance, &how.windows, progress)).transpose()?;
    let sensitivities = match &mut probe {
        Some(probe) => measure_sensitivities(model, &measured, probe, progress)?,
        None => IndexMap::new(),
    };
    let priced = price(model, facts, tensors, &measured, request, &sensitivities)?;
    let frontiers = frontiers(&priced);
    let decide = |chosen: &[usize], frontiers: &[Vec<Choice>]| -> Vec<Decision> {
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
    let size = |decisions: Vec<Decision>| -> Result<Sizes> {
        let layout = assemble(model, request, decisions, None)?.layout;
        Ok(Sizes { files: layout.total_bytes(), data: layout.tensor_bytes().iter().sum() })
    };
    let smallest = vec![0; frontiers.len()];
    let least = size(decide(&smallest, &frontiers))?;
    let budget = match request.goal {
        Goal::Loss(loss) => least.files + room_for(&frontiers, loss),
        _ => limit(model, request, rules.as_ref(), &least, &mut warnings)?,
    };
    // Split files have headers of their own, so the room for data is found by trying.
    let within_budget = |frontiers: &[Vec<Choice>]| -> Result<Vec<usize>> {
        let least = size(decide(&smallest, frontiers))?.files;
        let mut room = budget.saturating_sub(least);
        loop {
            let chosen = fill(frontiers, room);
            let over = size(decide(&chosen, frontiers))?.files.saturating_sub(budget);
            if over == 0 || room == 0 {
                return Ok(chosen);
            }
            room = room.saturating_sub(over);
        }
    };
    let chosen = within_budget(&frontiers)?;
    let losses = frontiers.iter().zip(&chosen).filter_map(|(choices, &at)| choices.get(at));
    let loss = losses.map(|choice| choice.loss).sum();
    let decisions = decide(&chosen, &frontiers);
    let plan = Rival { name: "the plan by measured losses".to_owned(), decisions, loss };
    let ruled = rules.as_ref().is_some_and(|rules| !rules.is_empty()) || protection.is_some();
    let plan = match &mut probe {
        Some(probe) if !ruled => {
            let fits = |decisions: &[Decision]| Ok(size(decisions.to_vec())?.files <= budget);
            let level = rivals::best_level(facts, tensors, &priced, request, &fits)?;
            let estimated = price(model, facts, tensors, &measured, request, &IndexMap::new())?;
            let estimated = self::frontiers(&estimated);
            let chosen = within_budget(&estimated)?;
            let decisions = decide(&chosen, &estimated);
            let loss = rivals::expected(&decisions, &priced).unwrap_or(f64::INFINITY);
            let estimated = Rival { name: "the plan by estimates".to_owned(), decisions, loss };
            let fitting = fits(&estimated.decisions)?.then_some(estimated);
            let all = [Some(plan), fitting, level].into_iter().flatten().collect();
            rivals::best(all, model, probe, progress)?
        }
        _ => Some(plan),
    };
    let Some(plan) = plan else {
        return Err(Error::General("no plan is left to choose from".into()));
    };
    Ok(Chosen { decisions: plan.decisions, warnings, expected_loss: plan.loss })
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
    let head = logits::inputs_of_head(model)?;
    let choices = |tensor: &GgufTensor| {
        let (kinds, reason) = kinds_of(tensor, rules, free, request);
        let inputs = head.as_ref().filter(|(name, _)| *name == tensor.name);
        let inputs = inputs.map(|(_, inputs)| inputs.as_slice());
        let measure = |kinds: &[StoredType], protected: Option<&Protected>| {
            candidates::measure(tensor, kinds, request, alignment, protected, inputs)
        };
        let Some(protected) = protection.and_then(|p| p.of(&tensor.name)) else {
            return Ok((measure(&kinds, None)?, reason));
        };
        let kept = keeping(&kinds, &|kinds| measure(kinds, Some(protected)))?;
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

/// The choices for a tensor, with what they lose.
struct Priced {
    choices: Vec<Choice>,
}

/// What each choice loses: as measured, where it was, else as estimated.
fn price(
    model: &GgufModel,
    facts: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    measured: &[(Vec<Choice>, Reason)],
    request: &QuantizeRequest,
    sensitivities: &IndexMap<String, Sensitivity>,
) -> Result<Vec<Priced>> {
    let tied = !tensors.iter().any(|tensor| role::role(tensor.name) == role::Role::Output);
    let head = logits::inputs_of_head(model)?.map(|(name, _)| name);
    let price_all = |(tensor, (choices, _)): (&GgufTensor, &(Vec<Choice>, Reason))| {
        let known = sensitivities.get(&tensor.name).filter(|s| !s.points().is_empty());
        let estimate = weight::estimated(&tensor.name, facts.layers, tied)
            * importance_of(request.importance.as_ref(), tensor)?.map_or(1.0, |columns| {
                weight::concentration(&tensor.name, columns, matrices(tensor))
            });
        let lose = |choice: &Choice| match known {
            Some(known) => known.divergence(choice.kind, choice.error),
            _ if head == Some(&tensor.name) => {
                weight::loss_by_logits(choice.disturbance, choice.error)
            }
            _ => {
                let more = weight::common_part(&tensor.name, choice.kind);
                weight::loss(&tensor.name, estimate * more, choice.error)
            }
        };
        let price = |choice: &Choice| Choice { loss: lose(choice).min(MOST_LOSS), ..*choice };
        Ok(Priced { choices: choices.iter().map(price).collect() })
    };
    model.tensors.iter().zip(measured).map(price_all).collect()
}

/// The choices that no other one of the tensor beats.
fn frontiers(priced: &[Priced]) -> Vec<Vec<Choice>> {
    priced.iter().map(|priced| frontier(priced.choices.clone())).collect()
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
        human_bytes(least.files)
    )))
}

/// Warnings about rules that name nothing.
///
/// # Errors
/// [`Error::Profile`] if none names anything.
fn idle(rules: &Rules, model: &GgufModel) -> Result<Vec<String>> {
    let mut used = vec![false; rules.iter().len()];
    for tensor in &model.tensors {
        if tensor.may_be_quantized()
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
    kinds: &[StoredType],
    measure: &dyn Fn(&[StoredType]) -> Result<Vec<Choice>>,
) -> Result<Vec<Choice>> {
    let choices = measure(kinds)?;
    if choices.iter().any(|choice| kinds.contains(&choice.kind)) {
        return Ok(choices);
    }
    let all = measure(&CANDIDATES)?;
    Ok(all.into_iter().min_by_key(|choice| choice.bytes).into_iter().collect())
}

/// The types that may be chosen for a tensor, and why these.
fn kinds_of(
    tensor: &GgufTensor,
    rules: Option<&Rules>,
    free: bool,
    request: &QuantizeRequest,
) -> (Vec<StoredType>, Reason) {
    let all = || {
        let source = tensor.source_type.for_weights();
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
    let usable: Vec<StoredType> = kinds
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
    probe: &mut Probe<'_>,
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
                    let stored = lossy.get(at).map(|choice| choice.kind);
                    kinds.extend(stored.filter(|stored| !kinds.contains(stored)));
                }
            }
            (tensor.name.as_str(), kinds)
        })
        .collect();
    probe.each(&|name, _| kinds.get(name).cloned().unwrap_or_default(), progress)
}
