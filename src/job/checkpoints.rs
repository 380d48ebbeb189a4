//! Where jobs keep what they have finished.

use std::path::PathBuf;

/// Where finished work is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoints {
    /// Nowhere: an interrupted run starts over.
    Off,
    /// Under a folder, in a folder of the run's own; finished work found there is used.
    Under(PathBuf),
    /// In a folder that must hold the run.
    Resume(PathBuf),
}
