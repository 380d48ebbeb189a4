//! What to call a result: from a change of perplexity to a word, a warning and an exit status.

use std::fmt;

use super::coherence::CoherenceReport;

/// Bits per weight up to which a large loss is what the published post-training results lead one
/// to expect (at 1 bit 1.9 to 3.3 times the original's perplexity, depending on the model's size).
const LOSS_EXPECTED_UP_TO: f64 = 1.0;

/// Classes of quality by increase of perplexity, percent of the original's. Bounds belong to the
/// better class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quality {
    /// Up to 5 %: what good 4-bit files cost.
    Excellent,
    /// Up to 20 %: what good 3-bit files cost.
    Good,
    /// Up to 100 %: usable where size is everything.
    Acceptable,
    /// Up to 400 %: five times the perplexity; text falls apart.
    Poor,
    /// Above, or not a number.
    Unusable,
}

impl Quality {
    /// The class of an increase in percent.
    #[must_use]
    pub fn of(delta_percent: f64) -> Self {
        match delta_percent {
            delta if delta <= 5.0 => Self::Excellent,
            delta if delta <= 20.0 => Self::Good,
            delta if delta <= 100.0 => Self::Acceptable,
            delta if delta <= 400.0 => Self::Poor,
            _ => Self::Unusable,
        }
    }

    /// The class as one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Excellent => "EXCELLENT",
            Self::Good => "GOOD",
            Self::Acceptable => "ACCEPTABLE",
            Self::Poor => "POOR",
            Self::Unusable => "UNUSABLE",
        }
    }

    /// What the class means, in three words.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Excellent => "negligible quality loss",
            Self::Good => "small quality loss",
            Self::Acceptable => "significant quality loss",
            Self::Poor => "severe quality loss",
            Self::Unusable => "the model no longer predicts text",
        }
    }
}

/// The judgement on a compressed model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Class of quality.
    pub quality: Quality,
    /// Bits per weight of the compressed model, when the loss is to be expected there.
    pub expected_at: Option<f64>,
    /// The coherence test was run and failed.
    pub incoherent: bool,
}

impl Verdict {
    /// Judges by the change of perplexity, by the coherence test if it was run (a model that fails
    /// it is at best poor), and by the bits per weight that were asked for.
    #[must_use]
    pub fn new(
        delta_percent: f64,
        coherence: Option<&CoherenceReport>,
        bits_per_weight: Option<f64>,
    ) -> Self {
        let incoherent = coherence.is_some_and(|report| !report.passed());
        let mut quality = Quality::of(delta_percent);
        if incoherent {
            quality = quality.max(Quality::Poor);
        }
        let expected_at = bits_per_weight
            .filter(|&bits| quality >= Quality::Acceptable && bits <= LOSS_EXPECTED_UP_TO);
        Self { quality, expected_at, incoherent }
    }

    /// The sentence to warn with, if the loss is worth a warning: "Significant quality degradation
    /// (expected for 0.1 BPW)".
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let text = match self.quality {
            Quality::Excellent | Quality::Good => return None,
            Quality::Acceptable => "Significant quality degradation",
            Quality::Poor => "Severe quality degradation",
            Quality::Unusable => "The compressed model no longer predicts text",
        };
        Some(match self.expected_at {
            Some(bits) => format!("{text} (expected for {bits} BPW)"),
            None => text.to_owned(),
        })
    }
}

impl fmt::Display for Verdict {
    /// `ACCEPTABLE (significant quality loss, expected for 0.1 BPW)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.quality.word(), self.quality.meaning())?;
        if self.incoherent {
            write!(f, ", incoherent text")?;
        }
        if let Some(bits) = self.expected_at {
            write!(f, ", expected for {bits} BPW")?;
        }
        write!(f, ")")
    }
}

/// Whether an increase of perplexity stays within a threshold, both in percent. A measurement
/// that is not a number does not.
#[must_use]
pub(crate) fn quality_passed(delta_percent: f64, threshold_percent: f64) -> bool {
    delta_percent <= threshold_percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_meet_at_their_documented_bounds() {
        use super::Quality::{Acceptable, Excellent, Good, Poor, Unusable};
        let cases = [
            (-3.0, Excellent),
            (5.0, Excellent),
            (5.01, Good),
            (20.0, Good),
            (20.5, Acceptable),
            (61.6, Acceptable),
            (100.0, Acceptable),
            (101.0, Poor),
            (400.0, Poor),
            (401.0, Unusable),
            (f64::INFINITY, Unusable),
            (f64::NAN, Unusable),
        ];
        for (delta, quality) in cases {
            assert_eq!(Quality::of(delta), quality, "{delta}");
        }
    }

    #[test]
    fn the_wording_is_the_contracts() {
        let verdict = Verdict::new(61.6, None, Some(0.1));
        assert_eq!(
            verdict.to_string(),
            "ACCEPTABLE (significant quality loss, expected for 0.1 BPW)"
        );
        assert_eq!(
            verdict.warning().unwrap(),
            "Significant quality degradation (expected for 0.1 BPW)"
        );
        assert_eq!(Verdict::new(1.0, None, Some(0.1)).warning(), None);
        assert_eq!(
            Verdict::new(1.0, None, Some(0.1)).to_string(),
            "EXCELLENT (negligible quality loss)"
        );
        assert_eq!(Verdict::new(150.0, None, Some(2.0)).to_string(), "POOR (severe quality loss)");
        assert!(quality_passed(20.0, 20.0) && !quality_passed(20.1, 20.0));
        assert!(!quality_passed(f64::NAN, 20.0));
    }
}
