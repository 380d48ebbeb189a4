//! Activations between two blocks, for all calibration sequences: in memory, or in a scratch file
//! that the system pages in and out.

use std::path::Path;

use crate::{Error, Result};
use memmap2::MmapMut;

/// `[sequences, tokens, hidden]` values.
#[derive(Debug)]
pub struct Activations {
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
    pub fn new(count: usize, length: usize, scratch: Option<&Path>) -> Result<Self> {
        let place = match scratch {
            None => Place::Memory(vec![0.0; count * length]),
            Some(folder) => Place::File(crate::formats::scratch::map(folder, 4 * count * length)?),
        };
        Ok(Self { place, length })
    }

    /// Number of sequences.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().len() / self.length
    }

    /// Sequence `index`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn sequence(&self, index: usize) -> &[f32] {
        &self.all()[index * self.length..(index + 1) * self.length]
    }

    /// Sequence `index`, to replace it.
    ///
    /// # Errors
    /// If `values` has another length.
    pub fn set(&mut self, index: usize, values: &[f32]) -> Result<()> {
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
