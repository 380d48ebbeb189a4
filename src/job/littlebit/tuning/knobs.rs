//! Which knobs a recipe has, and which values make sense.

use std::fmt;
use std::ops::RangeInclusive;

use toml::{Table, Value};

use crate::base::suggest::did_you_mean;
use crate::{Error, Result};

/// A knob of a recipe file.
#[derive(Debug, Clone)]
pub struct Knob {
    /// Table of the file.
    pub table: &'static str,
    /// Key in the table.
    pub key: &'static str,
    /// Values that make sense.
    pub allowed: Allowed,
}

/// Values of a knob that make sense.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// Whole numbers.
    Count(RangeInclusive<i64>),
    /// Numbers above 0 up to this one.
    Above0(f64),
    /// Numbers from 0 to this one.
    From0(f64),
    /// `true` and `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
}

const fn knob(table: &'static str, key: &'static str, allowed: Allowed) -> Knob {
    Knob { table, key, allowed }
}

const STEPS: Allowed = Allowed::Count(0..=1_000_000);
const BATCH: Allowed = Allowed::Count(1..=1024);
const RATE: Allowed = Allowed::Above0(1.0);
const ESTIMATORS: Allowed = Allowed::Word(&["identity", "smooth-sign"]);

/// Every knob, in the order of the recipe.
pub static KNOBS: [Knob; 26] = [
    knob("text", "sequences", Allowed::Count(1..=65_536)),
    knob("text", "held-out", Allowed::Count(0..=65_536)),
    knob("text", "length", Allowed::Count(2..=1_048_576)),
    knob("text", "written", Allowed::Switch),
    knob("blocks", "rank-allocation", Allowed::Word(&["uniform", "sensitivity"])),
    knob("blocks", "refresh-statistics", Allowed::Switch),
    knob("blocks", "absorption-steps", STEPS),
    knob("blocks", "absorption-rate", RATE),
    knob("blocks", "interleaved", Allowed::Switch),
    knob("blocks", "steps", STEPS),
    knob("blocks", "batch", BATCH),
    knob("blocks", "sign-rate", RATE),
    knob("blocks", "scale-rate", RATE),
    knob("blocks", "estimator", ESTIMATORS),
    knob("blocks", "relative-loss", Allowed::Switch),
    knob("distillation", "sequences", Allowed::Count(0..=1_000_000)),
    knob("distillation", "text-passes", Allowed::Count(1..=1000)),
    knob("distillation", "steps", STEPS),
    knob("distillation", "batch", BATCH),
    knob("distillation", "signs", Allowed::Switch),
    knob("distillation", "sign-rate", RATE),
    knob("distillation", "scale-rate", RATE),
    knob("distillation", "estimator", ESTIMATORS),
    knob("distillation", "top-k", Allowed::Count(1..=65_536)),
    knob("distillation", "hidden-weight", Allowed::From0(1e6)),
    knob("distillation", "recompute", Allowed::Switch),
];

impl Allowed {
    /// Whether `value` is one of them. A whole number may stand for any number.
    #[must_use]
    pub fn admits(&self, value: &Value) -> bool {
        let number = match value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => Some(*number as f64),
            _ => None,
        };
        match self {
            Self::Count(range) => value.as_integer().is_some_and(|v| range.contains(&v)),
            // As the f32 that it becomes.
            Self::Above0(most) => number.is_some_and(|v| v as f32 > 0.0 && v <= *most),
            Self::From0(most) => number.is_some_and(|v| v >= 0.0 && v <= *most),
            Self::Switch => value.is_bool(),
            Self::Word(words) => value.as_str().is_some_and(|v| words.contains(&v)),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(range) => {
                write!(out, "a whole number from {} to {}", range.start(), range.end())
            }
            Self::Above0(most) => write!(out, "a number above 0, at most {most}"),
            Self::From0(most) => write!(out, "a number from 0 to {most}"),
            Self::Switch => out.write_str("true or false"),
            Self::Word(words) => write!(out, "\"{}\"", words.join("\" or \"")),
        }
    }
}

/// Checks every entry of a recipe, which need not be complete.
///
/// # Errors
/// [`Error::InvalidArgument`] with the key and what is allowed.
pub(super) fn check(recipe: &Table) -> Result<()> {
    let invalid = |message: String| Err(Error::InvalidArgument(message));
    for (table, entries) in recipe {
        let known: Vec<&Knob> = KNOBS.iter().filter(|knob| knob.table == table).collect();
        if known.is_empty() {
            return invalid(format!(
                "`{table}` is no key of a recipe{}; there are effort, [text], [blocks] and \
                 [distillation]",
                did_you_mean(table, ["effort", "text", "blocks", "distillation"])
            ));
        }
        let Value::Table(entries) = entries else {
            return invalid(format!("`{table}` must be a table"));
        };
        for (key, value) in entries {
            let Some(knob) = known.iter().find(|knob| knob.key == key) else {
                let keys: Vec<&str> = known.iter().map(|knob| knob.key).collect();
                return invalid(format!(
                    "`{table}.{key}` is no key of a recipe{}; [{table}] has {}",
                    did_you_mean(key, keys.iter().copied()),
                    keys.join(", ")
                ));
            };
            if !knob.allowed.admits(value) {
                return invalid(format!("{table}.{key} = {value}: must be {}", knob.allowed));
            }
        }
    }
    Ok(())
}
