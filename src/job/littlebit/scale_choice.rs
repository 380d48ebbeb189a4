//! Which type scales get.
//!
//! Rounding to codes of eight bits costs 3e-5 of the squared norm of a matrix at most, and what it
//! saves buys eight more ranks, less 64 bits, for each path: 1.5 to 29 % of the error of every
//! matrix of 64 × 128 to 1536 × 576 that was measured at equal bits, at every rate that leaves a
//! rank to buy (`docs/quality.md` has the table). The gain falls as one over the rank and would
//! meet the cost at ranks of tens of thousands, more than any layer's width. So the rule needs
//! neither weights nor the rate: whatever takes fewer bits.

use super::budget::FactorShape;
use crate::weight::ScaleType;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleChoice {
    /// The type that takes fewer bits for the outer scales of a matrix; f16 where they are equal.
    #[default]
    Auto,
    /// This one everywhere.
    Fixed(ScaleType),
}

impl ScaleChoice {
    /// `auto`, or the name of the type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fixed(scales) => scales.name(),
        }
    }

    /// The type for a matrix of `shape`.
    #[must_use]
    pub fn of(self, shape: &FactorShape) -> ScaleType {
        let outer = |scales: ScaleType| scales.bytes(shape.rows) + scales.bytes(shape.cols);
        match self {
            Self::Fixed(scales) => scales,
            Self::Auto if outer(ScaleType::Log8) < outer(ScaleType::F16) => ScaleType::Log8,
            Self::Auto => ScaleType::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheaper_type_is_taken() {
        let of = |choice: ScaleChoice, rows, cols| {
            let scales = ScaleType::F16;
            choice.of(&FactorShape { rows, cols, rank: 1, paths: 1, middle_scale: false, scales })
        };
        for (rows, cols) in [(64, 128), (8192, 28672), (1, 8)] {
            assert_eq!(of(ScaleChoice::Auto, rows, cols), ScaleType::Log8);
            assert_eq!(of(ScaleChoice::Fixed(ScaleType::F16), rows, cols), ScaleType::F16);
        }
        // Eight bytes of ends are eight scales.
        assert_eq!(of(ScaleChoice::Auto, 4, 4), ScaleType::F16);
        assert_eq!(of(ScaleChoice::Fixed(ScaleType::Log8), 4, 4), ScaleType::Log8);
    }
}
