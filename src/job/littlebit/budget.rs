//! What a factorized layer costs, in bits: the one formula that plans, statistics and the file
//! layout share.
//!
//! Signs are stored in bytes of eight columns (see [`BitMatrix`](crate::codec::signs::BitMatrix)), so a
//! row of `c` columns takes `8 · ceil(c / 8)` bits. There is a scale per row, one per column,
//! and one per latent dimension where the format has a middle scale; what they take is said by
//! their [`ScaleType`]. With f16 and multiples of eight this is
//! `paths · [r (m + n) + 16 (m + n [+ r])]`, the count of the papers.

use crate::weight::ScaleType;

/// Ranks are multiples of this where they are chosen automatically: whole bytes of latent bits.
pub const RANK_STEP: usize = 8;

/// The form of a factorized weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FactorShape {
    /// Outputs, `m`.
    pub rows: usize,
    /// Inputs, `n`.
    pub cols: usize,
    /// Rank of a path.
    pub rank: usize,
    /// Paths, 1 or 2.
    pub paths: usize,
    /// Whether each path has a scale per latent dimension.
    pub middle_scale: bool,
    /// How all scales are stored.
    pub scales: ScaleType,
}

/// Bytes of each array of a path, in the order in which they are documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathBytes {
    /// Signs `[rows, rank]`.
    pub left: u64,
    /// Signs `[rank, cols]`.
    pub right: u64,
    /// Scales of the rows.
    pub row_scale: u64,
    /// Scales of the latent dimensions, 0 without them.
    pub latent_scale: u64,
    /// Scales of the columns.
    pub column_scale: u64,
}

impl PathBytes {
    /// Their sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.left + self.right + self.row_scale + self.latent_scale + self.column_scale
    }
}

impl FactorShape {
    /// Bytes of one path.
    #[must_use]
    pub fn path_bytes(&self) -> PathBytes {
        let (m, n, r) = (self.rows as u64, self.cols as u64, self.rank as u64);
        PathBytes {
            left: m * r.div_ceil(8),
            right: r * n.div_ceil(8),
            row_scale: self.scales.bytes(self.rows),
            latent_scale: if self.middle_scale { self.scales.bytes(self.rank) } else { 0 },
            column_scale: self.scales.bytes(self.cols),
        }
    }

