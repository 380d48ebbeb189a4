//! What a quantization tells its caller.

use serde::Serialize;

use super::execute::Outcome;
use super::model::GgufModel;
use super::plan::QuantizePlan;
use super::request::QuantizeRequest;
use super::summary::TypeCount;
use crate::codec::StoredType;
use crate::device::memory;

/// The result of `quantize MODEL gguf`, or its plan.
#[derive(Debug, Serialize)]
pub struct QuantizeReport {
    /// `success`, or `planned`.
    pub status: &'static str,
    /// The file, or the first of several.
    pub output_path: String,
    /// `gguf`.
    pub format: &'static str,
    /// The level, or the budget.
    pub quantization_level: String,
    /// Bytes of all files.
    pub file_size: u64,
    /// `file_size` over the size of the source.
    pub compression_ratio: f64,
    /// Seconds the command took; `null` for a plan.
    pub duration_seconds: Option<f64>,
    /// Largest memory of the process, bytes; `null` for a plan.
    pub peak_memory_bytes: Option<u64>,
    /// `valid` when the files were opened again and are what was planned; `not_written`.
    pub validation_status: &'static str,
    /// About the source.
    pub metadata: SourceReport,
    /// Bits of the files per weight, headers and tokenizer included.
    pub bits_per_weight: f64,
    /// SHA-256 of the first file; absent from a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// All files.
    pub files: Vec<FileReport>,
    /// How many tensors, weights and bytes each type has.
    pub tensor_types: Vec<TypeCount>,
    /// Of a plan: every tensor, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorReport>,
    /// The profile of a dynamic quantization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Of a dynamic quantization: its layers in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layer_summary: Vec<LayerSummary>,
    /// Of a dynamic quantization: `bits_per_weight` under the contract's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_bpw: Option<f64>,
    /// Of a dynamic quantization: bits of the tensors' data per weight, which a profile's target
    /// counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_bpw: Option<f64>,
    /// Where types were chosen by loss: the sum of what each tensor's error is expected to cost the
    /// model, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_loss: Option<f64>,
    /// How that is known: `estimated` or `measured`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<&'static str>,
    /// The super weights, if they are protected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub super_weights: Option<SuperWeightReport>,
    /// The importance matrix, if one was used.
    pub imatrix: Option<ImportanceReport>,
    /// Tensors that an interrupted run had finished.
    pub resumed_tensors: usize,
    /// Layers of the model that were complete then.
    pub resumed_layers: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The source of a quantization.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// The type that most of its bytes have.
    pub original_dtype: String,
    /// Bytes of its tensors.
    pub original_size: u64,
    /// Its blocks.
    pub layers_processed: usize,
    /// GGUF name of the architecture.
    pub architecture: String,
    /// Number of weights.
    pub parameter_count: u64,
}

/// A file.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its contents; absent from a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A tensor of a plan.
#[derive(Debug, Serialize)]
pub struct TensorReport {
    /// GGUF name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Type in the source.
    pub source_type: &'static str,
    /// Type in the file.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Bytes in the file.
    pub bytes: u64,
    /// Why it gets that type.
    pub reason: String,
    /// The type that was meant, where rows do not fill its blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<&'static str>,
}

/// A block, or a matrix outside of the blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Its Hugging Face name: `model.layers.0`.
    pub layer_name: String,
    /// Bits that its weights take on the mean, scales included.
    pub bit_width: f64,
    /// Its weights.
    pub parameter_count: u64,
    /// Whether one of its tensors got a type that keeps super weights.
    pub is_protected: bool,
}

/// What was done about super weights.
#[derive(Debug, Serialize)]
pub struct SuperWeightReport {
    /// The part of all weights that was looked for.
    pub coverage: f64,
    /// Super weights in all tensors.
    pub found: u64,
    /// Those whose tensors got a type that keeps them.
    pub total_protected: u64,
    /// The file that they were read from; `null` if they were found here.
    pub mask: Option<String>,
    /// The tensors that are protected.
    pub tensors: Vec<ProtectedReport>,
}

/// A tensor with super weights.
#[derive(Debug, Serialize)]
pub struct ProtectedReport {
    /// GGUF name.
    pub name: String,
    /// Type in the file.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its super weights.
    pub protected: u64,
    /// The part of the energy of the tensor's output that they carry.
    pub output_share: f64,
}

