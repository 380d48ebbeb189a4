//! Sums over columns while a model reads: the state of a run, which checkpoints keep.

use candle_core::Tensor;
use indexmap::IndexMap;
use rayon::prelude::*;
use serde_json::json;

use crate::files::checkpoint::UnitData;
use crate::graph::Observer;
use crate::graph::slices::with_f32;
use crate::{Error, Result};

/// Columns that a thread sums together.
const BLOCK: usize = 64;
/// Key of the number of samples in a saved state.
const SAMPLES: &str = "samples";

/// Sums for one linear layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LayerSums {
    /// One for each input column.
    pub(super) columns: Vec<f64>,
    /// What they are to be divided by.
    pub(super) count: f64,
}

/// Sums for all linear layers. They are added in the order of the samples, so they depend neither
/// on threads nor on where a run was interrupted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sums {
    /// By name of the layer without `.weight`, in order of first sight.
    pub(super) layers: IndexMap<String, LayerSums>,
    /// Samples that are in the sums.
    pub(super) samples: usize,
}

impl Sums {
    /// Adds to the sums of a layer.
    ///
    /// # Errors
    /// [`Error::Importance`] when a sum is not finite.
    pub(super) fn add(&mut self, layer: &str, columns: &[f64], count: f64) -> Result<()> {
        if let Some(column) = columns.iter().position(|sum| !sum.is_finite()) {
            return Err(Error::Importance(format!(
                "{layer}: what goes through column {column} is not finite; the model overflows, or \
                 its weights are damaged"
            )));
        }
        if !self.layers.contains_key(layer) {
            let empty = LayerSums { columns: vec![0.0; columns.len()], count: 0.0 };
            self.layers.insert(layer.to_owned(), empty);
        }
        let sums = &mut self.layers[layer];
        if sums.columns.len() != columns.len() {
            return Err(Error::Importance(format!("{layer}: the number of columns changed")));
        }
        sums.columns.iter_mut().zip(columns).for_each(|(sum, value)| *sum += value);
        sums.count += count;
        Ok(())
    }

    /// The state as a unit of a checkpoint.
    pub(super) fn to_unit(&self) -> UnitData {
        let counts: IndexMap<&String, f64> =
            self.layers.iter().map(|(name, sums)| (name, sums.count)).collect();
        let unit = UnitData::new(json!({ SAMPLES: self.samples, "counts": counts }));
        self.layers.iter().fold(unit, |unit, (name, sums)| {
            let bytes = sums.columns.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            unit.with_bytes(name, bytes)
        })
    }

    /// Reads what [`Self::to_unit`] made.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when something is missing.
    pub(super) fn from_unit(unit: &UnitData) -> Result<Self> {
        let damaged = || Error::Checkpoint("the saved sums are damaged".into());
        let samples = unit.meta[SAMPLES].as_u64().ok_or_else(damaged)?;
        let mut sums = Self { samples: samples as usize, ..Self::default() };
        for name in unit.sections.keys() {
            let (values, rest) = unit.bytes(name).ok_or_else(damaged)?.as_chunks::<8>();
            let count = unit.meta["counts"][name].as_f64().ok_or_else(damaged)?;
            if !rest.is_empty() {
                return Err(damaged());
            }
            let columns = values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            sums.layers.insert(name.clone(), LayerSums { columns, count });
        }
        Ok(sums)
    }
}

impl Observer for Sums {
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> Result<()> {
        let (tokens, _) = x.dims2()?;
        let columns = squares(x)?;
        names.iter().try_for_each(|name| self.add(name, &columns, tokens as f64))
    }
}

/// Sum over the rows of the squares of each column of `x`, `[rows, columns]`.
pub(super) fn squares(x: &Tensor) -> Result<Vec<f64>> {
    if !x.device().is_cpu() {
        let sums = x.sqr()?.sum(0)?.to_vec1::<f32>()?;
        return Ok(sums.into_iter().map(f64::from).collect());
    }
    let (_, columns) = x.dims2()?;
    with_f32(x, |values| {
        let mut sums = vec![0.0; columns];
        sums.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sums)| {
            for row in values.chunks_exact(columns) {
                for (sum, &x) in sums.iter_mut().zip(&row[block * BLOCK..]) {
                    *sum += f64::from(x) * f64::from(x);
                }
            }
        });
        sums
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn squares_are_those_of_the_columns() {
        let x = Tensor::randn(0f32, 2.0, (300, 130), &Device::Cpu).unwrap();
        let sums = squares(&x).unwrap();
        let rows = x.to_vec2::<f32>().unwrap();
        for (column, sum) in sums.iter().enumerate() {
            let naive: f64 = rows.iter().map(|row| f64::from(row[column]).powi(2)).sum();
            assert!((sum - naive).abs() <= 1e-12 * naive, "{column}: {sum} {naive}");
        }
    }

    #[test]
    fn a_saved_state_comes_back_bit_for_bit() {
        let mut sums = Sums { samples: 7, ..Sums::default() };
        sums.add("b", &[0.1, 1e-300, 3.0], 5.0).unwrap();
        sums.add("a", &[1.0 / 3.0], 2.0).unwrap();
        sums.add("b", &[0.2, 0.0, 0.0], 5.0).unwrap();
        let back = Sums::from_unit(&sums.to_unit()).unwrap();
        assert_eq!(back, sums);
        assert_eq!(back.layers["b"].columns[0].to_bits(), (0.1f64 + 0.2).to_bits());
        assert_eq!(sums.add("a", &[f64::NAN], 1.0).unwrap_err().exit_code(), 16);
        assert_eq!(sums.add("a", &[1.0, 2.0], 1.0).unwrap_err().exit_code(), 16);
    }
}
