//! How the library tells its caller what it is doing, without printing anything itself.

/// Receives what happens during a long run. Implementations must be cheap: the calls come from
/// inside the work.
pub trait Progress: Send + Sync {
    /// A stage of `total` units begins (`unit`: "layers", "windows", "bytes", …).
    fn start(&self, stage: &str, total: u64, unit: &str);
    /// `units` more of the current stage are done.
    fn advance(&self, units: u64);
    /// `units` more of the current stage are done because an interrupted run had finished them. They
    /// say nothing about how long the others take.
    fn resumed(&self, units: u64) {
        self.advance(units);
    }
    /// The current stage is over.
    fn finish(&self);
    /// A message for everybody ("[llm-quantize] …").
    fn note(&self, text: &str);
    /// A detail line that belongs to the current stage ("  Layer 0: rank=64, …").
    fn detail(&self, text: &str);
    /// A finer detail line, for `--verbosity verbose`.
    fn verbose(&self, _text: &str) {}
    /// Something is not as the user would want it.
    fn warn(&self, text: &str);
    /// For `--verbosity debug`.
    fn debug(&self, _text: &str) {}
    /// Whether the user asked to stop: long loops ask between two units of work.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Ignores everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct NullProgress;

impl Progress for NullProgress {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}
