//! The work: checks everything that could fail, then streams tensor after tensor into the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;

use super::finite::{self, Fault, Target};
use super::integers;
use super::model::GgufModel;
use super::plan::{self, QuantizePlan, importance_of, lacking, matrices};
use super::request::QuantizeRequest;
use super::tensor::GgufTensor;
use crate::base::progress::{NullProgress, Progress};
use crate::codec::{StoredType, ggml};
use crate::files::checkpoint::{CheckpointStore, Fingerprint};
use crate::files::gguf::{PartialGguf, WrittenFile, part_path};
use crate::files::lock::{Attempt, FileLock};
use crate::files::space;
use crate::job::checkpoints::Checkpoints;
use crate::model::identity::identity;
use crate::weight::range;
use crate::{Error, Result};

/// Values that a thread decodes and encodes at once: they stay in its cache.
const VALUES_PER_TASK: usize = 1 << 15;
/// Values that are made before they are handed to the disk: the memory of the work is a few times
/// the bytes of this many.
const VALUES_PER_SLAB: usize = 1 << 23;
/// Journal of finished tensors in the folder of the run.
const JOURNAL: &str = "tensors";

/// What a run has done.
#[derive(Debug)]
pub struct Outcome {
    /// The files, in order.
    pub files: Vec<WrittenFile>,
    /// Tensors that an interrupted run had finished.
    pub resumed: usize,
    /// Blocks of the model that it had finished.
    pub resumed_layers: usize,
    /// Seconds from the first tensor to the last.
    pub seconds: f64,
}

