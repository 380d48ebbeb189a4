//! Against ggml's encoders and decoders (tests/fixtures/ggml).

#![expect(clippy::float_cmp, reason = "the claim is that values are equal")]

use sha2::{Digest, Sha256};

use super::*;

const INPUTS: &[u8] = include_bytes!("../../../tests/fixtures/ggml/inputs.bin");
const IMPORTANCE: &[u8] = include_bytes!("../../../tests/fixtures/ggml/importance.bin");
const EXPECTED: &str = include_str!("../../../tests/fixtures/ggml/expected.tsv");
const NAMES: [&str; 11] = [
    "gauss",
    "heavy",
    "outlier",
    "positive",
    "zeros_mixed",
    "constant",
    "tiny",
    "ternary",
    "ties",
    "real_up",
    "real_down",
];
const ROWS: usize = 4;
const COLS: usize = 1024;

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The first `cols` columns of an input, `[ROWS, cols]`.
fn input(name: &str, cols: usize) -> Vec<f32> {
    let index = NAMES.iter().position(|n| *n == name).unwrap();
    let values = floats(&INPUTS[index * ROWS * COLS * 4..][..ROWS * COLS * 4]);
    values.chunks_exact(COLS).flat_map(|row| row[..cols].to_vec()).collect()
}

/// A line of the expected results.
struct Case {
    dtype: StoredType,
    input: &'static str,
    importance: bool,
    cols: usize,
    bytes: &'static str,
    values: &'static str,
}

fn cases(what: &str) -> impl Iterator<Item = Case> {
    EXPECTED.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split('\t').collect();
        (fields[0] == what).then(|| Case {
            dtype: StoredType::from_name(fields[1]).unwrap(),
            input: fields[2],
            importance: fields[3] == "yes",
            cols: fields[4].parse().unwrap(),
            bytes: fields[5],
            values: fields[6],
        })
    })
}

#[test]
fn encoders_and_decoders_agree_with_ggml() {
    let importance = floats(IMPORTANCE);
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in cases("encode").filter(|case| can_encode(case.dtype)) {
        let values = input(case.input, case.cols);
        let mut bytes = vec![0xaa; ROWS * case.dtype.row_bytes(case.cols).unwrap()];
        let importance = case.importance.then_some(&importance[..case.cols]);
        encode_rows(case.dtype, &values, case.cols, importance, &mut bytes);
        let mut decoded = vec![f32::NAN; values.len()];
        decode(case.dtype, &bytes, &mut decoded);
        if sha256(&bytes) != case.bytes || sha256(&le_bytes(&decoded)) != case.values {
            let matrix = if case.importance { "with" } else { "without" };
            wrong.push(format!("{} {} {matrix} {}", case.dtype.name(), case.input, case.cols));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "{} of {compared} differ: {wrong:#?}", wrong.len());
    assert_eq!(compared, 990, "types, inputs and widths with and without importance");
}

#[test]
fn decoders_read_every_code_as_ggml_does() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 & 0xbf
    };
    let random: Vec<u8> = (0..16 * 210).map(|_| next()).collect();
    let mut compared = 0;
    for case in cases("decode").filter(|case| can_decode(case.dtype)) {
        let bytes = &random[..case.dtype.row_bytes(case.cols).unwrap()];
        assert_eq!(sha256(bytes), case.bytes, "{}: input", case.dtype.name());
        let mut values = vec![f32::NAN; case.cols];
        decode(case.dtype, bytes, &mut values);
        assert_eq!(sha256(&le_bytes(&values)), case.values, "{}", case.dtype.name());
        compared += 1;
    }
    assert_eq!(compared, StoredType::writable().count() - 3);
}

/// Every f16 there is, against the definition of the format, at both alignments.
#[test]
fn all_halves_decode_by_their_definition() {
    let mut bytes = vec![0u8];
    for bits in 0..=u16::MAX {
        bytes.extend(bits.to_le_bytes());
    }
    for bytes in [bytes[1..].to_vec(), bytes] {
        let bytes = &bytes[bytes.len() - 131_072..];
        let mut values = vec![0.0; 65536];
        decode(StoredType::F16, bytes, &mut values);
        for (bits, &value) in values.iter().enumerate() {
            let sign = if bits >> 15 == 1 { -1.0f64 } else { 1.0 };
            let (exponent, fraction) = ((bits >> 10) & 31, (bits & 1023) as f64);
            let expected = match exponent {
                0 => sign * fraction * (-24f64).exp2(),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                e => sign * (1024.0 + fraction) * (e as f64 - 25.0).exp2(),
            };
            if expected.is_nan() {
                assert!(value.is_nan(), "{bits:04x}");
            } else {
                assert_eq!(f64::from(value).to_bits(), expected.to_bits(), "{bits:04x}");
            }
        }
    }
}

#[test]
fn plain_types_survive_a_round_trip() {
    let values = [0.0, -0.0, 1.0, -2.5, 6.1035e-5, 65504.0, f32::MIN_POSITIVE, 1.0e-40, -3.0e38];
    let mut bytes = [0u8; 36];
    encode(StoredType::F32, &values, &mut bytes);
    let mut read = [0.0f32; 9];
    decode(StoredType::F32, &bytes, &mut read);
    assert_eq!(values.map(f32::to_bits), read.map(f32::to_bits));

    // 1 + 2^-8 lies between two bf16 values and goes to the even one, 1 + 3·2^-8 likewise.
    let mut bytes = [0u8; 4];
    encode(StoredType::BF16, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut bytes);
    let mut read = [0.0f32; 2];
    decode(StoredType::BF16, &bytes, &mut read);
    assert_eq!(read, [1.0, 1.0 + 2.0 / 128.0]);

    // The same half way between two f16 values, and beyond the largest.
    let mut bytes = [0u8; 6];
    encode(StoredType::F16, &[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65520.0], &mut bytes);
    let mut read = [0.0f32; 3];
    decode(StoredType::F16, &bytes, &mut read);
    assert_eq!(read, [1.0, 1.0 + 2.0 / 1024.0, f32::INFINITY]);
}

