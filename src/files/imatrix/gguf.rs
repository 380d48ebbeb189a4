//! The GGUF form: `NAME.in_sum2`, the sums of squares `[matrices, columns]`, and `NAME.counts`, how
//! many rows were summed `[matrices, 1]`. A matrix that saw none counts as all ones.

use std::path::Path;

use indexmap::IndexMap;

use super::sums::{ColumnSums, DEFAULT_CHUNK, ImportanceSums, Method};
use super::{Contents, Importance};
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::files::gguf::{Array, FileLayout, GgufFile, GgufWriter, PlannedTensor, Value};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// Keys of llama.cpp.
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// Our own keys, which llama.cpp passes over.
const METHOD: &str = "imatrix.method";
const DATA_HASH: &str = "imatrix.data_sha256";

pub(super) fn read(bytes: SharedBytes, path: &Path) -> Result<Contents, String> {
    let sums = read_sums(bytes, path)?;
    let entries = sums.entries.into_iter().map(|(name, entry)| {
        // Divided as llama.cpp divides, in f32.
        let columns = entry.columns().max(1);
        let matrices = entry.sums.chunks_exact(columns).zip(&entry.counts);
        let values = matrices.flat_map(|(sums, &count)| {
            // A NaN is no count either, and is found in the means.
            let unseen = count <= 0.0;
            sums.iter().map(move |&sum| if unseen { 1.0 } else { sum as f32 / count as f32 })
        });
        (name, Importance { values: values.collect() })
    });
    Ok(Contents { entries: entries.collect(), datasets: sums.datasets, chunks: sums.chunks })
}

/// Everything in a file.
pub(super) fn read_sums(bytes: SharedBytes, path: &Path) -> Result<ImportanceSums, String> {
    let file = GgufFile::parse(bytes, path).map_err(|error| error.to_string())?;
    let text = |key: &str| file.text(key).ok().flatten().map(str::to_owned);
    let kind = text("general.type").unwrap_or_else(|| "model".into());
    if kind != "imatrix" {
        return Err(format!("it is a GGUF file of type {kind}, no importance matrix"));
    }
    let mut sums = ImportanceSums::default();
    for name in file.tensors.keys() {
        let Some(tensor) = name.strip_suffix(SUMS) else { continue };
        let values_of = |name: &str| -> Result<Vec<f64>, String> {
            Ok(values(&file, name)?.into_iter().map(f64::from).collect())
        };
        let entry =
            ColumnSums { sums: values_of(name)?, counts: values_of(&format!("{tensor}{COUNTS}"))? };
        if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
            return Err(format!(
                "{tensor} has {} sums of {} counts",
                entry.sums.len(),
                entry.counts.len()
            ));
        }
        sums.entries.insert(tensor.to_owned(), entry);
    }
    if let Some(Value::Array(texts)) = file.metadata.get(DATASETS) {
        let texts = texts.strings().into_iter().flatten();
        sums.datasets = texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    }
    if let Some(name) = text(METHOD) {
        sums.method = Method::from_name(&name)
            .ok_or_else(|| format!("it was made by a method `{name}` that is not known here"))?;
    }
    let number = |key: &str| file.u32(key).ok().flatten();
    sums.data_sha256 = text(DATA_HASH);
    sums.chunks = number(CHUNKS).unwrap_or(0);
    sums.chunk_size = number(CHUNK_SIZE).filter(|size| *size > 0).unwrap_or(DEFAULT_CHUNK);
    Ok(sums)
}

/// Writes, reads back and renames.
pub(super) fn write(sums: &ImportanceSums, path: &Path) -> crate::Result<()> {
    let text = |text: &str| Value::String(text.into());
    let mut metadata = IndexMap::new();
    metadata.insert("general.type".to_owned(), text("imatrix"));
    metadata.insert(DATASETS.to_owned(), Value::Array(Array::of_strings(&sums.datasets)));
    metadata.insert(CHUNKS.to_owned(), Value::U32(sums.chunks));
    metadata.insert(CHUNK_SIZE.to_owned(), Value::U32(sums.chunk_size));
    metadata.insert(METHOD.to_owned(), text(sums.method.name()));
    if let Some(hash) = &sums.data_sha256 {
        metadata.insert(DATA_HASH.to_owned(), text(hash));
    }
    let tensors: Vec<PlannedTensor> = sums
        .entries
        .iter()
        .flat_map(|(name, entry)| {
            let matrices = entry.counts.len();
            [(SUMS, entry.columns()), (COUNTS, 1)].map(|(suffix, columns)| PlannedTensor {
                name: format!("{name}{suffix}"),
                shape: vec![matrices, columns],
                kind: StoredType::F32,
            })
        })
        .collect();
    let layout = FileLayout::new(&metadata, &tensors, None)?;
    let mut writer = GgufWriter::create(path, &layout)?;
    for entry in sums.entries.values() {
        for values in [&entry.sums, &entry.counts] {
            let bytes: Vec<u8> = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
            writer.write(&bytes)?;
        }
    }
    writer.finish_checked(|written| {
        let back = ImportanceSums::open(written)?;
        let same = back.entries.len() == sums.entries.len() && back.method == sums.method;
        if same {
            Ok(())
        } else {
            Err(crate::Error::damaged(path, "it does not read back as it was written"))
        }
    })?;
    Ok(())
}

fn values(file: &GgufFile, name: &str) -> Result<Vec<f32>, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    Ok(tensor.ok_or_else(|| format!("{name} is missing"))?.to_f32())
}
