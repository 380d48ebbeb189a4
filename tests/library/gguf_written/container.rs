//! Layout and writer, against files that are put together byte by byte.

use std::path::Path;

use indexmap::IndexMap;
use llm_quantize::Error;
use llm_quantize::codec::StoredType;
use llm_quantize::files::gguf::{
    Array, FileLayout, GgufFile, GgufWriter, PlannedTensor, Value, WrittenFile,
};
use llm_quantize::job::gguf::{SourceOptions, open};
use sha2::{Digest, Sha256};

use crate::gguf_bytes::GgufBytes;

fn planned(name: &str, shape: &[usize], kind: StoredType) -> PlannedTensor {
    PlannedTensor { name: name.to_owned(), shape: shape.to_vec(), kind }
}

/// One value of every type; tensors of all ranks, one that needs padding.
fn sample() -> (IndexMap<String, Value>, Vec<PlannedTensor>, Vec<Vec<u8>>, GgufBytes) {
    let mut by_hand = GgufBytes::new();
    by_hand.text("general.architecture", "tést");
    by_hand.raw("a.u8", 0, vec![7]);
    by_hand.raw("a.i8", 1, vec![0xf9]);
    by_hand.raw("a.u16", 2, vec![0x34, 0x12]);
    by_hand.raw("a.i16", 3, vec![0xff, 0xff]);
    by_hand.u32("a.u32", 70_000);
    by_hand.raw("a.i32", 5, vec![0xfe, 0xff, 0xff, 0xff]);
    by_hand.f32("a.f32", 0.1);
    by_hand.flag("a.bool", true);
    by_hand.raw("a.u64", 10, 1u64.rotate_right(1).to_le_bytes().to_vec());
    by_hand.raw("a.i64", 11, vec![0xff; 8]);
    by_hand.raw("a.f64", 12, 0.1f64.to_le_bytes().to_vec());
    by_hand.texts("a.texts", &["", "zwei", "drei 3"]);
    by_hand.f32s("a.f32s", &[1.5, -0.0]);
    by_hand.i32s("a.i32s", &[-1, 2, 3]);
    by_hand.raw("a.u32s", 9, [4u32, 2, 0, 5, 6].map(u32::to_le_bytes)[..1].concat());
    if let Some((_, _, bytes)) = by_hand.values.last_mut() {
        bytes.extend(2u64.to_le_bytes());
        bytes.extend([5u32, 6].map(u32::to_le_bytes).concat());
    }
    by_hand.raw("a.bools", 9, [&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 0]].concat());
    let metadata: IndexMap<String, Value> = [
        ("general.architecture", Value::from("tést")),
        ("a.u8", Value::from(7u8)),
        ("a.i8", Value::from(-7i8)),
        ("a.u16", Value::from(0x1234u16)),
        ("a.i16", Value::from(-1i16)),
        ("a.u32", Value::from(70_000u32)),
        ("a.i32", Value::from(-2i32)),
        ("a.f32", Value::from(0.1f32)),
        ("a.bool", Value::from(true)),
        ("a.u64", Value::from(1u64 << 63)),
        ("a.i64", Value::from(-1i64)),
        ("a.f64", Value::from(0.1f64)),
        ("a.texts", Array::of_strings(["", "zwei", "drei 3"]).into()),
        ("a.f32s", Array::of_f32(&[1.5, -0.0]).into()),
        ("a.i32s", Array::of_i32(&[-1, 2, 3]).into()),
        ("a.u32s", Array::of_u32(&[5, 6]).into()),
        ("a.bools", Array::of_bool(&[true, false]).into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();

    let tensors = vec![
        planned("vector.weight", &[3], StoredType::F32),
        planned("matrix.weight", &[5, 32], StoredType::Q4_0),
        planned("blk.0.ffn_up_exps.weight", &[2, 3, 64], StoredType::F16),
        planned("one_in_front.weight", &[1, 1, 7, 2], StoredType::BF16),
    ];
    let lengths = [12, 90, 768, 28];
    let data: Vec<Vec<u8>> =
        lengths.iter().map(|&n| (0..n).map(|i| (i * 7 + n) as u8).collect()).collect();
    // Dimensions innermost first; ids of ggml.
    by_hand.tensor("vector.weight", &[3], 0, data[0].clone());
    by_hand.tensor("matrix.weight", &[32, 5], 2, data[1].clone());
    by_hand.tensor("blk.0.ffn_up_exps.weight", &[64, 3, 2], 1, data[2].clone());
    by_hand.tensor("one_in_front.weight", &[2, 7], 30, data[3].clone());
    (metadata, tensors, data, by_hand)
}

fn write(target: &Path, layout: &FileLayout, data: &[Vec<u8>], piece: usize) -> Vec<WrittenFile> {
    let mut writer = GgufWriter::create(target, layout).unwrap();
    let all: Vec<u8> = data.concat();
    all.chunks(piece).for_each(|piece| writer.write(piece).unwrap());
    writer.finish().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[test]
fn files_have_the_bytes_of_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.gguf");
    for alignment in [32, 64] {
        let (mut metadata, tensors, data, mut by_hand) = sample();
        if alignment != 32 {
            metadata.insert("general.alignment".into(), Value::from(alignment as u32));
            by_hand.u32("general.alignment", alignment as u32);
            by_hand.alignment = alignment;
        }
        let expected = by_hand.bytes();
        let layout = FileLayout::new(&metadata, &tensors, None).unwrap();
        assert_eq!(layout.total_bytes(), expected.len() as u64);
        assert_eq!(layout.tensor_bytes(), [12, 90, 768, 28]);
        for piece in [1, 50, 10_000] {
            let written = write(&target, &layout, &data, piece);
            assert_eq!(written.len(), 1);
            assert_eq!(written[0].sha256, sha256(&expected));
            assert_eq!(
                (written[0].path.as_path(), written[0].bytes),
                (target.as_path(), expected.len() as u64)
            );
            assert!(std::fs::read(&target).unwrap() == expected, "alignment {alignment}");
            assert_eq!(names(folder.path()), ["out.gguf"]);
        }
    }
}

#[test]
fn values_are_read_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.gguf");
    let (metadata, tensors, data, _) = sample();
    write(&target, &FileLayout::new(&metadata, &tensors, None).unwrap(), &data, 99);
    let file = GgufFile::open(&target).unwrap();
    assert_eq!(file.metadata.len(), metadata.len());
    for (key, value) in &metadata {
        assert_eq!(&file.metadata[key], value, "{key}");
    }
    let texts: Vec<&[u8]> = file.array("a.texts").unwrap().unwrap().strings().unwrap().collect();
    assert_eq!(texts, [&b""[..], b"zwei", b"drei 3"]);
    for (tensor, data) in tensors.iter().zip(&data) {
        assert_eq!(&*file.tensor(&tensor.name).unwrap().unwrap().bytes, data.as_slice());
    }
}

