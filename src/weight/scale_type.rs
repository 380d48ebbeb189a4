//! How a vector of scales is stored: f16, or codes of eight bits on a logarithmic grid.
//!
//! Either way every stored value is an f16, which is what kernels and matrices are given; the type
//! says what it costs in a file, and which values a vector may have. `docs/littlebit-format.md`
//! describes the bytes.

use half::f16;

/// Codes of a grid that stand for positive values.
const LEVELS: usize = 255;
/// Bytes of the two ends in front of the codes.
const ENDS_BYTES: usize = 4;

/// How the scales of a factorized weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleType {
    /// 16 bits each.
    #[default]
    F16,
    /// A byte each: 0 for zero, else a place between the smallest and the largest positive value
    /// of the vector, which stand in front as f16, in 254 equal ratios. For scales without signs.
    Log8,
}

impl ScaleType {
    /// Both types.
    pub const ALL: [Self; 2] = [Self::F16, Self::Log8];

    /// `f16` or `log8`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Log8 => "log8",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// What marks it in the name of a finished matrix: nothing for f16.
    #[must_use]
    pub const fn unit_suffix(self) -> &'static str {
        match self {
            Self::F16 => "",
            Self::Log8 => "+log8",
        }
    }

    /// Bits of a scale.
    #[must_use]
    pub const fn bits_per_scale(self) -> u64 {
        match self {
            Self::F16 => 16,
            Self::Log8 => 8,
        }
    }

    /// Bits of a vector besides those of its scales.
    #[must_use]
    pub const fn bits_per_vector(self) -> u64 {
        match self {
            Self::F16 => 0,
            Self::Log8 => 8 * ENDS_BYTES as u64,
        }
    }

    /// Bytes of a vector of `length` scales.
    #[must_use]
    pub const fn bytes(self, length: usize) -> u64 {
        // A length out of a file may be anything.
        let scales = (length as u64).saturating_mul(self.bits_per_scale() / 8);
        scales.saturating_add(self.bits_per_vector() / 8)
    }

    /// The bytes of a vector, or what is wrong with it: values that [`ScaleType::Log8`] does not
    /// hold exactly (see [`LogGrid::round`]).
    pub fn encode(self, values: &[f16]) -> Result<Vec<u8>, String> {
        if self == Self::F16 {
            return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
        }
        let grid = LogGrid::spanning(values.iter().copied());
        let mut bytes = Vec::with_capacity(ENDS_BYTES + values.len());
        bytes.extend(grid.low().to_le_bytes());
        bytes.extend(grid.high().to_le_bytes());
        for (index, &value) in values.iter().enumerate() {
            let code = grid.code(value.to_f64());
            if grid.values[usize::from(code)] != value {
                return Err(format!("scale {index} of {value} is not on its logarithmic grid"));
            }
            bytes.push(code);
        }
        Ok(bytes)
    }

    /// The values of a vector, or what is wrong with its bytes.
    pub fn decode(self, bytes: &[u8]) -> Result<Vec<f16>, String> {
        if self == Self::F16 {
            let (pairs, rest) = bytes.as_chunks::<2>();
            return match rest {
                [] => Ok(pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect()),
                _ => Err(format!("{} bytes of f16 scales", bytes.len())),
            };
        }
        let Some((&[a, b, c, d], codes)) = bytes.split_first_chunk::<ENDS_BYTES>() else {
            return Err(format!("{} bytes of logarithmic scales", bytes.len()));
        };
        let (low, high) = (f16::from_le_bytes([a, b]), f16::from_le_bytes([c, d]));
        let grid = LogGrid::new(low, high)
            .ok_or_else(|| format!("logarithmic scales from {low} to {high}"))?;
        Ok(codes.iter().map(|&code| grid.values[usize::from(code)]).collect())
    }
}

/// The 256 values that the codes of a [`ScaleType::Log8`] vector stand for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogGrid {
    /// 0, then `low · (high / low)^(i / 254)`, rounded to f16; all zero in a grid of zeros.
    values: [f16; LEVELS + 1],
}

