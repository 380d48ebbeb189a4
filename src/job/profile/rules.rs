//! Which rule of a profile holds for a tensor.

use fancy_regex::Regex;

use super::format::{Assignment, Profile};
use crate::arch::names;
use crate::{Error, Result};

/// A profile's assignments, ready to be asked.
#[derive(Debug, Clone)]
pub struct Rules {
    rules: Vec<(Assignment, Regex)>,
}

/// The expression of a `layer_name`: it must match a whole name, or the front of one up to a dot.
///
/// # Errors
/// [`Error::Profile`] if it is no regular expression.
pub(crate) fn pattern(layer_name: &str) -> Result<Regex> {
    Regex::new(&format!(r"^(?:{layer_name})(?:\..*)?$")).map_err(|error| {
        Error::Profile(format!("layer_name {layer_name} is no regular expression: {error}"))
    })
}

impl Rules {
    /// The rules of a profile.
    ///
    /// # Errors
    /// [`Error::Profile`] as [`pattern`].
    pub fn new(profile: &Profile) -> Result<Self> {
        let rules = profile
            .layer_assignments
            .iter()
            .map(|rule| Ok((rule.clone(), pattern(&rule.layer_name)?)))
            .collect::<Result<_>>()?;
        Ok(Self { rules })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Assignment> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// Numbers of all rules that name the tensor of that GGUF name, in order: the first one holds.
    pub fn naming(&self, gguf: &str) -> impl Iterator<Item = usize> {
        let hugging_face = names::to_hugging_face(gguf);
        self.rules.iter().enumerate().filter_map(move |(number, (_, regex))| {
            // An expression that gives up (too much backtracking) names nothing.
            let names = |name: &str| regex.is_match(name).unwrap_or(false);
            (names(gguf) || hugging_face.as_deref().is_some_and(names)).then_some(number)
        })
    }

    /// The rule that holds for the tensor of that GGUF name.
    #[must_use]
    pub fn holding(&self, gguf: &str) -> Option<&Assignment> {
        let number = self.naming(gguf).next()?;
        Some(&self.rules[number].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::profile::format::Strategy;

    #[test]
    fn names_of_both_worlds_and_their_fronts_are_understood() {
        let rule = |name: &str| Assignment::width(name, 4.0);
        let profile = Profile {
            profile_id: "p".into(),
            profile_name: "p".into(),
            strategy: Strategy::Custom,
            description: None,
            layer_assignments: vec![
                rule("blk.1.attn_q.weight"),
                rule("model.layers.1"),
                rule(r"model\.layers\.\d+\.self_attn"),
                rule("token_embd"),
            ],
            target_bpw: None,
            target_compression: None,
            target_loss: None,
        };
        let rules = Rules::new(&profile).unwrap();
        let naming = |name: &str| rules.naming(name).collect::<Vec<_>>();
        assert_eq!(naming("blk.1.attn_q.weight"), [0, 1, 2]);
        assert_eq!(naming("blk.1.ffn_up.weight"), [1]);
        assert_eq!(naming("blk.10.ffn_up.weight"), [] as [usize; 0]);
        assert_eq!(naming("blk.10.attn_k.weight"), [2]);
        assert_eq!(naming("token_embd.weight"), [3]);
        assert_eq!(naming("output.weight"), [] as [usize; 0]);
        assert_eq!(rules.holding("blk.1.attn_q.weight").unwrap().layer_name, "blk.1.attn_q.weight");
    }
}
