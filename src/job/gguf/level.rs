//! The levels of llama.cpp: names, file type numbers, the type most tensors get.

use crate::base::suggest::did_you_mean;
use crate::codec::StoredType;
use crate::{Error, Result};

/// A level of llama-quantize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are llama.cpp's")]
#[expect(non_camel_case_types, reason = "the names are llama.cpp's")]
pub enum Level {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ2_M,
    IQ3_XXS,
    IQ3_XS,
    IQ3_S,
    IQ3_M,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4_MOE,
    Q1_0,
    Q2_0,
}

/// A line of the table of levels.
struct Facts {
    level: Level,
    /// As llama.cpp and the files' names spell it.
    name: &'static str,
    /// What else is understood.
    aliases: &'static [&'static str],
    /// `general.file_type` (`LLAMA_FTYPE_…` of llama.h).
    file_type: u32,
    /// The type of tensors that no rule of the mix names.
    base: StoredType,
}

const fn facts(
    level: Level,
    name: &'static str,
    aliases: &'static [&'static str],
    file_type: u32,
    base: StoredType,
) -> Facts {
    Facts { level, name, aliases, file_type, base }
}

const LEVELS: [Facts; 35] = [
    facts(Level::F32, "F32", &["fp32", "32bit"], 0, StoredType::F32),
    facts(Level::F16, "F16", &["fp16", "16bit"], 1, StoredType::F16),
    facts(Level::BF16, "BF16", &[], 32, StoredType::BF16),
    facts(Level::Q4_0, "Q4_0", &[], 2, StoredType::Q4_0),
    facts(Level::Q4_1, "Q4_1", &[], 3, StoredType::Q4_1),
    facts(Level::Q5_0, "Q5_0", &[], 8, StoredType::Q5_0),
    facts(Level::Q5_1, "Q5_1", &[], 9, StoredType::Q5_1),
    facts(Level::Q8_0, "Q8_0", &["Q8", "8bit"], 7, StoredType::Q8_0),
    facts(Level::Q2_K, "Q2_K", &["2bit"], 10, StoredType::Q2_K),
    facts(Level::Q2_K_S, "Q2_K_S", &[], 21, StoredType::Q2_K),
    facts(Level::Q3_K_S, "Q3_K_S", &[], 11, StoredType::Q3_K),
    facts(Level::Q3_K_M, "Q3_K_M", &["Q3_K", "3bit"], 12, StoredType::Q3_K),
    facts(Level::Q3_K_L, "Q3_K_L", &[], 13, StoredType::Q3_K),
    facts(Level::Q4_K_S, "Q4_K_S", &[], 14, StoredType::Q4_K),
    facts(Level::Q4_K_M, "Q4_K_M", &["Q4_K", "4bit"], 15, StoredType::Q4_K),
    facts(Level::Q5_K_S, "Q5_K_S", &[], 16, StoredType::Q5_K),
    facts(Level::Q5_K_M, "Q5_K_M", &["Q5_K", "5bit"], 17, StoredType::Q5_K),
    facts(Level::Q6_K, "Q6_K", &["6bit"], 18, StoredType::Q6_K),
    facts(Level::IQ1_S, "IQ1_S", &[], 24, StoredType::IQ1_S),
    facts(Level::IQ1_M, "IQ1_M", &[], 31, StoredType::IQ1_M),
    facts(Level::IQ2_XXS, "IQ2_XXS", &[], 19, StoredType::IQ2_XXS),
    facts(Level::IQ2_XS, "IQ2_XS", &[], 20, StoredType::IQ2_XS),
    facts(Level::IQ2_S, "IQ2_S", &[], 28, StoredType::IQ2_XS),
    facts(Level::IQ2_M, "IQ2_M", &[], 29, StoredType::IQ2_S),
    facts(Level::IQ3_XXS, "IQ3_XXS", &[], 23, StoredType::IQ3_XXS),
    facts(Level::IQ3_XS, "IQ3_XS", &[], 22, StoredType::IQ3_S),
    facts(Level::IQ3_S, "IQ3_S", &[], 26, StoredType::IQ3_S),
    facts(Level::IQ3_M, "IQ3_M", &[], 27, StoredType::IQ3_S),
    facts(Level::IQ4_NL, "IQ4_NL", &[], 25, StoredType::IQ4_NL),
    facts(Level::IQ4_XS, "IQ4_XS", &[], 30, StoredType::IQ4_XS),
    facts(Level::TQ1_0, "TQ1_0", &["TERNARY"], 36, StoredType::TQ1_0),
    facts(Level::TQ2_0, "TQ2_0", &[], 37, StoredType::TQ2_0),
    facts(Level::MXFP4_MOE, "MXFP4_MOE", &["MXFP4"], 38, StoredType::MXFP4),
    facts(Level::Q1_0, "Q1_0", &[], 40, StoredType::Q1_0),
    facts(Level::Q2_0, "Q2_0", &[], 41, StoredType::Q2_0),
];

