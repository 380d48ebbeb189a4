//! What a quantization tells its caller.

use serde::Serialize;

use super::finished::LayerReport;
use super::plan::PackedPlan;
use super::request::{Method, PackedRequest};
use crate::device::memory;
use crate::files::model_directory::WrittenDirectory;
use crate::job::gguf::{FileReport, SourceReport};
use crate::model::LocalModel;
use crate::weight::Weight;

/// Signal to quantization noise below which a layer is named as a problem, decibels: an error of a
/// tenth of the outputs.
pub(crate) const PROBLEM_DECIBELS: f64 = 20.0;

/// The result of `quantize MODEL awq|gptq|smoothquant`, or its plan.
#[derive(Debug, Serialize)]
pub(crate) struct PackedReport {
    /// `success`, or `planned`.
    pub status: &'static str,
    /// The directory.
    pub output_path: String,
    /// `awq`, `gptq` or `smoothquant`.
    pub format: &'static str,
    /// `4bit`, or `w8a8`.
    pub quantization_level: String,
    /// Bytes of all files; of a plan, of the tensors.
    pub file_size: u64,
    /// `file_size` over the size of the source's weights.
    pub compression_ratio: f64,
    /// Seconds the command took; `null` for a plan.
    pub duration_seconds: Option<f64>,
    /// Largest memory of the process, bytes; `null` for a plan.
    pub peak_memory_bytes: Option<u64>,
    /// `valid` when the files were read back and are what was written; `not_written`.
    pub validation_status: &'static str,
    /// About the source.
    pub metadata: SourceReport,
    /// Bits of all tensors per weight of the model.
    pub bits_per_weight: f64,
    /// Bits per weight of the packed layers alone, scales and zero points included.
    pub packed_layers_bpw: f64,
    /// Columns that share a scale; -1 for whole rows.
    pub group_size: i64,
    /// Settings of the method.
    pub settings: Settings,
    /// Text that was read; absent without calibration and from a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationReport>,
    /// Mean over the layers of the squared error of their outputs, as a fraction of their squared
    /// size; absent without calibration.
    pub mean_relative_error: Option<f64>,
    /// Layers that were rounded to nearest because their method failed.
    pub fallbacks: usize,
    /// Layers that lose too much to 8-bit activations.
    pub problematic_layers: Vec<Problem>,
    /// All files; empty for a plan.
    pub files: Vec<FileReport>,
    /// Every layer, in the order of the model; empty for a plan.
    pub layers: Vec<LayerReport>,
    /// Of a plan: every tensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorReport>,
    /// Blocks that an interrupted run had finished.
    pub resumed_layers: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Settings of a method, as far as it has them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Settings {
    /// GPTQ: no zero points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// GPTQ: groups follow the order of the activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desc_act: Option<bool>,
    /// GPTQ: fraction of the mean that was added to the Hessian's diagonal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damp_percent: Option<f64>,
    /// SmoothQuant: the strength, or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<String>,
}

/// The text that was read.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CalibrationReport {
    /// Where it came from.
    pub dataset: String,
    /// Samples.
    pub samples: usize,
    /// Tokens of all of them.
    pub tokens: u64,
    /// SHA-256 of the token ids, 32-bit little-endian.
    pub tokens_sha256: String,
}

/// A layer that loses too much.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    /// Its name.
    pub name: String,
    /// Signal to quantization noise of its outputs, decibels.
    pub sqnr_db: f64,
    /// What to do about it.
    pub suggestion: String,
}

/// A tensor of a plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TensorReport {
    /// Its name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Safetensors type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its size.
    pub bytes: u64,
}

impl PackedReport {
    /// Of a plan.
    ///
    /// # Errors
    /// If a tensor has no size.
    pub(crate) fn planned(
        model: &LocalModel,
        plan: &PackedPlan,
        request: &PackedRequest,
    ) -> crate::Result<Self> {
        let mut report = Self::new(model, plan, request);
        for slot in &plan.slots {
            report.tensors.push(TensorReport {
                name: slot.name.clone(),
                shape: slot.shape.clone(),
                kind: slot.dtype.to_string(),
                bytes: slot.bytes()?,
            });
        }
        Ok(report)
    }

