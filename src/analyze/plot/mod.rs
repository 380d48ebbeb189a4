//! A picture of an analysis.

use std::path::Path;

use super::SuperWeightMask;
use super::spikes::SuperWeight;
use crate::formats::imatrix::ImportanceSums;
use crate::{Error, Result};

/// Refuses a path that is neither `.svg` nor `.html`.
pub(super) fn check_path(path: &Path) -> Result<()> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("svg" | "html") => Ok(()),
        _ => Err(Error::InvalidArgument(format!(
            "--plot {}: the name must end in .svg or .html",
            path.display()
        ))),
    }
}

/// Draws.
pub(super) fn draw(
    path: &Path,
    _name: &str,
    _sums: &ImportanceSums,
    _found: &[SuperWeight],
    _mask: Option<&SuperWeightMask>,
) -> Result<()> {
    check_path(path)
}
