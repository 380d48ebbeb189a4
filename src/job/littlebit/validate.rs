//! `littlebit validate`: the compressed model beside its original, on the same text.

use std::path::PathBuf;
use std::time::Instant;

use super::report::ValidationReport;
use crate::base::progress::Progress;
use crate::device::{Backend, memory};
use crate::graph::Decoder;
use crate::measure::coherence::CoherenceSettings;
use crate::measure::figures;
use crate::measure::tasks::{self, BenchmarkRequest};
use crate::measure::{CoherenceTest, Comparison, Verdict};
use crate::model::{LocalModel, gguf_ext};
use crate::text::{EvaluationWindows, Protocol, TextOptions, options};
use crate::{Error, Result};

/// What to validate and how.
#[derive(Debug, Clone)]
pub(crate) struct ValidateRequest {
    /// Original as the user gave it, for the report.
    pub original_name: String,
    /// The compressed file.
    pub compressed: PathBuf,
    /// Text to measure with.
    pub text: TextOptions,
    /// Most windows to score.
    pub samples: usize,
    /// Run the coherence test.
    pub coherence: bool,
    /// Least mean score that passes, 0–1.
    pub coherence_threshold: f64,
    /// Highest rise of perplexity that passes, percent.
    pub quality_threshold: f64,
    /// Whether a higher rise is an error.
    pub threshold_is_demanded: bool,
    /// Benchmarks to run.
    pub benchmarks: Vec<BenchmarkRequest>,
}

/// Measures both models. The second value is the reason to fail, if there is one; the report is
/// complete all the same.
pub(crate) fn validate(
    original: &LocalModel,
    request: &ValidateRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<(ValidationReport, Option<Error>)> {
    let began = Instant::now();
    let file = gguf_ext::open_either(&request.compressed)?;
    file.verify_checksums(progress)?;
    let about = file.about().clone();
    let achieved_bpw = file.contents().achieved_bits_per_weight();
    let compressed = file.model()?;
    drop(file);
    check_pair(original, &compressed, request)?;

    let tokenizer = original.tokenizer()?;
    let benchmarks = request
        .benchmarks
        .iter()
        .map(|request| tasks::load(request, progress))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let protocol = Protocol::papers(original.config.max_positions);
    let wanted = request.samples.saturating_mul(protocol.length());
    let text = options::open_text(&request.text, &tokenizer, 0, Some(wanted), progress)?;
    let windows =
        EvaluationWindows::cut(&text.evaluation, &tokenizer, protocol, Some(request.samples))?;

    let original_decoder = Decoder::new(original, backend)?;
    let compressed_decoder = Decoder::new(&compressed, backend)?;
    let comparison = Comparison::measure(
        &original_decoder,
        &compressed_decoder,
        &windows,
        "Validating",
        progress,
    )?;
    let coherence = if request.coherence {
        let test = CoherenceTest::new(
            &original_decoder,
            &tokenizer,
            CoherenceSettings::default(),
            progress,
        )?;
        Some(test.judge(&compressed_decoder, progress)?)
    } else {
        None
    };
    let quality_metrics = figures::quality_metrics(
        &comparison,
        &text.evaluation_name,
        request.quality_threshold,
        coherence.as_ref(),
    );
    let verdict =
        Verdict::new(comparison.delta_percent, coherence.as_ref(), Some(about.target_bpw));
    let coherence =
        coherence.map(|report| figures::coherence_summary(&report, request.coherence_threshold));
    let failure = if request.threshold_is_demanded && !quality_metrics.quality_passed {
        Some(Error::QualityThreshold(format!(
            "Quality degradation ({:.1}%) exceeds threshold ({}%)",
            comparison.delta_percent, request.quality_threshold
        )))
    } else {
        coherence.as_ref().filter(|c| !c.passed).map(|c| Error::Coherence { score: c.score })
    };
    drop((original_decoder, compressed_decoder));
    let benchmarks =
        tasks::run_benchmarks(original, &compressed, &tokenizer, &benchmarks, backend, progress)?;
    let report = ValidationReport {
        status: "success",
        original_model: request.original_name.clone(),
        compressed_model: request.compressed.display().to_string(),
        achieved_bpw,
        quality_metrics,
        coherence,
        benchmarks,
        verdict: verdict.to_string(),
        duration_seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: memory::peak_resident_bytes(),
    };
    Ok((report, failure))
}

/// A file can only be judged beside a model of the same shape and vocabulary.
///
/// # Errors
/// [`Error::ValidationFailed`].
pub(crate) fn check_pair(
    original: &LocalModel,
    compressed: &LocalModel,
    request: &ValidateRequest,
) -> Result<()> {
    let shape = |m: &LocalModel| {
        let c = &m.config;
        [
            c.hidden_size,
            c.intermediate_size,
            c.num_layers,
            c.num_heads,
            c.num_kv_heads,
            c.vocab_size,
        ]
    };
    if shape(original) == shape(compressed) {
        return Ok(());
    }
    Err(Error::damaged(
        &request.compressed,
        format!("it was not made from {}: the models have different shapes", request.original_name),
    ))
}
