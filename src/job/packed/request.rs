//! What a caller wants.

use std::path::PathBuf;

use crate::base::suggest::did_you_mean;
use crate::job::checkpoints::Checkpoints;
use crate::text::TextOptions;
use crate::{Error, Result};

/// Default size of a group.
pub(crate) const GROUP: usize = 128;
/// Default number of calibration samples.
pub(crate) const SAMPLES: usize = 256;
/// Tokens of a calibration sample, at most.
pub(crate) const SAMPLE_TOKENS: usize = 512;
/// Default damping of GPTQ.
pub(crate) const DAMPING: f64 = 0.01;
/// Default strength of SmoothQuant.
pub(crate) const ALPHA: f64 = 0.5;

/// How weights become integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Method {
    /// GPTQ, in GPTQ's layout.
    Gptq(Gptq),
    /// AWQ: 4 bits with zero points.
    Awq,
    /// SmoothQuant: weights and activations in 8 bits.
    SmoothQuant(Alpha),
}

/// Settings of GPTQ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gptq {
    /// 2, 3, 4 or 8.
    pub bits: u8,
    /// No zero points.
    pub symmetric: bool,
    /// Columns are rounded in the order of their activations, and groups follow that order.
    pub desc_act: bool,
    /// What is added to the diagonal of the Hessian, as a fraction of its mean.
    pub damping: f64,
    /// What is done beyond the paper.
    pub extras: Extras,
}

/// Improvements over the paper's algorithm that do not change the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extras {
    /// Scales are searched for the least error instead of taken from the range.
    pub search: bool,
    /// Columns are rounded in the order of their activations, groups stay runs of neighbours.
    pub static_groups: bool,
    /// Passes over finished layers that choose levels and scales again; three times the work for an
    /// error that is some percent smaller.
    pub refinements: usize,
}

impl Default for Extras {
    fn default() -> Self {
        Self { search: true, static_groups: true, refinements: 0 }
    }
}

/// Strength of SmoothQuant's migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Alpha {
    /// The same everywhere, 0 to 1.
    Fixed(f64),
    /// Searched for each group of layers by the measured error of its outputs.
    Search,
}

impl Alpha {
    /// `auto`, or a number from 0 to 1.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Search);
        }
        match text.parse() {
            Ok(alpha) if (0.0..=1.0).contains(&alpha) => Ok(Self::Fixed(alpha)),
            _ => Err(Error::InvalidArgument(format!(
                "--alpha {text}: a number from 0 to 1, or `auto`"
            ))),
        }
    }

    /// `0.5` or `auto`.
    #[must_use]
    pub(crate) fn name(self) -> String {
        match self {
            Self::Fixed(alpha) => alpha.to_string(),
            Self::Search => "auto".into(),
        }
    }
}

/// Columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupSize {
    /// [`GROUP`], or the largest smaller size that fits all layers.
    Default,
    /// That many.
    Columns(usize),
    /// The whole row.
    Row,
}

impl GroupSize {
    /// `-1` is the whole row.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for 0 and other negative numbers.
    pub(crate) fn parse(number: i64) -> Result<Self> {
        match number {
            -1 => Ok(Self::Row),
            1.. => usize::try_from(number).map(Self::Columns).map_err(|_| wrong_group(number)),
            _ => Err(wrong_group(number)),
        }
    }
}

fn wrong_group(number: i64) -> Error {
    Error::InvalidArgument(format!(
        "--group-size {number}: a number from 1 on, or -1 for whole rows"
    ))
}

impl Method {
    /// `gptq`, `awq` or `smoothquant`.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gptq(_) => "gptq",
            Self::Awq => "awq",
            Self::SmoothQuant(_) => "smoothquant",
        }
    }

    /// Bits of a weight.
    #[must_use]
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::Gptq(gptq) => gptq.bits,
            Self::Awq => 4,
            Self::SmoothQuant(_) => 8,
        }
    }
}

/// Reads a level: `4bit`, `4-bit`, `int4`, `w4`, `w4a16`, `w8a8` or `4`, in any case.
///
/// # Errors
/// [`Error::InvalidArgument`] when it is none, or the format has none of that many bits.
pub(crate) fn parse_bits(level: &str, format: &str) -> Result<u8> {
    let allowed: &[u8] = match format {
        "awq" => &[4],
        "smoothquant" => &[8],
        _ => &[2, 3, 4, 8],
    };
    let text = level.to_ascii_lowercase();
    let activations = if format == "smoothquant" { "a8" } else { "a16" };
    let digits = text
        .strip_suffix("bits")
        .or_else(|| text.strip_suffix("bit"))
        .map(|rest| rest.trim_end_matches(['-', '_']))
        .or_else(|| text.strip_prefix("int"))
        .or_else(|| {
            text.strip_prefix('w').map(|rest| rest.strip_suffix(activations).unwrap_or(rest))
        })
        .unwrap_or(&text);
    match digits.parse::<u8>() {
        Ok(bits) if allowed.contains(&bits) => Ok(bits),
        _ => {
            let list: Vec<String> = allowed.iter().map(|bits| format!("{bits}bit")).collect();
            Err(Error::InvalidArgument(format!(
                "{format} has no level {level}{}; it has {}",
                did_you_mean(level, list.iter().map(String::as_str)),
                list.join(", ")
            )))
        }
    }
}

/// A quantization to a directory.
#[derive(Debug, Clone)]
pub(crate) struct PackedRequest {
    /// How.
    pub method: Method,
    /// Groups of AWQ and GPTQ.
    pub group: GroupSize,
    /// Calibration samples; 0 rounds to nearest without text.
    pub samples: usize,
    /// Text to calibrate on.
    pub text: TextOptions,
    /// Seed of the places in the text.
    pub seed: u64,
    /// The directory to make.
    pub output: PathBuf,
    /// Where finished blocks are kept.
    pub checkpoints: Checkpoints,
    /// The command that continues an interrupted run.
    pub resume_command: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_many_spellings() {
        for text in ["4bit", "4-bit", "4BITS", "int4", "w4", "W4A16", "4"] {
            assert_eq!(parse_bits(text, "gptq").unwrap(), 4, "{text}");
        }
        assert_eq!(parse_bits("W8A8", "smoothquant").unwrap(), 8);
        for (text, format) in
            [("5bit", "gptq"), ("3bit", "awq"), ("4bit", "smoothquant"), ("Q4_K_M", "gptq")]
        {
            assert_eq!(parse_bits(text, format).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(Alpha::parse("auto").unwrap(), Alpha::Search);
        assert!(Alpha::parse("1.5").is_err() && Alpha::parse("x").is_err());
        assert_eq!(GroupSize::parse(-1).unwrap(), GroupSize::Row);
        assert!(GroupSize::parse(0).is_err() && GroupSize::parse(-2).is_err());
    }
}
