//! What quantization cost: a quantized model beside its original on the same text ([`measure()`]), or
//! several ([`compare`]).
//!
//! Models run block by block (`stream`): two large models never sit in memory together and no
//! logits are stored. Reports are JSON ([`report`], also the `.qreport` file), CSV ([`csv`]) or a
//! page to look at ([`html`]).

pub(crate) mod csv;
mod folds;
pub(crate) mod html;
pub(crate) mod layers;
pub(crate) mod report;
pub(crate) mod statistics;
mod stream;
pub(crate) mod super_weights;
pub(crate) mod timestamp;

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use crate::base::progress::Progress;
use crate::device::{Backend, memory};
use crate::graph::{Decoder, StreamedDecoder};
use crate::hub::HubOptions;
use crate::measure::coherence::CoherenceSettings;
use crate::measure::figures;
use crate::measure::tasks::{self, BenchmarkRequest, run_benchmarks};
use crate::measure::{CoherenceReport, CoherenceTest};
use crate::model::LocalModel;
use crate::model::gguf_parts;
use crate::text::documents::{ChatRenderer, Coverage, DocumentFile};
use crate::text::{EvaluationWindows, Protocol, TextOptions, options};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::ChatMessage;
use crate::{Error, Result};
use report::{
    BlockError, Coherence, Compared, ComparedPerplexity, Divergence, MeasuredOn, Metrics, Size,
};
pub(crate) use report::{CompareReport, QualityReport};
use statistics::{Collector, OriginalFigures, TokenFigures};

/// Tokens of a window, as llama-perplexity has them by default.
const WINDOW: usize = 512;
/// Text to read for each token wanted, bytes.
const BYTES_PER_TOKEN: usize = 16;

/// Which text is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextRequest {
    /// The user's file. Without it WikiText-2's test part is read, or the built-in text.
    pub data: Option<PathBuf>,
    /// How to reach the hub, if it may be asked.
    pub hub: Option<HubOptions>,
    /// Most windows to read: the first ones.
    pub samples: usize,
}

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct QualityRequest {
    /// The original as the user gave it, for the report.
    pub original_name: String,
    /// The quantized model as the user gave it.
    pub quantized_name: String,
    /// Text to read.
    pub text: TextRequest,
    /// Compare the weights of each layer, too.
    pub layers: bool,
    /// Run the coherence test.
    pub coherence: bool,
    /// Benchmarks to run.
    pub benchmarks: Vec<BenchmarkRequest>,
    /// Rise of perplexity that passes, percent.
    pub quality_threshold: f64,
    /// Least mean score of the coherence test that passes, 0 to 1.
    pub coherence_threshold: f64,
    /// Mask of super weights, to report how many of them are kept at high precision.
    pub super_weights: Option<PathBuf>,
}

