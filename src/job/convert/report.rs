//! What a conversion tells its caller.

use std::path::Path;

use serde::Serialize;

use super::compare::{Difference, relative};
use super::plan::Plan;
use crate::files::gguf::WrittenFile;
use crate::model::LocalModel;

/// The result of `convert`, or its plan.
#[derive(Debug, Serialize)]
pub(crate) struct ConversionReport {
    /// `success`, or `planned`.
    pub status: &'static str,
    /// The model that was read.
    pub input_path: String,
    /// `gguf`, `gptq`, `awq` or `smoothquant`.
    pub input_format: &'static str,
    /// The file or directory.
    pub output_path: String,
    /// `gguf`, `gptq`, `awq` or `hf`.
    pub format: &'static str,
    /// `Q4_0`, `4bit-g128`, `F16`.
    pub quantization_level: String,
    /// Bytes of all files; `null` for a plan.
    pub file_size: Option<u64>,
    /// `file_size` over the bytes of the source's tensors; `null` for a plan.
    pub compression_ratio: Option<f64>,
    /// Seconds from the plan to the last comparison; `null` for a plan.
    pub duration_seconds: Option<f64>,
    /// Largest memory of the process, bytes; `null` for a plan.
    pub peak_memory_bytes: Option<u64>,
    /// `valid` when the result was opened again and compared; `not_written`.
    pub validation_status: &'static str,
    /// Whether every value of every tensor of the source is kept: none changed, none left out.
    pub lossless: bool,
    /// How many tensors kept their values; `null` for a plan.
    pub tensors: Option<Counts>,
    /// Linear layers of the blocks by what the plan found out: how many keep their values exactly.
    pub layers_kept: LayersKept,
    /// Root of the mean squared change of the requantized tensors, over that of their values; 0 if
    /// there are none, `null` for a plan.
    pub relative_rms_error: Option<f64>,
    /// The tensors that changed.
    pub changed: Vec<Changed>,
    /// About the source.
    pub metadata: SourceReport,
    /// All files.
    pub files: Vec<FileReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Linear layers that keep their values.
#[derive(Debug, Serialize)]
pub(crate) struct LayersKept {
    /// Those that do.
    pub kept: usize,
    /// All of them.
    pub all: usize,
}

/// Tensors by what happened to them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    /// Every value is the same.
    pub exact: usize,
    /// Values were rounded to a type of plain numbers.
    pub rounded: usize,
    /// Values were rounded to the grid of a quantized type.
    pub requantized: usize,
}

/// A tensor that changed.
#[derive(Debug, Serialize)]
pub(crate) struct Changed {
    /// Hugging Face name.
    pub name: String,
    /// Type in the source.
    pub from: String,
    /// Type in the result.
    pub to: String,
    /// Root of the mean squared change over that of the values.
    pub relative_rms_error: f64,
}

/// The source of a conversion.
#[derive(Debug, Serialize)]
pub(crate) struct SourceReport {
    /// The type of its linear layers.
    pub original_dtype: String,
    /// Bytes of its tensors.
    pub original_size: u64,
    /// Its blocks.
    pub layers_processed: usize,
    /// Its parameters.
    pub parameter_count: u64,
}

/// A file.
#[derive(Debug, Serialize)]
pub(crate) struct FileReport {
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its contents.
    pub sha256: String,
}

impl FileReport {
    pub(super) fn of(file: &WrittenFile) -> Self {
        Self {
            path: file.path.display().to_string(),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
        }
    }
}

impl ConversionReport {
    /// Of a plan: nothing is written or compared yet.
    #[must_use]
    pub(crate) fn planned(model: &LocalModel, plan: &Plan, output: &Path) -> Self {
        let mut report = Self::new(model, plan, output, &[]);
        report.status = "planned";
        report.validation_status = "not_written";
        report.lossless = false;
        // Nothing was compared or written.
        (report.tensors, report.relative_rms_error) = (None, None);
        report.compression_ratio = None;
        if plan.is_lossy() {
            report.warnings.push(plan.loss());
        }
        report
    }

    pub(super) fn new(
        model: &LocalModel,
        plan: &Plan,
        output: &Path,
        differences: &[Difference],
    ) -> Self {
        let mut tensors = Counts::default();
        let (mut error, mut energy) = (0.0, 0.0);
        let mut changed = Vec::new();
        for found in differences {
            if found.exact {
                tensors.exact += 1;
                continue;
            }
            if found.dense {
                tensors.rounded += 1;
            } else {
                tensors.requantized += 1;
                error += found.error;
                energy += found.energy;
            }
            changed.push(Changed {
                name: found.name.clone(),
                from: found.from.clone(),
                to: found.to.clone(),
                relative_rms_error: found.relative_error(),
            });
        }
        let layer = model.weights.iter().find(|(name, _)| super::plan::is_linear(name));
        Self {
            status: "success",
            input_path: model.path.display().to_string(),
            input_format: plan.from,
            output_path: output.display().to_string(),
            format: plan.format(),
            quantization_level: plan.level(),
            file_size: None,
            compression_ratio: None,
            duration_seconds: None,
            peak_memory_bytes: None,
            validation_status: "valid",
            lossless: changed.is_empty() && model.left_out.is_empty(),
            layers_kept: LayersKept { kept: plan.kept().0, all: plan.kept().1 },
            tensors: Some(tensors),
            relative_rms_error: Some(relative(error, energy)),
            changed,
            metadata: SourceReport {
                original_dtype: layer.map(|(_, weight)| weight.type_name()).unwrap_or_default(),
                original_size: model.weight_bytes(),
                layers_processed: model.config.num_layers,
                parameter_count: model.parameter_count(),
            },
            files: Vec::new(),
            warnings: model.warnings.iter().chain(&plan.warnings).cloned().collect(),
        }
    }
}
