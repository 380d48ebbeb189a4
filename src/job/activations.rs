//! Activations between two blocks, for all calibration sequences: in memory, or in a scratch file
//! that the system pages in and out.

use std::path::Path;

use memmap2::MmapMut;

use crate::files::scratch;
use crate::{Error, Result};

/// `[sequences, tokens, hidden]` values.
#[derive(Debug)]
pub(crate) struct Activations {
    place: Place,
    /// Values of a sequence.
    length: usize,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<f32>),
    File(MmapMut),
}

impl Activations {
    /// Zeros for `count` sequences of `length` values, in an unnamed file in `scratch` if one is
    /// given.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn new(count: usize, length: usize, scratch: Option<&Path>) -> Result<Self> {
        let place = match scratch {
            None => Place::Memory(vec![0.0; count * length]),
            Some(folder) => Place::File(scratch::map(folder, 4 * count * length)?),
        };
        Ok(Self { place, length })
    }

    /// Number of sequences.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.all().len() / self.length
    }

    /// Sequence `index`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub(crate) fn sequence(&self, index: usize) -> &[f32] {
        &self.all()[index * self.length..(index + 1) * self.length]
    }

    /// Sequence `index`, to replace it.
    ///
    /// # Errors
    /// If `values` has another length.
    pub(crate) fn set(&mut self, index: usize, values: &[f32]) -> Result<()> {
        let range = index * self.length..(index + 1) * self.length;
        let all = match &mut self.place {
            Place::Memory(values) => values.as_mut_slice(),
            Place::File(map) => bytemuck::cast_slice_mut(map),
        };
        if values.len() != self.length {
            return Err(Error::General(format!(
                "{} activations for a sequence of {}",
                values.len(),
                self.length
            )));
        }
        all[range].copy_from_slice(values);
        Ok(())
    }

    fn all(&self) -> &[f32] {
        match &self.place {
            Place::Memory(values) => values,
            Place::File(map) => bytemuck::cast_slice(map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_holds_what_memory_holds() {
        let folder = tempfile::tempdir().unwrap();
        for scratch in [None, Some(folder.path())] {
            let mut activations = Activations::new(3, 4, scratch).unwrap();
            assert_eq!(activations.count(), 3);
            activations.set(1, &[1.0, -2.5, 3.0, f32::MAX]).unwrap();
            assert!(activations.set(2, &[1.0]).is_err(), "another length");
            assert_eq!(activations.sequence(0), [0.0; 4]);
            assert_eq!(activations.sequence(1), [1.0, -2.5, 3.0, f32::MAX]);
            assert_eq!(activations.sequence(2), [0.0; 4]);
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "the file has no name, so that nothing stays when a run is killed");
    }
}
