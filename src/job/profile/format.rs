//! The file of a profile (`.dqprofile`): JSON.

use serde::{Deserialize, Serialize};

use super::widths;
use crate::base::suggest::did_you_mean;
use crate::codec::StoredType;
use crate::{Error, Result};

/// Where a profile's types come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Attention at four bits, the rest of a block at two.
    AttentionHigh,
    /// By measured error under a target.
    Balanced,
    /// The same with a lower target.
    CompressionMax,
    /// Whatever its assignments say.
    Custom,
}

impl Strategy {
    /// As the file spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttentionHigh => "attention_high",
            Self::Balanced => "balanced",
            Self::CompressionMax => "compression_max",
            Self::Custom => "custom",
        }
    }
}

/// A rule: what some tensors are written in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The tensors: a regular expression for the whole of a name or the front of one up to a dot,
    /// as Hugging Face or GGUF names it (`model.layers.0`, `blk\.\d+\.ffn_down`).
    pub layer_name: String,
    /// One of [`widths::WIDTHS`], bits.
    pub bit_width: f64,
    /// Whether the tensors hold weights that the model depends on: no budget lowers them.
    #[serde(default)]
    pub is_protected: bool,
    /// The exact type, ggml's name; without it the type of that width with the least error.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl Assignment {
    /// A rule for a width.
    #[must_use]
    pub fn width(layer_name: &str, bit_width: f64) -> Self {
        Self { layer_name: layer_name.to_owned(), bit_width, is_protected: false, kind: None }
    }

    /// The exact type, if the rule names one.
    ///
    /// # Errors
    /// [`Error::Profile`] for a name that is no type.
    pub fn exact(&self) -> Result<Option<StoredType>> {
        let Some(name) = &self.kind else { return Ok(None) };
        StoredType::from_name(name).map(Some).ok_or_else(|| {
            let hint = did_you_mean(name, StoredType::of_weights().map(StoredType::name));
            Error::Profile(format!(
                "{}: {name} is no tensor type of GGUF files{hint}",
                self.layer_name
            ))
        })
    }
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name for machines.
    pub profile_id: String,
    /// Name for people.
    pub profile_name: String,
    /// Where the types come from.
    pub strategy: Strategy,
    /// What it is, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Rules, the first that names a tensor holds. Types of tensors without a rule are chosen by
    /// error under the target.
    #[serde(default)]
    pub layer_assignments: Vec<Assignment>,
    /// Bits of the tensors' data per weight that are aimed at.
    #[serde(default)]
    pub target_bpw: Option<f64>,
    /// Bytes of the result over bytes of the source that are aimed at; above 1 the other way round.
    #[serde(default)]
    pub target_compression: Option<f64>,
    /// The expected loss, nats per token, at which the smallest size is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_loss: Option<f64>,
}

impl Profile {
    /// Reads and checks a file's contents; `origin` names it in messages.
    ///
    /// # Errors
    /// [`Error::Profile`] saying what is wrong.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let profile: Self = serde_json::from_str(text).or_else(|error| {
            Self::as_shown(text)
                .ok_or_else(|| Error::Profile(format!("{origin} is no profile: {error}")))
        })?;
        profile.check().map_err(|error| Error::Profile(format!("{origin}: {error}")))?;
        Ok(profile)
    }

    /// What `profile show --format json` prints is a profile too: it has the key `warnings` of all
    /// results more.
    fn as_shown(text: &str) -> Option<Self> {
        let mut shown: serde_json::Value = serde_json::from_str(text).ok()?;
        shown.as_object_mut()?.shift_remove("warnings")?;
        serde_json::from_value(shown).ok()
    }

    /// The file's contents.
    ///
    /// # Errors
    /// [`Error::General`] if it cannot be put into JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| Error::General(format!("the profile cannot be written: {error}")))
    }

    /// Everything that can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Profile`].
    pub fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Profile(message));
        if self.profile_id.trim().is_empty() || self.profile_name.trim().is_empty() {
            return wrong("a profile has an id and a name".into());
        }
        for rule in &self.layer_assignments {
            let name = &rule.layer_name;
            if !widths::is_width(rule.bit_width) {
                return wrong(format!(
                    "{name}: bit_width {} is none of {}",
                    rule.bit_width,
                    widths::list()
                ));
            }
            super::rules::pattern(name)?;
            if let Some(kind) = rule.exact()?
                && (widths::of_type(kind) - rule.bit_width).abs() > 1e-9
            {
                return wrong(format!(
                    "{name}: {} counts as {} bits, not {}",
                    kind.name(),
                    widths::of_type(kind),
                    rule.bit_width
                ));
            }
        }
        let targets = [
            ("target_bpw", self.target_bpw),
            ("target_compression", self.target_compression),
            ("target_loss", self.target_loss),
        ];
        for (name, value) in targets {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return wrong(format!("{name} is {value}, and must be above 0"));
            }
        }
        let count = targets.iter().filter(|(_, value)| value.is_some()).count();
        if count > 1 {
            return wrong("it has two targets: give one".into());
        }
        if self.layer_assignments.is_empty() && count == 0 {
            return wrong("it has neither assignments nor a target".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = Profile::parse(text, "p").unwrap_err();
        assert_eq!(error.exit_code(), 13);
        error.to_string()
    }

    #[test]
    fn files_are_checked() {
        let head = r#"{"profile_id":"a","profile_name":"A","strategy":"custom""#;
        let with = |rest: &str| format!("{head},{rest}}}");
        let good = with(
            r#""layer_assignments":[{"layer_name":"model.layers.0","bit_width":1.58,"is_protected":false}],"target_bpw":null,"target_compression":null"#,
        );
        let profile = Profile::parse(&good, "p").unwrap();
        assert!((profile.layer_assignments[0].bit_width - 1.58).abs() < 1e-9);
        assert_eq!(Profile::parse(&profile.to_json().unwrap(), "p").unwrap(), profile);
        for (rest, words) in [
            (r#""layer_assignments":[{"layer_name":"x","bit_width":7}]"#, "bit_width 7"),
            (r#""layer_assignments":[{"layer_name":"(","bit_width":4}]"#, "("),
            (
                r#""layer_assignments":[{"layer_name":"x","bit_width":4,"type":"Q9"}]"#,
                "Q9 is no tensor type",
            ),
            (
                r#""layer_assignments":[{"layer_name":"x","bit_width":4,"type":"Q8_0"}]"#,
                "Q8_0 counts as 8 bits",
            ),
            (r#""target_bpw":-1"#, "above 0"),
            (r#""target_bpw":3,"target_compression":0.2"#, "two targets"),
            (r#""layer_assignments":[]"#, "neither"),
            (r#""target_bwp":3"#, "target_bwp"),
        ] {
            let message = refused(&with(rest));
            assert!(message.contains(words), "{rest}: {message}");
        }
        assert!(refused("hello").contains("no profile"));
    }
}
