//! Everything that decides what recovery does: the knobs behind `--effort`, as a recipe file has
//! them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::adam::Estimator;
use super::knobs;
use crate::base::input;
use crate::base::suggest::did_you_mean;
use crate::{Error, Result};

/// How much time recovery may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Factorization only.
    None,
    /// Blocks are tuned, then signs and scales of the whole model, both shortly.
    Fast,
    /// The same for longer.
    #[default]
    Balanced,
    /// The same for several times as long again.
    Max,
}

impl Effort {
    /// All of them, from the least to the most.
    pub const ALL: [Self; 4] = [Self::None, Self::Fast, Self::Balanced, Self::Max];

    /// Name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fast => "fast",
            Self::Balanced => "balanced",
            Self::Max => "max",
        }
    }

    /// The effort of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effort| effort.name() == name)
    }
}

/// A recipe. Lengths are tokens, rates are relative to the mean magnitude of what they move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// What is read.
    pub text: TextRecipe,
    /// Tuning of one block after the other.
    pub blocks: BlockRecipe,
    /// Distillation of the whole model.
    pub distillation: DistillationRecipe,
}

/// What recovery reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TextRecipe {
    /// Sequences that blocks learn from.
    pub sequences: usize,
    /// Sequences to decide with, which nothing learns from.
    pub held_out: usize,
    /// Tokens of a sequence, at most the model's context.
    pub length: usize,
    /// Whether the original writes the sequences that the text lacks.
    pub written: bool,
}

/// How ranks are chosen for a number of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankAllocation {
    /// The same bits per weight for every matrix.
    Uniform,
    /// More of them for the matrices by which the model loses most.
    #[default]
    Sensitivity,
}

/// Tuning of one block after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockRecipe {
    /// Where the bits go.
    pub rank_allocation: RankAllocation,
    /// Whether input statistics are measured again on what the compressed blocks before give.
    pub refresh_statistics: bool,
    /// Steps that the dense weights of a block learn before it is factorized.
    pub absorption_steps: usize,
    /// Learning rate of the dense weights, relative to each matrix's root mean square.
    pub absorption_rate: f32,
    /// Whether matrices are factorized and tuned one after the other instead of together.
    pub interleaved: bool,
    /// Steps that signs and scales learn.
    pub steps: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Learning rate of the latents behind the signs.
    pub sign_rate: f32,
    /// Learning rate of the scales.
    pub scale_rate: f32,
    /// Derivative of the sign function.
    pub estimator: Estimator,
    /// Whether each token's error counts relative to its own norm.
    pub relative_loss: bool,
}

/// Distillation of the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DistillationRecipe {
    /// Sequences to learn from, those of the blocks among them.
    pub sequences: usize,
    /// How often the text is read where it is too short, before the original writes the rest.
    pub text_passes: usize,
    /// Steps.
    pub steps: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Whether signs learn too.
    pub signs: bool,
    /// Learning rate of the latents behind the signs.
    pub sign_rate: f32,
    /// Learning rate of the scales.
    pub scale_rate: f32,
    /// Derivative of the sign function.
    pub estimator: Estimator,
    /// Most likely tokens of the original that are compared one by one; the rest counts as one.
    pub top_k: usize,
    /// Weight of the mean squared error of the blocks' outputs (LittleBit: 10).
    pub hidden_weight: f32,
    /// Whether blocks are computed again on the way back, which saves memory and costs time.
    pub recompute: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self::of(Effort::default())
    }
}

impl Default for TextRecipe {
    fn default() -> Self {
        Recipe::default().text
    }
}

impl Default for BlockRecipe {
    fn default() -> Self {
        Recipe::default().blocks
    }
}

impl Default for DistillationRecipe {
    fn default() -> Self {
        Recipe::default().distillation
    }
}

impl DistillationRecipe {
    /// Whether signs still learn when blocks are done.
    #[must_use]
    pub fn needs_latents(&self) -> bool {
        self.steps > 0 && self.signs
    }
}

impl Recipe {
    /// The recipe of an effort.
    #[must_use]
    pub fn of(effort: Effort) -> Self {
        let (sequences, block_steps, steps) = match effort {
            Effort::None => (0, 0, 0),
            Effort::Fast => (128, 100, 300),
            Effort::Balanced => (256, 200, 2500),
            Effort::Max => (512, 400, 10_000),
        };
        Self {
            text: TextRecipe { sequences, held_out: sequences.min(16), length: 512, written: true },
            blocks: BlockRecipe {
                rank_allocation: RankAllocation::default(),
                refresh_statistics: false,
                absorption_steps: 0,
                absorption_rate: 1e-3,
                interleaved: false,
                steps: block_steps,
                batch: 1,
                sign_rate: 0.02,
                scale_rate: 1e-3,
                estimator: Estimator::Identity,
                relative_loss: true,
            },
            distillation: DistillationRecipe {
                // Each of them is read once.
                sequences: steps,
                text_passes: 1,
                steps,
                batch: 1,
                signs: true,
                sign_rate: 0.006,
                scale_rate: 1e-3,
                estimator: Estimator::Identity,
                top_k: 64,
                hidden_weight: 0.0,
                recompute: false,
            },
        }
    }

    /// Whether anything is learned step by step.
    #[must_use]
    pub fn learns(&self) -> bool {
        self.blocks.absorption_steps + self.blocks.steps + self.distillation.steps > 0
    }

