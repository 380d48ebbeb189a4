//! What a conversion did to every tensor: the written model, opened again, beside the source.

use rayon::prelude::*;

use crate::base::progress::Progress;
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// A tensor before and after.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// Hugging Face name.
    pub name: String,
    /// Type in the source.
    pub from: String,
    /// Type in the result.
    pub to: String,
    /// Whether every value is the same.
    pub exact: bool,
    /// Whether the result holds numbers, not integers: then values were rounded to their type at most.
    pub dense: bool,
    /// Sum of squared values.
    pub energy: f64,
    /// Sum of squared differences.
    pub error: f64,
}

impl Difference {
    /// Root of the mean squared difference over that of the values; 0 for a tensor of zeros.
    #[must_use]
    pub(crate) fn relative_error(&self) -> f64 {
        relative(self.error, self.energy)
    }
}

/// `sqrt(error / energy)`.
#[must_use]
pub(crate) fn relative(error: f64, energy: f64) -> f64 {
    if energy > 0.0 { (error / energy).sqrt() } else { 0.0 }
}

/// Compares all tensors of two models of one shape.
///
/// # Errors
/// [`Error::ValidationFailed`] if a tensor is missing or has another shape, [`Error::Interrupted`].
pub(crate) fn compare(
    before: &LocalModel,
    after: &LocalModel,
    progress: &dyn Progress,
) -> Result<Vec<Difference>> {
    progress.start("Comparing", before.weights.len() as u64, "tensors");
    let mut all = Vec::with_capacity(before.weights.len());
    for (name, weight) in &before.weights {
        let Some(other) = after.weights.get(name).filter(|o| o.shape() == weight.shape()) else {
            progress.finish();
            return Err(Error::damaged(&after.path, format!("{name} is not as in the source")));
        };
        all.push(difference(name, weight, other));
        weight.release();
        other.release();
        progress.advance(1);
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    Ok(all)
}

fn difference(name: &str, before: &Weight, after: &Weight) -> Difference {
    const VALUES: usize = 1 << 16;
    let (rows, cols) = (before.rows(), before.cols());
    let step = (VALUES / cols.max(1)).max(1);
    let parts: Vec<(f64, f64, bool)> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|part| {
            let rows = part * step..rows.min((part + 1) * step);
            let (mut a, mut b) = (vec![0.0; rows.len() * cols], vec![0.0; rows.len() * cols]);
            before.read_rows(rows.clone(), &mut a);
            after.read_rows(rows, &mut b);
            let mut sums = (0.0, 0.0, true);
            for (a, b) in a.iter().zip(&b) {
                let (value, difference) = (f64::from(*a), f64::from(*a) - f64::from(*b));
                sums.0 += value * value;
                sums.1 += difference * difference;
                // 0 and -0 are the same value.
                sums.2 &= a - b == 0.0;
            }
            sums
        })
        .collect();
    let sum = |of: fn(&(f64, f64, bool)) -> f64| parts.iter().map(of).sum();
    Difference {
        name: name.to_owned(),
        from: before.type_name(),
        to: after.type_name(),
        exact: parts.iter().all(|part| part.2),
        dense: matches!(after, Weight::Stored(tensor) if tensor.dtype.block().0 == 1),
        energy: sum(|part| part.0),
        error: sum(|part| part.1),
    }
}
