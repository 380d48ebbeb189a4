//! What the rules of a profile find in a model.

use serde::Serialize;

use crate::job::gguf::model::GgufModel;
use crate::job::profile::{Profile, Rules, widths};
use crate::{Error, Result};

/// The result of `profile validate`.
#[derive(Debug, Serialize)]
pub(crate) struct ValidationReport {
    /// `success`: the question was answered.
    pub status: &'static str,
    /// The profile's name.
    pub profile: String,
    /// The model as it was given.
    pub model: String,
    /// Whether every rule holds for some tensor.
    pub valid: bool,
    /// Matrices of the model that may be quantized.
    pub tensors: usize,
    /// Those that a rule holds for.
    pub assigned: usize,
    /// The rules in order.
    pub rules: Vec<RuleReport>,
    /// Tensors that no rule names: their types are chosen by error, or they get 8 bits where the
    /// profile has no target.
    pub unassigned: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A rule of a profile.
#[derive(Debug, Serialize)]
pub(crate) struct RuleReport {
    /// Its `layer_name`.
    pub layer_name: String,
    /// Its width, bits.
    pub bit_width: f64,
    /// Tensors that it names.
    pub matches: usize,
    /// Tensors that it holds for: no rule before it names them.
    pub holds: usize,
    /// The rules before it that take its tensors away.
    pub shadowed_by: Vec<String>,
}

impl ValidationReport {
    /// Asks every rule about every matrix.
    ///
    /// # Errors
    /// As [`Rules::new`].
    pub(crate) fn new(profile: &Profile, model: &GgufModel, model_name: &str) -> Result<Self> {
        let rules = Rules::new(profile)?;
        let mut reports: Vec<RuleReport> = rules
            .iter()
            .map(|rule| RuleReport {
                layer_name: rule.layer_name.clone(),
                bit_width: rule.bit_width,
                matches: 0,
                holds: 0,
                shadowed_by: Vec::new(),
            })
            .collect();
        let mut unassigned = Vec::new();
        let mut warnings = Vec::new();
        let matrices: Vec<_> =
            model.tensors.iter().filter(|tensor| tensor.may_be_quantized()).collect();
        for tensor in &matrices {
            let naming: Vec<usize> = rules.naming(&tensor.name).collect();
            let Some(&first) = naming.first() else {
                unassigned.push(tensor.name.clone());
                continue;
            };
            reports[first].holds += 1;
            for &number in &naming {
                reports[number].matches += 1;
                let by = reports[first].layer_name.clone();
                if number != first && !reports[number].shadowed_by.contains(&by) {
                    reports[number].shadowed_by.push(by);
                }
            }
        }
        for (rule, report) in rules.iter().zip(&reports) {
            if let Some(kind) = rule.exact()? {
                let narrow = matrices.iter().filter(|tensor| {
                    rules.holding(&tensor.name).is_some_and(|held| held == rule)
                        && !kind.fits(tensor.cols())
                });
                let count = narrow.count();
                if count > 0 {
                    warnings.push(format!(
                        "{}: the rows of {count} tensors do not fill blocks of {}",
                        rule.layer_name,
                        kind.name()
                    ));
                }
            } else if let Some(tensor) = matrices.iter().find(|tensor| {
                rules.holding(&tensor.name).is_some_and(|held| held == rule)
                    && !widths::types(rule.bit_width).iter().any(|kind| kind.fits(tensor.cols()))
            }) {
                let wider = widths::fitting(rule.bit_width, tensor.cols());
                warnings.push(format!(
                    "{}: rows of {} values fill no type of {} bits; {} takes its place",
                    rule.layer_name,
                    tensor.cols(),
                    rule.bit_width,
                    wider[0].name()
                ));
            }
            if report.holds > 0 && !report.shadowed_by.is_empty() {
                warnings.push(format!(
                    "{}: {} of {} tensors are taken by rules before it ({})",
                    report.layer_name,
                    report.matches - report.holds,
                    report.matches,
                    report.shadowed_by.join(", ")
                ));
            }
        }
        Ok(Self {
            status: "success",
            profile: profile.profile_name.clone(),
            model: model_name.to_owned(),
            valid: reports.iter().all(|report| report.holds > 0),
            tensors: matrices.len(),
            assigned: matrices.len() - unassigned.len(),
            rules: reports,
            unassigned,
            warnings,
        })
    }

    /// Why the profile is not valid for the model, if it is not.
    #[must_use]
    pub(crate) fn failure(&self) -> Option<Error> {
        let mut reasons = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.holds == 0) {
            reasons.push(if rule.matches == 0 {
                format!("{} matches no tensor of {}", rule.layer_name, self.model)
            } else {
                format!("{} is shadowed by {}", rule.layer_name, rule.shadowed_by.join(", "))
            });
        }
        (!reasons.is_empty()).then(|| Error::Profile(reasons.join("; ")))
    }
}