    pub(super) fn new(model: &LocalModel, plan: &PackedPlan, request: &PackedRequest) -> Self {
        let original = model.weight_bytes();
        let settings = match request.method {
            Method::Gptq(gptq) => Settings {
                symmetric: Some(gptq.symmetric),
                desc_act: Some(gptq.desc_act),
                damp_percent: Some(gptq.damping),
                alpha: None,
            },
            Method::Awq => Settings::default(),
            Method::SmoothQuant(alpha) => {
                Settings { alpha: Some(alpha.name()), ..Settings::default() }
            }
        };
        Self {
            status: "planned",
            output_path: request.output.display().to_string(),
            format: request.method.name(),
            quantization_level: level_name(request.method),
            file_size: plan.tensor_bytes,
            compression_ratio: plan.tensor_bytes as f64 / original.max(1) as f64,
            duration_seconds: None,
            peak_memory_bytes: None,
            validation_status: "not_written",
            metadata: SourceReport {
                original_dtype: most_used_type(model),
                original_size: original,
                layers_processed: model.config.num_layers,
                architecture: model.config.family.name.into(),
                parameter_count: model.parameter_count(),
            },
            bits_per_weight: plan.tensor_bytes as f64 * 8.0 / model.parameter_count().max(1) as f64,
            packed_layers_bpw: plan.bits_per_weight(),
            group_size: plan.group.map_or(-1, |group| group as i64),
            settings,
            calibration: None,
            mean_relative_error: None,
            fallbacks: 0,
            problematic_layers: Vec::new(),
            files: Vec::new(),
            layers: Vec::new(),
            tensors: Vec::new(),
            resumed_layers: 0,
            warnings: plan.warnings.clone(),
        }
    }

    /// Figures over the layers.
    pub(super) fn summarize(&mut self) {
        let errors: Vec<f64> =
            self.layers.iter().filter_map(|layer| layer.relative_error).collect();
        if !errors.is_empty() {
            self.mean_relative_error = Some(errors.iter().sum::<f64>() / errors.len() as f64);
        }
        self.fallbacks = self.layers.iter().filter(|layer| layer.fallback.is_some()).count();
        if self.fallbacks > 0 {
            let first = self.layers.iter().find(|layer| layer.fallback.is_some());
            self.warnings.push(format!(
                "{} layers were rounded to nearest, {} first: their Hessians cannot be factorized",
                self.fallbacks,
                first.map_or("", |layer| layer.name.as_str())
            ));
        }
        for layer in &self.layers {
            let Some(decibels) = layer.sqnr_db.filter(|db| *db < PROBLEM_DECIBELS) else {
                continue;
            };
            let suggestion = if layer.alpha.is_some() {
                "Try another --alpha (0.8 moves more of the activations' range), or --alpha auto"
            } else {
                "Its inputs follow no norm, so nothing can be moved; use `gptq -q 8bit`, which keeps \
                 activations in 16 bits, if quality suffers"
            };
            self.problematic_layers.push(Problem {
                name: layer.name.clone(),
                sqnr_db: decibels,
                suggestion: suggestion.into(),
            });
        }
        if let Some(worst) =
            self.problematic_layers.iter().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db))
        {
            self.warnings.push(format!(
                "{} layers are below {PROBLEM_DECIBELS} dB, {} worst with {:.1} dB. {}",
                self.problematic_layers.len(),
                worst.name,
                worst.sqnr_db,
                worst.suggestion
            ));
        }
    }

    pub(super) fn finish(&mut self, written: &WrittenDirectory, seconds: f64) {
        self.status = "success";
        self.validation_status = "valid";
        self.file_size = written.bytes;
        self.compression_ratio = written.bytes as f64 / self.metadata.original_size.max(1) as f64;
        self.duration_seconds = Some(seconds);
        self.peak_memory_bytes = memory::peak_resident_bytes();
        self.files = written
            .files
            .iter()
            .map(|file| FileReport {
                path: file.path.display().to_string(),
                bytes: file.bytes,
                sha256: Some(file.sha256.clone()),
            })
            .collect();
    }
}

/// `4bit`, or `w8a8`.
#[must_use]
pub(crate) fn level_name(method: Method) -> String {
    match method {
        Method::SmoothQuant(_) => "w8a8".into(),
        other => format!("{}bit", other.bits()),
    }
}

/// The type that most of the weights' bytes have.
fn most_used_type(model: &LocalModel) -> String {
    let mut types: indexmap::IndexMap<&str, usize> = indexmap::IndexMap::new();
    for weight in model.weights.values() {
        if let Weight::Stored(tensor) = weight {
            *types.entry(tensor.dtype.name()).or_default() += tensor.bytes.len();
        }
    }
    let most = types.iter().max_by_key(|(_, bytes)| **bytes);
    most.map_or("", |(name, _)| *name).to_owned()
}
