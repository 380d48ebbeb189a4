//! The arithmetic of a budget: lower convex hulls of loss over bytes, and the steps on them.

use crate::quantize::gguf::GgmlType;

/// A way to write a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) kind: GgmlType,
    /// Bytes in the file, padding included.
    pub(super) bytes: u64,
    /// Relative squared error.
    pub(super) error: f64,
    /// What the model is expected to lose.
    pub(super) loss: f64,
}

/// The choices on the lower convex hull of loss over bytes, smallest first.
pub(super) fn convex(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut hull: Vec<Choice> = Vec::new();
    for choice in choices {
        if hull.last().is_some_and(|last| choice.loss >= last.loss) {
            continue;
        }
        while let [.., before, last] = hull.as_slice() {
            if gain(*before, *last) >= gain(*last, choice) {
                break;
            }
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

/// Loss saved per byte by going from one choice to the next.
fn gain(from: Choice, to: Choice) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes).max(1) as f64
}

/// Takes the steps that save most per byte while they fit into `room` bytes beyond the smallest
/// choices; the number of the choice for each tensor.
pub(super) fn fill(hulls: &[Vec<Choice>], mut room: u64) -> Vec<usize> {
    let mut steps: Vec<(f64, usize, usize)> = hulls
        .iter()
        .enumerate()
        .flat_map(|(tensor, hull)| {
            hull.windows(2)
                .enumerate()
                .map(move |(step, pair)| (gain(pair[0], pair[1]), tensor, step))
        })
        .collect();
    // Steps of one tensor save less and less, so their order is kept.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut chosen = vec![0; hulls.len()];
    for (_, tensor, step) in steps {
        let cost = hulls[tensor][step + 1].bytes - hulls[tensor][step].bytes;
        if chosen[tensor] == step && cost <= room {
            room -= cost;
            chosen[tensor] = step + 1;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, loss: f64) -> Choice {
        Choice { kind: GgmlType::Q8_0, bytes, error: loss, loss }
    }

    #[test]
    fn choices_above_a_line_between_others_drop_out() {
        let all = [(100, 10.0), (200, 9.5), (300, 2.0), (300, 3.0), (350, 2.5), (500, 0.0)];
        let hull = convex(all.map(|(bytes, loss)| choice(bytes, loss)).to_vec());
        let points: Vec<_> = hull.iter().map(|c| (c.bytes, c.loss)).collect();
        assert_eq!(points, [(100, 10.0), (300, 2.0), (500, 0.0)]);
    }

    /// Against every combination: no fitting one with the hull's points is better by more than the
    /// largest step, and what is chosen fits.
    #[test]
    fn the_budget_is_kept_and_used() {
        let hulls: Vec<Vec<Choice>> = (0..4u64)
            .map(|i| {
                let points =
                    [(0, 8.0), (10 + i, 3.0 + i as f64 * 0.3), (30 + 2 * i, 0.5), (70, 0.0)];
                convex(points.map(|(bytes, loss)| choice(100 + bytes, loss)).to_vec())
            })
            .collect();
        let cost = |chosen: &[usize]| -> (u64, f64) {
            chosen.iter().zip(&hulls).fold((0, 0.0), |(bytes, loss), (&at, hull)| {
                (bytes + hull[at].bytes - hull[0].bytes, loss + hull[at].loss)
            })
        };
        for room in 0..300 {
            let chosen = fill(&hulls, room);
            let (bytes, loss) = cost(&chosen);
            assert!(bytes <= room);
            let mut best = f64::INFINITY;
            for code in 0..hulls.iter().map(Vec::len).product::<usize>() {
                let mut rest = code;
                let other: Vec<usize> = hulls
                    .iter()
                    .map(|hull| {
                        let at = rest % hull.len();
                        rest /= hull.len();
                        at
                    })
                    .collect();
                let (bytes, loss) = cost(&other);
                if bytes <= room {
                    best = best.min(loss);
                }
            }
            assert!(loss <= best + 5.0, "{room}: {loss} instead of {best}");
        }
        assert_eq!(fill(&hulls, 0), [0; 4]);
        assert_eq!(fill(&hulls, 280), [3; 4]);
    }
}
