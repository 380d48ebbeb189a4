//! The arithmetic of a budget: which choice for each tensor, so that the sum of the losses is least and
//! the sum of the bytes fits.
//!
//! Where all matrices are of one size, taking steps on the lower convex hulls of loss over bytes in
//! the order of the loss saved per byte is as good as optimal. One matrix is not of that size: the
//! embeddings, a single step of which may take all the room there is. So every choice is tried for
//! the largest matrices, and steps are taken on the hulls of the others.

use crate::codec::StoredType;

/// Matrices for which every choice is tried.
const LARGEST: usize = 2;

/// A way to write a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) kind: StoredType,
    /// Bytes in the file, padding included.
    pub(super) bytes: u64,
    /// Relative squared error.
    pub(super) error: f64,
    /// Mean over rows of Σ w (x − y)²: where `w` is the mean square of the inputs, that of what the
    /// outputs are off by.
    pub(super) disturbance: f64,
    /// What the model is expected to lose.
    pub(super) loss: f64,
}

/// The choices that no other one beats in both bytes and loss, smallest first.
pub(super) fn frontier(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut kept: Vec<Choice> = Vec::new();
    for choice in choices {
        if kept.last().is_none_or(|last| choice.loss < last.loss) {
            kept.push(choice);
        }
    }
    kept
}

/// Numbers of the choices of a [`frontier`] that lie on its lower convex hull.
pub(super) fn convex(frontier: &[Choice]) -> Vec<usize> {
    let mut hull: Vec<usize> = Vec::new();
    for (number, choice) in frontier.iter().enumerate() {
        while let [.., before, last] = hull[..] {
            if gain(frontier[before], frontier[last]) >= gain(frontier[last], *choice) {
                break;
            }
            hull.pop();
        }
        hull.push(number);
    }
    hull
}

/// Loss saved per byte by going from one choice to the next.
fn gain(from: Choice, to: Choice) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes).max(1) as f64
}

/// A step of a tensor from one choice on its hull to the next.
struct Step {
    gain: f64,
    tensor: usize,
    from: usize,
    to: usize,
    bytes: u64,
}

/// Numbers of the choices, one for each tensor's [`frontier`], that lose least with at most `room` bytes
/// beyond the smallest ones. A frontier without choices has the number 0.
pub(super) fn fill(frontiers: &[Vec<Choice>], room: u64) -> Vec<usize> {
    let mut steps: Vec<Step> = Vec::new();
    for (tensor, choices) in frontiers.iter().enumerate() {
        steps.extend(convex(choices).windows(2).map(|pair| Step {
            gain: gain(choices[pair[0]], choices[pair[1]]),
            tensor,
            from: pair[0],
            to: pair[1],
            bytes: choices[pair[1]].bytes - choices[pair[0]].bytes,
        }));
    }
    // Steps of one tensor save less and less, so their order is kept.
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain).then((a.tensor, a.to).cmp(&(b.tensor, b.to))));
    let span = |tensor: &usize| match frontiers[*tensor].as_slice() {
        [first, .., last] => last.bytes - first.bytes,
        _ => 0,
    };
    let mut largest: Vec<usize> = (0..frontiers.len()).collect();
    largest.sort_by_key(|tensor| std::cmp::Reverse(span(tensor)));
    largest.truncate(LARGEST);
    let mut best: Option<(f64, Vec<usize>)> = None;
    let combinations: usize =
        largest.iter().map(|&tensor| frontiers[tensor].len().max(1)).product();
    for code in 0..combinations {
        let (mut rest, mut left) = (code, Some(room));
        let mut chosen = vec![0; frontiers.len()];
        for &tensor in &largest {
            let choices = &frontiers[tensor];
            chosen[tensor] = rest % choices.len().max(1);
            rest /= choices.len().max(1);
            let bytes =
                choices.first().map_or(0, |first| choices[chosen[tensor]].bytes - first.bytes);
            left = left.and_then(|left| left.checked_sub(bytes));
        }
        let Some(mut left) = left else { continue };
        for step in steps.iter().filter(|step| !largest.contains(&step.tensor)) {
            if chosen[step.tensor] == step.from && step.bytes <= left {
                left -= step.bytes;
                chosen[step.tensor] = step.to;
            }
        }
        let losses = frontiers.iter().zip(&chosen).filter_map(|(choices, &at)| choices.get(at));
        let loss = losses.map(|choice| choice.loss).sum();
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, chosen));
        }
    }
    best.map_or_else(|| vec![0; frontiers.len()], |(_, chosen)| chosen)
}

