//! What a profile's bit widths mean in GGUF types.

use crate::codec::StoredType;

/// The widths that an assignment may have, bits.
pub(crate) const WIDTHS: [f64; 10] = [1.5, 1.58, 1.75, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0];

/// Types of each width.
const TYPES: [(f64, &[StoredType]); 10] = [
    (1.5, &[StoredType::IQ1_S]),
    (1.58, &[StoredType::TQ1_0, StoredType::TQ2_0]),
    (1.75, &[StoredType::IQ1_M]),
    (
        2.0,
        &[
            StoredType::IQ2_XXS,
            StoredType::IQ2_XS,
            StoredType::IQ2_S,
            StoredType::Q2_K,
            StoredType::Q2_0,
        ],
    ),
    (3.0, &[StoredType::IQ3_XXS, StoredType::IQ3_S, StoredType::Q3_K]),
    (
        4.0,
        &[
            StoredType::IQ4_XS,
            StoredType::IQ4_NL,
            StoredType::Q4_K,
            StoredType::Q4_0,
            StoredType::Q4_1,
            StoredType::MXFP4,
        ],
    ),
    (5.0, &[StoredType::Q5_K, StoredType::Q5_0, StoredType::Q5_1]),
    (6.0, &[StoredType::Q6_K]),
    (8.0, &[StoredType::Q8_0]),
    (16.0, &[StoredType::F16, StoredType::BF16]),
];

/// Whether `bits` is one of [`WIDTHS`].
#[must_use]
pub(crate) fn is_width(bits: f64) -> bool {
    WIDTHS.iter().any(|width| (width - bits).abs() < 1e-9)
}

/// The widths as a sentence has them.
#[must_use]
pub(crate) fn list() -> String {
    WIDTHS.map(|width| width.to_string()).join(", ")
}

/// The width that a type counts as. Its blocks may take up to a bit more: scales are not counted.
#[must_use]
pub(crate) fn of_type(kind: StoredType) -> f64 {
    if kind == StoredType::Q1_0 {
        return 1.5;
    }
    TYPES.iter().find(|(_, types)| types.contains(&kind)).map_or(16.0, |(width, _)| *width)
}

/// The types of a width.
#[must_use]
pub(crate) fn types(bits: f64) -> &'static [StoredType] {
    TYPES.iter().find(|(width, _)| (width - bits).abs() < 1e-9).map_or(&[], |(_, types)| *types)
}

/// The types of a width that rows of `columns` values fill; where there is none, those of the next
/// width that has some. Ternary types stand in for no others.
#[must_use]
pub(crate) fn fitting(bits: f64, columns: usize) -> Vec<StoredType> {
    let wide_enough =
        |width: f64| (width - bits).abs() < 1e-9 || (width > bits && (width - 1.58).abs() > 1e-9);
    WIDTHS
        .into_iter()
        .filter(|&width| wide_enough(width))
        .map(|width| types(width).iter().copied().filter(|kind| kind.fits(columns)).collect())
        .find(|types: &Vec<StoredType>| !types.is_empty())
        .unwrap_or_else(|| vec![StoredType::F16])
}

/// The width that lies next to `bits` on a logarithmic scale, ternary left out.
#[must_use]
pub(crate) fn nearest(bits: f64) -> f64 {
    let distance = |width: &f64| (width.ln() - bits.max(0.1).ln()).abs();
    WIDTHS
        .into_iter()
        .filter(|width| (width - 1.58).abs() > 1e-9)
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .unwrap_or(4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_has_types_within_a_bit_of_it() {
        for width in WIDTHS {
            assert!(!types(width).is_empty());
            for kind in types(width) {
                let bits = kind.bits_per_weight();
                assert!(bits >= width && bits <= width + 1.0, "{width}: {}", kind.name());
                assert!((of_type(*kind) - width).abs() < 1e-9);
            }
        }
        assert!(is_width(1.58) && !is_width(7.0));
    }

    #[test]
    fn narrow_rows_get_wider_types() {
        use crate::codec::StoredType::{IQ4_NL, Q2_0, Q8_0};
        assert_eq!(fitting(2.0, 576), [Q2_0]);
        assert!(fitting(2.0, 288).contains(&IQ4_NL));
        assert_eq!(fitting(6.0, 288), [Q8_0]);
        assert_eq!(fitting(1.58, 64), [Q2_0]);
        assert_eq!(fitting(1.5, 7), [StoredType::F16, StoredType::BF16]);
        assert!((nearest(3.4) - 3.0).abs() < 1e-9);
        assert!((nearest(0.5) - 1.5).abs() < 1e-9);
    }
}
