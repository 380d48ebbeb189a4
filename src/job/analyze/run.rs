//! The work of `analyze`, from an opened model, or from files alone, to files and a report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indexmap::IndexMap;

use super::cache::Entry;
use super::collector::Sums;
use super::pass::{self, OUTPUT, Pass};
use super::plot::{self, Subject};
use super::recorder::Recorder;
use super::report::{AnalyzeReport, CalibrationReport, SuperWeightReport};
use super::request::{AnalyzeRequest, MatrixFormat, Samples};
use super::spikes::{self, Found};
use super::text::{self, Chunks};
use super::weights::stored;
use super::{scores, statistics};
use crate::arch::names;
use crate::base::progress::Progress;
use crate::device::{Backend, memory};
use crate::files::checkpoint::{CheckpointStore, Fingerprint};
use crate::files::imatrix::{ColumnSums, ImportanceSums, Method};
use crate::files::space;
use crate::files::super_weights::SuperWeightMask;
use crate::files::super_weights::{MOST_COVERAGE, mask_path};
use crate::graph::Decoder;
use crate::job::checkpoints::Checkpoints;
use crate::model::LocalModel;
use crate::model::identity::identity;
use crate::{Error, Result};

/// Tokens of a sample, as in `llama-imatrix`.
const CHUNK: usize = 512;
/// Samples that are accepted where a number is given.
const SAMPLES: std::ops::RangeInclusive<usize> = 128..=1024;

