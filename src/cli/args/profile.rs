//! Arguments of `profile`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::quantize::SensitivityArg;
use super::{HubArgs, ThreadArgs};
use crate::cli::output::OutputFormat;

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// List available preset profiles, and those of LLM_QUANTIZE_PROFILE_DIR
    List,
    /// Show profile details
    Show(ShowArgs),
    /// Create custom profile from importance matrix
    Create(CreateArgs),
    /// Validate profile against model
    Validate(ValidateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Preset, path to a .dqprofile, or name of one in LLM_QUANTIZE_PROFILE_DIR
    #[arg(value_name = "PROFILE_NAME")]
    pub(crate) profile: String,

    /// Output format [default: human]
    #[arg(long = "format", id = "profile_format", value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Importance matrix file
    #[arg(long, value_name = "PATH")]
    pub(crate) imatrix: PathBuf,

    /// Profile name
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: String,

    /// The model that the profile is for: its weights are measured in every type. Without it, widths
    /// follow from the roles of the tensors alone
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Target bits per weight
    #[arg(long, value_name = "FLOAT", conflicts_with = "target_size")]
    pub(crate) target_bpw: Option<f64>,

    /// Target compression ratio: size of the file over that of the model (0.25), or how many times
    /// smaller it is (4)
    #[arg(long, value_name = "FLOAT")]
    pub(crate) target_size: Option<f64>,

    /// Output profile path [default: NAME.dqprofile in LLM_QUANTIZE_PROFILE_DIR]
    #[arg(long, short = 'o', value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,

    /// How the loss by each tensor's error is known
    #[arg(long, value_enum, default_value_t = SensitivityArg::Estimated, value_name = "HOW")]
    pub(crate) sensitivity: SensitivityArg,

    /// Text for --sensitivity measured
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration_data: Option<PathBuf>,

    /// Windows of 256 tokens for --sensitivity measured [default: 2]
    #[arg(long, value_name = "INT")]
    pub(crate) calibration_samples: Option<usize>,

    /// Allow types below those of a model that is quantized already
    #[arg(long)]
    pub(crate) allow_requantize: bool,

    #[command(flatten)]
    pub(crate) threads: ThreadArgs,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Profile path or preset name
    pub(crate) profile: String,

    /// Model to validate against
    pub(crate) model: String,

    #[command(flatten)]
    pub(crate) hub: HubArgs,
}
