//! How models are told apart in plots and legends: by colour, dashes and shape of the marker, which
//! together belong to one model only; and by a number, which paper without colours shows, too.

use super::text::escape;

/// Models that have a style of their own.
pub(crate) const MODELS: usize = COLOURS * SHAPES;

/// Colours that the page's style has.
const COLOURS: usize = 8;
/// Shapes of markers, and kinds of dashes.
const SHAPES: usize = 4;

/// Class of the colour of a series.
pub(super) fn colour(index: usize) -> String {
    format!("c{}", index % COLOURS)
}

/// Class of colour and dashes of a series: those that come after each other differ in both.
pub(super) fn series(index: usize) -> String {
    format!("{} d{}", colour(index), (index + index / COLOURS) % SHAPES)
}

/// A marker of a series around a point, `size` from its middle to its sides.
pub(super) fn marker(x: f64, y: f64, index: usize, size: f64) -> String {
    let class = format!("class=\"fill {}\"", colour(index));
    let polygon = |points: &[(f64, f64)]| {
        let points: Vec<String> = points
            .iter()
            .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * size, y + dy * size))
            .collect();
        format!("<polygon {class} points=\"{}\"/>", points.join(" "))
    };
    match index / COLOURS % SHAPES {
        0 => format!("<circle {class} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{size:.1}\"/>"),
        1 => polygon(&[(-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)]),
        2 => polygon(&[(0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)]),
        _ => polygon(&[(0.0, -1.5), (1.45, 1.0), (-1.45, 1.0)]),
    }
}

/// A marker with the number of its series.
pub(super) fn numbered(x: f64, y: f64, index: usize) -> String {
    format!(
        "{}<text class=\"number\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        marker(x, y, index, 9.0),
        y + 4.0,
        index + 1
    )
}

/// An entry of a legend with the line that it stands for, and its marker.
pub(super) fn line_entry(index: usize, name: &str) -> String {
    entry(
        Picture::Small,
        &format!(
            "<line class=\"stroke {}\" x1=\"1\" x2=\"25\" y1=\"8\" y2=\"8\"/>{}",
            series(index),
            marker(13.0, 8.0, index, 3.5)
        ),
        name,
    )
}

/// The same of a model, whose number its line and its marker have.
pub(super) fn model_entry(index: usize, name: &str) -> String {
    entry(
        Picture::Line,
        &format!(
            "<line class=\"stroke {}\" x1=\"1\" x2=\"51\" y1=\"8\" y2=\"8\"/>{}",
            series(index),
            numbered(26.0, 8.0, index)
        ),
        name,
    )
}

/// An entry of a legend with a filled area.
pub(super) fn block_entry(index: usize, name: &str) -> String {
    let block = format!(
        "<rect class=\"fill {}\" x=\"5\" y=\"2\" width=\"16\" height=\"12\"/>",
        colour(index)
    );
    entry(Picture::Small, &block, name)
}

/// Sizes of the pictures of legends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Picture {
    /// A line or an area.
    Small,
    /// A numbered marker.
    Marker,
    /// A numbered marker on its line.
    Line,
}

/// An entry of a legend: a picture and a name.
pub(super) fn entry(size: Picture, picture: &str, name: &str) -> String {
    let attributes = match size {
        Picture::Small => "viewBox=\"0 0 26 16\"",
        Picture::Marker => "class=\"tall\" viewBox=\"0 -4 26 24\"",
        Picture::Line => "class=\"tall long\" viewBox=\"0 -4 52 24\"",
    };
    format!("<li><svg {attributes} aria-hidden=\"true\">{picture}</svg>{}</li>", escape(name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_models_look_alike() {
        let without_number = |entry: String| {
            let (front, rest) = entry.split_once("<text").unwrap();
            format!("{front}{}", rest.split_once("</text>").unwrap().1)
        };
        let lines: HashSet<String> = (0..MODELS).map(series).collect();
        let markers: HashSet<String> =
            (0..MODELS).map(|index| marker(0.0, 0.0, index, 1.0)).collect();
        let entries: HashSet<String> =
            (0..MODELS).map(|index| without_number(model_entry(index, "model"))).collect();
        assert_eq!((lines.len(), markers.len(), entries.len()), (MODELS, MODELS, MODELS));
        // What is beside each other differs in more than a shade.
        for index in 1..MODELS {
            let classes = |index| series(index).split(' ').map(str::to_owned).collect::<Vec<_>>();
            let pairs = classes(index - 1).into_iter().zip(classes(index));
            assert!(pairs.clone().all(|(a, b)| a != b), "{:?}", pairs.collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_class_has_a_rule_in_every_mode() {
        let style = include_str!("style.css");
        for index in 0..COLOURS {
            assert!(style.contains(&format!(".c{index} {{ color: var(--s{index}); }}")));
            // Light, dark, paper.
            assert_eq!(style.matches(&format!("--s{index}: #")).count(), 3);
        }
        for dashes in 1..SHAPES {
            assert!(style.contains(&format!(".d{dashes} {{ stroke-dasharray:")));
        }
    }
}