/// Every build of the encoders and decoders gives the same bytes and values; NaN and infinities
/// must not panic.
#[test]
fn vector_builds_give_the_bits_of_the_portable_one() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut uniform = move || (next() as i32) as f32 / 2.0f32.powi(31);
    // A row with an odd number of super-blocks for each kind of value.
    let cols = 11 * 256;
    let mut rows: Vec<Vec<f32>> = vec![vec![0.0; cols], vec![-0.37; cols], vec![0.37; cols]];
    rows.push((0..cols).map(|_| uniform() * 1e-39).collect());
    rows.push((0..cols).map(|_| uniform() * 1e38).collect());
    rows.push((0..cols).map(|i| if i % 61 < 30 { 0.0 } else { uniform() }).collect());
    rows.push(
        (0..cols).map(|i| uniform().powi(5) * [1.0, 40.0][usize::from(i % 37 == 0)]).collect(),
    );
    rows.push((0..cols).map(|_| (uniform() * 8.0).round() / 8.0).collect());
    let finite = rows.len();
    let mut broken: Vec<f32> = (0..cols).map(|_| uniform()).collect();
    (broken[3], broken[300], broken[700], broken[1300]) =
        (f32::NAN, f32::INFINITY, 1e38, f32::NEG_INFINITY);
    rows.push(broken);
    let even: Vec<f32> = (0..cols).map(|_| uniform().abs()).collect();
    let sparse: Vec<f32> = even.iter().map(|w| if *w < 0.3 { 0.0 } else { *w }).collect();
    for dtype in StoredType::writable() {
        let length = dtype.row_bytes(cols).unwrap();
        for (r, row) in rows.iter().enumerate() {
            for importance in [None, Some(&even[..]), Some(&sparse[..])] {
                if importance.is_none() && importance_use(dtype) == ImportanceUse::Required {
                    continue;
                }
                let mut portable = vec![0xaa; length];
                let encode = dtype.row().encode.as_ref().unwrap();
                // SAFETY: the portable build runs everywhere.
                unsafe { (encode.portable)(row, importance, &mut portable) };
                let mut used = vec![0x55; length];
                encode_row(dtype, row, importance, &mut used);
                #[cfg(target_arch = "x86_64")]
                if std::is_x86_feature_detected!("avx2") {
                    let mut bytes = vec![0x55; length];
                    // SAFETY: the processor has AVX2.
                    unsafe { (encode.avx2)(row, importance, &mut bytes) };
                    if r < finite {
                        assert!(bytes == portable, "{} row {r}: AVX2", dtype.name());
                    }
                }
                if r < finite {
                    assert!(used == portable, "{} row {r}", dtype.name());
                }
                let (mut fast, mut slow) = (vec![0.0f32; cols], vec![0.0f32; cols]);
                decode(dtype, &used, &mut fast);
                let decode = dtype.row().decode.as_ref().unwrap();
                // SAFETY: the portable build runs everywhere.
                unsafe { (decode.portable)(&used, &mut slow) };
                for (a, b) in fast.iter().zip(&slow) {
                    assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                }
            }
        }
    }
}

#[test]
fn importance_is_used_ignored_or_required_as_stated() {
    let values = input("heavy", COLS);
    let importance = floats(IMPORTANCE);
    for dtype in StoredType::writable() {
        let row = &values[..COLS];
        let mut with = vec![0; dtype.row_bytes(COLS).unwrap()];
        let mut without = with.clone();
        encode_row(dtype, row, Some(&importance), &mut with);
        let plain = std::panic::catch_unwind(move || {
            encode_row(dtype, row, None, &mut without);
            without
        });
        let found = match plain {
            Err(_) => ImportanceUse::Required,
            Ok(without) if without == with => ImportanceUse::Ignored,
            Ok(_) => ImportanceUse::Optional,
        };
        assert_eq!(found, importance_use(dtype), "{}", dtype.name());
    }
}

#[test]
fn rows_in_parallel_are_the_rows_one_by_one() {
    let importance = floats(IMPORTANCE);
    let values: Vec<f32> = NAMES.iter().flat_map(|name| input(name, COLS)).collect();
    for dtype in [StoredType::Q4_K, StoredType::Q5_0, StoredType::F16] {
        let row_bytes = dtype.row_bytes(COLS).unwrap();
        let mut together = vec![0; values.len() / COLS * row_bytes];
        encode_rows(dtype, &values, COLS, Some(&importance), &mut together);
        for (row, bytes) in values.chunks_exact(COLS).zip(together.chunks_exact(row_bytes)) {
            let mut alone = vec![0; row_bytes];
            encode_row(dtype, row, Some(&importance), &mut alone);
            assert!(alone == bytes, "{}", dtype.name());
        }
    }
    encode_rows(StoredType::Q4_K, &[], COLS, None, &mut []);
    encode_rows(StoredType::F32, &[], 0, None, &mut []);
}