    /// Sequences that are read and their length for a model whose context is `context` tokens.
    #[must_use]
    pub fn text_of(&self, context: usize) -> (usize, usize) {
        let whole = &self.distillation;
        // More than one for each place in a batch would not be read.
        let whole = whole.sequences.min(whole.steps.saturating_mul(whole.batch));
        (self.text.sequences.max(whole) + self.text.held_out, self.text.length.min(context.max(2)))
    }

    /// Those of them that pass through the blocks one by one.
    #[must_use]
    pub fn on_chains(&self) -> usize {
        self.text.sequences + self.text.held_out
    }

    /// What is read and how often, for a model whose context is `context` tokens: `2,500 sequences
    /// of 512 tokens, 256 for blocks; 200 steps per block (102,400 tokens), 2,500 of the whole model
    /// (1,280,000)`.
    #[must_use]
    pub fn summary(&self, context: usize) -> String {
        let (sequences, length) = self.text_of(context);
        let (blocks, whole) = (&self.blocks, &self.distillation);
        format!(
            "{} sequences of {length} tokens, {} for blocks; {} steps per block ({} tokens), {} of \
             the whole model ({})",
            grouped(sequences - self.text.held_out),
            grouped(self.text.sequences),
            grouped(blocks.steps),
            grouped(blocks.steps * blocks.batch * length),
            grouped(whole.steps),
            grouped(whole.steps * whole.batch * length)
        )
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the key and what is allowed.
    pub fn check(&self) -> Result<()> {
        knobs::check(&self.table()?)?;
        if self.learns() && self.text.held_out == 0 {
            return Err(Error::InvalidArgument(
                "text.held-out = 0: must be at least 1 unless blocks.absorption-steps, \
                 blocks.steps and distillation.steps are all 0"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The text of a recipe file with every knob.
    ///
    /// # Errors
    /// None that can happen to a recipe that [`check`](Self::check) accepts.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::General(format!("the recipe as TOML: {e}")))
    }

    /// The same as a table.
    ///
    /// # Errors
    /// As [`to_toml`](Self::to_toml).
    pub fn table(&self) -> Result<Table> {
        // By way of the text, where an f32 has no more digits than it needs.
        toml::from_str(&self.to_toml()?)
            .map_err(|e| Error::General(format!("the recipe as TOML: {e}")))
    }

    /// Reads the text of a recipe file: single knobs in place of those of an effort, which is
    /// `effort`, else the one that the text names at its top, else the default. With
    /// [`Effort::None`] there is no recipe, and the text must not set a knob.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the key and what is allowed.
    pub fn parse(text: &str, effort: Option<Effort>) -> Result<(Effort, Option<Self>)> {
        let mut given: Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            Error::InvalidArgument(format!("line {line}: {}", error.message()))
        })?;
        let named = given.remove("effort").map(|value| {
            value.as_str().and_then(Effort::of_name).ok_or_else(|| {
                let names = Effort::ALL.map(Effort::name);
                let hint = did_you_mean(value.as_str().unwrap_or_default(), names);
                let names = names.join("\", \"");
                Error::InvalidArgument(format!(
                    "effort = {value}: must be one of \"{names}\"{hint}"
                ))
            })
        });
        let effort = effort.or(named.transpose()?).unwrap_or_default();
        knobs::check(&given)?;
        if effort == Effort::None {
            return match given.keys().next() {
                None => Ok((effort, None)),
                Some(table) => Err(Error::InvalidArgument(format!(
                    "[{table}] has no effect: with effort \"none\" nothing is recovered"
                ))),
            };
        }
        let mut merged = Self::of(effort).table()?;
        for (table, entries) in given {
            if let (Some(Value::Table(to)), Value::Table(from)) = (merged.get_mut(&table), entries)
            {
                to.extend(from);
            }
        }
        let recipe: Self = merged
            .try_into()
            .map_err(|e: toml::de::Error| Error::InvalidArgument(e.message().into()))?;
        recipe.check()?;
        Ok((effort, Some(recipe)))
    }

    /// Reads a recipe file, see [`parse`](Self::parse).
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] if it is not there, [`Error::InvalidArgument`] with the file, the
    /// key and what is allowed.
    pub fn open(path: &Path, effort: Option<Effort>) -> Result<(Effort, Option<Self>)> {
        let text = input::read_to_string(path, input::MAX_SETTINGS).map_err(|error| match error
            .kind()
        {
            std::io::ErrorKind::NotFound => Error::ModelNotFound {
                message: format!("{} does not exist", path.display()),
                suggestion: "Check the path given to --recipe".into(),
            },
            std::io::ErrorKind::InvalidData => {
                Error::InvalidArgument(format!("{}: {error}", path.display()))
            }
            _ => Error::io(path, error),
        })?;
        Self::parse(&text, effort).map_err(|error| match error {
            Error::InvalidArgument(message) => {
                Error::InvalidArgument(format!("{}: {message}", path.display()))
            }
            other => other,
        })
    }
}

/// `1,500`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut groups: Vec<&str> = Vec::new();
    let mut rest = digits.as_str();
    while rest.len() > 3 {
        let (front, group) = rest.split_at(rest.len() - 3);
        groups.push(group);
        rest = front;
    }
    groups.push(rest);
    groups.reverse();
    groups.join(",")
}

#[cfg(test)]
mod tests;
