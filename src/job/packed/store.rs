//! Finished blocks on disk, or nowhere.

use super::request::PackedRequest;
use crate::Result;
use crate::base::progress::Progress;
use crate::files::checkpoint::{CheckpointStore, Fingerprint, UnitData};
use crate::job::checkpoints::Checkpoints;

/// Keeps blocks by name; without checkpoints it keeps nothing, since each block is written as soon as
/// it is finished.
pub(super) struct Store(Option<CheckpointStore>);

impl Store {
    pub(super) fn open(
        request: &PackedRequest,
        fingerprint: &Fingerprint,
        progress: &dyn Progress,
    ) -> Result<Self> {
        Ok(Self(match &request.checkpoints {
            Checkpoints::Off => None,
            Checkpoints::Under(folder) => {
                Some(CheckpointStore::create(folder, fingerprint, progress)?)
            }
            Checkpoints::Resume(folder) => {
                Some(CheckpointStore::open(folder, fingerprint, progress)?)
            }
        }))
    }

    pub(super) fn survives(&self) -> bool {
        self.0.is_some()
    }

    /// Blocks that are finished.
    pub(super) fn finished(&self) -> usize {
        self.0.as_ref().map_or(0, |store| store.done().len())
    }

    /// Whether that block is finished.
    pub(super) fn has(&self, unit: &str) -> bool {
        self.0.as_ref().is_some_and(|store| store.is_done(unit))
    }

    /// Says that a run goes on; see [`CheckpointStore::announce`].
    pub(super) fn announce(
        &self,
        completed: usize,
        layers: usize,
        asked: bool,
        progress: &dyn Progress,
    ) {
        if let Some(store) = &self.0 {
            store.announce(completed, layers, asked, progress);
        }
    }

    pub(super) fn load(&self, unit: &str) -> Result<Option<UnitData>> {
        self.0.as_ref().map_or(Ok(None), |store| store.load(unit))
    }

    pub(super) fn save(&self, unit: &str, data: &UnitData) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |store| store.save(unit, data))
    }

    pub(super) fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), CheckpointStore::finish)
    }
}