/// Measures a quantized model beside its original.
///
/// # Errors
/// [`Error::InvalidArgument`] when the models have different shapes, [`Error::Calibration`] when
/// the text cannot be used, [`Error::ModelNotFound`] when there is no tokenizer or no data for a
/// benchmark, [`Error::General`] when a model gives NaN, [`Error::Interrupted`].
pub(crate) fn measure(
    original: &LocalModel,
    quantized: &LocalModel,
    request: &QualityRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<QualityReport> {
    let began = Instant::now();
    check_pair(original, quantized)?;
    let tokenizer = original.tokenizer()?;
    let benchmarks = request
        .benchmarks
        .iter()
        .map(|request| tasks::load(request, progress))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let text = windows(original, &request.text, &tokenizer, progress)?;
    let size = size(original, quantized);
    let super_weight_coverage = request
        .super_weights
        .as_ref()
        .map(|mask| super_weights::kept(mask, quantized))
        .transpose()?;

    let (figures, mut others) = run(original, &[quantized], &text.windows, backend, progress)?;
    let others = others.pop().ok_or_else(|| Error::General("nothing was measured".into()))?;
    let layer_errors = if request.layers {
        layers::layer_errors(original, quantized, progress)?
    } else {
        Vec::new()
    };
    let coherence = if request.coherence {
        Some(coherence(original, quantized, &tokenizer, backend, progress)?)
    } else {
        None
    };
    let benchmarks =
        run_benchmarks(original, quantized, &tokenizer, &benchmarks, backend, progress)?;

    let metrics = Metrics::of(figures, &others, size, request.quality_threshold);
    let outcome = coherence.as_ref().map(|test| {
        let test = figures::coherence_summary(test, request.coherence_threshold);
        Coherence {
            passed: test.passed,
            threshold: test.threshold,
            coherent_prompts: test.coherent_prompts,
            total_prompts: test.total_prompts,
        }
    });
    let warnings = warnings(&metrics, coherence.as_ref(), outcome.as_ref());
    warnings.iter().for_each(|warning| progress.warn(warning));
    Ok(QualityReport {
        status: "success",
        original_model: request.original_name.clone(),
        quantized_model: request.quantized_name.clone(),
        divergence: Divergence::of(&others),
        measured_on: text.measured_on(figures.tokens),
        block_errors: if request.layers { block_errors(&others) } else { Vec::new() },
        layer_errors,
        coherence_score: coherence.as_ref().map(CoherenceReport::score),
        coherence: outcome,
        super_weight_coverage,
        benchmarks,
        warnings,
        metrics,
        timestamp: timestamp::rfc_3339(SystemTime::now()),
        duration_seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: memory::peak_resident_bytes(),
        tool_version: env!("CARGO_PKG_VERSION"),
    })
}

/// Measures a quantized model's coherence beside its original, and nothing else.
///
/// # Errors
/// As [`measure()`].
pub(crate) fn measure_coherence(
    original: &LocalModel,
    quantized: &LocalModel,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<CoherenceReport> {
    check_pair(original, quantized)?;
    let tokenizer = original.tokenizer()?;
    coherence(original, quantized, &tokenizer, backend, progress)
}

/// What `quality compare` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Perplexity and divergence: the models are run.
    Perplexity,
    /// Bytes.
    Size,
    /// Bits per weight.
    Bpw,
}

impl Metric {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Perplexity, Self::Size, Self::Bpw];

    /// The name on the command line.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Size => "size",
            Self::Bpw => "bpw",
        }
    }
}

/// What to compare.
#[derive(Debug, Clone)]
pub(crate) struct CompareRequest {
    /// The original as the user gave it, for the report.
    pub original_name: String,
    /// The quantized models as the user gave them.
    pub quantized_names: Vec<String>,
    /// Text to read.
    pub text: TextRequest,
    /// What to look at.
    pub metrics: Vec<Metric>,
    /// Compare the weights of each layer, too.
    pub layers: bool,
}

