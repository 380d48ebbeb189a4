//! What a caller wants of a quantization.

use std::path::PathBuf;

use super::level::Level;
use super::mix::Overrides;
use crate::formats::imatrix::ImportanceMatrix;

/// How types are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The mix of a level.
    Level(Level),
    /// The smallest error that fits this many bytes of files.
    Bytes(u64),
    /// The smallest error at this many bits per weight of the whole file.
    BitsPerWeight(f64),
}

/// Where finished work is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoints {
    /// Nowhere: an interrupted run starts over.
    Off,
    /// Under a folder, in a folder of the run's own; finished work found there is used.
    Under(PathBuf),
    /// In a folder that must hold the run.
    Resume(PathBuf),
}

/// A quantization to GGUF.
#[derive(Debug)]
pub struct QuantizeRequest {
    /// Level or budget.
    pub goal: Goal,
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
