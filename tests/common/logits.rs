//! Logits of a decoder, and how far they are from others.

use llm_quantize::graph::Decoder;

/// Logits of every token, `[tokens][vocab]`.
pub(crate) fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<Vec<f32>> {
    let hidden = decoder.hidden(tokens, 1, None, None).unwrap();
    decoder.logits(&hidden).unwrap().to_vec2().unwrap()
}

/// The largest difference of two tables.
pub(crate) fn largest_difference<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    a: &[Vec<A>],
    b: &[Vec<B>],
) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut largest = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            let difference = ((*a).into() - (*b).into()).abs();
            assert!(difference.is_finite());
            largest = largest.max(difference);
        }
    }
    largest
}

/// The largest magnitude in a table.
pub(crate) fn size(table: &[Vec<f32>]) -> f64 {
    let size = table.iter().flatten().fold(0.0f64, |size, value| size.max(f64::from(*value).abs()));
    assert!(size > 0.0, "nothing but zeros");
    size
}
