//! A picture of an analysis: the importance of every layer, and where the weights of the mask and
//! the super weights are. One SVG without anything from elsewhere, light or dark as the reader's
//! screen is and light on paper; or a page around it with the figures of every tensor.

mod page;
mod panels;
mod svg;

use std::path::Path;

use super::spikes::SuperWeight;
use crate::files::atomic::write_atomically;
use crate::files::imatrix::ImportanceSums;
use crate::files::super_weights::SuperWeightMask;
use crate::{Error, Result};

/// What is drawn.
pub(super) struct Subject<'a> {
    pub(super) name: &'a str,
    pub(super) sums: &'a ImportanceSums,
    pub(super) super_weights: &'a [SuperWeight],
    pub(super) mask: Option<&'a SuperWeightMask>,
    /// Perplexity of the text in which super weights were looked for.
    pub(super) perplexity: Option<f64>,
}

/// Refuses a path that is neither `.svg` nor `.html`.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("svg" | "html") => Ok(()),
        _ => Err(Error::InvalidArgument(format!(
            "--plot {}: the name must end in .svg or .html",
            path.display()
        ))),
    }
}

/// Draws into a file: SVG, or HTML if that is how its name ends.
pub(super) fn draw(path: &Path, subject: &Subject) -> Result<()> {
    check_path(path)?;
    let picture = panels::draw(subject);
    let html = path.extension().is_some_and(|end| end == "html");
    let text = if html { page::around(subject, &picture) } else { picture };
    write_atomically(path, text.as_bytes())
}