    /// Bytes of all paths.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.paths as u64 * self.path_bytes().total()
    }

    /// Bits of all paths, scales and padding included.
    #[must_use]
    pub fn bits(&self) -> u64 {
        8 * self.bytes()
    }

    /// Number of weights that the factors stand for.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.rows as u64 * self.cols as u64
    }

    /// Bits per weight.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.bits() as f64 / self.weights() as f64
    }

    /// The rank, not rounded, at which the papers' formula, with the scales of this form, gives
    /// `bits_per_weight`.
    #[must_use]
    pub fn exact_rank(&self, bits_per_weight: f64) -> f64 {
        let (m, n, paths) = (self.rows as f64, self.cols as f64, self.paths as f64);
        let (each, vector) =
            (self.scales.bits_per_scale() as f64, self.scales.bits_per_vector() as f64);
        let (middle, vectors) = if self.middle_scale { (each, 3.0) } else { (0.0, 2.0) };
        let scales = paths * (each * (m + n) + vectors * vector);
        (bits_per_weight * m * n - scales) / (paths * (m + n + middle))
    }

    /// The largest automatic rank that costs at most `bits_per_weight`, or the smallest one.
    #[must_use]
    pub fn rank_for(&self, bits_per_weight: f64) -> usize {
        let (least, most) = self.rank_range();
        // The padding of the right factor is not in the estimate: it only ever costs more.
        let estimate = self.exact_rank(bits_per_weight).max(0.0) as usize;
        let mut rank = (estimate / RANK_STEP * RANK_STEP + RANK_STEP).clamp(least, most);
        while rank > least && self.with_rank(rank).bits_per_weight() > bits_per_weight {
            rank -= RANK_STEP;
        }
        rank
    }

    /// Smallest and largest rank that is chosen automatically: multiples of [`RANK_STEP`] up to
    /// `min(rows, cols)`, or that minimum itself where it is smaller than a step.
    #[must_use]
    pub fn rank_range(&self) -> (usize, usize) {
        let smaller = self.rows.min(self.cols);
        if smaller < RANK_STEP {
            (smaller, smaller)
        } else {
            (RANK_STEP, smaller / RANK_STEP * RANK_STEP)
        }
    }

    /// The same with another rank.
    #[must_use]
    pub fn with_rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize, cols: usize, paths: usize, middle_scale: bool) -> FactorShape {
        FactorShape { rows, cols, rank: 0, paths, middle_scale, scales: ScaleType::F16 }
    }

    fn log8(shape: FactorShape) -> FactorShape {
        FactorShape { scales: ScaleType::Log8, ..shape }
    }

    #[test]
    fn exact_ranks_are_those_of_the_papers() {
        // LittleBit's examples, two paths with a middle scale.
        assert_eq!(shape(4096, 4096, 2, true).exact_rank(0.55) as usize, 546);
        assert_eq!(shape(4096, 11008, 2, true).exact_rank(0.1) as usize, 133);
        // NanoQuant's formula, one path without one: r = b m n / (m + n) - 16.
        for (m, n) in [(4096, 4096), (11008, 4096), (576, 1536)] {
            let expected = 0.8 * (m * n) as f64 / (m + n) as f64 - 16.0;
            assert!((shape(m, n, 1, false).exact_rank(0.8) - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn bits_are_counted_with_padding() {
        // 10 × 12 at rank 9: left 10 rows of 2 bytes, right 9 rows of 2 bytes, f16 scales.
        let path = shape(10, 12, 1, true).with_rank(9).path_bytes();
        assert_eq!((path.left, path.right), (20, 18));
        assert_eq!((path.row_scale, path.latent_scale, path.column_scale), (20, 18, 24));
        assert_eq!(shape(10, 12, 2, true).with_rank(9).bits(), 2 * 8 * 100);
        // No padding: r (m + n) + 16 (m + n).
        assert_eq!(shape(576, 1536, 1, false).with_rank(400).bits(), 416 * 2112);
        // Scales of a byte, and four bytes in front of each vector.
        let path = log8(shape(10, 12, 1, true)).with_rank(9).path_bytes();
        assert_eq!((path.left, path.right), (20, 18));
        assert_eq!((path.row_scale, path.latent_scale, path.column_scale), (14, 13, 16));
        assert_eq!(log8(shape(576, 1536, 1, false)).with_rank(400).bits(), 408 * 2112 + 64);
        assert_eq!(log8(shape(576, 1536, 2, true)).with_rank(8).bits(), 2 * (16 * 2112 + 64 + 96));
    }

    #[test]
    fn ranks_fill_the_budget() {
        for (m, n, bits, rank) in [
            (576, 576, 1.0, 272),
            (192, 576, 1.0, 128),
            (576, 1536, 1.0, 400),
            (576, 576, 0.55, 136),
            (192, 576, 0.55, 56),
            (1536, 576, 0.3, 104),
            (576, 576, 0.1, 8),
        ] {
            assert_eq!(shape(m, n, 1, false).rank_for(bits), rank, "{m} × {n} at {bits}");
        }
        for step in 1..400 {
            let bits = f64::from(step) * 0.01;
            let forms = [shape(100, 3000, 1, false), shape(77, 45, 2, true), shape(5, 9, 1, true)];
            for form in forms.into_iter().flat_map(|form| [form, log8(form)]) {
                let (least, most) = form.rank_range();
                let rank = form.rank_for(bits);
                assert!((least..=most).contains(&rank));
                assert!(rank == least || form.with_rank(rank).bits_per_weight() <= bits);
                assert!(rank == most || form.with_rank(rank + 8).bits_per_weight() > bits);
            }
        }
    }
}