/// The least room, bytes, in which [`fill`] loses at most `loss`; all that can be used if none does.
pub(super) fn room_for(frontiers: &[Vec<Choice>], loss: f64) -> u64 {
    let losing = |room| -> f64 {
        let chosen = fill(frontiers, room);
        let choices = frontiers.iter().zip(&chosen).filter_map(|(all, &at)| all.get(at));
        choices.map(|choice| choice.loss).sum()
    };
    let spans = frontiers.iter().filter_map(|all| Some(all.last()?.bytes - all.first()?.bytes));
    let (mut low, mut high) = (0, spans.sum());
    while low < high {
        let middle = low + (high - low) / 2;
        if losing(middle) <= loss { high = middle } else { low = middle + 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, loss: f64) -> Choice {
        Choice { kind: StoredType::Q8_0, bytes, error: loss, disturbance: loss, loss }
    }

    #[test]
    fn choices_above_a_line_between_others_drop_out() {
        let all = [(100, 10.0), (200, 9.5), (300, 2.0), (300, 3.0), (350, 2.5), (500, 0.0)];
        let kept = frontier(all.map(|(bytes, loss)| choice(bytes, loss)).to_vec());
        let points: Vec<_> = kept.iter().map(|c| (c.bytes, c.loss)).collect();
        assert_eq!(points, [(100, 10.0), (200, 9.5), (300, 2.0), (500, 0.0)]);
        assert_eq!(convex(&kept), [0, 2, 3]);
    }

    fn total(frontiers: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        chosen.iter().zip(frontiers).fold((0, 0.0), |(bytes, loss), (&at, choices)| {
            (bytes + choices[at].bytes - choices[0].bytes, loss + choices[at].loss)
        })
    }

    /// The least loss of all combinations that fit.
    fn exhaustive(frontiers: &[Vec<Choice>], room: u64) -> f64 {
        let mut best = f64::INFINITY;
        for code in 0..frontiers.iter().map(Vec::len).product::<usize>() {
            let mut rest = code;
            let digits = frontiers.iter().map(|choices| {
                let at = rest % choices.len();
                rest /= choices.len();
                at
            });
            let chosen: Vec<usize> = digits.collect();
            let (bytes, loss) = total(frontiers, &chosen);
            if bytes <= room {
                best = best.min(loss);
            }
        }
        best
    }

    #[test]
    fn the_budget_is_kept_and_used() {
        let frontiers: Vec<Vec<Choice>> = (0..4u64)
            .map(|i| {
                let points =
                    [(0, 8.0), (10 + i, 3.0 + i as f64 * 0.3), (30 + 2 * i, 0.5), (70, 0.0)];
                frontier(points.map(|(bytes, loss)| choice(100 + bytes, loss)).to_vec())
            })
            .collect();
        for room in 0..300 {
            let (bytes, loss) = total(&frontiers, &fill(&frontiers, room));
            let best = exhaustive(&frontiers, room);
            assert!(bytes <= room && loss <= best + 2.5, "{room}: {loss} instead of {best}");
        }
        for loss in [0.0, 1.0, 5.0, 12.0, 31.9] {
            let room = room_for(&frontiers, loss);
            assert!(total(&frontiers, &fill(&frontiers, room)).1 <= loss);
            assert!(room == 0 || total(&frontiers, &fill(&frontiers, room - 1)).1 > loss);
        }
        assert_eq!(room_for(&frontiers, -1.0), 280);
        assert_eq!(fill(&frontiers, 0), [0; 4]);
        assert_eq!(fill(&frontiers, 280), [3; 4]);
    }

    /// One large matrix whose steps take most of the room, beside many small ones that would rather
    /// have it crumb by crumb.
    #[test]
    fn a_large_matrix_gets_its_step() {
        let mut frontiers =
            vec![frontier(vec![choice(0, 6.0), choice(600, 4.0), choice(1000, 0.1)])];
        frontiers
            .extend((0..6).map(|i| {
                frontier(vec![choice(0, 1.0), choice(40 + i, 0.4), choice(100 + i, 0.3)])
            }));
        for room in [0, 300, 650, 900, 1000, 1020, 1100, 1300, 1700] {
            let (bytes, loss) = total(&frontiers, &fill(&frontiers, room));
            let best = exhaustive(&frontiers, room);
            assert!(bytes <= room && loss <= best + 0.11, "{room}: {loss} instead of {best}");
        }
    }
}