/// Compares several quantized models with their original, all in one pass over the text.
///
/// # Errors
/// As [`measure()`].
pub(crate) fn compare(
    original: &LocalModel,
    quantized: &[LocalModel],
    request: &CompareRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<CompareReport> {
    let began = Instant::now();
    for model in quantized {
        check_pair(original, model)?;
    }
    let asked = |metric| request.metrics.contains(&metric);
    let mut measured = None;
    if asked(Metric::Perplexity) {
        let tokenizer = original.tokenizer()?;
        let text = windows(original, &request.text, &tokenizer, progress)?;
        let models: Vec<&LocalModel> = quantized.iter().collect();
        let (figures, others) = run(original, &models, &text.windows, backend, progress)?;
        measured = Some((figures, others, text.measured_on(figures.tokens)));
    }
    let mut results = Vec::with_capacity(quantized.len());
    for (index, (model, name)) in quantized.iter().zip(&request.quantized_names).enumerate() {
        let size = size(original, model);
        let perplexity = measured.as_ref().map(|(figures, others, _)| {
            let metrics = Metrics::of(*figures, &others[index], size, f64::INFINITY);
            ComparedPerplexity {
                perplexity: metrics.perplexity_quantized,
                perplexity_stderr: metrics.perplexity_quantized_stderr,
                perplexity_delta_pct: metrics.perplexity_delta_pct,
                perplexity_delta_stderr_pct: metrics.perplexity_delta_stderr_pct,
                divergence: Divergence::of(&others[index]),
                on_frontier: quantized.iter().zip(others).all(|(other, theirs)| {
                    !dominates(
                        (file_bytes(other), theirs.perplexity),
                        (size.quantized_size_bytes, metrics.perplexity_quantized),
                    )
                }),
            }
        });
        let layer_errors = if request.layers {
            layers::layer_errors(original, model, progress)?
        } else {
            Vec::new()
        };
        results.push(Compared {
            quantized_model: name.clone(),
            perplexity,
            size_bytes: asked(Metric::Size).then_some(size.quantized_size_bytes),
            compression_ratio: asked(Metric::Size).then_some(size.compression_ratio),
            effective_bpw: asked(Metric::Bpw).then_some(size.effective_bpw),
            layer_errors,
        });
    }
    Ok(CompareReport {
        status: "success",
        original_model: request.original_name.clone(),
        metrics: Metric::ALL.into_iter().filter(|m| asked(*m)).map(Metric::name).collect(),
        perplexity_original: measured.as_ref().map(|(figures, ..)| figures.perplexity),
        perplexity_original_stderr: measured
            .as_ref()
            .map(|(figures, ..)| figures.perplexity_stderr),
        original_size_bytes: file_bytes(original),
        parameter_count: original.parameter_count(),
        results,
        measured_on: measured.map(|(.., measured_on)| measured_on),
        timestamp: timestamp::rfc_3339(SystemTime::now()),
        duration_seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: memory::peak_resident_bytes(),
        tool_version: env!("CARGO_PKG_VERSION"),
    })
}

/// Whether a model (bytes, perplexity) makes another pointless: no larger, no worse, and better in
/// one of the two.
fn dominates(one: (u64, f64), other: (u64, f64)) -> bool {
    one.0 <= other.0 && one.1 <= other.1 && (one.0 < other.0 || one.1 < other.1)
}

/// Text that was cut, and where it came from.
struct Text {
    windows: EvaluationWindows,
    dataset: String,
}

impl Text {
    fn measured_on(&self, tokens_scored: u64) -> MeasuredOn {
        MeasuredOn {
            dataset: self.dataset.clone(),
            protocol: "llama-perplexity",
            windows: self.windows.count(),
            windows_available: self.windows.available,
            window: self.windows.length,
            tokens_scored,
        }
    }
}

/// Opens the text and cuts it as llama-perplexity does. A model with a shorter context gets windows
/// of that length.
fn windows(
    original: &LocalModel,
    request: &TextRequest,
    tokenizer: &Tokenizer,
    progress: &dyn Progress,
) -> Result<Text> {
    let length = original.config.max_positions.min(WINDOW) / 2 * 2;
    if length < 4 {
        return Err(Error::InvalidArgument(format!(
            "a context of {length} tokens is too short to measure perplexity"
        )));
    }
    let wanted = request.samples.saturating_add(1).saturating_mul(length);
    let (documents, dataset) = if let Some(path) = &request.data {
        let render = tokenizer
            .chat_template()
            .map(|template| |messages: &[ChatMessage]| template.render(messages, false));
        let render = render.as_ref().map(|render| render as ChatRenderer<'_>);
        let file = DocumentFile::open(path, render)?;
        let limit = wanted.saturating_mul(BYTES_PER_TOKEN).max(1 << 20);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (file.read(Coverage::First, limit)?, name)
    } else {
        let options = TextOptions { hub: request.hub.clone(), ..TextOptions::default() };
        let text = options::open_text(&options, tokenizer, 0, Some(wanted), progress)?;
        (text.evaluation, text.evaluation_name)
    };
    let protocol = Protocol::LlamaCpp { length };
    let windows = EvaluationWindows::cut(&documents, tokenizer, protocol, Some(request.samples))?;
    if windows.count() < request.samples {
        progress.note(&format!(
            "The text has {} windows of {length} tokens, fewer than the {} asked for",
            windows.count(),
            request.samples
        ));
    }
    memory::return_free_memory();
    Ok(Text { windows, dataset })
}

fn run(
    original: &LocalModel,
    quantized: &[&LocalModel],
    windows: &EvaluationWindows,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<(OriginalFigures, Vec<TokenFigures>)> {
    let models = std::iter::once(&original)
        .chain(quantized)
        .map(|model| StreamedDecoder::new(model, backend))
        .collect::<Result<Vec<_>>>()?;
    let mut collector = Collector::new(quantized.len());
    stream::run(&models, windows, progress, &mut collector)?;
    Ok(collector.finish())
}

/// The coherence test needs both models by turns, token by token; on the CPU both are mapped files.
fn coherence(
    original: &LocalModel,
    quantized: &LocalModel,
    tokenizer: &Tokenizer,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<CoherenceReport> {
    let judge = Decoder::new(original, backend)?;
    let test = CoherenceTest::new(&judge, tokenizer, CoherenceSettings::default(), progress)?;
    test.judge(&Decoder::new(quantized, backend)?, progress)
}

fn block_errors(figures: &TokenFigures) -> Vec<BlockError> {
    let errors = figures.hidden_errors.iter().enumerate();
    errors
        .map(|(index, &relative_error)| BlockError {
            layer_name: format!("model.layers.{index}"),
            relative_error,
        })
        .collect()
}

fn warnings(
    metrics: &Metrics,
    coherence: Option<&CoherenceReport>,
    outcome: Option<&Coherence>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if !metrics.quality_passed {
        warnings.push(format!(
            "Quality degradation ({:.1}%) exceeds threshold ({}%)",
            metrics.perplexity_delta_pct, metrics.quality_threshold_pct
        ));
    }
    if let (Some(report), Some(outcome)) = (coherence, outcome)
        && !outcome.passed
    {
        warnings.push(format!(
            "Coherence check failed: {} of {} prompts are coherent, score {:.2} (threshold {})",
            outcome.coherent_prompts,
            outcome.total_prompts,
            report.score(),
            outcome.threshold
        ));
    }
    warnings
}

/// Two models can only be compared when they have the same shape and vocabulary.
///
/// # Errors
/// [`Error::InvalidArgument`] that names the first difference.
pub(crate) fn check_pair(original: &LocalModel, quantized: &LocalModel) -> Result<()> {
    let shape = |model: &LocalModel| {
        let c = &model.config;
        [
            ("hidden size", c.hidden_size),
            ("intermediate size", c.intermediate_size),
            ("number of layers", c.num_layers),
            ("number of heads", c.num_heads),
            ("number of key/value heads", c.num_kv_heads),
            ("vocabulary size", c.vocab_size),
        ]
    };
    for ((what, before), (_, after)) in shape(original).into_iter().zip(shape(quantized)) {
        if before != after {
            return Err(Error::InvalidArgument(format!(
                "{} was not made from {}: its {what} is {after}, not {before}",
                quantized.path.display(),
                original.path.display()
            )));
        }
    }
    Ok(())
}

fn size(original: &LocalModel, quantized: &LocalModel) -> Size {
    let (before, after) = (file_bytes(original), file_bytes(quantized));
    let parameters = original.parameter_count();
    Size {
        effective_bpw: after as f64 * 8.0 / parameters.max(1) as f64,
        compression_ratio: after as f64 / before.max(1) as f64,
        original_size_bytes: before,
        quantized_size_bytes: after,
        parameter_count: parameters,
    }
}

/// Bytes of a model: the size of its file, all parts of a split one together; of a directory the
/// tensors, because other files lie there, too.
fn file_bytes(model: &LocalModel) -> u64 {
    let length = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |data| data.len());
    if model.path.is_dir() {
        return model.weight_bytes();
    }
    gguf_parts::part_paths(&model.path).iter().map(|path| length(path)).sum()
}
