//! The grids that weights are rounded to: `w ≈ (q − z) · s`, `q` from 0 to 2^bits − 1.
//!
//! Scales are rounded to the type in which files hold them before anything is rounded with them.

use half::{bf16, f16};

use super::plain_type::PlainType;

/// Scales that are tried for a group, from the widest useful one to [`NARROWEST`] of it.
const STEPS: usize = 24;
/// Narrowest range that is tried, as a fraction of the widest.
const NARROWEST: f32 = 0.4;

/// The kind of grid that groups get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Bits of a weight, 2 to 8.
    pub bits: u8,
    /// The zero point is the middle of the range.
    pub symmetric: bool,
    /// Smallest zero point: 1 where files hold `z − 1` (GPTQ version 1), else 0.
    pub least_zero: u8,
    /// Whether scales are searched for the least weighted squared error; otherwise the range of
    /// the values decides.
    pub search: bool,
    /// What scales are stored as. Those of bfloat16 are f16 values too, down to 2⁻¹⁷.
    pub scales: PlainType,
}

/// Scale and zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    /// Distance of two levels.
    pub scale: f16,
    /// Level of the value 0.
    pub zero: u8,
}

impl Scale {
    /// The nearest level of `value` on a grid up to `most`.
    #[must_use]
    pub(crate) fn round(self, value: f32, most: f32) -> u8 {
        let level = (value / self.scale.to_f32()).round() + f32::from(self.zero);
        // NaN becomes 0.
        level.clamp(0.0, most) as u8
    }

    /// What a level stands for.
    #[must_use]
    pub(crate) fn value(self, level: u8) -> f32 {
        (f32::from(level) - f32::from(self.zero)) * self.scale.to_f32()
    }
}

