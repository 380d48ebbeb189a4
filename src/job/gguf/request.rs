//! What a caller wants of a quantization.

use std::path::PathBuf;

use super::level::Level;
use super::mix::Overrides;
use crate::files::imatrix::ImportanceMatrix;
use crate::job::checkpoints::Checkpoints;
use crate::job::profile::Profile;
use crate::model::LocalModel;
use crate::text::CalibrationWindows;

/// How types are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The mix of a level.
    Level(Level),
    /// The smallest error that fits this many bytes of files.
    Bytes(u64),
    /// The smallest error at this many bits per weight of the whole file.
    BitsPerWeight(f64),
    /// The smallest error at this many bits per weight of the tensors' data, or at as many as it
    /// takes: what a profile aims at.
    TensorBits(f64),
    /// The smallest size at which the model is expected to lose at most this much, nats per token.
    Loss(f64),
    /// The smallest error that a profile's rules leave, whatever the size.
    Rules,
}

/// Types of each tensor's own.
#[derive(Debug)]
pub struct Dynamic {
    /// Whether the user asked for a profile; a plain budget is one without rules or name.
    pub named: bool,
    /// Rules that hold before anything is chosen.
    pub profile: Profile,
    /// How the loss by each tensor is measured; without it, it is estimated.
    pub measured: Option<Measured>,
}

/// A model that can be run, and text to run it on.
#[derive(Debug)]
pub struct Measured {
    /// The source.
    pub model: LocalModel,
    /// The text.
    pub windows: CalibrationWindows,
}

/// A quantization to GGUF.
#[derive(Debug)]
pub struct QuantizeRequest {
    /// Level or budget.
    pub goal: Goal,
    /// A profile, for a budget with rules.
    pub dynamic: Option<Dynamic>,
    /// The part of all weights that are super weights, which their tensors' types must keep.
    pub protection_coverage: Option<f64>,
    /// Types for particular tensors.
    pub overrides: Overrides,
    /// Importance of columns.
    pub importance: Option<ImportanceMatrix>,
    /// Whether tensors that are already quantized may be quantized again.
    pub allow_requantize: bool,
    /// Whether the file says where the importance matrix came from.
    pub provenance: bool,
    /// The file to write.
    pub output: PathBuf,
    /// Largest size of a file, bytes; more are written where one would be larger.
    pub split_max: Option<u64>,
    /// Where finished work is kept.
    pub checkpoints: Checkpoints,
    /// The command that continues an interrupted run.
    pub resume_command: Option<String>,
}
