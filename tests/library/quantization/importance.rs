//! Importance matrix files written out byte by byte.

use std::path::{Path, PathBuf};

use llm_quantize::files::imatrix::ImportanceMatrix;

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A GGUF file with `general.type`, the metadata of an importance matrix and f32 tensors.
fn gguf(kind: &str, tensors: &[(&str, &[u64], Vec<f32>)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(3u64.to_le_bytes());
    text("general.type", &mut out);
    out.extend(8u32.to_le_bytes());
    text(kind, &mut out);
    text("imatrix.datasets", &mut out);
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text("wiki.txt", &mut out);
    text("code.txt", &mut out);
    text("imatrix.chunk_count", &mut out);
    out.extend(4u32.to_le_bytes());
    out.extend(37u32.to_le_bytes());
    let mut offset = 0u64;
    for (name, dimensions, values) in tensors {
        text(name, &mut out);
        out.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (values.len() as u64 * 4).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (_, _, values) in tensors {
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        out.resize(out.len().next_multiple_of(32), 0);
    }
    out
}

/// A `.dat` file: entries of name, calls and values, with or without its end of 2024.
fn dat(entries: &[(&str, i32, Vec<f32>)], end: Option<(i32, &str)>) -> Vec<u8> {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(calls.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }
    if let Some((chunks, dataset)) = end {
        out.extend(chunks.to_le_bytes());
        out.extend((dataset.len() as i32).to_le_bytes());
        out.extend(dataset.as_bytes());
    }
    out
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn gguf_sums_are_divided_by_counts() {
    let folder = tempfile::tempdir().unwrap();
    // Three experts of four columns; the second saw nothing.
    let bytes = gguf(
        "imatrix",
        &[
            ("blk.0.attn_q.weight.counts", &[1, 1], vec![4.0]),
            ("blk.0.attn_q.weight.in_sum2", &[4, 1], vec![4.0, 8.0, 0.0, 1.0]),
            ("blk.0.ffn_up_exps.weight.counts", &[1, 3], vec![2.0, 0.0, 8.0]),
            ("blk.0.ffn_up_exps.weight.in_sum2", &[4, 3], (0..12).map(|v| v as f32).collect()),
        ],
    );
    // The extension says nothing.
    let matrix = ImportanceMatrix::open(&put(folder.path(), "old.dat", &bytes)).unwrap();
    assert_eq!(matrix.datasets, ["wiki.txt", "code.txt"]);
    assert_eq!(matrix.chunks, 37);
    assert_eq!(matrix.entries.len(), 2);
    let q = matrix.columns("blk.0.attn_q.weight", 1, 4).unwrap().unwrap();
    assert_eq!(q, [1.0, 2.0, 0.0, 0.25]);
    let experts = matrix.columns("blk.0.ffn_up_exps.weight", 3, 4).unwrap().unwrap();
    assert_eq!(experts, [0.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.125, 1.25, 1.375]);
    assert_eq!(matrix.columns("blk.0.ffn_down.weight", 1, 4).unwrap(), None);
    for (matrices, columns) in [(1, 4), (3, 5)] {
        let error = matrix.columns("blk.0.ffn_up_exps.weight", matrices, columns).unwrap_err();
        assert_eq!(error.exit_code(), 10);
        assert!(error.to_string().contains("12 values"), "{error}");
    }
}

#[test]
fn dat_values_are_divided_by_calls() {
    let folder = tempfile::tempdir().unwrap();
    let entries =
        [("blk.0.attn_q.weight", 4, vec![4.0, 8.0]), ("blk.1.attn_q.weight", 0, vec![3.0, 5.0])];
    let whole = dat(&entries, Some((12, "wiki.train.raw")));
    let matrix = ImportanceMatrix::open(&put(folder.path(), "m.gguf", &whole)).unwrap();
    assert_eq!(matrix.columns("blk.0.attn_q.weight", 1, 2).unwrap().unwrap(), [1.0, 2.0]);
    assert_eq!(matrix.columns("blk.1.attn_q.weight", 1, 2).unwrap().unwrap(), [3.0, 5.0]);
    assert_eq!((matrix.chunks, matrix.datasets), (12, vec!["wiki.train.raw".to_owned()]));
    let old = ImportanceMatrix::open(&put(folder.path(), "old", &dat(&entries, None))).unwrap();
    assert_eq!(old.entries, matrix.entries);
    assert_eq!((old.chunks, old.datasets.len()), (0, 0));

    // Cut anywhere but at the end of the entries it is damaged.
    let entries_end = dat(&entries, None).len();
    let chunks_end = entries_end + 4;
    for length in (0..whole.len()).filter(|&n| n != entries_end && n != chunks_end) {
        let path = put(folder.path(), "cut", &whole[..length]);
        let error = ImportanceMatrix::open(&path).unwrap_err();
        assert_eq!(error.exit_code(), 10, "{length}: {error}");
    }
}

#[test]
fn what_is_no_importance_matrix_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |name: &str, bytes: &[u8], words: &str| {
        let error = ImportanceMatrix::open(&put(folder.path(), name, bytes)).unwrap_err();
        assert_eq!(error.exit_code(), 10, "{name}");
        assert_eq!(error.type_name(), "ImportanceMatrixError");
        assert!(error.to_string().contains(words), "{name}: {error}");
    };
    let counts = || vec![1.0];
    refuse("model", &gguf("model", &[]), "type model");
    refuse("empty", &gguf("imatrix", &[]), "no entries");
    refuse("nan", &dat(&[("a", 1, vec![1.0, f32::NAN])], None), "NaN at column 1");
    refuse("inf", &dat(&[("a", 1, vec![f32::INFINITY])], None), "inf at column 0");
    refuse("negative", &dat(&[("a", 1, vec![-1.0])], None), "-1 at column 0");
    refuse("twice", &dat(&[("a", 1, vec![1.0]), ("a", 1, vec![1.0])], None), "twice");
    refuse("text", b"this is only some text, and no numbers at all", "no importance matrix");
    let alone: &[(&str, &[u64], Vec<f32>)] = &[("a.in_sum2", &[2, 1], vec![1.0, 2.0])];
    refuse("alone", &gguf("imatrix", alone), "a.counts is missing");
    let nan = gguf(
        "imatrix",
        &[("a.in_sum2", &[2, 1], vec![1.0, f32::NAN]), ("a.counts", &[1, 1], counts())],
    );
    refuse("nan.gguf", &nan, "NaN at column 1");
    let error = ImportanceMatrix::open(&folder.path().join("none")).unwrap_err();
    assert_eq!(error.exit_code(), 10, "{error}");
}
