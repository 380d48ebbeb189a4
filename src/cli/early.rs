//! What the command line and this machine's files can tell, asked before a model is: nobody downloads
//! gigabytes to hear that a folder cannot be written.

use std::path::Path;

use crate::base::progress::{NullProgress, Progress};
use crate::files::{checkpoint, space};
use crate::hub::ModelSpec;
use crate::measure::tasks::{self, BenchmarkRequest};
use crate::text::{TextRequest, TextSource};
use crate::{Error, Result};

/// Refuses an output folder that cannot be written, or that is a file.
pub(crate) fn output_folder(folder: &Path) -> Result<()> {
    space::check_writable(folder)
}

/// Refuses an output file that cannot be written, or that is a folder.
pub(crate) fn output_file(file: &Path) -> Result<()> {
    if file.is_dir() {
        return Err(Error::io(file, std::io::ErrorKind::IsADirectory.into()));
    }
    output_folder(folder_of(file))
}

/// The folder that a file is in, or will be.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses `--resume` where there is no checkpoint at all.
pub(crate) fn resume(folder: Option<&Path>) -> Result<()> {
    folder.map_or(Ok(()), checkpoint::require_any)
}

/// Refuses files of text that are not there or cannot be understood, as far as their beginning tells.
pub(crate) fn text(calibration: Option<&Path>, evaluation: Option<&Path>) -> Result<()> {
    if calibration.is_none() && evaluation.is_none() {
        return Ok(());
    }
    let request = TextRequest {
        calibration_data: calibration,
        evaluation_data: evaluation,
        calibration_tokens: 1,
        evaluation_tokens: Some(1),
        render: None,
        fetch: None,
    };
    TextSource::open(&request, &NullProgress).map(drop)
}

/// Refuses benchmarks whose questions are not there or cannot be understood. Those that come from the
/// hub, some megabytes, are fetched.
pub(crate) fn benchmarks(requests: &[BenchmarkRequest], progress: &dyn Progress) -> Result<()> {
    requests.iter().try_for_each(|request| tasks::load(request, progress).map(drop))
}

/// Refuses a model that is neither here nor a hub id.
pub(crate) fn model(spec: &str) -> Result<()> {
    ModelSpec::parse(spec).map(drop)
}
