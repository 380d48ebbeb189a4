//! Axes and the frame of a plot, as SVG. Colours come from the page's style, so that one picture
//! serves light, dark and paper.

use super::series::numbered;
use super::text::escape;

/// How values lie on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm.
    Log,
}

/// An axis: what it shows, from where to where.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) label: String,
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis that holds all of `values`, with round numbers at its ends. A logarithmic one leaves
    /// out values that are not positive.
    pub(super) fn over(label: &str, scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && (scale == Scale::Linear || *v > 0.0)) {
            from = from.min(value);
            to = to.max(value);
        }
        if from > to {
            (from, to) = if scale == Scale::Log { (0.1, 1.0) } else { (0.0, 1.0) };
        }
        match scale {
            Scale::Linear => Self::linear(label, from, to),
            Scale::Log => Self::logarithmic(label, from, to),
        }
    }

    fn linear(label: &str, from: f64, to: f64) -> Self {
        let spread = if to > from { to - from } else { from.abs().max(1.0) * 0.1 };
        let (from, to) = (from - spread * 0.04, to + spread * 0.04);
        let from = if from < 0.0 && from + spread * 0.04 >= 0.0 { 0.0 } else { from };
        let step = round_step((to - from) / 5.0);
        let (first, last) = ((from / step).floor(), (to / step).ceil());
        let ticks: Vec<f64> =
            (first as i64..=last as i64).map(|index| index as f64 * step).collect();
        let ends = (first * step, last * step);
        Self { label: label.into(), scale: Scale::Linear, from: ends.0, to: ends.1, ticks }
    }

    fn logarithmic(label: &str, from: f64, to: f64) -> Self {
        let decades = (to / from).log10();
        // Few decades need ticks between them.
        let steps: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let (low, high) = (from.log10().floor() as i32, to.log10().ceil() as i32);
        let mut ticks: Vec<f64> = (low..=high)
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .collect();
        let first = ticks.iter().rposition(|tick| *tick <= from * 1.001).unwrap_or(0);
        let last = ticks.iter().position(|tick| *tick >= to * 0.999).unwrap_or(ticks.len() - 1);
        let last = last.max(first + 1).min(ticks.len() - 1);
        ticks = ticks[first.min(last)..=last].to_vec();
        let ends = (ticks[0], ticks[ticks.len() - 1]);
        let ends = if ends.1 > ends.0 { ends } else { (ends.0, ends.0 * 10.0) };
        Self { label: label.into(), scale: Scale::Log, from: ends.0, to: ends.1, ticks }
    }

    /// Where a value lies, 0 at the beginning and 1 at the end; ends for what is outside.
    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => {
                (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln()
            }
        };
        share.clamp(0.0, 1.0)
    }

    /// An axis that counts from 0 to `last` and ends there.
    pub(super) fn count(label: &str, last: usize) -> Self {
        let last = last.max(1);
        let step = round_step(last as f64 / 10.0).max(1.0) as usize;
        let ticks = (0..=last).step_by(step).map(|tick| tick as f64).collect();
        Self { label: label.into(), scale: Scale::Linear, from: 0.0, to: last as f64, ticks }
    }

    /// A tick as SVG text: plain, or a power of ten with a raised exponent.
    fn name(&self, tick: f64) -> String {
        if self.scale == Scale::Log && !(1e-3..1e4).contains(&tick) {
            let exponent = tick.log10().floor() as i32;
            let factor = tick / 10f64.powi(exponent);
            let factor =
                if (factor - 1.0).abs() < 1e-6 { String::new() } else { format!("{factor:.0}·") };
            let sign = if exponent < 0 { "-" } else { "" };
            return format!(
                "{factor}10<tspan dy=\"-5\" font-size=\"10\">{sign}{}</tspan>",
                exponent.abs()
            );
        }
        let step = match self.scale {
            Scale::Linear => self.ticks.get(1).map_or(1.0, |next| next - self.ticks[0]),
            Scale::Log => tick,
        };
        let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{tick:.digits$}");
        let zero = text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.');
        if zero { "0".into() } else { text }
    }

    /// Characters that the name of a tick takes, about.
    fn name_width(&self, tick: f64) -> usize {
        let name = self.name(tick);
        match name.split_once("<tspan") {
            Some((front, _)) => front.chars().count() + 2,
            None => name.chars().count(),
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

/// The area of a plot, in the units of its picture.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    width: f64,
    height: f64,
    left: f64,
    x: Axis,
    y: Axis,
    body: String,
    class: &'static str,
    title: String,
}

const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 46.0;

impl Plot {
    /// A plot for wide screens and paper, or for phones.
    pub(super) fn new(narrow: bool, title: &str, x: Axis, y: Axis) -> Self {
        let (width, height, class) =
            if narrow { (366.0, 300.0, "narrow") } else { (820.0, 380.0, "wide") };
        let longest = y.ticks.iter().map(|tick| y.name_width(*tick)).max().unwrap_or(1);
        let left = 14.0 + 7.5 * longest as f64;
        Self { width, height, left, x, y, body: String::new(), class, title: title.into() }
    }

    pub(super) fn at_x(&self, value: f64) -> f64 {
        self.left + self.x.place(value) * (self.width - self.left - RIGHT)
    }

    pub(super) fn at_y(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM)
    }

    /// Adds elements.
    pub(super) fn add(&mut self, element: &str) {
        self.body.push_str(element);
    }

    /// A line through points.
    pub(super) fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|&(x, y)| format!("{:.1},{:.1}", self.at_x(x), self.at_y(y)))
            .collect();
        self.add(&format!("<polyline class=\"stroke {class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// The number of each line, at places of their own from left to right.
    pub(super) fn number(&mut self, lines: &[Vec<(f64, f64)>]) {
        for (index, line) in lines.iter().enumerate() {
            let place = (index as f64 + 0.5) / lines.len() as f64 * line.len() as f64;
            if let Some(&(x, y)) = line.get(place as usize) {
                let mark = numbered(self.at_x(x), self.at_y(y), index);
                self.add(&mark);
            }
        }
    }

    /// A dashed line across, with its name under its left end.
    pub(super) fn level(&mut self, y: f64, name: &str) {
        let (at, right) = (self.at_y(y), self.width - RIGHT);
        self.add(&format!(
            "<line class=\"mark\" x1=\"{:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            self.left,
            self.left + 6.0,
            at + 15.0,
            escape(name)
        ));
    }

    /// A dashed line from bottom to top, with its name at `row` lines below the top.
    pub(super) fn upright(&mut self, x: f64, name: &str, row: usize) {
        let at = self.at_x(x);
        let bottom = self.height - BOTTOM;
        let (anchor, shift) = if at > self.width * 0.75 { ("end", -5.0) } else { ("start", 5.0) };
        self.add(&format!(
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at + shift,
            TOP + 12.0 + 15.0 * row as f64,
            escape(name)
        ));
    }

    /// A bar from the bottom up.
    pub(super) fn bar(&mut self, (from, to): (f64, f64), y: f64, class: &str) {
        let (left, right, top) = (self.at_x(from), self.at_x(to), self.at_y(y));
        let bottom = self.height - BOTTOM;
        self.add(&format!(
            "<rect class=\"fill {class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            left + 0.5,
            (right - left - 1.0).max(0.5),
            (bottom - top).max(0.0)
        ));
    }

    /// The picture.
    pub(super) fn svg(self) -> String {
        let (bottom, right) = (self.height - BOTTOM, self.width - RIGHT);
        let mut out = format!(
            "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            self.class,
            self.width,
            self.height,
            escape(&self.title)
        );
        for &tick in &self.y.ticks {
            let at = self.at_y(tick);
            out.push_str(&format!(
                "<line class=\"grid\" x1=\"{:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                self.left,
                self.left - 6.0,
                at + 4.5,
                self.y.name(tick)
            ));
        }
        // As many names as fit beside each other.
        let room = (right - self.left) / 44.0;
        let every = (self.x.ticks.len() as f64 / room).ceil().max(1.0) as usize;
        for (index, &tick) in self.x.ticks.iter().enumerate() {
            let at = self.at_x(tick);
            out.push_str(&format!(
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>"
            ));
            if index.is_multiple_of(every) {
                let anchor = if at > right - 8.0 { "end" } else { "middle" };
                out.push_str(&format!(
                    "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                    bottom + 17.0,
                    self.x.name(tick)
                ));
            }
        }
        out.push_str(&self.body);
        out.push_str(&format!(
            "<polyline class=\"axis\" fill=\"none\" points=\"{0:.1},{TOP} {0:.1},{bottom:.1} {right:.1},{bottom:.1}\"/>\
             <text class=\"label\" x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>\
             <text class=\"label\" x=\"2\" y=\"15\">{4}</text></svg>",
            self.left,
            right,
            self.height - 6.0,
            escape(&self.x.label),
            escape(&self.y.label)
        ));
        out
    }
}

/// Draws a plot in both sizes.
pub(super) fn both(draw: impl Fn(bool) -> Plot) -> String {
    draw(false).svg() + &draw(true).svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_have_round_ends() {
        let axis = Axis::over("x", Scale::Linear, [83.0, 144.0].into_iter());
        assert_eq!(axis.ticks, [80.0, 100.0, 120.0, 140.0, 160.0]);
        assert!(axis.place(83.0) > 0.0 && axis.place(144.0) < 1.0);
        assert_eq!(axis.name(100.0), "100");
        let axis = Axis::over("x", Scale::Linear, [0.0, 0.31].into_iter());
        assert_eq!(axis.name(axis.ticks[0]), "0");
        assert_eq!(axis.name(axis.ticks[1]), "0.1");
        // One value, and none at all.
        for values in [vec![5.0], vec![], vec![f64::NAN]] {
            let axis = Axis::over("x", Scale::Linear, values.into_iter());
            assert!(axis.to > axis.from && axis.ticks.len() > 1, "{axis:?}");
        }
    }

    #[test]
    fn logarithmic_axes_end_at_ticks() {
        let axis = Axis::over("x", Scale::Log, [3e-5, 0.0, 2e-2].into_iter());
        assert_eq!(axis.ticks.len(), 5, "{axis:?}");
        assert!((axis.place(1e-5) - 0.0).abs() < 1e-9 && (axis.place(1e-1) - 1.0).abs() < 1e-9);
        assert_eq!(
            (axis.name(1e-5).as_str(), axis.name(0.1).as_str()),
            ("10<tspan dy=\"-5\" font-size=\"10\">-5</tspan>", "0.1")
        );
        let axis = Axis::over("x", Scale::Log, [24.0, 33.0].into_iter());
        assert_eq!(axis.ticks, [20.0, 50.0]);
        assert_eq!(axis.name(20.0), "20");
        assert!((axis.place(0.0) - 0.0).abs() < 1e-12);
        let axis = Axis::count("x", 29);
        assert_eq!((axis.ticks.len(), axis.to, axis.name(5.0).as_str()), (6, 29.0, "5"));
        assert_eq!(Axis::count("x", 3).ticks, [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(Axis::count("x", 0).ticks, [0.0, 1.0]);
    }
}
