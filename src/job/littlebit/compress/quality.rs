//! The outer loop: one target, or a search for the smallest target that meets a quality threshold;
//! and how an attempt is measured.

use std::path::{Path, PathBuf};

use super::bracket::{Bracket, Tried};
use super::work::{Candidate, Run};
use crate::graph::Decoder;
use crate::job::littlebit::plan::{
    CompressionPlan, Losses, PlanRequest, headers_of, plan, plan_by_loss,
};
use crate::job::littlebit::report::{CalibrationReport, Iteration, LayerReport, RecoveryReport};
use crate::measure::QualityMetrics;
use crate::measure::coherence::CoherenceSettings;
use crate::measure::{CoherenceTest, Comparison, Perplexity, Verdict, figures};
use crate::model::littlebit;
use crate::text::{EvaluationWindows, Protocol};
use crate::{Error, Result};

/// What the loop ends with. The chosen file is in place.
pub(super) struct Outcome {
    pub(super) plan: CompressionPlan,
    pub(super) file_size: u64,
    pub(super) layers: Vec<LayerReport>,
    pub(super) quality: Option<QualityMetrics>,
    pub(super) recovery: Option<RecoveryReport>,
    pub(super) iterations: Vec<Iteration>,
    pub(super) calibration: Option<CalibrationReport>,
    pub(super) unmet: Option<Error>,
}

/// The original's side of every comparison of a run.
pub(super) struct Reference {
    windows: EvaluationWindows,
    decoder: Decoder,
    perplexity: Perplexity,
}

/// Compresses at the requested target. With a threshold that is missed, tries the highest target
/// and then targets between the best one that failed and the lowest one that passed.
pub(super) fn search(run: &Run<'_>, first: CompressionPlan) -> Result<Outcome> {
    let calibration = run.calibrate()?;
    let request = run.request;
    let losses = run.losses(&first)?;
    let first = match &losses {
        Some(_) => run.plan(&request.plan, losses.as_ref())?,
        None => first,
    };
    let mut reference = None;
    let mut iterations = Vec::new();
    let mut attempt = |plan: CompressionPlan, path: PathBuf| -> Result<Candidate> {
        let candidate = run.attempt(plan, path, calibration.as_ref(), &mut reference)?;
        iterations.extend(candidate.iteration());
        Ok(candidate)
    };
    let Some(threshold) = request.quality_threshold else {
        let best = attempt(first, request.output.clone())?;
        return Ok(outcome(best, Vec::new(), calibration.map(|c| c.report), None));
    };

    let adjustable = request.plan.rank.is_none();
    let path = candidate_path(&request.output, first.target_bpw);
    let mut best = attempt(first, path)?;
    if !best.passed() && adjustable && best.plan.target_bpw < request.plan.bounds.1 {
        let failed = tried(&best);
        let highest = attempt_at(run, request.plan.bounds.1, losses.as_ref(), &mut attempt)?;
        std::mem::replace(&mut best, highest).discard()?;
        let mut bracket = Bracket::new(failed, tried(&best), threshold);
        let tries = if best.passed() { request.search_iterations.saturating_sub(2) } else { 0 };
        for _ in 0..tries {
            let Some(target) = bracket.next() else { break };
            let candidate = attempt_at(run, target, losses.as_ref(), &mut attempt)?;
            bracket.narrow(tried(&candidate), candidate.passed());
            if candidate.passed() {
                std::mem::replace(&mut best, candidate).discard()?;
            } else {
                candidate.discard()?;
            }
        }
    }
    std::fs::rename(&best.path, &request.output).map_err(|e| Error::io(&request.output, e))?;
    let unmet = (!best.passed()).then(|| {
        let delta = best.quality.as_ref().map_or(f64::NAN, |q| q.perplexity_delta_pct);
        let limit = if adjustable { ", the highest allowed" } else { "" };
        Error::QualityThreshold(format!(
            "Quality degradation ({delta:.1}%) exceeds threshold ({threshold}%) at {} bits per \
             weight{limit}; the result is kept in {}",
            best.plan.target_bpw,
            request.output.display()
        ))
    });
    Ok(outcome(best, iterations, calibration.map(|c| c.report), unmet))
}

