//! The warnings of a run, for its report.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::progress::Progress;

/// Passes everything on and keeps the warnings for the report.
pub(super) struct Recorder<'a> {
    inner: &'a dyn Progress,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(inner: &'a dyn Progress) -> Self {
        Self { inner, warnings: Mutex::default() }
    }

    /// The warnings so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Recorder<'_> {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        self.inner.start(stage, total, unit);
    }
    fn advance(&self, units: u64) {
        self.inner.advance(units);
    }
    fn resumed(&self, units: u64) {
        self.inner.resumed(units);
    }
    fn finish(&self) {
        self.inner.finish();
    }
    fn note(&self, text: &str) {
        self.inner.note(text);
    }
    fn detail(&self, text: &str) {
        self.inner.detail(text);
    }
    fn verbose(&self, text: &str) {
        self.inner.verbose(text);
    }
    fn warn(&self, text: &str) {
        self.lock().push(text.to_owned());
        self.inner.warn(text);
    }
    fn debug(&self, text: &str) {
        self.inner.debug(text);
    }
    fn stop_requested(&self) -> bool {
        self.inner.stop_requested()
    }
}