/// Refuses what would fail later: what [`refuse_plan`] does, a disk that is too small, and weights that are not numbers. Makes
/// the folder of the output, and names unfinished files of other runs.
///
/// # Errors
/// As [`refuse_plan`]; [`Error::ValidationFailed`].
pub fn refuse(
    model: &GgufModel,
    plan: &QuantizePlan,
    source: &[PathBuf],
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<()> {
    refuse_plan(model, plan, source, request)?;
    refuse_size(plan, request, unfinished(plan, request))?;
    let folder = folder_of(&request.output);
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let run = run_name(&fingerprint(model, plan, request, progress)?);
    for part in abandoned(plan, request, &run) {
        progress.note(&format!(
            "{} belongs to an interrupted run of another model or with other options; it is removed \
             when this run is complete",
            part.display()
        ));
    }
    check_finite(model, plan, request, progress)
}

/// Refuses a missing importance matrix, a folder that cannot be written, a checkpoint of another run,
/// and the source as the target. Leaves nothing behind and reads no weights
/// but a sample.
///
/// # Errors
/// [`Error::ImatrixRequired`], [`Error::Io`], [`Error::InvalidArgument`], [`Error::Checkpoint`].
pub fn refuse_plan(
    model: &GgufModel,
    plan: &QuantizePlan,
    source: &[PathBuf],
    request: &QuantizeRequest,
) -> Result<()> {
    if let Some(message) = lacking(plan) {
        return Err(Error::ImatrixRequired(message));
    }
    let folder = folder_of(&request.output);
    space::check_writable(folder)?;
    let source: Vec<PathBuf> = source.iter().filter_map(|path| path.canonicalize().ok()).collect();
    for file in plan.layout.files() {
        let target = file.path(&request.output);
        if target.is_dir() {
            return Err(Error::io(target, std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        // What does not exist yet is not the source.
        if target.canonicalize().is_ok_and(|target| source.contains(&target)) {
            return Err(Error::InvalidArgument(format!(
                "{} is the model itself; choose another --output-dir or --output-name",
                target.display()
            )));
        }
    }
    if let Checkpoints::Resume(parent) = &request.checkpoints {
        let fingerprint = fingerprint(model, plan, request, &NullProgress)?;
        drop(CheckpointStore::open(parent, &fingerprint, &NullProgress)?);
    }
    Ok(())
}

/// Bytes of unfinished files for the same targets. Which run they belong to takes reading the model, so
/// any counts as this run's.
fn unfinished(plan: &QuantizePlan, request: &QuantizeRequest) -> u64 {
    let parts = abandoned(plan, request, "");
    parts.iter().filter_map(|part| part.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Refuses a disk that is too small for what is still to be written.
///
/// # Errors
/// [`Error::Io`].
pub fn refuse_size(plan: &QuantizePlan, request: &QuantizeRequest, written: u64) -> Result<()> {
    let bytes = plan.layout.total_bytes().saturating_sub(written);
    space::check_free_space(folder_of(&request.output), bytes)
}

/// What [`refuse_size`] would refuse, as a warning.
#[must_use]
pub fn shortage(plan: &QuantizePlan, request: &QuantizeRequest) -> Option<String> {
    space::shortage(folder_of(&request.output), plan.layout.total_bytes())
}

/// Unfinished files of other runs than `run` for the same targets.
fn abandoned(plan: &QuantizePlan, request: &QuantizeRequest, run: &str) -> Vec<PathBuf> {
    let targets = plan.layout.files().iter().map(|file| file.path(&request.output));
    targets.flat_map(|target| other_parts(&target, &part_path(&target, run))).collect()
}

/// Removes unfinished files of other runs whose target is there now, unless somebody writes them.
fn remove_abandoned(plan: &QuantizePlan, request: &QuantizeRequest, run: &str) {
    for part in abandoned(plan, request, run) {
        if let Ok(Attempt::Locked(_lock)) = FileLock::attempt(&part) {
            let _ = std::fs::remove_file(&part);
        }
    }
}

fn other_parts(target: &Path, own: &Path) -> Vec<PathBuf> {
    let front = part_path(target, "");
    let front = front.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(folder_of(target)).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&front))
        .map(|entry| folder_of(target).join(entry.file_name()))
        .filter(|path| path != own)
        .collect();
    parts.sort();
    parts
}

/// Reads all weights: what is no number in the source, and what would be none in the file, is refused;
/// what would become zero is named.
fn check_finite(
    model: &GgufModel,
    plan: &QuantizePlan,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<()> {
    progress.start("Checking", model.source_bytes, "bytes");
    let mut lost = Vec::new();
    for (tensor, work) in model.tensors.iter().zip(&plan.tensors) {
        let importance = importance_of(request.importance.as_ref(), tensor)?;
        let (fault, zeroed) = finite::search(tensor, Some(Target { kind: work.kind, importance }))?;
        if let Some(fault) = fault {
            progress.finish();
            return Err(match fault {
                Fault::NonFinite(found) => Error::damaged(
                    &model.name,
                    format!("{found}: the weights are damaged, or were never finite"),
                ),
                Fault::Beyond(found) => Error::OutOfRange {
                    message: format!("{found}, which {} cannot hold", work.kind.name()),
                    suggestion: format!(
                        "BF16 and F32 hold it: choose such a level, or such a type for this tensor \
                         alone (`quantize gguf --tensor-type '^{}$=bf16'`)",
                        tensor.name.replace('.', r"\.")
                    ),
                },
            });
        }
        if let Some((at, value)) = zeroed.largest {
            let place = finite::place_of(tensor, at, value).index;
            let rows = tensor.rows();
            lost.push(format!(
                "{}: {} values in {} of {rows} rows become zero as {}, the largest of them {value:e} at \
                 {place:?} (BF16 and F32 keep them)",
                tensor.name, zeroed.values, zeroed.rows, work.kind.name()
            ));
        }
        progress.advance(tensor.source_bytes());
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    lost.iter().for_each(|warning| progress.warn(warning));
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Everything that decides the bytes of the files. Without checkpoints nothing is taken up again, so
/// the model need not be read for it.
fn fingerprint(
    model: &GgufModel,
    plan: &QuantizePlan,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<Fingerprint> {
    let target = std::path::absolute(&request.output).unwrap_or_else(|_| request.output.clone());
    let importance =
        request.importance.as_ref().map_or("none", |importance| importance.sha256.as_str());
    let source = match request.checkpoints {
        Checkpoints::Off => "not kept".to_owned(),
        Checkpoints::Under(_) | Checkpoints::Resume(_) => identity(&model.path, progress)?,
    };
    Ok(Fingerprint::new(&model.name)
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("command", "quantize gguf")
        .with("source", source)
        .with("level", &plan.level_name)
        .with("overrides", request.overrides.describe())
        .with("imatrix", importance)
        .with("split", request.split_max.map_or("none".to_owned(), |bytes| bytes.to_string()))
        .with("output", target.display())
        .with("header", plan.header_hash()))
}

/// A short name of the run, which its temporary files carry.
fn run_name(fingerprint: &Fingerprint) -> String {
    fingerprint.hash()[..12].to_owned()
}

/// Writes the files of a plan that [`refuse`] has let pass.
///
/// # Errors
/// [`Error::Io`], [`Error::Checkpoint`]; [`Error::Interrupted`] when the user asks to stop: what is
/// finished is then kept.
pub fn execute(
    model: &GgufModel,
    plan: &QuantizePlan,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let fingerprint = fingerprint(model, plan, request, progress)?;
    let store = match &request.checkpoints {
        Checkpoints::Off => None,
        Checkpoints::Under(folder) => {
            Some(CheckpointStore::create(folder, &fingerprint, progress)?)
        }
        Checkpoints::Resume(folder) => Some(CheckpointStore::open(folder, &fingerprint, progress)?),
    };
    let journal = store.as_ref().map(|store| store.folder().join(JOURNAL));
    let run = run_name(&fingerprint);
    let mut file = PartialGguf::open(&request.output, &plan.layout, &run, journal)?;
    let resumed = file.finished();
    let (resumed_layers, layers) = layers(&model.tensors, resumed);
    if let Some(store) = &store {
        let asked = matches!(request.checkpoints, Checkpoints::Resume(_));
        store.announce(resumed_layers, layers, asked || resumed > 0, progress);
    }
    let began = Instant::now();
    let bytes = |tensors: &[GgufTensor]| tensors.iter().map(GgufTensor::source_bytes).sum::<u64>();
    progress.start("Quantizing", bytes(&model.tensors), "bytes");
    progress.resumed(bytes(&model.tensors[..resumed]));
    for number in resumed..model.tensors.len() {
        let tensor = &model.tensors[number];
        let kind = plan.tensors[number].kind;
        progress.verbose(&format!(
            "{} {} → {}",
            tensor.name,
            tensor.source_type.name(),
            kind.name()
        ));
        let whole = write_tensor(&mut file, tensor, kind, request, progress)?;
        if !whole || (progress.stop_requested() && number + 1 < model.tensors.len()) {
            file.pause()?;
            return Err(Error::Interrupted {
                resume: request.resume_command.clone().filter(|_| store.is_some()),
            });
        }
    }
    progress.finish();
    let seconds = began.elapsed().as_secs_f64();
    let files = file.finish(&request.output)?;
    if let Some(store) = store {
        store.finish()?;
    }
    remove_abandoned(plan, request, &run);
    Ok(Outcome { files, resumed, resumed_layers, seconds })
}

/// Blocks of the model whose tensors are all among the first `finished`, and all blocks.
fn layers(tensors: &[GgufTensor], finished: usize) -> (usize, usize) {
    let block = |tensor: &GgufTensor| {
        let (number, _) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
        number.parse::<usize>().ok()
    };
    let all: BTreeSet<usize> = tensors.iter().filter_map(block).collect();
    let missing: BTreeSet<usize> = tensors[finished..].iter().filter_map(block).collect();
    (all.len() - missing.len(), all.len())
}

/// Streams a tensor; `false` when the user asked to stop before its end.
fn write_tensor(
    file: &mut PartialGguf,
    tensor: &GgufTensor,
    kind: StoredType,
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<bool> {
    let importance = importance_of(request.importance.as_ref(), tensor)?;
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let slab = (VALUES_PER_SLAB / cols.max(1)).clamp(1, rows.max(1));
    let row_bytes = tensor.source_bytes() / rows.max(1) as u64;
    for start in (0..rows).step_by(slab) {
        if start > 0 && progress.stop_requested() {
            return Ok(false);
        }
        let range = start..rows.min(start + slab);
        let count = range.len();
        let raw = (kind == tensor.source_type).then(|| tensor.raw_rows(range.clone())).flatten();
        let bytes = match raw {
            Some(raw) => raw.into_owned(),
            None => encode(tensor, range, kind, importance)?,
        };
        file.write(bytes)?;
        tensor.release();
        progress.advance(row_bytes * count as u64);
    }
    Ok(true)
}

/// Decodes and encodes rows, a few at a time on every thread.
fn encode(
    tensor: &GgufTensor,
    rows: std::ops::Range<usize>,
    kind: StoredType,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>> {
    let cols = tensor.cols();
    let row_bytes = kind.row_bytes(cols).ok_or_else(|| {
        Error::General(format!("rows of {} do not fill blocks of {}", tensor.name, kind.name()))
    })?;
    let rows_per_matrix = (tensor.rows() / matrices(tensor).max(1)).max(1);
    let step = (VALUES_PER_TASK / cols.max(1)).max(1);
    let mut bytes = vec![0; rows.len() * row_bytes];
    bytes.par_chunks_mut(step * row_bytes).enumerate().try_for_each_init(
        Vec::new,
        |values: &mut Vec<f32>, (number, bytes)| {
            let first = rows.start + number * step;
            let count = bytes.len() / row_bytes;
            if let Some(packed) = tensor.packed()
                && integers::encode(packed, tensor, first..first + count, kind, bytes)
            {
                return Ok(());
            }
            values.resize(count * cols, 0.0);
            tensor.read_rows(first..first + count, values)?;
            let pairs = values.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes));
            for (row, (values, bytes)) in (first..).zip(pairs) {
                let matrix = row / rows_per_matrix;
                let columns = importance.map(|all| &all[matrix * cols..(matrix + 1) * cols]);
                ggml::encode_row(kind, values, columns, bytes);
                range::settle(kind, bytes);
            }
            Ok::<(), Error>(())
        },
    )?;
    Ok(bytes)
}

/// Rows that were encoded and decoded again, for measuring errors: `[rows.len(), cols]`.
pub(super) fn round_trip(
    values: &[f32],
    cols: usize,
    kind: StoredType,
    importance: Option<&[f32]>,
) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    let mut bytes = vec![0; kind.row_bytes(cols).unwrap_or_default()];
    for (values, out) in values.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        ggml::encode_row(kind, values, importance, &mut bytes);
        ggml::decode(kind, &bytes, out);
    }
    out
}

/// Plans, checks and writes.
///
/// # Errors
/// As [`plan::plan`], [`refuse`] and [`execute`].
pub fn quantize(
    model: &GgufModel,
    source: &[PathBuf],
    request: &QuantizeRequest,
    progress: &dyn Progress,
) -> Result<(QuantizePlan, Outcome)> {
    let plan = plan::plan(model, request, progress)?;
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    refuse(model, &plan, source, request, progress)?;
    let outcome = execute(model, &plan, request, progress)?;
    Ok((plan, outcome))
}