/// What an attempt says about targets.
fn tried(candidate: &Candidate) -> Tried {
    let rise = candidate.quality.as_ref().map_or(f64::NAN, |q| q.perplexity_delta_pct);
    Tried { bpw: candidate.plan.target_bpw, loss: (rise / 100.0).ln_1p() }
}

fn outcome(
    best: Candidate,
    iterations: Vec<Iteration>,
    calibration: Option<CalibrationReport>,
    unmet: Option<Error>,
) -> Outcome {
    let Candidate { plan, file_size, layers, quality, recovery, .. } = best;
    Outcome { plan, file_size, layers, quality, recovery, iterations, calibration, unmet }
}

/// Plans and attempts another target.
fn attempt_at(
    run: &Run<'_>,
    target_bpw: f64,
    losses: Option<&Losses>,
    attempt: &mut impl FnMut(CompressionPlan, PathBuf) -> Result<Candidate>,
) -> Result<Candidate> {
    let request = PlanRequest { target_bpw, ..run.request.plan.clone() };
    run.progress.note(&format!("Target: {target_bpw} BPW (threshold not met so far)"));
    let plan = run.plan(&request, losses)?;
    attempt(plan, candidate_path(&run.request.output, target_bpw))
}

/// Where an attempt lies until it is chosen.
fn candidate_path(output: &Path, target_bpw: f64) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".candidate-{target_bpw}"));
    output.with_file_name(name)
}

impl Run<'_> {
    /// Ranks for a target; says how they spread where they go by what is lost.
    fn plan(&self, request: &PlanRequest, losses: Option<&Losses>) -> Result<CompressionPlan> {
        let headers = headers_of(self.model);
        let Some(losses) = losses else { return plan(&headers, request) };
        let plan = plan_by_loss(&headers, request, losses)?;
        let summary = plan.summary();
        self.progress.note(&format!(
            "Ranks by sensitivity: {} to {}, {:.2} to {:.2} BPW",
            summary.min_rank.0, summary.max_rank.0, summary.min_bpw, summary.max_bpw
        ));
        Ok(plan)
    }

    /// Measures the file at `path` beside the original, whose side is measured once.
    pub(super) fn measure(
        &self,
        path: &Path,
        target_bpw: f64,
        reference: &mut Option<Reference>,
    ) -> Result<QualityMetrics> {
        let reference = match reference {
            Some(reference) => reference,
            None => reference.insert(self.reference()?),
        };
        let model = littlebit::open_model(path)?;
        let decoder = Decoder::new(&model, self.backend)?;
        let perplexity =
            Perplexity::measure(&decoder, &reference.windows, "Validating", self.progress)?;
        let comparison = Comparison::of(reference.perplexity.clone(), perplexity)?;
        let test = CoherenceTest::new(
            &reference.decoder,
            self.tokenizer,
            CoherenceSettings::default(),
            self.progress,
        )?;
        let coherence = test.judge(&decoder, self.progress)?;
        let threshold = self.request.quality_threshold.unwrap_or(self.request.warn_threshold);
        let quality = figures::quality_metrics(
            &comparison,
            &self.text.evaluation_name,
            threshold,
            Some(&coherence),
        );
        self.progress.note(&format!(
            "Quality: Perplexity {:.2} → {:.2} ({:+.1}%)",
            quality.perplexity_original,
            quality.perplexity_compressed,
            quality.perplexity_delta_pct
        ));
        self.progress.note(&format!("Coherence: {}", coherence.summary()));
        let verdict = Verdict::new(comparison.delta_percent, Some(&coherence), Some(target_bpw));
        if let Some(warning) = verdict.warning() {
            self.warn(warning);
        }
        Ok(quality)
    }

    fn reference(&self) -> Result<Reference> {
        let protocol = Protocol::papers(self.model.config.max_positions);
        let limit = (self.request.eval_tokens > 0)
            .then(|| self.request.eval_tokens.div_ceil(protocol.length()));
        let windows =
            EvaluationWindows::cut(&self.text.evaluation, self.tokenizer, protocol, limit)?;
        let decoder = Decoder::new(self.model, self.backend)?;
        let perplexity =
            Perplexity::measure(&decoder, &windows, "Validating (original)", self.progress)?;
        Ok(Reference { windows, decoder, perplexity })
    }
}
