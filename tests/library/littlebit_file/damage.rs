//! Damaged and hostile files: an error, never a panic, and never an allocation that a number in
//! the file asked for.

use llm_quantize::Error;
use llm_quantize::base::SharedBytes;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::files::littlebit::LittleBitFile;
use llm_quantize::weight::ScaleType;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::allocation::largest_during;
use super::samples::{Sample, sample, sample_with};

/// Reads all of a file, as `verify` does with one on disk.
fn read(bytes: Vec<u8>) -> Result<(), Error> {
    let file = LittleBitFile::from_bytes("bad.littlebit", SharedBytes::from_vec(bytes))?;
    file.verify_checksums(&NullProgress)?;
    file.model()?;
    file.info(true)?;
    Ok(())
}

/// Reads a file that must be refused as damaged, without a large allocation on the way.
fn refused(bytes: Vec<u8>, what: &str) -> String {
    let size = bytes.len();
    let (result, largest) = largest_during(|| read(bytes));
    assert!(largest <= 16 * size + (1 << 20), "{what}: {largest} bytes allocated at once");
    match result {
        Err(error @ Error::ValidationFailed { .. }) => {
            assert!(error.to_string().starts_with("bad.littlebit"), "{error}");
            error.to_string()
        }
        Err(error) => panic!("{what}: {error:?}"),
        Ok(()) => panic!("{what} was accepted"),
    }
}

fn index_of(bytes: &[u8]) -> (usize, Value) {
    let offset = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    (offset, serde_json::from_slice(&bytes[offset..]).unwrap())
}

/// The file with another index, announced correctly by the preamble.
fn with_index(bytes: &[u8], index: &[u8]) -> Vec<u8> {
    let (offset, _) = index_of(bytes);
    let mut bytes = bytes[..offset].to_vec();
    bytes.extend_from_slice(index);
    bytes[24..32].copy_from_slice(&(index.len() as u64).to_le_bytes());
    bytes[32..64].copy_from_slice(&Sha256::digest(index));
    bytes
}

/// The file with a section overwritten and its checksum and the index's put right.
fn with_section(bytes: &[u8], section: usize, at: usize, new: &[u8]) -> Vec<u8> {
    let (_, mut index) = index_of(bytes);
    let record = &mut index["sections"][section];
    let start = record["offset"].as_u64().unwrap() as usize;
    let length = record["length"].as_u64().unwrap() as usize;
    let mut bytes = bytes.to_vec();
    bytes[start + at..start + at + new.len()].copy_from_slice(new);
    let digest: String = format!("{:x}", Sha256::digest(&bytes[start..start + length]));
    record["sha256"] = json!(digest);
    with_index(&bytes, &serde_json::to_vec(&index).unwrap())
}

#[test]
fn rewriting_the_index_is_harmless_in_itself() {
    let bytes = sample(1).write();
    let (_, index) = index_of(&bytes);
    read(with_index(&bytes, &serde_json::to_vec(&index).unwrap())).unwrap();
    read(with_section(&bytes, 0, 0, b"{")).unwrap();
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = sample(1).write();
    let (offset, _) = index_of(&bytes);
    let lengths = (0..200)
        .chain((0..bytes.len()).step_by(97))
        .chain(offset - 70..offset + 70)
        .chain(bytes.len() - 70..bytes.len());
    for length in lengths {
        refused(bytes[..length].to_vec(), &format!("{length} bytes"));
    }
    let mut longer = bytes;
    longer.push(0);
    refused(longer, "one byte more");
}