/// The importance matrix of a quantization.
#[derive(Debug, Serialize)]
pub struct ImportanceReport {
    /// Where it was read from.
    pub path: String,
    /// Tensors it has.
    pub entries: usize,
    /// Tensors that were quantized with it.
    pub used: usize,
    /// Chunks of text it was measured on; 0 if the file does not say.
    pub chunks: u32,
    /// The texts.
    pub datasets: Vec<String>,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl QuantizeReport {
    /// Of a plan.
    #[must_use]
    pub fn planned(model: &GgufModel, plan: &QuantizePlan, request: &QuantizeRequest) -> Self {
        let files = plan.layout.files().iter().map(|file| FileReport {
            path: file.path(&request.output).display().to_string(),
            bytes: file.bytes,
            sha256: None,
        });
        let mut report = Self::new(model, plan, request, files.collect());
        let bytes = plan.layout.tensor_bytes();
        report.tensors = model
            .tensors
            .iter()
            .zip(&plan.tensors)
            .zip(bytes)
            .map(|((tensor, work), &bytes)| TensorReport {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                source_type: tensor.source_type.name(),
                kind: work.kind.name(),
                bytes,
                reason: work.decision.reason.to_string(),
                instead_of: work.decision.instead_of.map(StoredType::name),
            })
            .collect();
        report
    }

    /// Of work that is done and took `seconds`.
    #[must_use]
    pub fn finished(
        model: &GgufModel,
        plan: &QuantizePlan,
        request: &QuantizeRequest,
        outcome: &Outcome,
        seconds: f64,
    ) -> Self {
        let files = outcome.files.iter().map(|file| FileReport {
            path: file.path.display().to_string(),
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
        });
        let mut report = Self::new(model, plan, request, files.collect());
        report.status = "success";
        report.validation_status = "valid";
        report.duration_seconds = Some(seconds);
        report.peak_memory_bytes = memory::peak_resident_bytes();
        report.resumed_tensors = outcome.resumed;
        report.resumed_layers = outcome.resumed_layers;
        report.sha256 = report.files.first().and_then(|file| file.sha256.clone());
        report
    }

    fn new(
        model: &GgufModel,
        plan: &QuantizePlan,
        request: &QuantizeRequest,
        files: Vec<FileReport>,
    ) -> Self {
        let used = plan.tensors.iter().filter(|work| work.important).count();
        let file_size = plan.layout.total_bytes();
        Self {
            status: "planned",
            output_path: files.first().map(|file| file.path.clone()).unwrap_or_default(),
            format: "gguf",
            quantization_level: plan.level_name.clone(),
            file_size,
            compression_ratio: file_size as f64 / model.source_bytes.max(1) as f64,
            duration_seconds: None,
            peak_memory_bytes: None,
            validation_status: "not_written",
            metadata: SourceReport {
                original_dtype: model.source_dtype.clone(),
                original_size: model.source_bytes,
                layers_processed: model.shape.layers,
                architecture: model.architecture.clone(),
                parameter_count: model.parameters(),
            },
            bits_per_weight: plan.bits_per_weight,
            sha256: None,
            files,
            tensor_types: plan.histogram(model),
            tensors: Vec::new(),
            profile: plan.profile(request).map(str::to_owned),
            layer_summary: if plan.profile(request).is_some() {
                plan.layers(model)
            } else {
                Vec::new()
            },
            effective_bpw: plan.profile(request).map(|_| plan.bits_per_weight),
            tensor_bpw: plan.profile(request).map(|_| plan.tensor_bits_per_weight),
            expected_loss: plan.expected_loss,
            sensitivity: plan.expected_loss.map(|_| match &request.dynamic {
                Some(dynamic) if dynamic.measured.is_some() => "measured",
                _ => "estimated",
            }),
            super_weights: plan.super_weights(model),
            imatrix: request.importance.as_ref().map(|matrix| ImportanceReport {
                path: matrix.path.display().to_string(),
                entries: matrix.entries.len(),
                used,
                chunks: matrix.chunks,
                datasets: matrix.datasets.clone(),
                sha256: matrix.sha256.clone(),
            }),
            resumed_tensors: 0,
            resumed_layers: 0,
            warnings: plan.warnings.clone(),
        }
    }
}
