//! The GGUF container: well-formed files, the ones that must be refused, hostile ones.

use std::path::Path;

use llm_quantize::base::SharedBytes;
use llm_quantize::codec::StoredType;
use llm_quantize::files::gguf::{GgufFile, Value};
use llm_quantize::{Error, Result};
use proptest::prelude::*;

use crate::gguf_bytes::GgufBytes;

fn parse(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::parse(SharedBytes::from_vec(bytes), Path::new("test.gguf"))
}

fn refused(bytes: Vec<u8>) -> String {
    match parse(bytes).expect_err("must be refused") {
        error @ Error::ValidationFailed { .. } => error.to_string(),
        other => panic!("another error: {other:?}"),
    }
}

/// One value of every type, two tensors.
fn sample() -> GgufBytes {
    let mut file = GgufBytes::new();
    file.text("general.architecture", "llama");
    file.raw("a.u8", 0, vec![200]);
    file.raw("a.i8", 1, vec![0xfe]);
    file.raw("a.u16", 2, vec![1, 2]);
    file.raw("a.i16", 3, vec![0xff, 0xff]);
    file.u32("a.u32", 70_000);
    file.raw("a.i32", 5, (-5i32).to_le_bytes().to_vec());
    file.f32("a.f32", 0.5);
    file.flag("a.bool", true);
    file.raw("a.u64", 10, (1u64 << 40).to_le_bytes().to_vec());
    file.raw("a.i64", 11, (-(1i64 << 40)).to_le_bytes().to_vec());
    file.raw("a.f64", 12, 0.25f64.to_le_bytes().to_vec());
    file.texts("a.texts", &["x", "", "äö"]);
    file.i32s("a.ints", &[1, -2, 3]);
    file.f32s("a.floats", &[0.5, -1.5]);
    file.tensor("second.weight", &[32, 2], 8, (0..68).collect());
    file.tensor("first.weight", &[3], 0, [1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat());
    file
}

#[test]
fn everything_is_read_in_order() {
    for (version, alignment) in [(3, None), (2, None), (3, Some(64u32)), (3, Some(8))] {
        let mut file = sample();
        file.version = version;
        if let Some(alignment) = alignment {
            file.u32("general.alignment", alignment);
            file.alignment = alignment as usize;
        }
        let read = parse(file.bytes()).unwrap();
        assert_eq!(read.version, version);
        assert_eq!(read.alignment, alignment.unwrap_or(32) as usize);
        let keys: Vec<&String> = read.metadata.keys().collect();
        let expected: Vec<&String> = file.values.iter().map(|(key, _, _)| key).collect();
        assert_eq!(keys, expected);
        assert_eq!(read.text("general.architecture").unwrap(), Some("llama"));
        assert_eq!(read.u32("a.u32").unwrap(), Some(70_000));
        assert!((read.f32("a.f32").unwrap().unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(read.flag("a.bool").unwrap(), Some(true));
        assert_eq!(read.u32("a.missing").unwrap(), None);
        for (key, expected) in [
            ("a.u8", "U8(200)"),
            ("a.i8", "I8(-2)"),
            ("a.u16", "U16(513)"),
            ("a.i16", "I16(-1)"),
            ("a.i32", "I32(-5)"),
            ("a.u64", "U64(1099511627776)"),
            ("a.i64", "I64(-1099511627776)"),
            ("a.f64", "F64(0.25)"),
        ] {
            assert_eq!(format!("{:?}", read.metadata[key]), expected);
        }
        let texts = read.array("a.texts").unwrap().unwrap();
        assert_eq!(
            texts.strings().unwrap().collect::<Vec<_>>(),
            [b"x".as_slice(), b"", "äö".as_bytes()]
        );
        assert!(texts.integers().is_none() && texts.floats().is_none());
        assert_eq!(read.array("a.ints").unwrap().unwrap().integers().unwrap(), [1, -2, 3]);
        assert_eq!(read.array("a.floats").unwrap().unwrap().floats().unwrap(), [0.5, -1.5]);

        assert_eq!(read.tensors.keys().collect::<Vec<_>>(), ["second.weight", "first.weight"]);
        assert_eq!(read.tensors["second.weight"].shape, [2, 32]);
        assert_eq!(read.tensors["second.weight"].kind.name(), "Q8_0");
        let tensor = read.tensor("second.weight").unwrap().unwrap();
        assert_eq!(&tensor.bytes[..], (0..68).collect::<Vec<u8>>());
        assert_eq!(read.tensor("first.weight").unwrap().unwrap().to_f32(), [1.0, 2.0, 3.0]);
        assert!(read.tensor("third.weight").unwrap().is_none());
    }
}

#[test]
fn a_value_of_another_type_is_named() {
    let read = parse(sample().bytes()).unwrap();
    for error in [
        read.u32("a.i32").unwrap_err(),
        read.u32("a.u64").unwrap_err(),
        read.f32("a.f64").unwrap_err(),
        read.flag("a.u8").unwrap_err(),
        read.text("a.texts").unwrap_err(),
        read.array("a.u32").unwrap_err(),
    ] {
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("a."), "{error}");
    }
}

#[test]
fn every_type_of_the_table_is_read() {
    for kind in StoredType::ALL {
        let mut file = GgufBytes::new();
        let (values, bytes) = kind.block();
        file.tensor("it", &[values as u64 * 2, 3], kind.id(), vec![0; bytes * 6]);
        let read = parse(file.bytes()).unwrap();
        assert_eq!(read.tensors["it"].range.len(), bytes * 6, "{}", kind.name());
        let tensor = read.tensor("it").unwrap().unwrap();
        assert_eq!(tensor.dtype, kind);
        assert_eq!(tensor.to_f32(), vec![0.0; values * 6]);
    }
}

#[test]
fn what_llama_cpp_refuses_is_refused() {
    let mut file = sample();
    file.u32("a.u8", 1);
    assert!(refused(file.bytes()).contains("a.u8"), "duplicate key");

    let mut file = sample();
    file.tensor("first.weight", &[1], 0, vec![0; 4]);
    assert!(refused(file.bytes()).contains("first.weight"), "duplicate tensor");

    let mut file = sample();
    file.tensor(&"n".repeat(64), &[1], 0, vec![0; 4]);
    assert!(refused(file.bytes()).contains("64 bytes"), "long name");
    let mut file = sample();
    file.tensor(&"n".repeat(63), &[1], 0, vec![0; 4]);
    assert!(parse(file.bytes()).is_ok(), "longest name");

    let mut file = sample();
    file.tensors[1].offset = Some(64);
    assert!(refused(file.bytes()).contains("offset 64"), "offset");

    let mut file = sample();
    file.tensor("five", &[1, 1, 1, 1, 1], 0, vec![0; 4]);
    assert!(refused(file.bytes()).contains("5 dimensions"));

    let mut file = sample();
    file.tensor("odd", &[33], 8, vec![0; 34]);
    assert!(refused(file.bytes()).contains("blocks of 32"));

    for kind in [4, 5, 15, 31, 36, 43, u32::MAX] {
        let mut file = sample();
        file.tensor("unknown", &[32], kind, vec![0; 34]);
        assert!(refused(file.bytes()).contains("unknown type"), "{kind}");
    }
    for dimensions in [
        vec![0],
        vec![u64::MAX],
        vec![1 << 63],
        vec![1 << 40, 1 << 40],
        vec![1 << 32, 1 << 31],
        vec![1 << 62, 1],
        vec![32, 1 << 50],
    ] {
        let mut file = sample();
        file.tensor("huge", &dimensions, 8, vec![0; 34]);
        assert!(refused(file.bytes()).contains("huge"), "{dimensions:?}");
    }
    for alignment in [0, 3, 48] {
        let mut file = sample();
        file.u32("general.alignment", alignment);
        assert!(refused(file.bytes()).contains("general.alignment"), "{alignment}");
    }
    let mut file = sample();
    file.u32("general.alignment", 1 << 31);
    assert!(refused(file.bytes()).contains("truncated"), "data beyond the end");
    let mut file = sample();
    file.raw("general.alignment", 10, 32u64.to_le_bytes().to_vec());
    assert!(refused(file.bytes()).contains("general.alignment"), "another type");

    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(1u64.to_le_bytes());
    nested.extend(4u32.to_le_bytes());
    nested.extend(0u64.to_le_bytes());
    let mut file = sample();
    file.raw("nested", 9, nested);
    assert!(refused(file.bytes()).contains("array of arrays"));
    let mut file = sample();
    file.raw("odd", 13, vec![0; 8]);
    assert!(refused(file.bytes()).contains("value type 13"));
}

#[test]
fn other_files_versions_and_byte_orders_are_told_apart() {
    assert!(refused(b"GGML\0\0\0\0".to_vec()).contains("not a GGUF file"));
    assert!(refused(b"GG".to_vec()).contains("truncated"));
    for (version, word) in
        [(1u32, "version 1"), (4, "version 4"), (3u32.swap_bytes(), "big-endian")]
    {
        let mut file = sample();
        file.version = version;
        let error = parse(file.bytes()).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn every_prefix_is_an_error() {
    let bytes = sample().bytes();
    // The last 20 bytes are padding, without which the file is whole.
    for length in 0..bytes.len() - 20 {
        assert!(parse(bytes[..length].to_vec()).is_err(), "{length} bytes");
    }
    assert!(parse(bytes[..bytes.len() - 20].to_vec()).is_ok());
}

/// Lengths and counts that would need more memory than any machine has must fail at once.
#[test]
fn huge_counts_and_lengths_are_errors() {
    let bytes = sample().bytes();
    for field in (8..24).step_by(8) {
        for count in [u64::MAX, u64::MAX / 2, 1 << 40, 1 << 32, 1 << 20] {
            let mut bytes = bytes.clone();
            bytes[field..field + 8].copy_from_slice(&count.to_le_bytes());
            assert!(parse(bytes).is_err(), "{count} at {field}");
        }
    }
    for element in [0u32, 4, 8, 10] {
        for length in [u64::MAX, u64::MAX / 8 + 1, 1 << 60, 1 << 40, 1 << 33] {
            let mut value = element.to_le_bytes().to_vec();
            value.extend(length.to_le_bytes());
            let mut file = sample();
            file.raw("long", 9, value);
            assert!(refused(file.bytes()).contains("long"), "{length} of type {element}");
        }
    }
    for length in [u64::MAX, u64::MAX - 100, 1 << 62, 1 << 40] {
        let mut file = sample();
        file.raw("long", 8, length.to_le_bytes().to_vec());
        assert!(refused(file.bytes()).contains("long"), "text of {length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed, the reader returns, and what it accepts can be read to the end.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((0usize..2000, any::<u8>()), 1..8),
        cut in prop::option::of(0usize..2000),
    ) {
        let mut bytes = sample().bytes();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        if let Ok(file) = parse(bytes) {
            for name in file.tensors.keys() {
                if let Ok(Some(tensor)) = file.tensor(name) {
                    prop_assert_eq!(tensor.to_f32().len(), tensor.elements());
                }
            }
            for value in file.metadata.values() {
                if let Value::Array(array) = value {
                    let strings = array.strings().map(Iterator::count);
                    prop_assert!(strings.is_none_or(|count| count == array.len()));
                    let integers = array.integers().map(|list| list.len());
                    prop_assert!(integers.is_none_or(|count| count == array.len()));
                }
            }
        }
    }

    /// Files of random bytes behind a right header.
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        file.extend(bytes);
        let _ = parse(file);
    }
}
