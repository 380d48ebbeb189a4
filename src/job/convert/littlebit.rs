//! `littlebit convert`: the native file, the GGUF file with the same factors, and GGUF files with
//! dense weights that stock runtimes load.

use std::path::Path;

use serde::Serialize;

use crate::base::progress::Progress;
use crate::files::detect::{self, PathKind};
use crate::files::gguf::WrittenFile;
use crate::files::littlebit::LittleBitFile;
use crate::files::{atomic, space};
use crate::job::checkpoints::Checkpoints;
use crate::job::gguf::mix::Overrides;
use crate::job::gguf::{
    Goal, Level, QuantizeRequest, SourceOptions, execute, from_littlebit, plan,
};
use crate::model::gguf_ext;
use crate::{Error, Result};

/// What a file is converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The native file.
    LittleBit,
    /// GGUF with the same factors.
    GgufExt,
    /// GGUF with the weights multiplied out and quantized to a level: for good.
    GgufLossy(Level),
}

impl Target {
    /// `littlebit`, `gguf-ext` or `gguf-lossy`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LittleBit => "littlebit",
            Self::GgufExt => "gguf-ext",
            Self::GgufLossy(_) => "gguf-lossy",
        }
    }
}

/// The result of a conversion.
#[derive(Debug, Serialize)]
pub(crate) struct ConversionReport {
    /// `success`.
    pub status: &'static str,
    /// The file that was read.
    pub input_path: String,
    /// `littlebit` or `gguf-ext`.
    pub input_format: &'static str,
    /// Its size, bytes.
    pub input_size_bytes: u64,
    /// The file that was written.
    pub output_path: String,
    /// `littlebit`, `gguf-ext` or `gguf-lossy`.
    pub format: &'static str,
    /// Level of `gguf-lossy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_level: Option<String>,
    /// Size of the file that was written, bytes.
    pub file_size: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Whether all bits are kept: a `gguf-ext` file was turned back in this run and gave the native
    /// file.
    pub lossless: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Opens a `.littlebit` file or a GGUF file with binary factors. Also gives the name of its format.
///
/// # Errors
/// [`Error::UnsupportedConversion`] for any other kind of file, [`Error::ModelNotFound`] if there is
/// none, else as [`LittleBitFile::open`] and [`gguf_ext::open`].
pub(crate) fn open(path: &Path) -> Result<(LittleBitFile, &'static str)> {
    match detect::path_kind(path)? {
        PathKind::LittleBit => Ok((LittleBitFile::open(path)?, "littlebit")),
        PathKind::Gguf => match gguf_ext::open(path) {
            Ok(file) => Ok((file, "gguf-ext")),
            Err(Error::Unsupported { message, .. }) => Err(Error::UnsupportedConversion(message)),
            Err(error) => Err(error),
        },
        PathKind::Missing => {
            Err(Error::model_not_found(format!("{} does not exist", path.display())))
        }
        PathKind::Directory => Err(Error::UnsupportedConversion(format!(
            "{} is a directory, where a .littlebit file or a GGUF file with binary factors is expected \
             (`littlebit compress` makes one of a model)",
            path.display()
        ))),
        _ => Err(Error::UnsupportedConversion(format!(
            "{} is neither a .littlebit file nor a GGUF file with binary factors",
            path.display()
        ))),
    }
}

/// Converts `file`, which was read from a file of the format `from`, and writes `output`.
///
/// # Errors
/// [`Error::UnsupportedConversion`] if the file has that format already,
/// [`Error::Reconstruction`] if factors cannot be rebuilt, [`Error::Io`].
pub(crate) fn convert(
    file: &LittleBitFile,
    from: &'static str,
    target: Target,
    output: &Path,
    progress: &dyn Progress,
) -> Result<ConversionReport> {
    if from == target.name() {
        return Err(Error::UnsupportedConversion(format!(
            "{} is a {from} file already",
            file.path().display()
        )));
    }
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    space::check_writable(folder)?;
    // Of a gguf-ext file the writer knows the size, and so does the plan of a lossy one.
    if target == Target::LittleBit {
        space::check_free_space(folder, file.bytes().len() as u64)?;
    }
    // Before anything is made of it: every bit is what was written once.
    file.verify_checksums(progress)?;
    let (written, warnings) = match target {
        Target::LittleBit => {
            let bytes = file.bytes();
            atomic::write_atomically(output, bytes)?;
            let sha256 = sha256_of(&LittleBitFile::open(output)?);
            if sha256 != sha256_of(file) {
                return Err(Error::damaged(output, "does not read back as it was written"));
            }
            let written =
                WrittenFile { path: output.to_path_buf(), bytes: bytes.len() as u64, sha256 };
            (written, Vec::new())
        }
        Target::GgufExt => (gguf_ext::write(file, output, progress)?, Vec::new()),
        Target::GgufLossy(level) => lossy(file, level, output, progress)?,
    };
    Ok(ConversionReport {
        status: "success",
        input_path: file.path().display().to_string(),
        input_format: from,
        input_size_bytes: std::fs::metadata(file.path())
            .map_err(|e| Error::io(file.path(), e))?
            .len(),
        output_path: written.path.display().to_string(),
        format: target.name(),
        quantization_level: match target {
            Target::GgufLossy(level) => Some(level.name().to_owned()),
            _ => None,
        },
        file_size: written.bytes,
        sha256: written.sha256,
        lossless: !matches!(target, Target::GgufLossy(_)),
        warnings,
    })
}

fn sha256_of(file: &LittleBitFile) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(file.bytes()))
}

/// Multiplies the factors out, some rows at a time, and quantizes them as `quantize` does.
fn lossy(
    file: &LittleBitFile,
    level: Level,
    output: &Path,
    progress: &dyn Progress,
) -> Result<(WrittenFile, Vec<String>)> {
    let model = from_littlebit::open(file, &SourceOptions::default())?;
    let request = QuantizeRequest {
        goal: Goal::Level(level),
        dynamic: None,
        protection_coverage: None,
        overrides: Overrides::default(),
        importance: None,
        // Embeddings have blocks already.
        allow_requantize: true,
        provenance: true,
        output: output.to_path_buf(),
        split_max: None,
        checkpoints: Checkpoints::Off,
        resume_command: None,
    };
    let plan = plan::plan(&model, &request, progress)?;
    execute::refuse(&model, &plan, &[file.path().to_path_buf()], &request, progress)?;
    let mut outcome = execute::execute(&model, &plan, &request, progress)?;
    let written =
        outcome.files.pop().ok_or_else(|| Error::General("no file was written".into()))?;
    let mut warnings = model.warnings.clone();
    warnings.extend(plan.warnings);
    Ok((written, warnings))
}