impl Level {
    /// All levels, in the order of the documentation.
    pub fn all() -> impl Iterator<Item = Self> {
        LEVELS.iter().map(|facts| facts.level)
    }

    fn facts(self) -> &'static Facts {
        // The table has a line for every level; the tests go through all of them.
        LEVELS.iter().find(|facts| facts.level == self).unwrap_or(&LEVELS[0])
    }

    /// The level that `text` names, in any case: `Q4_K_M`, `q4_k`, `4bit`, `ternary`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the names there are.
    pub fn parse(text: &str) -> Result<Self> {
        let named = |name: &str| name.eq_ignore_ascii_case(text.trim());
        let found = LEVELS.iter().find(|f| named(f.name) || f.aliases.iter().any(|a| named(a)));
        found.map(|facts| facts.level).ok_or_else(|| {
            let names: Vec<&str> = LEVELS.iter().map(|facts| facts.name).collect();
            let known = LEVELS.iter().flat_map(|facts| facts.aliases.iter().chain([&facts.name]));
            Error::InvalidArgument(format!(
                "{text} is not a GGUF level{}; there are {}",
                did_you_mean(text, known.copied()),
                names.join(", ")
            ))
        })
    }

    /// As llama.cpp spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// `general.file_type`.
    #[must_use]
    pub fn file_type(self) -> u32 {
        self.facts().file_type
    }

    /// The level with that `general.file_type`.
    #[must_use]
    pub fn from_file_type(number: u32) -> Option<Self> {
        LEVELS.iter().find(|facts| facts.file_type == number).map(|facts| facts.level)
    }

    /// Whether llama-quantize refuses the level as a whole without an importance matrix, whatever
    /// types the model's tensors would get.
    #[must_use]
    pub const fn needs_importance(self) -> bool {
        matches!(
            self,
            Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS | Self::IQ2_S | Self::Q2_K_S
        )
    }

    /// The type of tensors that no rule of the mix names.
    #[must_use]
    pub fn base(self) -> StoredType {
        self.facts().base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case() {
        for level in Level::all() {
            assert_eq!(Level::parse(&level.name().to_lowercase()).unwrap(), level);
            assert_eq!(format!("{level:?}"), level.name());
            assert_eq!(Level::from_file_type(level.file_type()), Some(level));
        }
        for (alias, level) in [
            ("q4_k", Level::Q4_K_M),
            ("Q5_K", Level::Q5_K_M),
            ("Q3_K", Level::Q3_K_M),
            ("4bit", Level::Q4_K_M),
            ("Ternary", Level::TQ1_0),
        ] {
            assert_eq!(Level::parse(alias).unwrap(), level);
        }
        let error = Level::parse("Q4_K_XL").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("Q4_K_M"), "{error}");
    }

    #[test]
    fn no_name_stands_for_two_levels() {
        let mut names: Vec<String> = LEVELS
            .iter()
            .flat_map(|f| f.aliases.iter().chain([&f.name]).map(|n| n.to_lowercase()))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