#[test]
fn every_flipped_bit_of_preamble_and_index_is_noticed_on_opening() {
    let bytes = sample(1).write();
    let (offset, _) = index_of(&bytes);
    for at in (0..64).chain(offset..bytes.len()) {
        // All bits of the preamble, one of each byte of the index.
        for bit in if at < 64 { 0..8 } else { at % 8..at % 8 + 1 } {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let opened = LittleBitFile::from_bytes("x", SharedBytes::from_vec(bytes));
            assert!(opened.is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_flipped_byte_elsewhere_is_noticed_on_verifying() {
    let bytes = sample(1).write();
    let (offset, _) = index_of(&bytes);
    for at in (64..offset).step_by(7).chain(64..320) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(bytes, &format!("byte {at}"));
    }
}

#[test]
fn a_file_of_another_version_is_named() {
    let mut bytes = sample(1).write();
    bytes[8] = 2;
    assert!(refused(bytes.clone(), "version 2").contains("version 2"));
    bytes[8] = 1;
    bytes[12] = 4;
    assert!(refused(bytes, "a flag").contains("flags"));
    // The flag of logarithmic scales is there exactly if they are.
    for (log8, other) in [(ScaleType::Log8, 0), (ScaleType::F16, 1)] {
        let mut bytes = sample_with(1, log8).write();
        assert_eq!(u32::from(bytes[12]), 1 - other);
        bytes[12] = u8::try_from(other).unwrap();
        assert!(refused(bytes, "the other flag").contains("flags"));
    }
}

#[test]
fn hostile_preambles() {
    let bytes = sample(1).write();
    for (offset, length) in [
        (u64::MAX - 63, 64),
        (!63, u64::MAX),
        (0, bytes.len() as u64),
        (64, u64::MAX),
        (64, bytes.len() as u64 - 64),
        (bytes.len() as u64 & !63, 0),
        (1 << 40, 1 << 20),
    ] {
        let mut bytes = bytes.clone();
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        refused(bytes, &format!("index at {offset}, {length} bytes"));
    }
}

/// Positions in the sample: tensor 2 is factorized with one path, 3 with two, 0 and 1 are stored.
#[test]
fn hostile_indices() {
    let bytes = sample(1).write();
    let (offset, index) = index_of(&bytes);
    assert_eq!(index["tensors"][2]["paths"].as_array().unwrap().len(), 1);
    let huge = json!(u64::MAX);
    let edits: Vec<(&str, Vec<&str>, Value)> = vec![
        ("another format", vec!["/format"], json!("other")),
        ("another version inside", vec!["/format_version"], json!(2)),
        ("no tensors key", vec!["/tensors"], Value::Null),
        ("wrong average", vec!["/achieved_bpw"], json!(0.1)),
        ("overflowing offset", vec!["/sections/3/offset"], huge.clone()),
        ("overflowing length", vec!["/sections/3/length"], huge.clone()),
        ("negative offset", vec!["/sections/3/offset"], json!(-64)),
        ("fractional offset", vec!["/sections/3/offset"], json!(64.5)),
        ("offset as text", vec!["/sections/3/offset"], json!("64")),
        (
            "overlapping sections",
            vec!["/sections/3/offset"],
            index["sections"][2]["offset"].clone(),
        ),
        ("an empty section", vec!["/sections/3/length"], json!(0)),
        ("a section over the index", vec!["/sections/3/length"], json!(offset)),
        ("short checksum", vec!["/sections/3/sha256"], json!("00")),
        ("checksum of other digits", vec!["/sections/3/sha256"], json!("G".repeat(64))),
        ("upper-case checksum", vec!["/sections/3/sha256"], json!("A".repeat(64))),
        ("unknown element type", vec!["/tensors/0/dtype"], json!("q9_9")),
        ("wrong element type", vec!["/tensors/0/dtype"], json!("f32")),
        ("huge stored shape", vec!["/tensors/0/shape"], json!([u64::MAX, u64::MAX])),
        ("large stored shape", vec!["/tensors/0/shape"], json!([1u64 << 40, 64])),
        ("nine dimensions", vec!["/tensors/0/shape"], json!([48, 64, 1, 1, 1, 1, 1, 1, 1])),
        ("no dimension", vec!["/tensors/0/shape"], json!([])),
        ("empty dimension", vec!["/tensors/0/shape"], json!([0, 64])),
        ("negative dimension", vec!["/tensors/0/shape"], json!([-48, 64])),
        ("section out of range", vec!["/tensors/0/section"], json!(1_000_000)),
        ("section near overflow", vec!["/tensors/0/section"], huge.clone()),
        (
            "a section used twice",
            vec!["/tensors/0/section"],
            index["tensors"][1]["section"].clone(),
        ),
        ("stored without section", vec!["/tensors/0/section"], Value::Null),
        ("stored called factorized", vec!["/tensors/0/kind"], json!("factorized")),
        ("factorized called stored", vec!["/tensors/2/kind"], json!("stored")),
        ("unknown kind", vec!["/tensors/0/kind"], json!("sparse")),
        ("duplicate name", vec!["/tensors/1/name"], index["tensors"][0]["name"].clone()),
        ("other factorized shape", vec!["/tensors/2/shape"], json!([63, 64])),
        ("three dimensions in factors", vec!["/tensors/2/shape"], json!([8, 8, 64])),
        ("huge factorized shape", vec!["/tensors/2/shape"], json!([1u64 << 62, 1u64 << 62])),
        ("no paths", vec!["/tensors/2/paths"], json!([])),
        ("rank 0", vec!["/tensors/2/paths/0/rank"], json!(0)),
        ("another rank", vec!["/tensors/2/paths/0/rank"], json!(25)),
        ("rank above both sides", vec!["/tensors/2/paths/0/rank"], json!(65)),
        ("huge rank", vec!["/tensors/2/paths/0/rank"], huge.clone()),
        (
            "left as right",
            vec!["/tensors/2/paths/0/left"],
            index["tensors"][2]["paths"][0]["right"].clone(),
        ),
        ("an unknown scale type", vec!["/tensors/6/paths/0/scale_type"], json!("log9")),
        ("another scale type", vec!["/tensors/6/paths/0/scale_type"], json!("f16")),
        ("no row scale", vec!["/tensors/2/paths/0/row_scale"], Value::Null),
        ("negative error", vec!["/tensors/2/relative_error"], json!(-0.5)),
        ("no config", vec!["/files/0/name"], json!("other.json")),
        ("two configs", vec!["/files/1/name"], json!("config.json")),
        ("a nested setting", vec!["/about/settings/seed"], json!([[[[1]]]])),
        ("no target", vec!["/about/target_bpw"], Value::Null),
    ];
    for (what, pointers, value) in edits {
        let mut index = index.clone();
        for pointer in pointers {
            *index.pointer_mut(pointer).expect(what) = value.clone();
        }
        refused(with_index(&bytes, &serde_json::to_vec(&index).unwrap()), what);
    }

    let mut fewer = index.clone();
    fewer["tensors"].as_array_mut().unwrap().pop();
    refused(with_index(&bytes, &serde_json::to_vec(&fewer).unwrap()), "a section of nobody");
    let mut third = index.clone();
    let path = third["tensors"][2]["paths"][0].clone();
    third["tensors"][3]["paths"].as_array_mut().unwrap().push(path);
    refused(with_index(&bytes, &serde_json::to_vec(&third).unwrap()), "three paths");
}

#[test]
fn indices_that_are_not_documents() {
    let bytes = sample(1).write();
    let (_, index) = index_of(&bytes);
    let text = serde_json::to_string(&index).unwrap();
    for (what, index) in [
        ("nothing", String::new()),
        ("a number", "1".into()),
        ("an array", "[]".into()),
        ("deep nesting", "[".repeat(1 << 20)),
        ("deep nesting of objects", "{\"a\":".repeat(1 << 18)),
        ("deep nesting in a known field", format!("{{\"about\":{}", "[".repeat(1 << 20))),
        ("a truncated document", text[..text.len() / 2].into()),
        ("two documents", format!("{text}{text}")),
        ("a key twice", text.replacen('{', "{\"format\":\"littlebit\",", 1)),
        ("an infinite number", text.replace("0.55", "1e999")),
        ("NaN", text.replace("0.55", "NaN")),
    ] {
        refused(with_index(&bytes, index.as_bytes()), what);
    }
    refused(with_index(&bytes, b"{\"format\":\"\xff\"}"), "not UTF-8");
}

#[test]
fn later_versions_may_add_keys() {
    let bytes = sample(1).write();
    let (_, mut index) = index_of(&bytes);
    index["comment"] = json!({"anything": [1, 2, {"deep": null}]});
    index["tensors"][0]["note"] = json!("x");
    read(with_index(&bytes, &serde_json::to_vec(&index).unwrap())).unwrap();
}

#[test]
fn values_that_checksums_cannot_catch() {
    let bytes = sample(1).write();
    let (_, index) = index_of(&bytes);
    let path = |tensor: usize, field: &str| {
        index["tensors"][tensor]["paths"][0][field].as_u64().unwrap() as usize
    };
    for (what, value) in [("NaN", 0x7e00u16), ("infinity", 0x7c00), ("minus infinity", 0xfc00)] {
        let bytes = with_section(&bytes, path(2, "row_scale"), 6, &value.to_le_bytes());
        let message = refused(bytes, what);
        assert!(
            message.contains("self_attn.q_proj") && message.contains("row scale 3"),
            "{message}"
        );
    }
    // gate_proj, the seventh tensor, has logarithmic scales: ends that are no ends.
    for (what, ends) in [
        ("a range from zero", [0x0000u16, 0x3c00]),
        ("a range backwards", [0x3c00, 0x3800]),
        ("a negative range", [0xbc00, 0x3c00]),
        ("an infinite range", [0x3c00, 0x7c00]),
        ("a range of NaN", [0x7e00, 0x7e00]),
    ] {
        let ends: Vec<u8> = ends.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = with_section(&bytes, path(6, "row_scale"), 0, &ends);
        let message = refused(bytes, what);
        assert!(
            message.contains("mlp.gate_proj") && message.contains("logarithmic scales"),
            "{message}"
        );
    }
    // v_proj has rank 11: the left factor's second byte column has five unused bits. It is the
    // fifth tensor: embedding, norm, q, k, v.
    let unused = with_section(&bytes, path(4, "left"), 32 + 7, &[0b0000_1000]);
    assert!(refused(unused, "a padding bit").contains("beyond its last column"));
    let text = with_section(&bytes, 1, 0, &[0xff]);
    assert!(refused(text, "text that is not UTF-8").contains("UTF-8"));
    let config = with_section(&bytes, 0, 0, b"[");
    assert!(refused(config, "a broken config").contains("config.json"));
}

#[test]
fn tensors_must_be_those_of_the_configuration() {
    let opened = |sample: &Sample| {
        let bytes = SharedBytes::from_vec(sample.write());
        LittleBitFile::from_bytes("m.littlebit", bytes).unwrap().model().map_err(|e| e.to_string())
    };
    let mut fewer = sample(1);
    fewer.tensors.shift_remove("model.layers.1.mlp.up_proj.weight").unwrap();
    fewer.description.tensors.retain(|plan| plan.name != "model.layers.1.mlp.up_proj.weight");
    let message = opened(&fewer).unwrap_err();
    assert!(message.contains("model.layers.1.mlp.up_proj.weight"), "{message}");

    let mut wider = sample(1);
    let config = &mut wider.description.files[0].text;
    *config = config.replace("\"intermediate_size\": 77", "\"intermediate_size\": 78");
    let message = opened(&wider).unwrap_err();
    assert!(message.contains("[77, 64]") && message.contains("[78, 64]"), "{message}");
}

/// A way to damage an index: at some place, some value.
fn hostile_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<u64>().prop_map(|n| json!(n)),
        (0u64..200).prop_map(|n| json!(n)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        "[a-z0-9_.]{0,8}".prop_map(|s| json!(s)),
        Just(json!([])),
        Just(json!({})),
        prop::collection::vec(any::<u64>(), 0..4).prop_map(|n| json!(n)),
    ]
}

/// All places of a document.
fn places(value: &Value, at: String, into: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                places(item, format!("{at}/{i}"), into);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                places(field, format!("{at}/{key}"), into);
            }
        }
        _ => {}
    }
    into.push(at);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Random edits of the index: accepted or refused, but no panic and no large allocation.
    #[test]
    fn random_indices(edits in prop::collection::vec((any::<prop::sample::Index>(), hostile_value()), 1..4)) {
        let bytes = SAMPLE.with(Clone::clone);
        let (_, mut index) = index_of(&bytes);
        for (place, value) in edits {
            let mut all = Vec::new();
            places(&index, String::new(), &mut all);
            *index.pointer_mut(&all[place.index(all.len())]).unwrap() = value;
        }
        let bytes = with_index(&bytes, &serde_json::to_vec(&index).unwrap());
        let size = bytes.len();
        let (_, largest) = largest_during(|| read(bytes));
        prop_assert!(largest <= 16 * size + (1 << 20), "{} bytes allocated at once", largest);
    }

    /// Random bytes anywhere, with nothing put right: noticed.
    #[test]
    fn random_damage(at in any::<prop::sample::Index>(), new in prop::collection::vec(any::<u8>(), 1..9)) {
        let original = SAMPLE.with(Clone::clone);
        let mut bytes = original.clone();
        let at = at.index(bytes.len());
        let end = (at + new.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
        prop_assume!(bytes != original);
        prop_assert!(read(bytes).is_err());
    }
}

thread_local! {
    static SAMPLE: Vec<u8> = sample(1).write();
}