impl LogGrid {
    /// The grid between two ends: both positive, or both zero for a vector of zeros.
    #[must_use]
    pub(crate) fn new(low: f16, high: f16) -> Option<Self> {
        let mut values = [f16::ZERO; LEVELS + 1];
        if low.to_bits() == 0 && high.to_bits() == 0 {
            return Some(Self { values });
        }
        if !(low > f16::ZERO && low <= high && high.is_finite()) {
            return None;
        }
        let (first, ratio) = (low.to_f64(), high.to_f64() / low.to_f64());
        for (step, value) in values[1..].iter_mut().enumerate() {
            *value = f16::from_f64(first * ratio.powf(step as f64 / (LEVELS - 1) as f64));
        }
        // What the formula gives, unless a library's power is off by far more than it may be.
        (values[1], values[LEVELS]) = (low, high);
        Some(Self { values })
    }

    /// From the smallest positive to the largest finite one of `values`.
    #[must_use]
    pub(crate) fn spanning(values: impl Iterator<Item = f16>) -> Self {
        let ends = values.filter(|v| *v > f16::ZERO && v.is_finite()).fold(None, |ends, v| {
            Some(ends.map_or((v, v), |(a, b): (f16, f16)| (a.min(v), b.max(v))))
        });
        ends.and_then(|(low, high)| Self::new(low, high))
            .unwrap_or(Self { values: [f16::ZERO; LEVELS + 1] })
    }