#[test]
fn nothing_appears_before_everything_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.gguf");
    let (metadata, tensors, data, _) = sample();
    let layout = FileLayout::new(&metadata, &tensors, None).unwrap();

    let mut writer = GgufWriter::create(&target, &layout).unwrap();
    writer.write(&data[0]).unwrap();
    writer.write(&data[1][..89]).unwrap();
    assert!(!target.exists());
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("matrix.weight lacks 1 "), "{error}");
    assert!(names(folder.path()).is_empty());

    let missing = folder.path().join("no/out.gguf");
    assert!(matches!(GgufWriter::create(&missing, &layout), Err(Error::Io { .. })));

    let mut writer = GgufWriter::create(&target, &layout).unwrap();
    writer.write(&data.concat()).unwrap();
    assert!(writer.write(&[0]).is_err());
    drop(writer);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_no_loader_takes_is_refused() {
    let (metadata, tensors, ..) = sample();
    let refused = |metadata: &IndexMap<String, Value>, tensors: &[PlannedTensor], words: &str| {
        let error = FileLayout::new(metadata, tensors, None).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let with = |tensor: PlannedTensor| [tensors.clone(), vec![tensor]].concat();
    refused(&metadata, &with(planned("vector.weight", &[3], StoredType::F32)), "two tensors");
    refused(&metadata, &with(planned(&"x".repeat(64), &[3], StoredType::F32)), "64 bytes");
    refused(&metadata, &with(planned("x", &[2, 48], StoredType::Q8_0)), "does not fill blocks");
    refused(&metadata, &with(planned("x", &[2; 5], StoredType::F32)), "shape");
    refused(&metadata, &with(planned("x", &[], StoredType::F32)), "shape");
    for (key, value) in [
        ("general.alignment", Value::from(48u32)),
        ("general.alignment", Value::from(64u64)),
        ("split.no", Value::from(0u16)),
    ] {
        let mut metadata = metadata.clone();
        metadata.insert(key.into(), value);
        refused(&metadata, &tensors, key);
    }
}

#[test]
fn split_files_hold_the_same_tensors_and_come_back_as_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    let mut metadata = IndexMap::new();
    metadata.insert("general.architecture".to_owned(), Value::from("test"));
    metadata.insert("test.block_count".to_owned(), Value::from(5u32));
    metadata.insert("test.attention.head_count".to_owned(), Array::of_u32(&[8, 4]).into());
    metadata.insert("test.attention.head_count_kv".to_owned(), Value::from(2u32));
    metadata.insert("general.file_type".to_owned(), Value::from(2u32));
    metadata.insert("tokenizer.ggml.tokens".to_owned(), Array::of_strings(["a"; 9]).into());
    let mut tensors = vec![planned("token_embd.weight", &[3, 32], StoredType::Q8_0)];
    tensors.extend(
        (0..5).map(|i| planned(&format!("blk.{i}.ffn_up.weight"), &[4 + i, 32], StoredType::F32)),
    );
    let data: Vec<Vec<u8>> = std::iter::once(vec![9; 102])
        .chain(
            (0..5usize).map(|i| (0..(4 + i) * 32).flat_map(|v| (v as f32).to_le_bytes()).collect()),
        )
        .collect();

    let most = 1500;
    let layout = FileLayout::new(&metadata, &tensors, Some(most)).unwrap();
    let count = layout.files().len();
    assert!(count > 2);
    let ranges: Vec<_> = layout.files().iter().flat_map(|file| file.tensors.clone()).collect();
    assert_eq!(ranges, (0..6).collect::<Vec<_>>());
    let written = write(&target, &layout, &data, 777);
    let expected: Vec<String> =
        (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.gguf")).collect();
    assert_eq!(names(folder.path()), expected);

    for (number, (file, written)) in layout.files().iter().zip(&written).enumerate() {
        let bytes = std::fs::read(&written.path).unwrap();
        assert!(bytes.len() as u64 <= most);
        assert_eq!((bytes.len() as u64, sha256(&bytes)), (file.bytes, written.sha256.clone()));
        let part = GgufFile::open(&written.path).unwrap();
        assert_eq!(part.metadata["split.no"], Value::from(number as u16));
        assert_eq!(part.metadata["split.count"], Value::from(count as u16));
        assert_eq!(part.metadata["split.tensors.count"], Value::from(6i32));
        assert_eq!(part.metadata.contains_key("tokenizer.ggml.tokens"), number == 0);
    }

    // Any part opens the whole; order and contents are those of one file.
    let model = open(&written[1].path, &SourceOptions::default()).unwrap();
    assert_eq!((model.name.as_str(), model.architecture.as_str()), ("model", "test"));
    assert_eq!((model.shape.layers, model.shape.heads, model.shape.kv_heads), (5, 8, 2));
    assert!(!model.metadata.keys().any(|key| key.starts_with("split.")));
    assert!(!model.metadata.contains_key("general.file_type"));
    assert_eq!(model.tensors.len(), 6);
    for (tensor, (plan, data)) in model.tensors.iter().zip(tensors.iter().zip(&data)) {
        assert_eq!((&tensor.name, &tensor.shape), (&plan.name, &plan.shape));
        assert_eq!(*tensor.raw_rows(0..tensor.rows()).unwrap(), data[..]);
    }
    let mut row = vec![0.0; 32];
    model.tensors[2].read_rows(4..5, &mut row).unwrap();
    assert_eq!(row[30..], [158.0, 159.0]);

    std::fs::remove_file(&written[count - 1].path).unwrap();
    let error = open(&written[0].path, &SourceOptions::default()).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { .. }));
    assert!(error.to_string().contains(&expected[count - 1]), "{error}");

    // A limit that nothing exceeds gives one ordinary file; one that a tensor exceeds is refused.
    let one = FileLayout::new(&metadata, &tensors, Some(layout.total_bytes())).unwrap();
    assert!(one.files().len() == 1 && one.files()[0].suffix.is_none());
    let error = FileLayout::new(&metadata, &tensors, Some(700)).unwrap_err();
    assert!(error.to_string().contains("no file of at most 700 bytes"), "{error}");
}

