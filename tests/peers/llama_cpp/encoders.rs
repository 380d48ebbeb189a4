//! Encoders against ggml's own library: rows of many kinds beyond the recorded ones (tests/fixtures/ggml), all types, with and without an
//! importance matrix.

use llm_quantize::codec::{StoredType, ggml};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ggml::Ggml;
use crate::needs;

/// Rows of an odd number of super-blocks, more than one batch of any encoder.
const COLS: usize = 19 * 256;
const KINDS: usize = 12;

/// A row of one of [`KINDS`] kinds.
fn row(rng: &mut ChaCha8Rng, kind: usize) -> Vec<f32> {
    let size = 10f32.powi(rng.random_range(-6..4));
    let mut normal = || -> f32 { (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum() };
    let mut values: Vec<f32> = (0..COLS).map(|_| size * normal()).collect();
    for (i, x) in values.iter_mut().enumerate() {
        match kind {
            // Normal, and with tails.
            0 => {}
            1 => *x *= (*x / size).powi(2),
            // Few values, sparse, one sign only.
            2 => *x = (*x / size).round() * size / 4.0,
            3 => *x *= f32::from(u8::from(rng.random_range(0..10) == 0)),
            4 => *x = x.abs(),
            5 => *x = -x.abs(),
            // Outliers, blocks of zeros, constant blocks, blocks of other sizes.
            6 => *x *= if i % 131 == 7 { 200.0 } else { 1.0 },
            7 => *x *= f32::from(u8::from(i / 32 % 3 != 0)),
            8 => *x = size * (1 + i / 32 % 5) as f32 * [1.0, -1.0][i / 96 % 2],
            9 => *x *= 10f32.powi((i / 32 % 9) as i32 - 6),
            // Close to a constant, and signed zeros among small numbers.
            10 => *x = size + *x * 1e-4,
            _ => *x = if i % 2 == 0 { *x * 1e-3 } else { 0.0 * *x },
        }
    }
    values
}

/// Whether ggml's encoder of `IQ3_S` goes wrong in a super-block: after a part of 32 zeros it writes
/// the points and signs of the next parts one place too early.
fn has_zero_part(values: &[f32]) -> bool {
    values.chunks(32).any(|part| part.iter().all(|x| *x == 0.0))
}

/// Asserts that the values of `block` are as near to `values` as those of `theirs`.
fn assert_nearer(dtype: StoredType, values: &[f32], block: &[u8], theirs: &[u8]) {
    let error = |block: &[u8]| {
        let mut decoded = vec![0.0; values.len()];
        ggml::decode(dtype, block, &mut decoded);
        values.iter().zip(decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
    };
    assert!(error(block) <= error(theirs), "{}: {values:?}", dtype.name());
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_LLAMA_LIB (llama.cpp)"]
fn bytes_are_those_of_ggml_on_random_rows() {
    let library = Ggml::open(&needs::llama_cpp_folder());
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    for kind in 0..KINDS {
        let values = row(&mut rng, kind);
        let even: Vec<f32> = (0..COLS).map(|_| rng.random_range(0.01f32..2.0)).collect();
        let wide: Vec<f32> = even.iter().map(|w| w * 10f32.powi(rng.random_range(-5..3))).collect();
        for dtype in StoredType::writable() {
            let mut expected = vec![0u8; dtype.row_bytes(COLS).unwrap()];
            let mut bytes = expected.clone();
            for importance in [None, Some(&even[..]), Some(&wide[..])] {
                let use_of_it = ggml::importance_use(dtype);
                if importance.is_none() && use_of_it == ggml::ImportanceUse::Required {
                    continue;
                }
                library.encode(dtype, &values, COLS, importance, &mut expected);
                ggml::encode_row(dtype, &values, importance, &mut bytes);
                let (_, block_bytes) = dtype.block();
                let blocks = bytes.chunks(block_bytes).zip(expected.chunks(block_bytes));
                for (at, (block, theirs)) in blocks.enumerate() {
                    if dtype == StoredType::IQ3_S && has_zero_part(&values[256 * at..][..256]) {
                        assert_nearer(dtype, &values[256 * at..][..256], block, theirs);
                        continue;
                    }
                    assert!(
                        block == theirs,
                        "{} row {kind} block {at}, importance {}: {block:?} instead of {theirs:?}",
                        dtype.name(),
                        importance.is_some()
                    );
                }
            }
        }
    }
    eprintln!(
        "compared {} rows of {COLS} values in {} types",
        KINDS,
        StoredType::writable().count()
    );
}
