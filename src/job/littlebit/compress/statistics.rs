//! The calibration pass: mean squares of what every linear layer receives.

use super::request::Weighting;
use super::work::Run;
use crate::files::checkpoint::UnitData;
use crate::graph::Decoder;
use crate::job::littlebit::report::CalibrationReport;
use crate::measure::InputStatistics;
use crate::text::CalibrationWindows;
use crate::{Error, Result};

/// Tokens of a calibration window, at most: statistics of inputs settle with the number of tokens,
/// not with their context.
pub(super) const CALIBRATION_WINDOW: usize = 256;

/// Unit of the checkpoint store.
pub(super) const UNIT: &str = "statistics";

/// Tokens that the model reads at a time.
const BATCH_TOKENS: usize = 2048;

/// Window length for a model with this context, tokens.
#[must_use]
pub(super) fn window(context: usize) -> usize {
    context.clamp(2, CALIBRATION_WINDOW)
}

/// Statistics with what they were measured on.
pub(super) struct Calibration {
    statistics: InputStatistics,
    pub(super) report: CalibrationReport,
}

impl Calibration {
    /// Mean squares of the inputs of `layer`.
    pub(super) fn columns(&self, layer: &str) -> Result<Vec<f32>> {
        let statistics = self.statistics.layers.get(layer).ok_or_else(|| {
            Error::Checkpoint(format!("the statistics of {layer} are not in the checkpoint"))
        })?;
        Ok(statistics.mean_squares().into_iter().map(|v| v as f32).collect())
    }
}

impl Run<'_> {
    /// Runs the original over the calibration windows, or takes the statistics from the store.
    pub(super) fn calibrate(&self) -> Result<Option<Calibration>> {
        if self.request.weighting == Weighting::None || self.request.recipe.is_some() {
            return Ok(None);
        }
        let length = window(self.model.config.max_positions);
        let windows = CalibrationWindows::sample(
            &self.text.calibration,
            self.tokenizer,
            self.request.calibration_samples,
            length,
            self.request.solver.seed,
        )?;
        let report = CalibrationReport {
            dataset: self.text.name.clone(),
            samples: windows.count(),
            tokens: windows.tokens.len() as u64,
        };
        if windows.count() < self.request.calibration_samples {
            self.warn(format!(
                "{} gives {} of {} calibration samples of {length} tokens",
                self.text.name,
                windows.count(),
                self.request.calibration_samples
            ));
        }
        if let Some(unit) = self.store.load(UNIT)? {
            let bytes = unit.bytes(UNIT).unwrap_or_default();
            return Ok(Some(Calibration {
                statistics: InputStatistics::from_bytes(bytes)?,
                report,
            }));
        }
        let decoder = Decoder::new(self.model, self.backend)?;
        let mut statistics = InputStatistics::new();
        let batch = (BATCH_TOKENS / length).max(1);
        self.progress.start("Calibrating", windows.count() as u64, "samples");
        for tokens in windows.tokens.chunks(batch * length) {
            if self.progress.stop_requested() {
                return Err(self.interrupted());
            }
            let count = tokens.len() / length;
            decoder.hidden(tokens, count, None, Some(&mut statistics))?;
            self.progress.advance(count as u64);
        }
        self.progress.finish();
        let unit = UnitData::default().with_bytes(UNIT, statistics.to_bytes());
        self.store.save(UNIT, unit)?;
        Ok(Some(Calibration { statistics, report }))
    }
}