/// Analyzes a model.
///
/// # Errors
/// [`Error::InvalidArgument`], [`Error::Calibration`] and [`Error::Io`] before any work;
/// [`Error::Importance`] when a figure cannot be computed; [`Error::Interrupted`].
pub fn analyze(
    model: &LocalModel,
    request: &AnalyzeRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<AnalyzeReport> {
    let began = Instant::now();
    let progress = &Recorder::new(progress);
    let length = check(model, request, backend)?;
    let merged = open_all(&request.merge)?;
    progress.note(&format!("Loading model: {}", model.name));
    let tokenizer = model.tokenizer()?;
    progress.note(&match request.samples {
        Samples::Spread(count) => format!("Collecting calibration data: {count} samples"),
        Samples::First(Some(count)) => format!("Collecting calibration data: {count} chunks"),
        Samples::First(None) => "Collecting calibration data: all chunks".to_owned(),
    });
    let chunks = text::read(request, &tokenizer, length, progress)?;
    memory::return_free_memory();
    progress.note(&format!("Computing importance matrix ({})", request.method.name()));
    let source = identity(&model.path, progress)?;
    let fingerprint = fingerprint(model, source, request, backend, &chunks);
    let entry = request.cache.as_deref().map(|folder| Entry::new(folder, &fingerprint));
    let kept = match &request.checkpoints {
        // Who resumes a run wants that one.
        Checkpoints::Resume(_) => None,
        _ => entry.as_ref().and_then(|entry| entry.load(progress)),
    };
    let cached = kept.is_some();
    let (mut sums, resumed) = match kept {
        Some(sums) => (sums, 0),
        None => measure(model, request, backend, &chunks, &fingerprint, entry.as_ref(), progress)?,
    };
    add_all(&mut sums, &merged)?;
    write(&sums, &request.output, request.format)?;
    let (super_weights, mask) = match request.coverage {
        None => (SuperWeightReport::none(), None),
        Some(coverage) => {
            let (report, mask) =
                identify(model, request, backend, &chunks, &sums, coverage, progress)?;
            (report, Some(mask))
        }
    };
    let mut report = AnalyzeReport {
        output_path: Some(request.output.display().to_string()),
        output_format: Some(request.format.name()),
        model_path: Some(model.name.clone()),
        num_layers: model.config.num_layers,
        calibration: Some(CalibrationReport {
            dataset: chunks.dataset.clone(),
            sha256: chunks.sha256.clone(),
            samples: chunks.count(),
            sequence_length: chunks.length,
            tokens: chunks.tokens.len(),
            arithmetic: pass::arithmetic(backend),
        }),
        super_weights,
        merged: request.merge.iter().map(|path| path.display().to_string()).collect(),
        cached,
        resumed_samples: resumed,
        resumed_layers: resumed * model.config.num_layers / chunks.count().max(1),
        ..AnalyzeReport::of(&sums)
    };
    if let Some(path) = &request.plot {
        let subject = Subject {
            name: &model.name,
            sums: &sums,
            super_weights: &report.super_weights.super_weights,
            mask: mask.as_ref(),
            perplexity: report.super_weights.perplexity,
        };
        plot::draw(path, &subject)?;
        report.plot_path = Some(path.display().to_string());
    }
    report.duration_seconds = began.elapsed().as_secs_f64();
    report.peak_memory_bytes = memory::peak_resident_bytes();
    report.warnings = progress.warnings();
    Ok(report)
}

/// Refuses what [`analyze`] would refuse for the shapes and settings of a model, without a look at a
/// weight.
///
/// # Errors
/// Those of [`analyze`].
pub fn refuse_early(model: &LocalModel, request: &AnalyzeRequest, backend: &Backend) -> Result<()> {
    let length = check(model, request, backend)?;
    pass::require_memory(&model.config, request.method, length)?;
    open_all(&request.merge)?;
    model.tokenizer().map(drop)
}

/// What is to be done with finished matrices alone.
#[derive(Debug, Clone)]
pub struct FileRequest {
    /// Files whose sums are added.
    pub inputs: Vec<PathBuf>,
    /// Where to write the sum, and how; nothing is written without.
    pub output: Option<(PathBuf, MatrixFormat)>,
    /// Picture to draw.
    pub plot: Option<PathBuf>,
}

/// Merges, converts, or looks at finished matrices.
///
/// # Errors
/// [`Error::Imatrix`] when a file cannot be read or does not fit the others, [`Error::Io`].
pub fn files(request: &FileRequest, progress: &dyn Progress) -> Result<AnalyzeReport> {
    let began = Instant::now();
    let progress = &Recorder::new(progress);
    let all = open_all(&request.inputs)?;
    let Some(((_, first), rest)) = all.split_first() else {
        return Err(Error::InvalidArgument("no file to read".into()));
    };
    let mut sums = first.clone();
    for (path, other) in rest {
        if other.chunk_size != sums.chunk_size {
            progress.warn(&format!(
                "{} has chunks of {} tokens, the first file of {}",
                path.display(),
                other.chunk_size,
                sums.chunk_size
            ));
        }
    }
    add_all(&mut sums, rest)?;
    if let Some((path, format)) = &request.output {
        if *format == MatrixFormat::Dat && sums.method != Method::Activation {
            progress
                .warn(&format!("a .dat file does not say that it holds {}", sums.method.name()));
        }
        check_output(path)?;
        write(&sums, path, *format)?;
    }
    let mut report = AnalyzeReport {
        output_path: request.output.as_ref().map(|(path, _)| path.display().to_string()),
        output_format: request.output.as_ref().map(|(_, format)| format.name()),
        merged: request.inputs.iter().map(|path| path.display().to_string()).collect(),
        ..AnalyzeReport::of(&sums)
    };
    if let Some(path) = &request.plot {
        let name = request.inputs[0].file_stem().unwrap_or_default().to_string_lossy();
        let subject =
            Subject { name: &name, sums: &sums, super_weights: &[], mask: None, perplexity: None };
        plot::check_path(path)?;
        check_output(path)?;
        plot::draw(path, &subject)?;
        report.plot_path = Some(path.display().to_string());
    }
    report.duration_seconds = began.elapsed().as_secs_f64();
    report.peak_memory_bytes = memory::peak_resident_bytes();
    report.warnings = progress.warnings();
    Ok(report)
}

/// Refuses what would fail later; gives the tokens of a sample.
fn check(model: &LocalModel, request: &AnalyzeRequest, backend: &Backend) -> Result<usize> {
    let invalid = |message: String| Err(Error::InvalidArgument(message));
    if let Samples::Spread(count) = request.samples
        && !SAMPLES.contains(&count)
    {
        return invalid(format!(
            "{count} calibration samples; {} to {} are accepted (--chunks takes any number of \
             consecutive ones)",
            SAMPLES.start(),
            SAMPLES.end()
        ));
    }
    if request.samples == Samples::First(Some(0)) {
        return invalid("no chunks at all are nothing to measure on".into());
    }
    let context = model.config.max_positions;
    let length = request.chunk_size.unwrap_or(CHUNK.min(context));
    if length < 2 || length > context {
        return invalid(format!(
            "samples of {length} tokens: the model reads 2 to {context} tokens"
        ));
    }
    if let Some(coverage) = request.coverage {
        if !(coverage > 0.0 && coverage <= MOST_COVERAGE) {
            return invalid(format!(
                "a coverage of {coverage}; it is a share above 0, and at most {MOST_COVERAGE}"
            ));
        }
        if model.config.experts.is_some() {
            return invalid(
                "super weights are looked for in the down projection of each block, and a mixture of \
                 experts has many: leave out --identify-super-weights"
                    .into(),
            );
        }
        for name in model.config.linear_names(0) {
            stored(model, &format!("{name}.weight"))?;
        }
    }
    if request.method != Method::Activation && !backend.device.is_cpu() {
        return invalid(format!(
            "{} is computed on the processor: --device cpu",
            request.method.name()
        ));
    }
    check_output(&request.output)?;
    if let Some(path) = &request.plot {
        plot::check_path(path)?;
        check_output(path)?;
    }
    Ok(length)
}

/// Makes the folder of an output and asks whether a file can be written there.
fn check_output(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    if path.is_dir() {
        return Err(Error::io(path, std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    space::check_writable(folder)
}

/// Everything that decides the sums. The tokens stand for text, tokenizer and cutting.
fn fingerprint(
    model: &LocalModel,
    source: String,
    request: &AnalyzeRequest,
    backend: &Backend,
    chunks: &Chunks,
) -> Fingerprint {
    Fingerprint::new(&model.name)
        .with("tool", concat!("llm-quantize ", env!("CARGO_PKG_VERSION")))
        .with("command", "analyze")
        .with("source", source)
        .with("method", request.method.name())
        .with("calibration text", &chunks.dataset)
        .with("calibration tokens sha256", chunks.token_hash())
        .with("calibration samples", chunks.count())
        .with("tokens of a sample", chunks.length)
        .with("output matrix", request.process_output)
        .with("device", backend.describe())
        .with("arithmetic", pass::arithmetic(backend))
}

/// Runs over the text; gives the sums and the samples that an interrupted run had finished.
fn measure(
    model: &LocalModel,
    request: &AnalyzeRequest,
    backend: &Backend,
    chunks: &Chunks,
    fingerprint: &Fingerprint,
    cache: Option<&Entry>,
    progress: &dyn Progress,
) -> Result<(ImportanceSums, usize)> {
    let store = match &request.checkpoints {
        Checkpoints::Off => None,
        Checkpoints::Under(folder) => Some(CheckpointStore::create(folder, fingerprint, progress)?),
        Checkpoints::Resume(folder) => Some(CheckpointStore::open(folder, fingerprint, progress)?),
    };
    let pass = Pass {
        model,
        backend,
        chunks,
        method: request.method,
        process_output: request.process_output,
        store: store.as_ref(),
        resume_command: request.resume_command.as_deref(),
        asked: matches!(request.checkpoints, Checkpoints::Resume(_)),
        progress,
    };
    let (sums, resumed) = pass.run()?;
    let sums = named(&sums, model, request.method, chunks)?;
    if let Some(cache) = cache {
        cache.store(&sums, progress);
    }
    // The result is written from what is in memory; the folder of the run has served.
    if let Some(store) = store {
        write(&sums, &request.output, request.format)?;
        store.finish()?;
    }
    Ok((sums, resumed))
}

/// The sums under GGUF names.
fn named(
    sums: &Sums,
    model: &LocalModel,
    method: Method,
    chunks: &Chunks,
) -> Result<ImportanceSums> {
    let mut entries = IndexMap::new();
    for (layer, sums) in &sums.layers {
        let name = match layer.as_str() {
            OUTPUT if model.config.tie_word_embeddings => Some("token_embd.weight".to_owned()),
            OUTPUT => Some("output.weight".to_owned()),
            layer => names::to_gguf(&format!("{layer}.weight")),
        };
        let name = name.ok_or_else(|| Error::Importance(format!("{layer} has no GGUF name")))?;
        // As a file holds them, so that a matrix out of the cache is the same to the last bit.
        let stored = |value: &f64| f64::from(*value as f32);
        let entry = ColumnSums {
            sums: sums.columns.iter().map(stored).collect(),
            counts: vec![stored(&sums.count)],
        };
        entries.insert(name, entry);
    }
    let sums = ImportanceSums {
        entries,
        method,
        datasets: vec![chunks.dataset.clone()],
        data_sha256: Some(chunks.sha256.clone()),
        chunks: chunks.count() as u32,
        chunk_size: chunks.length as u32,
    };
    sums.check().map_err(Error::Importance)?;
    Ok(sums)
}

/// Finds the super weights and writes the mask beside the matrix.
fn identify(
    model: &LocalModel,
    request: &AnalyzeRequest,
    backend: &Backend,
    chunks: &Chunks,
    sums: &ImportanceSums,
    coverage: f64,
    progress: &dyn Progress,
) -> Result<(SuperWeightReport, SuperWeightMask)> {
    progress.note(&format!("Identifying super weights (coverage: {}%)", percent(coverage)));
    let mut decoder = Decoder::new(model, backend)?;
    let count = pass::batch(chunks.length).min(chunks.count());
    let tokens = &chunks.tokens[..count * chunks.length];
    let Found { super_weights, perplexity } =
        spikes::search(model, &mut decoder, tokens, chunks.length, progress)?;
    drop(decoder);
    let mut first: IndexMap<String, Vec<u64>> = IndexMap::new();
    for weight in &super_weights {
        let columns = sums.entries.get(&weight.tensor).map_or(0, ColumnSums::columns);
        let position = (weight.row * columns + weight.column) as u64;
        first.entry(weight.tensor.clone()).or_default().push(position);
    }
    first.values_mut().for_each(|positions| positions.sort_unstable());
    let mask = scores::select(model, sums, coverage, &first, progress)?;
    let path = mask_path(&request.output);
    mask.write(&path)?;
    for weight in &super_weights {
        let effect = weight.perplexity_without.map_or(String::new(), |without| {
            format!(": perplexity {perplexity:.2} → {without:.2} without it")
        });
        progress.detail(&format!(
            "{}[{}, {}] = {:.4}{effect}",
            weight.tensor, weight.row, weight.column, weight.value
        ));
    }
    let total = mask.total();
    progress.note(&format!(
        "Protected parameters: {} ({}%)",
        grouped(total),
        percent(total as f64 / model.parameter_count() as f64)
    ));
    let report = SuperWeightReport {
        identified: true,
        coverage,
        total_protected: total,
        mask_path: Some(path.display().to_string()),
        score: Some(scores::score_name(sums.method)),
        perplexity: Some(perplexity),
        super_weights,
    };
    Ok((report, mask))
}

/// A share in percent, with the digits that it needs: 0.0001 → `0.01`.
fn percent(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `673,841`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let (head, tail) = digits.split_at(digits.len() % 3);
    let groups = tail.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let head = (!head.is_empty()).then(|| head.to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

fn write(sums: &ImportanceSums, path: &Path, format: MatrixFormat) -> Result<()> {
    match format {
        MatrixFormat::Gguf => sums.write_gguf(path),
        MatrixFormat::Dat => sums.write_dat(path),
    }
}

fn open_all(paths: &[PathBuf]) -> Result<Vec<(PathBuf, ImportanceSums)>> {
    paths.iter().map(|path| Ok((path.clone(), ImportanceSums::open(path)?))).collect()
}

fn add_all(sums: &mut ImportanceSums, others: &[(PathBuf, ImportanceSums)]) -> Result<()> {
    for (path, other) in others {
        sums.add(other).map_err(|message| Error::imatrix(path, message))?;
    }
    Ok(())
}

impl AnalyzeReport {
    /// What a matrix alone says.
    fn of(sums: &ImportanceSums) -> Self {
        Self {
            status: "success",
            output_path: None,
            output_format: None,
            model_path: None,
            method: sums.method.name(),
            num_layers: statistics::blocks(sums),
            calibration_samples: u64::from(sums.chunks),
            calibration: None,
            global_statistics: statistics::global(sums),
            tensor_statistics: statistics::tensors(sums),
            super_weights: SuperWeightReport::none(),
            merged: Vec::new(),
            cached: false,
            resumed_samples: 0,
            resumed_layers: 0,
            plot_path: None,
            duration_seconds: 0.0,
            peak_memory_bytes: None,
            warnings: Vec::new(),
        }
    }
}

impl SuperWeightReport {
    /// When they were not looked for.
    fn none() -> Self {
        Self {
            identified: false,
            coverage: 0.0,
            total_protected: 0,
            mask_path: None,
            score: None,
            perplexity: None,
            super_weights: Vec::new(),
        }
    }
}
