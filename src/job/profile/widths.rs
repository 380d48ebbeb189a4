//! What a profile's bit widths mean in GGUF types.

use crate::files::gguf::GgmlType;

/// The widths that an assignment may have, bits.
pub(crate) const WIDTHS: [f64; 10] = [1.5, 1.58, 1.75, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0];

/// Types of each width.
const TYPES: [(f64, &[GgmlType]); 10] = [
    (1.5, &[GgmlType::IQ1_S]),
    (1.58, &[GgmlType::TQ1_0, GgmlType::TQ2_0]),
    (1.75, &[GgmlType::IQ1_M]),
    (2.0, &[GgmlType::IQ2_XXS, GgmlType::IQ2_XS, GgmlType::IQ2_S, GgmlType::Q2_K, GgmlType::Q2_0]),
    (3.0, &[GgmlType::IQ3_XXS, GgmlType::IQ3_S, GgmlType::Q3_K]),
    (
        4.0,
        &[
            GgmlType::IQ4_XS,
            GgmlType::IQ4_NL,
            GgmlType::Q4_K,
            GgmlType::Q4_0,
            GgmlType::Q4_1,
            GgmlType::MXFP4,
        ],
    ),
    (5.0, &[GgmlType::Q5_K, GgmlType::Q5_0, GgmlType::Q5_1]),
    (6.0, &[GgmlType::Q6_K]),
    (8.0, &[GgmlType::Q8_0]),
    (16.0, &[GgmlType::F16, GgmlType::BF16]),
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
pub(crate) fn of_type(kind: GgmlType) -> f64 {
    if kind == GgmlType::Q1_0 {
        return 1.5;
    }
    TYPES.iter().find(|(_, types)| types.contains(&kind)).map_or(16.0, |(width, _)| *width)
}

/// The types of a width.
#[must_use]
pub(crate) fn types(bits: f64) -> &'static [GgmlType] {
    TYPES.iter().find(|(width, _)| (width - bits).abs() < 1e-9).map_or(&[], |(_, types)| *types)
}

/// The types of a width that rows of `columns` values fill; where there is none, those of the next
/// width that has some. Ternary types stand in for no others.
#[must_use]
pub(crate) fn fitting(bits: f64, columns: usize) -> Vec<GgmlType> {
    let wide_enough =
        |width: f64| (width - bits).abs() < 1e-9 || (width > bits && (width - 1.58).abs() > 1e-9);
    WIDTHS
        .into_iter()
        .filter(|&width| wide_enough(width))
        .map(|width| types(width).iter().copied().filter(|kind| kind.fits(columns)).collect())
        .find(|types: &Vec<GgmlType>| !types.is_empty())
        .unwrap_or_else(|| vec![GgmlType::F16])
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
        use crate::files::gguf::GgmlType::{IQ4_NL, Q2_0, Q8_0};
        assert_eq!(fitting(2.0, 576), [Q2_0]);
        assert!(fitting(2.0, 288).contains(&IQ4_NL));
        assert_eq!(fitting(6.0, 288), [Q8_0]);
        assert_eq!(fitting(1.58, 64), [Q2_0]);
        assert_eq!(fitting(1.5, 7), [GgmlType::F16, GgmlType::BF16]);
        assert!((nearest(3.4) - 3.0).abs() < 1e-9);
        assert!((nearest(0.5) - 1.5).abs() < 1e-9);
    }
}
