//! The index of a `.littlebit` file as records, exactly as its JSON is written.
//!
//! The records say nothing about consistency: [`Contents`](super::contents::Contents) checks them. Keys that
//! are not listed here are ignored when reading, so that later versions may add to the index.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// Always `littlebit`.
    pub format: String,
    /// The version in the preamble again.
    pub format_version: u32,
    /// Where the model came from and how it was compressed.
    pub about: About,
    /// Bits per weight over all factorized tensors, their scales counted. 0 if there are none.
    pub achieved_bpw: f64,
    /// Text files carried along.
    pub files: Vec<FileRecord>,
    /// Tensors, in the order of their sections.
    pub tensors: Vec<TensorRecord>,
    /// Every section of the file, in file order.
    pub sections: Vec<SectionRecord>,
}

/// Where a model came from and how it was compressed. Holds no path, time or duration: the same
/// work gives the same record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Program and version that wrote the file (`llm-quantize 0.1.0`).
    pub tool: String,
    /// The model that was compressed.
    pub source: Source,
    /// The command line, one argument each, if it may be told. A run that was interrupted and
    /// resumed records the command that began it.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// What was asked for, bits per factorized weight.
    pub target_bpw: f64,
    /// Size of the original model that compression ratios refer to, bytes.
    pub original_size_bytes: u64,
    /// Solver, seed and every other value that influenced the bits, by name.
    #[serde(default)]
    pub settings: Settings,
    /// The text on which activations were measured, if any were.
    #[serde(default)]
    pub calibration: Option<Calibration>,
}

impl About {
    /// Without what can point at a person or a machine: the command line and the names of the
    /// model and of the calibration text. Checksums stay.
    #[must_use]
    pub fn without_provenance(mut self) -> Self {
        self.command = None;
        self.source.name = None;
        if let Some(calibration) = &mut self.calibration {
            calibration.name = None;
        }
        self
    }
}

/// The model that was compressed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Hub id, or the name of the directory or file.
    #[serde(default)]
    pub name: Option<String>,
    /// `huggingface`, `gguf` or `littlebit`.
    pub format: String,
    /// What identifies these very weights (a hub revision, a SHA-256), as `kind:value`.
    #[serde(default)]
    pub identity: Option<String>,
}

/// The calibration text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Name of the data set or file.
    #[serde(default)]
    pub name: Option<String>,
    /// SHA-256 of the text, hexadecimal.
    pub sha256: String,
}

/// Values that influenced the bits, by name, in the order in which they were given.
pub type Settings = IndexMap<String, Setting>;

/// A value of a setting: never nested.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Setting {
    /// Yes or no.
    Switch(bool),
    /// A count, a seed.
    Integer(u64),
    /// Any other number.
    Number(f64),
    /// A name.
    Text(String),
}

impl From<bool> for Setting {
    fn from(value: bool) -> Self {
        Self::Switch(value)
    }
}

impl From<u64> for Setting {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<usize> for Setting {
    fn from(value: usize) -> Self {
        Self::Integer(value as u64)
    }
}

impl From<f64> for Setting {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<&str> for Setting {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Setting {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<'de> Deserialize<'de> for Setting {
    // By hand, because a derived untagged enum would first build whatever the document nests here.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Setting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number or a string")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Setting, E> {
                Ok(Setting::Switch(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Setting, E> {
                Ok(Setting::Integer(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Setting, E> {
                Ok(Setting::Number(value as f64))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Setting, E> {
                Ok(Setting::Number(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Setting, E> {
                Ok(Setting::Text(value.into()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// A text file that lies in a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name, without folders.
    pub name: String,
    /// Number of the section.
    pub section: usize,
}

/// How a tensor is represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Values, plain or in blocks: `dtype` and `section` are there.
    Stored,
    /// Binary factors: `paths` is there.
    Factorized,
}

/// A tensor of either kind. One flat record rather than a tagged enum, which serde would buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Hugging Face name (`model.layers.0.mlp.up_proj.weight`).
    pub name: String,
    /// Which of the fields below are there.
    pub kind: Kind,
    /// Dimensions, outermost first; `[out, in]` for a factorized tensor.
    pub shape: Vec<u64>,
    /// Stored: element type, lower case (`f32`, `q8_0`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Stored: number of the section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<usize>,
    /// Factorized: the paths whose sum is the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<PathRecord>>,
    /// Factorized: squared error of the weight relative to its squared norm, when measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
    /// Factorized: the same with each weight counted by the activations it meets, when measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_error: Option<f64>,
}

/// A path of a factorized tensor; all but `rank` and `scale_type` are numbers of sections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRecord {
    /// Inner dimension.
    pub rank: u64,
    /// Signs `[out, rank]`.
    pub left: usize,
    /// Signs `[rank, in]`.
    pub right: usize,
    /// How the scales are stored, where it is not f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_type: Option<String>,
    /// Scales `[out]`.
    pub row_scale: usize,
    /// Scales `[rank]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent_scale: Option<usize>,
    /// Scales `[in]`.
    pub column_scale: usize,
}

/// Where a section lies and what it hashes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionRecord {
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes, without the zeros that follow.
    pub length: u64,
    /// SHA-256 of these bytes, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Digits after which an error value is cut. They bound the length of its text, which makes the
/// length of the index, and so of the file, known before the first error is measured.
const ERROR_DIGITS: usize = 5;

/// An error value whose text is the longest that [`error_value`] can give (18 characters: six
/// digits, zeros up to the decimal point, and the `.0` that marks a float).
pub(super) const WIDEST_ERROR: f64 = 1_234_560_000_000_000.0;

/// An error value as it is stored: six significant digits; nothing if it is not a finite,
/// non-negative number.
#[must_use]
pub(crate) fn error_value(error: f64) -> Option<f64> {
    if !error.is_finite() || error < 0.0 {
        return None;
    }
    format!("{:.ERROR_DIGITS$e}", error.abs()).parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_widest_error_is_its_own_rounding() {
        assert_eq!(error_value(WIDEST_ERROR), Some(WIDEST_ERROR));
        assert_eq!(serde_json::to_string(&WIDEST_ERROR).unwrap(), "1234560000000000.0");
    }

    #[test]
    fn useless_errors_are_dropped() {
        for error in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(error_value(error), None);
        }
        assert_eq!(error_value(0.123_456_789), Some(0.123_457));
    }

    proptest! {
        #[test]
        fn no_error_is_wider_than_the_widest(bits in any::<u64>()) {
            let widest = serde_json::to_string(&WIDEST_ERROR).unwrap().len();
            if let Some(error) = error_value(f64::from_bits(bits)) {
                prop_assert!(serde_json::to_string(&error).unwrap().len() <= widest);
            }
        }

        #[test]
        fn everyday_errors_are_not_wider_either(error in 0.0f64..1e18) {
            let widest = serde_json::to_string(&WIDEST_ERROR).unwrap().len();
            let error = error_value(error).unwrap();
            prop_assert!(serde_json::to_string(&error).unwrap().len() <= widest);
        }
    }

    #[test]
    fn settings_keep_their_types() {
        let text = r#"{"solver":"admm","seed":7,"damping":0.5,"residual":false}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert_eq!(settings["solver"], Setting::from("admm"));
        assert_eq!(settings["seed"], Setting::from(7u64));
        assert_eq!(settings["damping"], Setting::from(0.5));
        assert_eq!(settings["residual"], Setting::from(false));
        assert_eq!(serde_json::to_string(&settings).unwrap(), text);
        assert!(serde_json::from_str::<Settings>(r#"{"solver":[1]}"#).is_err());
    }
}
