//! The panels: importance over layers, and protected weights by layer and matrix.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::Subject;
use super::svg::{Anchor, COLORS, Canvas, mark};
use crate::files::imatrix::Method;
use crate::job::analyze::spikes::SuperWeight;
use crate::job::analyze::statistics::{TensorStatistics, block_of, tensors};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 30.0;
const INNER: f64 = WIDTH - LEFT - RIGHT;
/// Height of the importance panel and of a row of the mask.
const HEIGHT: f64 = 300.0;
const ROW: f64 = 26.0;

/// One line: a kind of matrix, or several that have the same input.
struct Series {
    label: String,
    /// By block: mean and largest.
    points: BTreeMap<usize, (f64, f64)>,
}

/// The whole picture.
pub(super) fn draw(subject: &Subject) -> String {
    let statistics = tensors(subject.sums);
    let blocks = statistics.iter().filter_map(|t| Some(block_of(&t.tensor)?.0 + 1)).max();
    let axis = Axis { blocks: blocks.unwrap_or(1) };
    let mut canvas = Canvas::new(WIDTH);
    let title = format!("Importance by layer: {}", subject.name);
    canvas.text((LEFT, 30.0), 17.0, Anchor::Start, "", &title);
    let note = format!(
        "{}, {} samples of {} tokens; solid: mean of the columns, dotted: largest column",
        subject.sums.method.name().replace('_', " "),
        subject.sums.chunks,
        subject.sums.chunk_size
    );
    canvas.text((LEFT, 49.0), 12.0, Anchor::Start, "soft", &note);
    let all = series(&statistics);
    let top = 96.0 + legend(&mut canvas, 72.0, &all);
    importance(&mut canvas, top, &axis, &all, unit(subject.sums.method));
    let mut bottom = top + HEIGHT + 52.0;
    if subject.mask.is_some() {
        bottom = protected(&mut canvas, bottom + 24.0, &axis, subject, &statistics);
    }
    canvas.finish(bottom + 16.0, &title)
}

fn unit(method: Method) -> &'static str {
    match method {
        Method::Activation => "mean square of a column's input",
        Method::Gradient => "mean |dL/dw| of a column, nats per sample",
        Method::Fisher => "mean (dL/dw)² of a column, nats² per sample",
    }
}

/// Positions of blocks.
struct Axis {
    blocks: usize,
}

impl Axis {
    fn width(&self) -> f64 {
        INNER / self.blocks as f64
    }

    fn center(&self, block: usize) -> f64 {
        LEFT + (block as f64 + 0.5) * self.width()
    }

    /// Numbers of blocks that have room below the axis.
    fn ticks(&self) -> impl Iterator<Item = usize> {
        let step = [1, 2, 5, 10, 20, 50].into_iter().find(|s| self.blocks / s <= 24).unwrap_or(100);
        (0..self.blocks).step_by(step)
    }

    fn draw(&self, canvas: &mut Canvas, y: f64) {
        canvas.line("axis", (LEFT, y), (LEFT + INNER, y));
        for block in self.ticks() {
            let x = self.center(block);
            canvas.line("axis", (x, y), (x, y + 4.0));
            canvas.text((x, y + 18.0), 11.0, Anchor::Middle, "soft", &block.to_string());
        }
        let middle = LEFT + INNER / 2.0;
        canvas.text((middle, y + 38.0), 12.0, Anchor::Middle, "soft", "layer (transformer block)");
    }
}

/// Lines in file order; matrices with the same figures in all blocks share one.
fn series(statistics: &[TensorStatistics]) -> Vec<Series> {
    let mut kinds: IndexMap<&str, BTreeMap<usize, (f64, f64)>> = IndexMap::new();
    for tensor in statistics {
        let Some((block, kind)) = block_of(&tensor.tensor) else { continue };
        let kind = kind.strip_suffix(".weight").unwrap_or(kind);
        kinds.entry(kind).or_default().insert(block, (tensor.mean, tensor.max));
    }
    let mut all: Vec<Series> = Vec::new();
    for (kind, points) in kinds {
        match all.iter_mut().find(|series| series.points == points) {
            Some(series) => series.label.push_str(&format!(", {kind}")),
            None => all.push(Series { label: kind.to_owned(), points }),
        }
    }
    all
}

/// Draws the legend from `y` on; gives the height beyond its first line.
fn legend(canvas: &mut Canvas, y: f64, all: &[Series]) -> f64 {
    let (mut x, mut line) = (LEFT, 0.0);
    for (index, series) in all.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let width = 46.0 + 6.6 * series.label.len() as f64;
        if x + width > WIDTH - RIGHT && x > LEFT {
            (x, line) = (LEFT, line + 20.0);
        }
        let middle = y + line - 4.0;
        canvas.path(color, &[(x, middle), (x + 24.0, middle)], "");
        canvas.mark((x + 12.0, middle), mark(index), color, &series.label);
        canvas.text((x + 30.0, y + line), 12.0, Anchor::Start, "", &series.label);
        x += width;
    }
    line
}

