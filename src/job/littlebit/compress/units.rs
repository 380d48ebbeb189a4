//! Finished work: on disk as checkpoints, or in memory when checkpoints are off.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use super::request::Checkpoints;
use crate::Result;
use crate::arch::ModelConfig;
use crate::base::progress::Progress;
use crate::files::checkpoint::{CheckpointStore, Fingerprint, UnitData};

/// Keeps units of work by name.
pub(super) enum UnitStore {
    Disk(CheckpointStore),
    Memory(Mutex<HashMap<String, UnitData>>),
}

impl UnitStore {
    pub(super) fn open(
        checkpoints: &Checkpoints,
        fingerprint: &Fingerprint,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let store = match checkpoints {
            Checkpoints::Off => return Ok(Self::Memory(Mutex::default())),
            Checkpoints::Under(directory) => {
                CheckpointStore::create(directory, fingerprint, progress)?
            }
            Checkpoints::Resume(directory) => {
                CheckpointStore::open(directory, fingerprint, progress)?
            }
        };
        Ok(Self::Disk(store))
    }

    /// Says that a run goes on where another has stopped, and gives the blocks of the model that are
    /// finished: tuned, or factorized where nothing is tuned.
    pub(super) fn announce(
        &self,
        config: &ModelConfig,
        tuned: bool,
        asked: bool,
        progress: &dyn Progress,
    ) -> usize {
        let Self::Disk(store) = self else { return 0 };
        let done = store.done();
        let begins = |front: &str| {
            done.range(front.to_owned()..).next().is_some_and(|unit| unit.starts_with(front))
        };
        let finished = |&block: &usize| {
            if tuned {
                begins(&format!("tuned-{block}-"))
            } else {
                config.linear_names(block).iter().all(|name| begins(&format!("{name}@")))
            }
        };
        let layers = config.num_layers;
        let completed = (0..layers).filter(finished).count();
        store.announce(completed, layers, asked, progress);
        completed
    }

    /// Whether a unit is there.
    pub(super) fn has(&self, id: &str) -> bool {
        match self {
            Self::Disk(store) => store.is_done(id),
            Self::Memory(units) => lock(units).contains_key(id),
        }
    }

    /// Whether units outlive the process.
    pub(super) fn survives(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// Names of the units that are there.
    pub(super) fn done(&self) -> BTreeSet<String> {
        match self {
            Self::Disk(store) => store.done(),
            Self::Memory(units) => lock(units).keys().cloned().collect(),
        }
    }

    pub(super) fn load(&self, id: &str) -> Result<Option<UnitData>> {
        match self {
            Self::Disk(store) => store.load(id),
            Self::Memory(units) => Ok(lock(units).get(id).cloned()),
        }
    }

    pub(super) fn save(&self, id: &str, unit: UnitData) -> Result<()> {
        match self {
            Self::Disk(store) => store.save(id, &unit),
            Self::Memory(units) => {
                lock(units).insert(id.into(), unit);
                Ok(())
            }
        }
    }

    /// Removes the checkpoints of a run that is complete.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Disk(store) => store.finish(),
            Self::Memory(_) => Ok(()),
        }
    }
}

fn lock(
    units: &Mutex<HashMap<String, UnitData>>,
) -> std::sync::MutexGuard<'_, HashMap<String, UnitData>> {
    // An insertion cannot leave the map half done.
    units.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