impl Grid {
    /// The highest level.
    #[must_use]
    pub(crate) fn most(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Scale and zero point for `values`, whose squared errors count as much as `importance` says.
    ///
    /// Without search: symmetric `s = 2 max|w| / (2^b − 1)`, `z = 2^(b − 1)`; otherwise
    /// `s = (max − min) / (2^b − 1)`, `z = −min / s`, with 0 inside of the range
    /// (arXiv 2210.17323, reference implementation).
    #[must_use]
    pub(crate) fn fit(self, values: &[f32], importance: Option<&[f32]>) -> Scale {
        let most = f32::from(self.most());
        let (mut low, mut high) = (0.0f32, 0.0f32);
        for &value in values {
            low = low.min(value);
            high = high.max(value);
        }
        if high - low <= 0.0 {
            return self.constant();
        }
        let plain = if self.symmetric {
            self.symmetric(2.0 * high.max(-low) / most)
        } else {
            self.range(low, high)
        };
        if !self.search {
            return plain;
        }
        let candidate = |step: usize| {
            let share = 1.0 - (1.0 - NARROWEST) * step as f32 / STEPS as f32;
            if self.symmetric {
                // At the widest, the upper end of the range holds the largest value.
                self.symmetric(share * high.max(-low) / (most - f32::from(self.middle())))
            } else {
                self.range(share * low, share * high)
            }
        };
        let mut best = plain;
        let mut least = self.error(values, importance, best);
        let mut consider = |scale: Scale| {
            let error = self.error(values, importance, scale);
            if error < least {
                (best, least) = (scale, error);
            }
        };
        (0..=STEPS).for_each(|step| consider(candidate(step)));
        if !self.symmetric {
            // Ranges that give up one end only.
            for step in 1..STEPS / 2 {
                let share = 1.0 - (1.0 - NARROWEST) * step as f32 / STEPS as f32;
                consider(self.range(share * low, high));
                consider(self.range(low, share * high));
            }
        }
        // With the levels as they are, the best scale is a quotient.
        for _ in 0..2 {
            let before = best;
            if let Some(scale) = self.refit(values, importance, before) {
                let error = self.error(values, importance, scale);
                if error < least {
                    (best, least) = (scale, error);
                }
            }
            if best == before {
                break;
            }
        }
        best
    }

    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// A group of zeros.
    fn constant(self) -> Scale {
        let zero = if self.symmetric { self.middle() } else { self.least_zero };
        Scale { scale: f16::ONE, zero }
    }

    fn symmetric(self, scale: f32) -> Scale {
        Scale { scale: self.representable(scale), zero: self.middle() }
    }

    fn range(self, low: f32, high: f32) -> Scale {
        let most = f32::from(self.most());
        let mut scale = self.representable((high - low) / most);
        let mut zero = (-low / scale.to_f32()).round();
        if zero < f32::from(self.least_zero) {
            // The lowest level cannot be used: the others hold the whole range.
            zero = f32::from(self.least_zero);
            scale = self.representable(high / (most - zero));
        }
        Scale { scale, zero: zero.clamp(0.0, most) as u8 }
    }

    /// Weighted squared error of rounding `values`.
    #[must_use]
    pub(crate) fn error(self, values: &[f32], importance: Option<&[f32]>, scale: Scale) -> f32 {
        let most = f32::from(self.most());
        let (step, zero) = (scale.scale.to_f32(), f32::from(scale.zero));
        let (inverse, highest) = (1.0 / step, most - zero);
        let error = |value: f32| {
            let level = round_even(value * inverse).clamp(-zero, highest);
            let error = value - level * step;
            error * error
        };
        match importance {
            Some(weights) => {
                values.iter().zip(weights).map(|(&v, &weight)| weight * error(v)).sum()
            }
            None => values.iter().map(|&v| error(v)).sum(),
        }
    }

    /// The nearest number that is a scale: neither zero nor infinite.
    fn representable(self, scale: f32) -> f16 {
        let (nearest, most) = match self.scales {
            PlainType::F16 => (f16::from_f32(scale), f16::MAX),
            // The largest bfloat16 below f16's largest.
            PlainType::BF16 => {
                (f16::from_f32(bf16::from_f32(scale).to_f32()), f16::from_f32(65280.0))
            }
        };
        if nearest > most {
            most
        } else if nearest > f16::ZERO {
            nearest
        } else {
            f16::from_bits(1)
        }
    }

    fn refit(self, values: &[f32], importance: Option<&[f32]>, scale: Scale) -> Option<Scale> {
        let most = f32::from(self.most());
        let (mut product, mut square) = (0.0f32, 0.0f32);
        for (at, &value) in values.iter().enumerate() {
            let weight = importance.map_or(1.0, |importance| importance[at]);
            let level = f32::from(scale.round(value, most)) - f32::from(scale.zero);
            product += weight * level * value;
            square += weight * level * level;
        }
        let step = product / square;
        (step.is_finite() && step > 0.0).then(|| Scale { scale: self.representable(step), ..scale })
    }
}

/// Ties to even, by adding what has no room for fractions; for values below 2²².
fn round_even(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value.clamp(-4.0e6, 4.0e6) + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(bits: u8, symmetric: bool, search: bool) -> Grid {
        Grid { bits, symmetric, least_zero: u8::from(!symmetric), search, scales: PlainType::F16 }
    }

    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| {
                let x = (((i + 1) * (2 * seed + 37)) as f32 * 0.618_034).fract() - 0.5;
                x * x * x
            })
            .collect()
    }

    fn round_trip(grid: Grid, values: &[f32], scale: Scale) -> f64 {
        let most = f32::from(grid.most());
        values
            .iter()
            .map(|&v| f64::from(v - scale.value(scale.round(v, most))).powi(2))
            .sum::<f64>()
    }

    #[test]
    fn ranges_are_those_of_the_reference() {
        // max|w| = 3: s = 6/15, z = 8.
        let found = grid(4, true, false).fit(&[1.0, -3.0, 2.0], None);
        assert_eq!((found.scale, found.zero), (f16::from_f32(0.4), 8));
        // 0 … 3: s = 3/15 with z = 0, which version 1 cannot hold: s = 3/14, z = 1.
        let found = grid(4, false, false).fit(&[1.0, 3.0, 2.0], None);
        assert_eq!((found.scale, found.zero), (f16::from_f32(3.0 / 14.0), 1));
        let free = Grid { least_zero: 0, ..grid(4, false, false) };
        let found = free.fit(&[-1.0, 2.0], None);
        assert_eq!((found.scale, found.zero), (f16::from_f32(0.2), 5));
    }

    #[test]
    fn search_never_loses_to_the_range() {
        for bits in [2, 3, 4, 8] {
            for symmetric in [true, false] {
                for seed in 0..12 {
                    let values = values(seed, 64);
                    let (plain, searched) =
                        (grid(bits, symmetric, false), grid(bits, symmetric, true));
                    let before = round_trip(plain, &values, plain.fit(&values, None));
                    let after = round_trip(plain, &values, searched.fit(&values, None));
                    assert!(
                        after <= before * 1.0001,
                        "{bits} {symmetric} {seed}: {before} {after}"
                    );
                }
            }
        }
    }

    #[test]
    fn zeros_and_tiny_values_stay_finite() {
        for symmetric in [true, false] {
            let grid = grid(4, symmetric, true);
            let found = grid.fit(&[0.0; 8], None);
            assert!(found.value(found.round(0.0, 15.0)).abs() < 1e-30);
            let found = grid.fit(&[1e-9, -2e-9], None);
            assert!(found.scale > f16::ZERO);
        }
    }
}
