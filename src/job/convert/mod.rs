//! `convert`: between GGUF files and the directories of GPTQ and AWQ checkpoints.
//!
//! Where the grids of two formats hold the same numbers, integers and scales are carried over
//! ([`grids`]); everything else is decoded and rounded again. What was carried over is not taken for
//! granted: the plan compares every value before anything is written, and the written model is opened
//! and compared with the source ([`compare`]).

pub(crate) mod compare;
mod directory;
mod gguf;
pub(crate) mod grids;
pub(crate) mod littlebit;
pub(crate) mod plan;
pub(crate) mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) use plan::{Plan, Request, Target, plan};
pub(crate) use report::ConversionReport;

use crate::base::progress::Progress;
use crate::device::memory;
use crate::files::gguf::WrittenFile;
use crate::model::{self, LocalModel};
use crate::{Error, Result};

/// What was written, before it is compared.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    files: Vec<WrittenFile>,
}

/// Writes what a plan says, opens it, and compares it with the source.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidArgument`] for a target that holds other files,
/// [`Error::ValidationFailed`] if something that was to be carried over exactly is not,
/// [`Error::Interrupted`].
pub(crate) fn convert(
    model: &LocalModel,
    plan: &Plan,
    request: &Request,
    progress: &dyn Progress,
) -> Result<ConversionReport> {
    let began = Instant::now();
    refuse_same(&model.path, &request.output)?;
    let written = match &plan.target {
        Target::Gguf(_) => gguf::write(model, plan, request, progress)?,
        _ => directory::write(model, plan, request, progress)?,
    };
    let back = model::open_local(&written.path)?;
    let differences = compare::compare(model, &back, progress)?;
    plan.check(&differences, &written.path)?;
    let mut report = ConversionReport::new(model, plan, &written.path, &differences);
    let file_size: u64 = written.files.iter().map(|file| file.bytes).sum();
    report.file_size = Some(file_size);
    report.files = written.files.iter().map(report::FileReport::of).collect();
    report.compression_ratio = Some(file_size as f64 / model.weight_bytes().max(1) as f64);
    report.duration_seconds = Some(began.elapsed().as_secs_f64());
    report.peak_memory_bytes = memory::peak_resident_bytes();
    Ok(report)
}

/// The model that is read must not be written over.
fn refuse_same(input: &Path, output: &Path) -> Result<()> {
    if let (Ok(input), Ok(there)) = (input.canonicalize(), output.canonicalize())
        && (input == there || input.starts_with(&there))
    {
        return Err(Error::InvalidArgument(format!(
            "{} holds the model that is converted; choose another --output-dir or --output-name",
            output.display()
        )));
    }
    Ok(())
}