#[test]
fn metadata_can_be_set_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.gguf");
    let mut file = GgufBytes::new();
    file.text("general.architecture", "other");
    file.u32("other.context_length", 10);
    file.text("tokenizer.ggml.pre", "default");
    file.tensor("blk.0.x.weight", &[2], 0, vec![0; 8]);
    file.tensor("output.weight", &[2], 0, vec![1; 8]);
    std::fs::write(&path, file.bytes()).unwrap();
    let options = SourceOptions {
        pre: Some("qwen2".to_owned()),
        override_kv: vec![
            ("other.context_length".to_owned(), Value::from(20u32)),
            ("new".to_owned(), Value::from(true)),
        ],
        ..SourceOptions::default()
    };
    let model = open(&path, &options).unwrap();
    let keys: Vec<&str> = model.metadata.keys().map(String::as_str).collect();
    assert_eq!(keys, ["general.architecture", "other.context_length", "tokenizer.ggml.pre", "new"]);
    assert_eq!(model.metadata["other.context_length"], Value::from(20u32));
    assert_eq!(model.metadata["tokenizer.ggml.pre"], Value::from("qwen2"));
    assert_eq!(model.warnings.len(), 1, "{:?}", model.warnings);
    let order: Vec<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(order, ["output.weight", "blk.0.x.weight"]);
    assert_eq!((model.source_dtype.as_str(), model.source_bytes), ("F32", 16));
}
