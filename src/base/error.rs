//! Every way the tool can fail, and what each failure means to a shell, a script and a person.
//!
//! The enum is the only place where failures are told apart: [`Error::exit_code`],
//! [`Error::type_name`] and [`Error::suggestion`] feed the process status, the JSON error object
//! and the hint printed under the message.

use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A documented failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The model is of a kind this tool knows but cannot process.
    #[error("{message}")]
    Unsupported {
        /// What is not supported, by name.
        message: String,
        /// What is.
        suggestion: String,
    },
    /// Something failed that has no code of its own.
    #[error("{0}")]
    General(String),
    /// An option has a value that makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The model, or one of its files, is not there.
    #[error("{message}")]
    ModelNotFound {
        /// What was looked for and where.
        message: String,
        /// How to get it.
        suggestion: String,
    },
    /// The hub wants a token, or refuses the one it got.
    #[error("{0}")]
    AuthRequired(String),
    /// The hub could not be reached, or does not answer as a hub does.
    #[error("{message}")]
    Network {
        /// What was asked, and what came of it.
        message: String,
        /// How to go on.
        suggestion: String,
    },
    /// The largest step would not fit in memory.
    #[error("{message}")]
    OutOfMemory {
        /// What needs how much, and what there is.
        message: String,
        /// What would fit.
        suggestion: String,
    },
    /// A file is damaged, or what was written does not pass its check.
    #[error("{}: {message}", path.display())]
    ValidationFailed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A part of a checkpoint does not hold what it should, or cannot be written.
    #[error("{0}")]
    Checkpoint(String),
    /// A checkpoint is not there, belongs to another run, or is in use.
    #[error("{message}")]
    CheckpointRefused {
        /// Which one, and why it is not used.
        message: String,
        /// What to do instead.
        suggestion: String,
    },
    /// No conversion between these two formats.
    #[error("{0}")]
    UnsupportedConversion(String),
    /// A value is too large for the type that it would be stored in.
    #[error("{message}")]
    OutOfRange {
        /// Which value of which tensor, and the type.
        message: String,
        /// What holds it.
        suggestion: String,
    },
    /// A question was answered with no, or nobody was there to answer.
    #[error("{0}")]
    Cancelled(String),
    /// An importance matrix is missing, damaged or of another model.
    #[error("{}: {message}", path.display())]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A level has tensors that are worthless without an importance matrix, and none was given.
    #[error("{0}")]
    ImatrixRequired(String),
    /// The model got worse by more than the threshold allows.
    #[error("{0}")]
    QualityDegradation(String),
    /// The compressed model writes nonsense.
    #[error("Model output coherence check failed (score: {score:.2})")]
    Coherence {
        /// Mean score over the prompts, 0–1.
        score: f64,
    },
    /// A profile is missing, cannot be read or does not fit the model.
    #[error("{0}")]
    Profile(String),
    /// Activations cannot be smoothed.
    #[error("{0}")]
    SmoothQuant(String),
    /// Calibration text cannot be used.
    #[error("{0}")]
    Calibration(String),
    /// What matters in a model could not be computed.
    #[error("{0}")]
    Importance(String),
    /// A matrix could not be factorized.
    #[error("{message}")]
    Factorization {
        /// What happened, with the tensor's name.
        message: String,
    },
    /// The compressed model is worse than `--quality-threshold` allows.
    #[error("{0}")]
    QualityThreshold(String),
    /// `--target-bpw` outside the allowed range.
    #[error("Target BPW {target} is {} ({bound})",
        if *below { "below minimum supported" } else { "above maximum supported" })]
    BpwRange {
        /// What was asked for, in bits per weight.
        target: f64,
        /// Whether it is below the range (or above it).
        below: bool,
        /// The bound that it violates.
        bound: f64,
        /// The whole range, for the hint.
        range: (f64, f64),
    },
    /// No rank satisfies the request.
    #[error("{message}")]
    RankSelection {
        /// Which layer, and what is reachable.
        message: String,
        /// What to ask for instead.
        suggestion: String,
    },
    /// A factorized matrix could not be rebuilt.
    #[error("{0}")]
    Reconstruction(String),
    /// Ctrl-C; the work so far is saved.
    #[error("interrupted")]
    Interrupted {
        /// The command line that continues, when there is a checkpoint.
        resume: Option<String>,
    },
    /// A tensor operation failed inside candle.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An I/O error with the path it happened on.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A damaged file.
    pub fn damaged(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::ValidationFailed { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An importance matrix that cannot be used.
    pub fn imatrix(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Imatrix { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A value of a tensor that a type cannot hold. `index` is its place, outermost first.
    pub fn out_of_range(tensor: &str, index: &[usize], value: f32, kind: &str) -> Self {
        Self::OutOfRange {
            message: format!("{tensor} is {value:?} at {index:?}, which {kind} cannot hold"),
            suggestion: "BF16 and F32 hold it: keep the tensor in one of them where there is a choice \
                         (`quantize gguf` has one for every tensor, --tensor-type); weights this large \
                         are damage, mostly"
                .to_owned(),
        }
    }

    /// A model that is not there, with the usual hint.
    pub fn model_not_found(message: impl Into<String>) -> Self {
        Self::ModelNotFound {
            message: message.into(),
            suggestion: "Check the path or the hub id (org/name or org/name@revision)".into(),
        }
    }

    /// The exit status of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. }
            | Self::Unsupported { .. }
            | Self::Network { .. }
            | Self::General(_)
            | Self::Tensor(_) => 1,
            Self::InvalidArgument(_) => 2,
            Self::ModelNotFound { .. } => 3,
            Self::AuthRequired(_) => 4,
            Self::OutOfMemory { .. } => 5,
            Self::ValidationFailed { .. } => 6,
            Self::Checkpoint(_) | Self::CheckpointRefused { .. } => 7,
            Self::UnsupportedConversion(_) | Self::OutOfRange { .. } => 8,
            Self::Cancelled(_) => 9,
            Self::Imatrix { .. } | Self::ImatrixRequired(_) => 10,
            Self::QualityDegradation(_) => 11,
            Self::Coherence { .. } => 12,
            Self::Profile(_) => 13,
            Self::SmoothQuant(_) => 14,
            Self::Calibration(_) => 15,
            Self::Importance(_) => 16,
            Self::Factorization { .. } => 20,
            Self::QualityThreshold(_) => 21,
            Self::BpwRange { .. } => 22,
            Self::RankSelection { .. } => 23,
            Self::Reconstruction(_) => 24,
            Self::Interrupted { .. } => 130,
        }
    }

    /// The name used as `error_type` in JSON.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Io { .. } => "IoError",
            Self::Unsupported { .. } => "UnsupportedModelError",
            Self::General(_) | Self::Tensor(_) => "GeneralError",
            Self::InvalidArgument(_) => "InvalidArgumentError",
            Self::ModelNotFound { .. } => "ModelNotFoundError",
            Self::AuthRequired(_) => "AuthenticationRequiredError",
            Self::Network { .. } => "NetworkError",
            Self::OutOfMemory { .. } => "OutOfMemoryError",
            Self::ValidationFailed { .. } => "ValidationFailedError",
            Self::Checkpoint(_) | Self::CheckpointRefused { .. } => "CheckpointError",
            Self::UnsupportedConversion(_) | Self::OutOfRange { .. } => {
                "UnsupportedConversionError"
            }
            Self::Cancelled(_) => "CancelledError",
            Self::Imatrix { .. } | Self::ImatrixRequired(_) => "ImportanceMatrixError",
            Self::QualityDegradation(_) => "QualityDegradationError",
            Self::Coherence { .. } => "CoherenceCheckFailed",
            Self::Profile(_) => "ProfileError",
            Self::SmoothQuant(_) => "SmoothQuantError",
            Self::Calibration(_) => "CalibrationDataError",
            Self::Importance(_) => "ImportanceComputationError",
            Self::Factorization { .. } => "FactorizationFailed",
            Self::QualityThreshold(_) => "QualityThresholdExceeded",
            Self::BpwRange { .. } => "InvalidBPWRange",
            Self::RankSelection { .. } => "RankSelectionFailed",
            Self::Reconstruction(_) => "ReconstructionFailed",
            Self::Interrupted { .. } => "Interrupted",
        }
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn suggestion(&self) -> String {
        match self {
            Self::Unsupported { suggestion, .. }
            | Self::OutOfRange { suggestion, .. }
            | Self::ModelNotFound { suggestion, .. }
            | Self::Network { suggestion, .. }
            | Self::OutOfMemory { suggestion, .. }
            | Self::CheckpointRefused { suggestion, .. }
            | Self::RankSelection { suggestion, .. } => suggestion.clone(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge => {
                    "Free some space or choose another --output-dir".into()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "Check the permissions or choose another path".into()
                }
                std::io::ErrorKind::NotFound => "Check the path".into(),
                std::io::ErrorKind::InvalidInput | std::io::ErrorKind::IsADirectory => {
                    "Give the path of a file".into()
                }
                _ => "Check the file system and try again".into(),
            },
            Self::General(_) | Self::Tensor(_) => {
                "Run again with --verbosity debug and report the output if it looks like a bug"
                    .into()
            }
            Self::InvalidArgument(_) => "See --help for the accepted values".into(),
            Self::AuthRequired(_) => {
                "Accept the model's terms on the hub and set HF_TOKEN to a token that may read it"
                    .into()
            }
            Self::ValidationFailed { .. } => {
                "Download or write the file again; it is truncated or damaged".into()
            }
            Self::Checkpoint(_) => {
                "Run the same command again: what is damaged in the checkpoint is done again".into()
            }
            Self::UnsupportedConversion(_) => {
                "See the `--help` of the command for what can be written from what".into()
            }
            Self::Cancelled(_) => "Pass --force to go on without the question".into(),
            Self::Imatrix { .. } => {
                "Give the importance matrix of this very model, made by `llm-quantize analyze` or by \
                 llama-imatrix (GGUF or .dat)"
                    .into()
            }
            Self::ImatrixRequired(_) => {
                "Give --imatrix FILE (made by `llm-quantize analyze`), or choose a level that needs none, such \
                 as Q2_K or Q3_K_S"
                    .into()
            }
            Self::QualityDegradation(_) => {
                "Try using --protect-super-weights or a less aggressive profile or level".into()
            }
            Self::Coherence { .. } => {
                "Compression may be too aggressive: choose more bits (a higher --target-bpw, Q2_K or \
                 more, or a dynamic profile)"
                    .into()
            }
            Self::Profile(_) => {
                "See `llm-quantize profile list`, or make one with `llm-quantize profile create`".into()
            }
            Self::SmoothQuant(_) => {
                "Try a lower --alpha, --alpha auto, or calibration text that is like the model's use"
                    .into()
            }
            Self::Importance(_) => {
                "Check the weights with `llm-quantize info`, or use --method activation".into()
            }
            Self::Calibration(_) => {
                "Give a .txt, .json or .jsonl file with a `text` or `messages` field".into()
            }
            Self::Factorization { .. } => "Check model weights for NaN/Inf values".into(),
            Self::QualityThreshold(_) => "Increase target BPW or remove quality threshold".into(),
            Self::BpwRange { range, .. } => {
                format!("Use target BPW between {} and {}", range.0, range.1)
            }
            Self::Reconstruction(_) => "Write the file again, or compress the model again".into(),
            Self::Interrupted { resume } => match resume {
                Some(command) => format!("Continue with: {command}"),
                None => "Start the command again".into(),
            },
        }
    }
}
