//! Second moments of a layer's inputs: `XᵀX` over all calibration tokens.
//!
//! Products are f32 over a batch of tokens and summed in f64. The matrix is symmetric: tiles on and
//! below the diagonal are kept, each summed by one thread in the order of the tokens, so the sums do
//! not depend on the number of threads.

use rayon::prelude::*;

use crate::linalg::products::{Operand, multiply_f32_here};
use crate::{Error, Result};

/// Rows and columns of a tile.
const TILE: usize = 256;

/// `Σ x xᵀ` of vectors of `channels` values.
#[derive(Debug, Clone)]
pub(crate) struct Gram {
    channels: usize,
    /// Row-major tiles, the lower triangle row after row.
    tiles: Vec<Vec<f64>>,
    tokens: u64,
}

impl Gram {
    /// No vectors yet.
    #[must_use]
    pub(crate) fn new(channels: usize) -> Self {
        let tiles = channels.div_ceil(TILE);
        let size = |row: usize, col: usize| extent(channels, row) * extent(channels, col);
        let tiles = (0..tiles)
            .flat_map(|row| (0..=row).map(move |col| vec![0.0; size(row, col)]))
            .collect();
        Self { channels, tiles, tokens: 0 }
    }

    /// Bytes that one takes.
    #[must_use]
    pub(crate) fn bytes(channels: usize) -> u64 {
        let tiles = channels.div_ceil(TILE) as u64;
        tiles * (tiles + 1) / 2 * (TILE * TILE * 8) as u64
    }

    /// Adds the rows of `x`, `[tokens, channels]`.
    ///
    /// # Errors
    /// [`Error::General`] if a value is not finite or the shape does not fit.
    pub(crate) fn add(&mut self, x: &[f32]) -> Result<()> {
        let channels = self.channels;
        if !x.len().is_multiple_of(channels.max(1)) {
            return Err(Error::General(format!("{} inputs for {channels} channels", x.len())));
        }
        if let Some(at) = x.iter().position(|value| !value.is_finite()) {
            return Err(Error::General(format!("channel {} receives {}", at % channels, x[at])));
        }
        let tokens = x.len() / channels;
        self.tiles.par_iter_mut().enumerate().for_each(|(index, tile)| {
            let (row, col) = place(index);
            let part = |block: usize| {
                let values = &x[block * TILE..];
                Operand::part(values, channels, tokens, extent(channels, block))
            };
            let mut product = vec![0.0; tile.len()];
            multiply_f32_here(&mut product, part(row).t(), part(col), false);
            tile.iter_mut().zip(&product).for_each(|(sum, &add)| *sum += f64::from(add));
        });
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Divides channel `i` of all vectors by `factors[i]`, after the fact.
    ///
    /// # Panics
    /// If there are fewer factors than channels.
    pub(crate) fn divide(&mut self, factors: &[f32]) {
        let channels = self.channels;
        self.tiles.par_iter_mut().enumerate().for_each(|(index, tile)| {
            let (row, col) = place(index);
            let columns = &factors[col * TILE..][..extent(channels, col)];
            let rows = &factors[row * TILE..];
            for (line, &row) in tile.chunks_exact_mut(columns.len()).zip(rows) {
                for (value, &column) in line.iter_mut().zip(columns) {
                    *value /= f64::from(row) * f64::from(column);
                }
            }
        });
    }

    /// Length of the vectors.
    #[must_use]
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// Vectors added so far.
    #[must_use]
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// `Σ x_i x_j`.
    ///
    /// # Panics
    /// If there is no such channel.
    #[must_use]
    pub(crate) fn get(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.max(j), i.min(j));
        let (row, col) = (i / TILE, j / TILE);
        let width = extent(self.channels, col);
        self.tiles[row * (row + 1) / 2 + col][(i % TILE) * width + j % TILE]
    }

    /// `Σ x_i²` of every channel.
    #[must_use]
    pub(crate) fn diagonal(&self) -> Vec<f64> {
        (0..self.channels).map(|i| self.get(i, i)).collect()
    }

    /// The mean `E[x xᵀ]`, `[channels, channels]`.
    #[must_use]
    pub(crate) fn mean(&self) -> Vec<f32> {
        let (n, count) = (self.channels, self.tokens.max(1) as f64);
        let mut out = vec![0.0; n * n];
        out.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, out)| *out = (self.get(i, j) / count) as f32);
        });
        out
    }
}

fn extent(channels: usize, block: usize) -> usize {
    TILE.min(channels - block * TILE)
}

/// Row and column of the tile at `index`.
fn place(index: usize) -> (usize, usize) {
    let mut row = 0;
    while (row + 1) * (row + 2) / 2 <= index {
        row += 1;
    }
    (row, index - row * (row + 1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_a_plain_loop() {
        let (tokens, channels) = (37, 300);
        let x: Vec<f32> =
            (0..tokens * channels).map(|i| ((i * 7919) as f32 * 0.618_034).fract() - 0.4).collect();
        let mut gram = Gram::new(channels);
        gram.add(&x[..20 * channels]).unwrap();
        gram.add(&x[20 * channels..]).unwrap();
        for (i, j) in [(0, 0), (299, 0), (0, 299), (256, 255), (255, 256), (270, 299), (13, 200)] {
            let naive: f64 = (0..tokens)
                .map(|t| f64::from(x[t * channels + i]) * f64::from(x[t * channels + j]))
                .sum();
            assert!((gram.get(i, j) - naive).abs() < 1e-5, "{i} {j}");
        }
        assert_eq!(gram.tokens(), 37);
        let mean = gram.mean();
        assert!((f64::from(mean[5 * channels + 290]) * 37.0 - gram.get(290, 5)).abs() < 1e-4);

        let factors: Vec<f32> = (0..channels).map(|i| 0.5 + i as f32 / 100.0).collect();
        let mut divided = Gram::new(channels);
        let mut smaller = x.clone();
        for row in smaller.chunks_exact_mut(channels) {
            row.iter_mut().zip(&factors).for_each(|(value, factor)| *value /= factor);
        }
        divided.add(&smaller).unwrap();
        gram.divide(&factors);
        for (i, j) in [(0, 0), (299, 0), (256, 255), (270, 299), (13, 200)] {
            assert!((gram.get(i, j) - divided.get(i, j)).abs() < 1e-5, "{i} {j}");
        }
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let error = Gram::new(3).add(&[0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0]).unwrap_err();
        assert!(error.to_string().contains("channel 1 receives NaN"), "{error}");
    }
}