fn importance(canvas: &mut Canvas, top: f64, axis: &Axis, all: &[Series], unit: &str) {
    let values = || all.iter().flat_map(|series| series.points.values());
    let positive = |value: f64| (value > 0.0).then(|| value.log10());
    let lows = values().filter_map(|(mean, _)| positive(*mean));
    let highs = values().filter_map(|(_, most)| positive(*most));
    let low = lows.fold(f64::INFINITY, f64::min).floor();
    let high = highs.fold(f64::NEG_INFINITY, f64::max).ceil();
    let (low, high) = if low < high { (low, high) } else { (-1.0, 1.0) };
    let bottom = top + HEIGHT;
    let y = |value: f64| bottom - (value.log10() - low) / (high - low) * HEIGHT;
    let step = (((high - low) / 8.0).ceil() as i32).max(1);
    let mut exponent = low as i32;
    while f64::from(exponent) <= high {
        let at = y(10f64.powi(exponent));
        canvas.line("grid", (LEFT, at), (LEFT + INNER, at));
        let label = match exponent {
            -3..=3 => format!("{}", 10f64.powi(exponent)),
            _ => format!("1e{exponent}"),
        };
        canvas.text((LEFT - 8.0, at + 4.0), 11.0, Anchor::End, "soft", &label);
        exponent += step;
    }
    canvas.line("axis", (LEFT, top), (LEFT, bottom));
    canvas.upward((34.0, top + HEIGHT / 2.0), 12.0, &format!("{unit} (log scale)"));
    axis.draw(canvas, bottom);
    for (index, series) in all.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let points = |of: &dyn Fn(&(f64, f64)) -> f64| -> Vec<(f64, f64)> {
            let positive = series.points.iter().filter(|(_, value)| of(value) > 0.0);
            positive.map(|(block, value)| (axis.center(*block), y(of(value)))).collect()
        };
        canvas.path(color, &points(&|value| value.1), "1.5 3.5");
        canvas.path(color, &points(&|value| value.0), "");
        for (block, (mean, most)) in series.points.iter().filter(|(_, value)| value.0 > 0.0) {
            let title =
                format!("{} of layer {block}: mean {mean:.4}, largest {most:.4}", series.label);
            canvas.mark((axis.center(*block), y(*mean)), mark(index), color, &title);
        }
    }
}

/// The grid of protected weights, from `top` on; gives its lower end.
fn protected(
    canvas: &mut Canvas,
    top: f64,
    axis: &Axis,
    subject: &Subject,
    statistics: &[TensorStatistics],
) -> f64 {
    let Some(mask) = subject.mask else { return top };
    let title = format!(
        "Protected weights: {} ({} of the parameters)",
        mask.total(),
        percent(mask.coverage)
    );
    canvas.text((LEFT, top), 15.0, Anchor::Start, "", &title);
    let mut kinds: Vec<&str> = Vec::new();
    for tensor in statistics {
        if let Some((_, kind)) = block_of(&tensor.tensor)
            && !kinds.contains(&kind)
        {
            kinds.push(kind);
        }
    }
    let most = mask.tensors.values().map(Vec::len).max().unwrap_or(1);
    scale(canvas, top - 4.0, most);
    let grid = top + 16.0;
    let width = axis.width();
    for (row, kind) in kinds.iter().enumerate() {
        let y = grid + row as f64 * ROW;
        let label = kind.strip_suffix(".weight").unwrap_or(kind);
        canvas.text((LEFT - 8.0, y + ROW / 2.0 + 4.0), 11.0, Anchor::End, "soft", label);
        for block in 0..axis.blocks {
            let name = format!("blk.{block}.{kind}");
            let count = mask.tensors.get(&name).map_or(0, Vec::len);
            let fill = (count > 0).then(|| (COLORS[0], shade(count, most)));
            let place = (LEFT + block as f64 * width + 0.5, y + 0.5);
            let title = format!("{name}: {count} protected weights");
            canvas.cell(place, ((width - 1.0).max(0.5), ROW - 1.0), fill, &title);
        }
    }
    for weight in subject.super_weights {
        let Some((block, kind)) = block_of(&weight.tensor) else { continue };
        let row = kinds.iter().position(|k| *k == kind).unwrap_or(0) as f64;
        let place = (axis.center(block), grid + (row + 0.5) * ROW);
        canvas.star(place, &sentence(weight));
    }
    let bottom = grid + kinds.len() as f64 * ROW;
    axis.draw(canvas, bottom);
    let mut y = bottom + 64.0;
    if !subject.super_weights.is_empty() {
        canvas.star((LEFT + 6.0, y - 4.0), "super weight");
        let whole = subject
            .perplexity
            .map_or(String::new(), |all| format!(" (perplexity with all weights {all:.2})"));
        let text =
            format!("super weight: one weight that makes a spike of the hidden state{whole}");
        canvas.text((LEFT + 20.0, y), 12.0, Anchor::Start, "", &text);
        for weight in subject.super_weights {
            y += 18.0;
            canvas.text((LEFT + 20.0, y), 11.0, Anchor::Start, "soft", &sentence(weight));
        }
    }
    y
}

/// The legend of the shades, its right end at the right end of the plot.
fn scale(canvas: &mut Canvas, y: f64, most: usize) {
    let x = LEFT + INNER - 150.0;
    canvas.text((x - 8.0, y + 4.0), 11.0, Anchor::End, "soft", "weights in a matrix: 1");
    for step in 0..10 {
        let count = (most as f64).powf(f64::from(step) / 9.0) as usize;
        let place = (x + f64::from(step) * 11.0, y - 6.0);
        canvas.cell(place, (11.0, 12.0), Some((COLORS[0], shade(count, most))), &count.to_string());
    }
    canvas.text((x + 116.0, y + 4.0), 11.0, Anchor::Start, "soft", &most.to_string());
}

/// Opacity for a count, by its logarithm.
fn shade(count: usize, most: usize) -> f64 {
    let share = (count.max(1) as f64).ln() / (most.max(2) as f64).ln();
    0.15 + 0.85 * share.min(1.0)
}

fn sentence(weight: &SuperWeight) -> String {
    let effect = weight
        .perplexity_without
        .map_or(String::new(), |without| format!(", perplexity without it {without:.2}"));
    format!(
        "{} row {}, column {}: {:.4}; output {:.1}, {:.0} times the median{effect}",
        weight.tensor, weight.row, weight.column, weight.value, weight.output, weight.output_spike
    )
}

fn percent(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}
