//! The few shapes that a plot needs, as SVG text.

use std::fmt::Write;

/// Colours that are told apart with any kind of sight (Okabe and Ito), darkened where a line on white
/// would be too faint.
pub(super) const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#b5579a", "#b8860b", "#2b93c9", "#7a7a7a"];

/// Text colours and lines for light and for dark surroundings. Paper is light.
const STYLE: &str = "\
text{font-family:system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#1b1f24}\
.paper{fill:#fff}.axis{stroke:#57606a;fill:none}.grid{stroke:#d8dee4;fill:none}.soft{fill:#57606a}\
.empty{fill:#eef1f4}.mark{fill:#fff;stroke:#1b1f24}\
@media screen and (prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}\
.axis{stroke:#8b949e}.grid{stroke:#30363d}.soft{fill:#9da7b1}.empty{fill:#1b2129}\
.mark{fill:#0d1117;stroke:#e6edf3}}";

/// A picture under construction.
pub(super) struct Canvas {
    width: f64,
    body: String,
}

/// Where a text is held.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Shape of a mark.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Circle,
    Square,
    Triangle,
    Cross,
    Diamond,
}

/// The shape of series `index`.
pub(super) fn mark(index: usize) -> Mark {
    [Mark::Circle, Mark::Square, Mark::Triangle, Mark::Cross, Mark::Diamond][index % 5]
}

impl Canvas {
    pub(super) fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    /// The whole picture, `height` high.
    pub(super) fn finish(self, height: f64, title: &str) -> String {
        let (width, body) = (self.width, self.body);
        let title = escape(title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
        )
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    pub(super) fn path(&mut self, color: &str, points: &[(f64, f64)], dashes: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(format_args!(
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\" \
             stroke-dasharray=\"{dashes}\" points=\"{}\"/>",
            points.join(" ")
        ));
    }

    /// A text of `size` pixels; `class` is `soft` for what is beside the point.
    pub(super) fn text(
        &mut self,
        (x, y): (f64, f64),
        size: f64,
        anchor: Anchor,
        class: &str,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" \
             text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        ));
    }

    /// A text that reads upward, its middle at the point.
    pub(super) fn upward(&mut self, (x, y): (f64, f64), size: f64, text: &str) {
        self.put(format_args!(
            "<text class=\"soft\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\" \
             font-size=\"{size}\" text-anchor=\"middle\">{}</text>",
            escape(text)
        ));
    }

    /// A box with a title that shows on pointing.
    pub(super) fn cell(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        fill: Option<(&str, f64)>,
        title: &str,
    ) {
        let fill = match fill {
            Some((color, opacity)) => format!("fill=\"{color}\" fill-opacity=\"{opacity:.2}\""),
            None => "class=\"empty\"".to_owned(),
        };
        self.put(format_args!(
            "<rect {fill} x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{}</title></rect>",
            escape(title)
        ));
    }

    /// A mark of a series with a title.
    pub(super) fn mark(&mut self, (x, y): (f64, f64), mark: Mark, color: &str, title: &str) {
        let shape = match mark {
            Mark::Circle => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\""),
            Mark::Square => {
                format!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"5.4\" height=\"5.4\"",
                    x - 2.7,
                    y - 2.7
                )
            }
            Mark::Triangle => polygon(&[(x, y - 3.6), (x + 3.4, y + 2.6), (x - 3.4, y + 2.6)]),
            Mark::Cross => polygon(&[
                (x - 3.4, y - 1.1),
                (x - 1.1, y - 1.1),
                (x - 1.1, y - 3.4),
                (x + 1.1, y - 3.4),
                (x + 1.1, y - 1.1),
                (x + 3.4, y - 1.1),
                (x + 3.4, y + 1.1),
                (x + 1.1, y + 1.1),
                (x + 1.1, y + 3.4),
                (x - 1.1, y + 3.4),
                (x - 1.1, y + 1.1),
                (x - 3.4, y + 1.1),
            ]),
            Mark::Diamond => polygon(&[(x, y - 4.0), (x + 4.0, y), (x, y + 4.0), (x - 4.0, y)]),
        };
        let tag = if matches!(mark, Mark::Circle) {
            "circle"
        } else if matches!(mark, Mark::Square) {
            "rect"
        } else {
            "polygon"
        };
        self.put(format_args!("{shape} fill=\"{color}\"><title>{}</title></{tag}>", escape(title)));
    }

    /// The mark of a super weight: a diamond that is seen on any colour.
    pub(super) fn star(&mut self, (x, y): (f64, f64), title: &str) {
        let shape = polygon(&[(x, y - 6.0), (x + 6.0, y), (x, y + 6.0), (x - 6.0, y)]);
        self.put(format_args!(
            "{shape} class=\"mark\" stroke-width=\"1.8\"><title>{}</title></polygon>",
            escape(title)
        ));
    }
}

fn polygon(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polygon points=\"{}\"", points.join(" "))
}

/// Text as XML takes it.
pub(super) fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}