    /// A grid for non-negative `values` that matter as much as `weights` say: the largest value is
    /// its upper end; its lower end is the one of the smallest values at which the weighted squares
    /// of the relative errors are least, so that a few tiny values do not make it coarse for all.
    #[must_use]
    pub(crate) fn fitted(values: &[f64], weights: &[f64]) -> Self {
        /// Values skipped at the lower end before the next candidate.
        const SKIPS: [usize; 9] = [0, 1, 2, 4, 8, 16, 32, 64, 128];
        let stored = |v: f64| f16::from_f64(v).min(f16::MAX);
        let mut ends: Vec<f16> =
            values.iter().map(|&v| stored(v)).filter(|v| *v > f16::ZERO).collect();
        ends.sort_unstable_by(f16::total_cmp);
        let Some(&high) = ends.last() else { return Self::spanning(std::iter::empty()) };
        let loss = |grid: &Self| -> f64 {
            let pairs = values.iter().zip(weights).filter(|(v, _)| **v > 0.0);
            pairs.map(|(&v, &w)| w * (1.0 - grid.round(v).to_f64() / v).powi(2)).sum()
        };
        let candidates = SKIPS.iter().filter_map(|&skip| Self::new(*ends.get(skip)?, high));
        let mut best: Option<(f64, Self)> = None;
        for grid in candidates {
            let loss = loss(&grid);
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, grid));
            }
        }
        best.map_or_else(|| Self::spanning(std::iter::once(high)), |(_, grid)| grid)
    }

    /// The smallest positive value.
    #[must_use]
    pub(crate) fn low(&self) -> f16 {
        self.values[1]
    }

    /// The largest value.
    #[must_use]
    pub(crate) fn high(&self) -> f16 {
        self.values[LEVELS]
    }

    /// The value of the grid that is nearest to `value`.
    #[must_use]
    pub(crate) fn round(&self, value: f64) -> f16 {
        self.values[usize::from(self.code(value))]
    }

    /// The code of the value that is nearest to `value`, the lower one of equals; 0 for what is no
    /// number.
    #[must_use]
    pub(crate) fn code(&self, value: f64) -> u8 {
        // The values rise, not always strictly: f16 may be coarser than the grid.
        let above = self.values.partition_point(|v| v.to_f64() < value).min(LEVELS);
        let below = above.saturating_sub(1);
        let distance = |code: usize| (self.values[code].to_f64() - value).abs();
        let nearest = if distance(above) < distance(below) { above } else { below };
        // The first of equal values.
        let first = self.values.partition_point(|v| *v < self.values[nearest]);
        u8::try_from(first).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().map(|&v| f16::from_f32(v)).collect()
    }

    fn rounded(values: &[f64]) -> Vec<f16> {
        let grid = LogGrid::fitted(values, &vec![1.0; values.len()]);
        values.iter().map(|&v| grid.round(v)).collect()
    }

    #[test]
    fn bytes_are_those_of_the_document() {
        let values = halves(&[1.0, 0.25, 0.0, 0.5]);
        let bytes = ScaleType::Log8.encode(&values).unwrap();
        assert_eq!(bytes, [0x00, 0x34, 0x00, 0x3c, 255, 1, 0, 128]);
        assert_eq!(bytes.len() as u64, ScaleType::Log8.bytes(4));
        assert_eq!(ScaleType::Log8.decode(&bytes).unwrap(), values);
        let bytes = ScaleType::F16.encode(&values).unwrap();
        assert_eq!(bytes, [0x00, 0x3c, 0x00, 0x34, 0, 0, 0x00, 0x38]);
        assert_eq!(bytes.len() as u64, ScaleType::F16.bytes(4));
        assert_eq!(ScaleType::F16.decode(&bytes).unwrap(), values);
    }

    #[test]
    fn zeros_and_constants_are_exact() {
        for values in [vec![0.0; 5], vec![0.375; 5], vec![0.0, 3.0], vec![1.0], vec![]] {
            let stored = rounded(&values);
            assert_eq!(stored.iter().map(|v| v.to_f64()).collect::<Vec<_>>(), values);
            let bytes = ScaleType::Log8.encode(&stored).unwrap();
            assert_eq!(ScaleType::Log8.decode(&bytes).unwrap(), stored);
        }
    }

    #[test]
    fn every_code_decodes_by_the_formula() {
        for (low, high) in [(0.25f32, 1.0f32), (6e-8, 65504.0), (0.5, 0.5), (1.0, 1.01)] {
            let ends = halves(&[low, high]);
            let mut bytes: Vec<u8> = ends.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.extend(0..=255u8);
            let values = ScaleType::Log8.decode(&bytes).unwrap();
            assert_eq!(values[0], f16::ZERO);
            let (minimum, maximum) = (ends[0].to_f64().log2(), ends[1].to_f64().log2());
            for (code, value) in values.iter().enumerate().skip(1) {
                let step = (maximum - minimum) / 254.0;
                let expected = (minimum + (code as f64 - 1.0) * step).exp2();
                assert_eq!(*value, f16::from_f64(expected), "{low} {high} {code}");
            }
        }
    }

    #[test]
    fn what_a_vector_cannot_be_is_refused() {
        for bad in [&[1.0, -1.0][..], &[1.0, f32::NAN], &[f32::INFINITY, 1.0]] {
            assert!(ScaleType::Log8.encode(&halves(bad)).is_err(), "{bad:?}");
        }
        // Between two codes of a range of four octaves.
        assert!(ScaleType::Log8.encode(&halves(&[1.0, 16.0, 1.0055])).is_err());
        for ends in [[0.0, 1.0], [1.0, 0.5], [-1.0, 1.0], [1.0, f32::INFINITY], [f32::NAN, 1.0]] {
            let mut bytes: Vec<u8> = halves(&ends).iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push(1);
            assert!(ScaleType::Log8.decode(&bytes).is_err(), "{ends:?}");
        }
        assert!(ScaleType::Log8.decode(&[0, 0, 0]).is_err());
        assert!(ScaleType::F16.decode(&[0, 0, 0]).is_err());
    }

    #[test]
    fn a_tiny_value_does_not_cost_the_others_their_precision() {
        let mut values: Vec<f64> = (0..200).map(|i| 0.5 + f64::from(i) / 200.0).collect();
        values.push(1e-7);
        let mut weights = vec![1.0; 200];
        weights.push(1e-9);
        let grid = LogGrid::fitted(&values, &weights);
        assert_eq!(grid.low(), f16::from_f64(0.5));
        assert_eq!(grid.round(1e-7), f16::ZERO);
    }

    proptest! {
        /// What was rounded once is stored exactly, whatever it was.
        #[test]
        fn rounded_vectors_are_stored_exactly(
            logs in prop::collection::vec(-24.0f64..15.9, 1..300),
            narrow in 0.001f64..1.0,
        ) {
            let values: Vec<f64> = logs.iter().map(|l| (l * narrow).exp2()).collect();
            let stored = rounded(&values);
            let bytes = ScaleType::Log8.encode(&stored).unwrap();
            prop_assert_eq!(ScaleType::Log8.decode(&bytes).unwrap(), stored);
        }

        /// Half a step of the grid and half a unit of f16 are the most that rounding costs.
        #[test]
        fn errors_are_within_half_a_step(logs in prop::collection::vec(-4.0f64..4.0, 2..100)) {
            let values: Vec<f64> = logs.iter().map(|l| l.exp2()).collect();
            let grid = LogGrid::spanning(values.iter().map(|&v| f16::from_f64(v)));
            let octaves = (grid.high().to_f64() / grid.low().to_f64()).log2();
            for v in values {
                let error = (grid.round(v).to_f64() / v - 1.0).abs();
                prop_assert!(error < (octaves / 254.0 * 0.51).exp2() - 1.0 + 6e-4, "{} {}", v, error);
            }
        }
    }
}
