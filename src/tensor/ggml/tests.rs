//! Against ggml's encoders and the decoders of the `gguf` package (tests/fixtures/ggml).

#![expect(clippy::float_cmp, reason = "the claim is that values are equal")]

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

const INPUTS: &[u8] = include_bytes!("../../../tests/fixtures/ggml/inputs.bin");
const BLOCKS: &[u8] = include_bytes!("../../../tests/fixtures/ggml/blocks.bin");
const MANIFEST: &str = include_str!("../../../tests/fixtures/ggml/manifest.json");
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

fn manifest() -> Value {
    serde_json::from_str(MANIFEST).unwrap()
}

fn input(manifest: &Value, name: &str) -> Vec<f32> {
    let index = manifest["inputs"].as_array().unwrap().iter().position(|n| n == name).unwrap();
    let bytes = &INPUTS[index * ROWS * COLS * 4..][..ROWS * COLS * 4];
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn encode_rows(dtype: StoredType, values: &[f32]) -> Vec<u8> {
    let row_bytes = dtype.row_bytes(COLS).unwrap();
    let mut bytes = vec![0xaa; ROWS * row_bytes];
    for (row, out) in values.chunks_exact(COLS).zip(bytes.chunks_exact_mut(row_bytes)) {
        encode(dtype, row, out);
    }
    bytes
}

#[test]
fn encoders_write_the_bytes_of_ggml() {
    let manifest = manifest();
    let mut compared = 0;
    for entry in manifest["entries"].as_array().unwrap() {
        let dtype = StoredType::from_name(entry["type"].as_str().unwrap()).unwrap();
        if !can_encode(dtype) {
            continue;
        }
        let name = entry["input"].as_str().unwrap();
        let bytes = encode_rows(dtype, &input(&manifest, name));
        if let Some(at) = entry["offset"].as_u64() {
            let expected = &BLOCKS[at as usize..][..bytes.len()];
            let first = bytes.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(first, None, "{name} {}: first differing byte", dtype.name());
        }
        assert_eq!(
            sha256(&bytes),
            entry["encoded_sha256"].as_str().unwrap(),
            "{name} {}",
            dtype.name()
        );
        compared += 1;
    }
    assert_eq!(compared, 77, "seven types for eleven inputs");
}

#[test]
fn decoders_give_the_values_of_the_gguf_package() {
    let manifest = manifest();
    let mut compared = 0;
    for entry in manifest["entries"].as_array().unwrap() {
        let Some(at) = entry["offset"].as_u64() else { continue };
        let dtype = StoredType::from_name(entry["type"].as_str().unwrap()).unwrap();
        let bytes = &BLOCKS[at as usize..][..entry["bytes"].as_u64().unwrap() as usize];
        let mut values = vec![f32::NAN; ROWS * COLS];
        decode(dtype, bytes, &mut values);
        for (value, expected) in values.iter().zip(entry["decoded_start"].as_array().unwrap()) {
            assert_eq!(*value, expected.as_f64().unwrap() as f32, "{}", dtype.name());
        }
        assert_eq!(
            sha256(&le_bytes(&values)),
            entry["decoded_sha256"].as_str().unwrap(),
            "{} of {}",
            dtype.name(),
            entry["input"]
        );
        compared += 1;
    }
    assert_eq!(compared, 40, "ten types for four inputs");
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

/// The vector build must not change a bit; NaN and infinities must not panic.
#[test]
fn vector_build_gives_the_bits_of_the_portable_one() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for dtype in StoredType::ALL.into_iter().filter(|dtype| can_decode(*dtype)) {
        let bytes: Vec<u8> =
            (0..dtype.row_bytes(2048).unwrap()).map(|_| (next() >> 32) as u8).collect();
        let (mut fast, mut portable) = (vec![0.0f32; 2048], vec![0.0f32; 2048]);
        decode(dtype, &bytes, &mut fast);
        decode_portable(dtype, &bytes, &mut portable);
        for (i, (a, b)) in fast.iter().zip(&portable).enumerate() {
            assert!(
                a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                "{} value {i}: {a} {b}",
                dtype.name()
            );
        }
        if can_encode(dtype) {
            let mut values: Vec<f32> =
                (0..2048).map(|_| (next() as i32) as f32 / 2.0f32.powi(31)).collect();
            (values[3], values[300], values[700]) = (f32::NAN, f32::INFINITY, 1e38);
            let (mut fast, mut portable) = (bytes.clone(), bytes.clone());
            encode(dtype, &values, &mut fast);
            encode_portable(dtype, &values, &mut portable);
            assert_eq!(fast, portable, "{}", dtype.name());
        }
    }
}
