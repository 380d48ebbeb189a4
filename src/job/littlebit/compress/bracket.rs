//! Which target to try next in the search for the smallest one that meets a quality threshold.

/// Targets closer than this, in bits per weight, are not told apart.
const STEP: f64 = 0.02;

/// Results in a row on the same side of the threshold after which the middle is tried.
const STREAK: usize = 2;

/// A target that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tried {
    /// Bits per weight.
    pub(super) bpw: f64,
    /// ln(perplexity / perplexity of the original).
    pub(super) loss: f64,
}

/// The highest target that failed and the lowest one that passed.
#[derive(Debug, Clone)]
pub(super) struct Bracket {
    failed: Tried,
    passed: Tried,
    /// Loss at the threshold.
    limit: f64,
    /// Whether the last target passed, and how many before it ended likewise.
    streak: (bool, usize),
}

impl Bracket {
    /// With a threshold of `percent` more perplexity.
    pub(super) fn new(failed: Tried, passed: Tried, percent: f64) -> Self {
        Self { failed, passed, limit: (percent / 100.0).ln_1p(), streak: (false, 0) }
    }

    /// The next target, bits per weight, unless the two ends are close enough.
    ///
    /// The loss falls about like a power of the bits, `a · bpw^(−b)`: the curve through both ends
    /// says where it meets the threshold. Where they give no such curve, or it keeps missing on one
    /// side, the middle is tried. A target close to an end is moved away from it as far as the
    /// search tells targets apart, so that it can close the bracket.
    pub(super) fn next(&self) -> Option<f64> {
        let (low, high) = (self.failed.bpw, self.passed.bpw);
        // With room for the rounding of a difference.
        if high - low <= STEP + 1e-9 {
            return None;
        }
        let middle = f64::midpoint(low, high);
        let predicted = self.crossing().filter(|_| self.streak.1 < STREAK);
        let target = match predicted {
            Some(target) if high - low > 2.0 * STEP => target.clamp(low + STEP, high - STEP),
            _ => middle,
        };
        // Three decimals are as fine as a target is worth being.
        let rounded = (target * 1000.0).round() / 1000.0;
        Some(if low < rounded && rounded < high { rounded } else { middle })
    }

    /// Takes in what a target between the ends gave.
    pub(super) fn narrow(&mut self, tried: Tried, passed: bool) {
        let end = if passed { &mut self.passed } else { &mut self.failed };
        *end = tried;
        let (before, count) = self.streak;
        self.streak = (passed, if before == passed { count + 1 } else { 1 });
        if count >= STREAK {
            self.streak.1 = 0;
        }
    }

    /// Where the power law through both ends meets the threshold, if there is one that falls.
    fn crossing(&self) -> Option<f64> {
        let (low, high) = (self.failed, self.passed);
        let exponent = (low.loss / high.loss).ln() / (high.bpw / low.bpw).ln();
        let target = low.bpw * (low.loss / self.limit).powf(1.0 / exponent);
        (exponent.is_finite() && exponent > 0.0 && target.is_finite()).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches between 0.3 and 2 bits on a curve; the targets that were tried and the result.
    fn search(loss: impl Fn(f64) -> f64, percent: f64) -> (Vec<f64>, f64) {
        let limit = (1.0 + percent / 100.0_f64).ln();
        let tried = |bpw| Tried { bpw, loss: loss(bpw) };
        let mut bracket = Bracket::new(tried(0.3), tried(2.0), percent);
        let mut targets = Vec::new();
        let mut best = 2.0;
        while let Some(target) = bracket.next() {
            assert!(target < best && target > 0.3, "{targets:?} {target}");
            let passed = loss(target) <= limit;
            if passed {
                best = target;
            }
            targets.push(target);
            bracket.narrow(tried(target), passed);
            assert!(targets.len() < 30, "{targets:?}");
        }
        (targets, best)
    }

    #[test]
    fn a_power_law_is_met_at_once() {
        for (a, b, percent) in [(0.4, 1.5, 50.0), (1.0, 0.8, 100.0), (0.2, 2.2, 20.0)] {
            let (targets, best) = search(|bpw| a * f64::powf(bpw, -b), percent);
            // By hand: a · x^(−b) = ln(1 + percent / 100).
            let exact = (a / (1.0 + percent / 100.0_f64).ln()).powf(1.0 / b);
            assert!((targets[0] - exact).abs() <= 0.0005 + 1e-9, "{targets:?} {exact}");
            assert!(best >= exact && best - exact <= STEP, "{best} {exact}");
            assert!(targets.len() <= 3, "{targets:?}");
        }
    }

    #[test]
    fn other_curves_take_no_more_than_a_few_steps() {
        let cliff = |bpw: f64| if bpw < 0.71 { 9.0 } else { 0.1 };
        let line = |bpw: f64| 3.0 - 1.4 * bpw;
        let noisy = |bpw: f64| 0.5 / bpw * (1.0 + 0.05 * (40.0 * bpw).sin());
        let steep = |bpw: f64| 4.0 * f64::exp(-3.0 * bpw);
        let curves: [&dyn Fn(f64) -> f64; 4] = [&cliff, &line, &noisy, &steep];
        for (index, curve) in curves.into_iter().enumerate() {
            let (targets, best) = search(curve, 60.0);
            assert!(targets.len() <= 14, "{index}: {targets:?}");
            let limit = 1.6_f64.ln();
            assert!(curve(best) <= limit, "{index}: {best}");
            let below = targets.iter().copied().filter(|t| *t < best).fold(0.3, f64::max);
            assert!(curve(below) > limit && best - below <= STEP + 1e-9, "{index}: {targets:?}");
        }
    }

    #[test]
    fn losses_that_are_no_curve_are_halved() {
        // Better than the original at the upper end; rising with the bits.
        for (low, high) in [(1.0, -0.01), (1.0, 0.0), (0.3, 0.39), (f64::INFINITY, 0.1)] {
            let tried = |bpw, loss| Tried { bpw, loss };
            let bracket = Bracket::new(tried(0.4, low), tried(1.4, high), 50.0);
            assert_eq!(bracket.next(), Some(0.9), "{low} {high}");
        }
        let tried = |bpw| Tried { bpw, loss: 1.0 / bpw };
        assert_eq!(Bracket::new(tried(0.5), tried(0.52), 90.0).next(), None);
    }
}
